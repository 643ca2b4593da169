"""Samples completions in batches; the same seed gives the same text."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vopd.errors import ConfigurationError, DataError, MismatchError, NonFiniteError, check_at_least, counted

from .decoding import generate
from .sampling import RolloutSettings, rollout_settings
from .undisturbed import evaluating, own_generation_config, random_state


@dataclass(frozen=True)
class Completion:
    """The completion of a prompt.

    Attributes:
        text: the completion, decoded without special tokens.
        ids: the sampled tokens, including the end token if there is one.
        truncated: whether the length limit was reached before an end token.
    """

    text: str
    ids: tuple[int, ...]
    truncated: bool


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    seed: int = 0,
    vocab_size: int | None = None,
) -> list[Completion]:
    """Sample one completion per prompt, in order; a prompt that is given several times gets several completions.

    Only the settings given here affect the distribution: the sampling defaults in the model's generation configuration
    (temperature, top-k, penalties) are ignored and restored afterwards. With temperature 1, top_p 1 and top_k 0,
    completions are sampled from the model's own distribution over the tokenizer's entries; padded head rows beyond them
    are never sampled. The model's training mode and torch's random state are restored.

    Batches depend only on the prompts and `batch_size`, and each batch has a seed computed from `seed` and its index.
    The same call therefore always returns the same completions.

    Args:
        model: a causal language model, with or without LoRA adapter.
        tokenizer: its tokenizer; prompts are padded on the left, whatever its setting.
        prompts: token ids; or texts, tokenized with the tokenizer's special tokens (such as BOS).
        temperature: the logits are divided by it; 0 takes the most likely token.
        top_p: sample from the smallest set of tokens with at least this probability; 1 is off.
        top_k: sample from the k most likely tokens; 0 is off.
        max_new_tokens: maximum length of a completion in tokens.
        batch_size: number of completions generated at the same time.
        seed: seed of this call.
        vocab_size: number of ids that a teacher shares: no others are sampled, nor may a prompt have them. Default: the
            tokenizer's.

    Returns:
        One completion per prompt, in order.

    Raises:
        ConfigurationError: a setting is out of range.
        DataError: a prompt is not text, is empty, or leaves too few positions for max_new_tokens.
        MismatchError: a prompt has a token that the model has no embedding of, or the teacher does not share.
    """
    if not 0 < top_p <= 1:
        raise ConfigurationError(f"top_p must be above 0 and at most 1, got {top_p}")
    check_at_least("temperature", temperature, 0)
    check_at_least("top_k", top_k, 0)
    check_at_least("max_new_tokens", max_new_tokens, 1)
    check_at_least("batch_size", batch_size, 1)
    prompt_ids = _tokenize(tokenizer, prompts, context_length(model), max_new_tokens)
    settings = rollout_settings(model, tokenizer)
    if vocab_size is not None:
        settings = replace(settings, vocab_size=vocab_size)
    _check_known(settings, tokenizer, prompt_ids, shared=vocab_size is not None)
    config = settings.generation_config(max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k)
    found: dict[int, Completion] = {}
    with random_state(model.device), evaluating(model), own_generation_config(model, config):
        for index, batch in enumerate(plan_batches(prompt_ids, 1, batch_size)):
            torch.manual_seed(batch_seed(seed, index))
            numbers = [prompt for prompt, _ in batch]
            found |= zip(numbers, _generate(model, tokenizer, settings, [prompt_ids[number] for number in numbers]))
    return [found[number] for number in range(len(prompts))]


def _tokenize(
    tokenizer: Any, prompts: Sequence[str | Sequence[int]], positions: int | None, max_new_tokens: int
) -> list[list[int]]:
    encoded = []
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str | list | tuple):
            raise DataError(f"prompt {index} must be text or token ids, not {type(prompt).__name__}")
        ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise DataError(f"prompt {index} is empty: there is no token to start from")
        if positions is not None and len(ids) + max_new_tokens > positions:
            raise DataError(
                f"prompt {index} has {counted(len(ids), 'token')}; with {counted(max_new_tokens, 'new token')} it "
                f"exceeds the model's {positions} positions; shorten it or lower the limit (max_new_tokens, or "
                "max_completion_length in vopd variance)"
            )
        encoded.append(ids)
    return encoded


def _check_known(settings: RolloutSettings, tokenizer: Any, prompt_ids: list[list[int]], *, shared: bool) -> None:
    limit = settings.vocab_size if shared else settings.rows
    highest = max((max(ids) for ids in prompt_ids), default=0)
    if highest >= limit:
        has = f"student and teacher share {limit} ids" if shared else f"the model has {limit} embeddings"
        raise MismatchError(
            f"a prompt has the token {tokenizer.convert_ids_to_tokens(highest)!r} (id {highest}), but {has}"
            "; leave it out of the prompt, or, if it is ordinary text, put the model's own tokenizer into its folder"
        )


def plan_batches(prompts: Sequence[Sized], samples: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """Return the (prompt, sample) indices of every batch, longest prompts first to reduce padding."""
    order = sorted(range(len(prompts)), key=lambda prompt: (-len(prompts[prompt]), prompt))
    requests = [(prompt, number) for prompt in order for number in range(samples)]
    return [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]


def batch_seed(seed: int, index: int) -> int:
    """Return the seed of batch number `index`."""
    return zlib.crc32(f"{seed} {index}".encode())


def allow_saving(model: Any) -> None:
    """Let transformers save a model's generation settings again as they were published.

    Many models come with a temperature but without do_sample. transformers reads these and saves what it has read, but
    refuses once an end token or the padding token was added.
    """
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        with TemporaryDirectory() as folder:
            config.to_json_file(Path(folder, "generation_config.json"))
            base.generation_config = type(config).from_pretrained(folder)


def _generate(model: Any, tokenizer: Any, settings: RolloutSettings, batch: list[list[int]]) -> list[Completion]:
    width, pad = max(len(ids) for ids in batch), settings.pad_id
    # The mask is computed from lengths: where the end token is also the padding token, ids cannot distinguish them.
    input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch], device=model.device)
    watch = _Watch()
    with torch.no_grad(), finite_probabilities(), whole_head_products(model):
        sequences = generate(model.generate, input_ids=input_ids, attention_mask=mask, logits_processor=[watch])
        watch.check()
    return [read_completion(tokenizer, row, set(settings.end_ids)) for row in sequences[:, width:].tolist()]


class _Watch:
    """Sees the scores from which each token is chosen. Greedy decoding takes some token of a row of NaN, too."""

    def __init__(self) -> None:
        self._finite: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores unchanged, without waiting for the device."""
        finite = scores.amax(-1).isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        return scores

    def check(self) -> None:
        """Raises as torch does where it samples."""
        if self._finite is not None and not bool(self._finite):
            raise RuntimeError("probability tensor contains nan or inf")


@contextmanager
def finite_probabilities() -> Iterator[None]:
    """Turns torch's error about probabilities that cannot be sampled from into a NonFiniteError."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise NonFiniteError(
            "the model's probabilities are NaN or infinite, so no token can be sampled: its weights diverged or are "
            "damaged; lower learning_rate or max_grad_norm, and resume from an earlier checkpoint"
        ) from error


@contextmanager
def whole_head_products(model: Any) -> Iterator[None]:
    """Context in which the output head multiplies all rows of a batch at once.

    ``generate`` first gives it the last states of the prompts, a slice of all states. torch would multiply the head by
    each row of such a slice; on a CPU in half precision it copies the head for each row, (B, V, D), and takes far
    longer.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, given: tuple(map(Tensor.contiguous, given)))
    try:
        yield
    finally:
        hook.remove()


def read_completion(tokenizer: Any, row: list[int], stops: set[int]) -> Completion:
    """Return the completion in sampled ids, up to the first end token, which is in its ids but not in its text."""
    end = next((position for position, token in enumerate(row) if token in stops), None)
    ids = row if end is None else row[: end + 1]
    text = tokenizer.decode(row[:end], skip_special_tokens=True)
    return Completion(text, tuple(ids), truncated=end is None)


def context_length(*models: Any) -> int | None:
    """Return the longest sequence in tokens that all `models` accept, from their configurations; None for no limit."""
    lengths = []
    for model in models:
        config = model.config.get_text_config()
        # These two scale positions beyond the limit in the configuration; for other types it is the scaled limit.
        stretched = (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("linear", "dynamic")
        length = None if stretched else getattr(config, "max_position_embeddings", None)
        lengths += [] if length is None else [int(length)]
    return min(lengths, default=None)
