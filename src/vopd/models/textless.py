"""Rows of an output head past the tokenizer's entries: they stand for no text, and no engine may sample them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from vopd.errors import ConfigurationError

NEWER_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's variable in the environment: 0 chooses its older model runner."""
_MOST_BIASED = 1024
"""Ids in `logit_bias` that the newer model runner has room for; the older one takes any number."""


def vllm_bias(
    rows: Sequence[int],
    given: Mapping[int, float] | None = None,
    *,
    engine: str,
    older_runner: Callable[[], bool] = lambda: os.environ.get(NEWER_RUNNER) == "0",
) -> dict[int, float]:
    """vLLM's `logit_bias` that keeps `rows` from being sampled.

    Args:
        rows: of the head.
        given: a bias that the user asks for, which goes first.
        engine: in whose environment a model runner is chosen, for the message.
        older_runner: whether vLLM was told to take its older model runner; which one it takes by itself depends on
            version, model and machine. Called only where that matters.

    Raises:
        ConfigurationError: vLLM's engine would die of so many.
    """
    bias = dict.fromkeys(rows, -100.0) | dict(given or {})
    if len(bias) > _MOST_BIASED and not older_runner():
        raise ConfigurationError(
            f"{len(rows)} rows of the model's head have no token, and vLLM's newer model runner can keep at most "
            f"{_MOST_BIASED} ids from being sampled; set {NEWER_RUNNER}=0 in the environment of {engine}"
        )
    return bias
