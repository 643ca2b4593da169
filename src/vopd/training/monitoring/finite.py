"""A NaN or an infinity ends the run before the optimizer step is taken; the batch that caused it is saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vopd.errors import NonFiniteError

from ..batch import Batch

BATCH_FILE = "nonfinite_batch"
_SAVED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask")


class FiniteGuard:
    """Watches the losses of a step's micro-batches and the norm of its accumulated gradient.

    Nothing is read from the device until ``check``, which costs one synchronization and one collective.

    Args:
        accelerator: the trainer's accelerator.
        tokenizer: decodes the batch that failed.
        output_dir: folder where it is saved.
    """

    def __init__(self, accelerator: Any, tokenizer: Any, output_dir: str) -> None:
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.output_dir = Path(output_dir)
        self._losses: list[Tensor] = []

    def watch(self, loss: Tensor) -> None:
        """Remember the loss of the next micro-batch of this step."""
        self._losses.append(loss)

    def forget(self) -> None:
        """Drop the losses of a step that was not finished."""
        self._losses.clear()

    def check(self, grad_norm: Any, micro_batches: Sequence[Batch], step: int) -> None:
        """Raises NonFiniteError on every rank if a loss or the gradient of any rank is not finite.

        Args:
            grad_norm: norm of the whole gradient; None if the backend does not report it.
            micro_batches: micro-batches of this step, in order; those whose losses were remembered, if any were.
            step: number of the step that is not taken.
        """
        device = self.accelerator.device
        losses, self._losses = torch.stack(self._losses) if self._losses else torch.zeros(0, device=device), []
        bad_loss = ~torch.isfinite(losses)
        # With fp16 an occasional overflow is part of loss scaling, which skips such a step itself.
        told = grad_norm is not None and self.accelerator.mixed_precision != "fp16"
        bad_gradient = ~torch.isfinite(torch.as_tensor(grad_norm if told else 0.0, device=losses.device))
        flags = torch.stack([bad_loss.any(), bad_gradient]).to(torch.float32)
        anywhere = self.accelerator.reduce(flags, reduction="sum").tolist()
        if not any(anywhere):
            return
        what = "loss" if anywhere[0] else "gradient"
        chosen = bad_loss.tolist() if bad_loss.any() else [not anywhere[0]] * len(micro_batches)
        saved = self._save([batch for batch, bad in zip(micro_batches, chosen, strict=False) if bad], what, step)
        raise NonFiniteError(
            f"the {what} of step {step} is not finite; the step was not taken, {saved}; try a lower learning_rate or "
            "max_grad_norm, and resume from the last checkpoint"
        )

    def _save(self, batches: list[Batch], what: str, step: int) -> str:
        """Save this rank's micro-batches that failed; returns where, or why not."""
        if not batches:
            return "its batch is on another rank"
        rank = self.accelerator.process_index
        path = self.output_dir / (BATCH_FILE + (f".rank{rank}" if rank else "") + ".safetensors")
        try:
            write_batch(path, batches, self.tokenizer, {"step": step, "not_finite": what})
        except OSError as error:
            return f"and its batch could not be saved ({error})"
        return f"its batch is in {path}"


def write_batch(path: Path, batches: list[Batch], tokenizer: Any, facts: dict[str, Any]) -> None:
    """Write micro-batches of one generation as tensors to `path`, and `facts` and texts as JSON next to it."""
    from safetensors.torch import save_file

    names = [name for name in _SAVED if getattr(batches[0], name) is not None]
    tensors = {name: _padded([getattr(batch, name) for batch in batches], name) for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    texts = [
        {"prompt": tokenizer.decode(prompt), "completion": tokenizer.decode(completion)}
        for batch in batches
        for prompt, completion in batch.unpadded()
    ]
    path.with_suffix(".json").write_text(json.dumps({**facts, "texts": texts}, indent=1) + "\n", encoding="utf-8")


def _padded(parts: Sequence[Tensor], name: str) -> Tensor:
    """Rows of several micro-batches as one tensor, prompts padded on the left and completions on the right."""
    side = "left" if name.startswith("prompt") else "right"
    return pad_sequence([row.cpu() for part in parts for row in part], batch_first=True, padding_side=side)
