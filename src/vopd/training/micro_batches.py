"""The forward and backward passes of a step: its completions cut into micro-batches of like length."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from vopd.placement import Placement
from vopd.teachers.texts import Lengths, halved

from .batch import Batch


class MicroBatchTrainer(Trainer):
    """Trainer that gets the completions of an optimizer step at once and decides itself how to cut them.

    Rows of like length are in one micro-batch, which is cut to its own longest prompt and completion. Loss and gradient
    are sums over tokens with one normalizer, so they are the same however the rows are cut.

    Attributes:
        micro_batches: this process's micro-batches of the current step, in the order they are trained on.
    """

    args: Any
    placement: Placement
    micro_batches: list[Batch]
    pad_to_multiple_of: int | None
    _reading = 0  # of the data loader: transformers reads it gradient_accumulation_steps times in a step

    @abstractmethod
    def completions_of(self, rows: list[dict[str, Any]]) -> Batch:
        """Completions of the dataset's `rows`, with all that their loss needs."""

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> Any:
        """As transformers', from the start of a step: an earlier run may have ended in the middle of one."""
        self._reading = 0
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Loss of the micro-batches of one reading of the data loader, after their backward passes.

        Every reading has one micro-batch, or with a token budget several, or the first readings none.
        """
        model.train()
        readings = self.args.gradient_accumulation_steps
        place = self._reading % readings
        if place == 0:
            self.micro_batches = self._cut(self.completions_of(inputs), readings)
        self._reading += 1
        count = len(self.micro_batches)
        own = self.micro_batches[place * count // readings : (place + 1) * count // readings]
        loss = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(own, 1):
            with self.placement.accumulating(model, more=number < len(own)):
                loss += Trainer.training_step(self, model, batch.entries(), num_items_in_batch)
        return loss

    def prediction_step(self, model: nn.Module, inputs: Any, *given: Any, **named: Any) -> tuple[Tensor, None, None]:
        """Mean loss of the dataset's rows `inputs`, in micro-batches that are no larger than those of training."""
        parts = self._cut(self.completions_of(inputs), -(-len(inputs) // self.args.per_device_train_batch_size))
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = [self.compute_loss(model, batch.entries()) for batch in parts]
        return torch.stack(losses).mean().detach(), None, None

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # a micro-batch, on the device

    def _cut(self, batch: Batch, count: int) -> list[Batch]:
        lengths = batch.lengths()
        return batch.cut(self._groups(lengths, count), lengths, self.pad_to_multiple_of or 1)

    def _groups(self, lengths: Lengths, count: int) -> list[list[int]]:
        """Rows by micro-batch: `count` of equal size, or as many as the token budget needs.

        All processes have as many as the one that needs most, since their forward passes may need each other.
        """
        tokens = self.args.max_tokens_per_micro_batch
        if tokens is None:
            return lengths.equal(count)
        groups = lengths.within(tokens, self.pad_to_multiple_of or 1)
        needed = torch.tensor([len(groups)], device=self.accelerator.device)
        return halved(groups, int(self.accelerator.gather(needed).max()))
