"""What sampling from a model and masking its completions must know of it, gathered in one place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vopd.errors import ConfigurationError, require

from .vocabulary import CommonVocabulary, compare_vocabularies, end_ids, vocabulary_size

NEWER_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's environment variable; 0 selects its older model runner."""
_MOST_BIASED = 1024
"""Ids in `logit_bias` that the newer model runner accepts; the older one accepts any number."""


@dataclass(frozen=True)
class RolloutSettings:
    """How to sample from a model's own distribution, and which of the sampled tokens count.

    Attributes:
        end_ids: every id that ends a completion, in ascending order.
        pad_id: an id for padding that has an embedding. It may be an end id, so padding is never told by its id.
        vocab_size: number of ids that may be sampled, and that have probability in the loss.
        rows: rows of the output head; those from `vocab_size` on stand for no token, or for one that is left out.
        cut: which tokens were left out because the teacher does not share them, in one line; None if there are none.
    """

    end_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int
    rows: int
    cut: str | None = None

    @property
    def never_sampled(self) -> range:
        """The rows of the output head that no engine may sample."""
        return range(self.vocab_size, self.rows)

    def generation_config(
        self, max_new_tokens: int, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
    ) -> Any:
        """Return the ``GenerationConfig`` that samples from the model's own distribution over `vocab_size` ids.

        transformers fills what it leaves open from the model's generation_config.json (min_p, penalties), so it has to
        replace that one: ``model.generation_config = settings.generation_config(512)``.

        Args:
            max_new_tokens: longest completion, in tokens.
            temperature: the logits are divided by it; 0 takes the most likely token.
            top_p, top_k: truncate the distribution, for evaluations. Off by default, where transformers has a top_k of
                50: every estimator that samples would be biased.
        """
        shaping = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature > 0 else {}
        return require("transformers", "train").GenerationConfig(
            do_sample=temperature > 0,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self.end_ids) or None,
            pad_token_id=self.pad_id,
            suppress_tokens=list(self.never_sampled) or None,
            use_cache=True,
            **shaping,
        )

    def completion_mask(self, completion_ids: Tensor) -> Tensor:
        """Return 1 for every token up to the first end id and for that one, 0 after it; (B, T) like `completion_ids`.

        The end token is sampled and counts. What follows is padding, whatever its id.
        """
        ends = torch.isin(completion_ids, torch.tensor(self.end_ids, device=completion_ids.device)).long()
        return (ends.cumsum(-1) - ends == 0).long()


def rollout_settings(model: Any, tokenizer: Any, teacher: Any = None, teacher_tokenizer: Any = None) -> RolloutSettings:
    """Return what a rollout of `model` needs to know: end tokens, padding, vocabulary, sampling, mask.

    The end ids are those of the model's generation_config.json, which may name several, and of its tokenizer. With a
    teacher they are also the teacher's, which the student learns to emit; and only ids that both models share are
    sampled, see `compare_vocabularies`.

    Args:
        model: the model that is sampled from, with or without weights or adapters.
        tokenizer: its tokenizer.
        teacher: the model that scores the completions; None for sampling alone.
        teacher_tokenizer: its tokenizer, compared id by id; default: `tokenizer`.

    Raises:
        MismatchError: student and teacher do not share a vocabulary.
    """
    rows, ends = _head_rows(model), end_ids(model, tokenizer)
    common = CommonVocabulary(min(vocabulary_size(tokenizer), rows))
    if teacher is not None:
        theirs = tokenizer if teacher_tokenizer is None else teacher_tokenizer
        teacher_ends = end_ids(teacher, theirs)
        common = compare_vocabularies(
            tokenizer, theirs, student_rows=rows, teacher_rows=_head_rows(teacher),
            student_ends=ends, teacher_ends=teacher_ends,
        )  # fmt: skip
        ends = tuple(sorted({*ends, *teacher_ends}))
    return RolloutSettings(ends, padding_id(tokenizer, ends, common.size), common.size, rows, common.cut)


def padding_id(tokenizer: Any, ends: Sequence[int], size: int) -> int:
    """Return the tokenizer's padding id if it is below `size`, else an end id: some tokenizers got a padding token that
    their model, or its teacher, has no embedding of."""
    return next((token for token in (tokenizer.pad_token_id, *ends) if token is not None and token < size), 0)


def _head_rows(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)  # the weight itself may be divided among processes


def vllm_bias(
    rows: Sequence[int],
    given: Mapping[int, float] | None = None,
    *,
    engine: str,
    older_runner: Callable[[], bool] = lambda: os.environ.get(NEWER_RUNNER) == "0",
) -> dict[int, float]:
    """Return the `logit_bias` that keeps vLLM from sampling `rows`.

    Args:
        rows: rows of the output head.
        given: a bias set by the user, which takes precedence.
        engine: the engine whose environment selects the model runner, for the message.
        older_runner: whether vLLM is configured to use its older model runner; which one it uses by default depends on
            version, model and machine. Called only if it matters.

    Raises:
        ConfigurationError: there are more ids than vLLM's engine accepts; it would crash.
    """
    bias = dict.fromkeys(rows, -100.0) | dict(given or {})
    if len(bias) > _MOST_BIASED and not older_runner():
        raise ConfigurationError(
            f"{len(rows)} rows of the model's head have no token, but vLLM's newer model runner can exclude at most "
            f"{_MOST_BIASED} ids from sampling; set {NEWER_RUNNER}=0 in the environment of {engine}"
        )
    return bias
