"""Output head rows beyond the tokenizer's entries: they stand for no token, and no engine may sample them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from vopd.errors import ConfigurationError

NEWER_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's environment variable; 0 selects its older model runner."""
_MOST_BIASED = 1024
"""Ids in `logit_bias` that the newer model runner accepts; the older one accepts any number."""


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
