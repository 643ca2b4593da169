"""Which generation settings go with which estimator.

An estimator that weighs the log-probability of a sampled token is unbiased only if the token was drawn from the
whole distribution that the loss sees. Whatever truncates or penalises on the way breaks that.
"""

from __future__ import annotations

from typing import Any, Protocol

from vopd.errors import ConfigurationError

# The gradient of these is the same whichever token was drawn: the sampler only chooses the states they are summed over.
EXACT_OBJECTIVES = frozenset({"full_rkl", "top_k_rkl"})

# Settings of transformers' GenerationConfig and vLLM's SamplingParams that change the distribution of the next token,
# with the values that leave it alone.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_k": (0, -1, None),
    "top_p": (1, None),
    "top_h": (None,),
    "min_p": (0, None),
    "typical_p": (1, None),
    "epsilon_cutoff": (0, None),
    "eta_cutoff": (0, None),
    "repetition_penalty": (1, None),
    "encoder_repetition_penalty": (1, None),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "no_repeat_ngram_size": (0, None),
    "encoder_no_repeat_ngram_size": (0, None),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None, {}),
    "logit_bias": (None, {}),
    "bad_words": (None, []),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "allowed_token_ids": (None,),
    "logits_processors": (None, []),
    "structured_outputs": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "min_length": (0, None),
    "min_new_tokens": (0, None),
    "min_tokens": (0, None),
    "ignore_eos": (False, None),
    "guidance_scale": (1, None),
    "watermarking_config": (None,),
    "penalty_alpha": (0, None),
    "dola_layers": (None,),
    "num_beams": (1, None),
    "force_words_ids": (None,),
    "constraints": (None,),
    "guided_decoding": (None,),
    "thinking_token_budget": (None,),
    "do_sample": (True, None),
}


# How many completions a prompt gets, which is num_generations, each a request of its own.
_ONE = ("n", "best_of", "num_return_sequences")


class SamplingSettings(Protocol):
    estimator: str
    temperature: float
    top_k: int
    top_p: float
    min_p: float | None
    repetition_penalty: float
    vllm_structured_outputs_regex: str | None
    generation_kwargs: Any


def check_sampling(settings: SamplingSettings, rewarded: bool = False) -> None:
    """Raises ConfigurationError if completions would not be drawn from the distribution that the loss sees.

    With a reward (`rewarded`) every estimator has a sampled term, the exact objectives too.
    """
    if settings.top_k != 0:
        raise ConfigurationError(
            f"top_k={settings.top_k} would truncate the sampling; did you mean loss_top_k={settings.top_k}, "
            "the estimator's k?"
        )
    if not settings.temperature > 0:
        raise ConfigurationError(
            f"temperature must be positive, got {settings.temperature}: "
            "rollouts are sampled, and the loss divides the logits of both models by it"
        )
    extra = settings.generation_kwargs or {}
    _check_temperature(extra, settings.temperature)
    for name in _ONE:
        if extra.get(name, 1) != 1:
            raise ConfigurationError(
                f"generation_kwargs sets {name}={extra[name]}; set num_generations instead, which repeats the prompt"
            )
    if settings.estimator in EXACT_OBJECTIVES and not rewarded:
        return
    asked = {name: getattr(settings, name) for name in ("top_p", "min_p", "repetition_penalty")} | extra
    asked["structured_outputs"] = settings.vllm_structured_outputs_regex or extra.get("structured_outputs")
    for name, value in asked.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise ConfigurationError(_biased(name, value, settings.estimator, rewarded))


def _check_temperature(extra: dict[str, Any], temperature: float) -> None:
    if extra.get("temperature", temperature) != temperature:
        raise ConfigurationError(
            f"generation_kwargs sets temperature={extra['temperature']} but the loss uses temperature={temperature}; "
            "set temperature alone, it serves both"
        )


def _biased(name: str, value: Any, estimator: str, rewarded: bool) -> str:
    if rewarded:
        return (
            f"{name}={value} changes the distribution that tokens are drawn from, and a reward's gradient is unbiased "
            f"only for tokens drawn from the student's whole distribution; remove {name}"
        )
    return (
        f"{name}={value} changes the distribution that tokens are drawn from, and estimator {estimator!r} is unbiased "
        f"only for tokens drawn from the student's whole distribution; remove {name}, or use estimator='full_rkl', "
        "whose token loss does not depend on the token drawn"
    )
