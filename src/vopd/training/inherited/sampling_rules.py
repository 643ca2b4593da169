"""Which generation settings can be used with which estimator.

An estimator that weights the log-probability of a sampled token is unbiased only if the token was sampled from the
full distribution that the loss sees. Truncation and penalties break that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vopd.errors import ConfigurationError, did_you_mean
from vopd.estimators import ESTIMATORS

from .table import TOP_K

if TYPE_CHECKING:
    from ..config import VOPDConfig

# Entries of generation_kwargs that change how completions are generated, but not which.
_HOW = ("use_cache", "cache_implementation", "cache_config", "prefill_chunk_size", "compile_config", "disable_compile")
# Entries that other settings decide, and which.
_ONE = ("n", "best_of", "num_return_sequences")
_STOP = (
    "add {ids} to eos_token_id in the model's generation_config.json, which the trainer, the teacher and vLLM read: a "
    "completion that ends at another token would be trained on beyond its end"
)
_DECIDED = {
    **dict.fromkeys(("eos_token_id", "stop_token_ids"), _STOP.format(ids="the id")),
    **dict.fromkeys(("stop", "stop_strings"), _STOP.format(ids="the id of a token to stop at")),
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_length", "max_time"), "set max_completion_length"),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), "it comes from the tokenizer"),
    **dict.fromkeys(_ONE, "set num_generations, which repeats the prompt"),
    "temperature": "set temperature, which the loss uses too",
    "top_k": TOP_K,
    "seed": "set seed",
}
_ALLOWED: dict[str, tuple[Any, ...]] = {"top_k": (0, -1, None), **dict.fromkeys(_ONE, (1,))}
# Settings of transformers' GenerationConfig and vLLM's SamplingParams that change the distribution of the next token,
# with the values that leave it unchanged.
_NEUTRAL_VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("top_p typical_p repetition_penalty encoder_repetition_penalty guidance_scale num_beams", (1, None)),
    (
        "min_p epsilon_cutoff eta_cutoff presence_penalty frequency_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size min_length min_new_tokens min_tokens penalty_alpha",
        (0, None),
    ),
    ("sequence_bias logit_bias", (None, {})),
    ("bad_words bad_words_ids suppress_tokens begin_suppress_tokens logits_processors", (None, [])),
    ("ignore_eos", (False, None)),
    ("do_sample", (True, None)),
    (
        "top_h exponential_decay_length_penalty allowed_token_ids structured_outputs forced_bos_token_id "
        "forced_eos_token_id watermarking_config dola_layers force_words_ids constraints guided_decoding "
        "thinking_token_budget",
        (None,),
    ),
)
NEUTRAL = {name: values for names, values in _NEUTRAL_VALUES for name in names.split()}


def check_sampling(settings: VOPDConfig, rewarded: bool = False) -> None:
    """Raises ConfigurationError if completions would not be sampled from the distribution that the loss sees.

    If the estimator does not depend on the sampled token, the sampler only chooses the states that it is summed over.
    With a reward (`rewarded`) every estimator has a sampled term, even the exact objectives.
    """
    extra = settings.generation_kwargs or {}
    allowed = {**_ALLOWED, "temperature": (settings.temperature,)}
    for name, value in extra.items():
        if name in _DECIDED and value not in allowed.get(name, ()):
            raise ConfigurationError(f"generation_kwargs sets {name}={value}: {_DECIDED[name].format(value=value)}")
        if name not in (*_DECIDED, *NEUTRAL, *_HOW):
            hint = did_you_mean(name, (*NEUTRAL, *_HOW), "remove it")
            raise ConfigurationError(
                f"generation_kwargs sets {name}, which is not known to leave sampling as the loss sees it; {hint}"
            )
    if not settings.chosen_estimator.samples and not rewarded:
        return
    asked = {name: getattr(settings, name) for name in ("top_p", "min_p", "repetition_penalty")} | extra
    asked["structured_outputs"] = settings.vllm_structured_outputs_regex or extra.get("structured_outputs")
    for name, value in asked.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise _bias(name, value, settings.chosen_estimator.name, rewarded)


def _bias(name: str, value: Any, estimator: str, rewarded: bool) -> ConfigurationError:
    exact = " or ".join(repr(other.name) for other in ESTIMATORS.values() if other.unbiased and not other.samples)
    whose = "a reward's gradient" if rewarded else f"estimator {estimator!r}"
    otherwise = f", or use estimator={exact}, whose token loss does not depend on the sampled token"
    return ConfigurationError(
        f"{name}={value} changes the sampling distribution, and {whose} is unbiased only for tokens sampled from the "
        f"student's full distribution; remove {name}{'' if rewarded else otherwise}"
    )
