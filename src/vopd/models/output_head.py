"""Reads the output head of a causal language model, which turns hidden states into logits.

Model families have different settings for scaling and capping logits. Those listed here become a scale and a soft cap;
``head_checks.check_logits`` checks that the model really computes these logits.
"""

from __future__ import annotations

from typing import Any

from vopd.errors import ConfigurationError, MismatchError, byte_size
from vopd.kernels import Head

_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Settings that multiply the logits: Cohere, Muse, Falcon-H1."""

_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
"""Settings that divide the logits: Granite and MiniCPM3, Inkling."""

_MULTIPLIES_LOGITS_SCALING = ("hyperclovax",)
"""Families in which logits_scaling multiplies the logits."""

_CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Settings that cap the logits: Gemma and others, RecurrentGemma."""


def read_head(model: Any, name: str) -> Head:
    """Return the output head of `model`; weight and bias are the model's own parameters.

    Args:
        model: a causal language model, with or without weights.
        name: "student" or "teacher", for messages.

    Raises:
        MismatchError: there is no head, or one of its settings is not a number above 0.
        ConfigurationError: the head has a PEFT adapter.
    """
    module = model.get_output_embeddings()
    if module is None:
        raise MismatchError(f"the {name} has no output head; use a causal language model")
    if hasattr(module, "base_layer"):
        raise ConfigurationError(
            f"a PEFT adapter on the {name}'s output head is not supported: the loss multiplies hidden states by the "
            "head's weight directly, so the adapter would get no gradient; remove the head from the target modules, "
            "or train the full head with modules_to_save (in Python)"
        )
    settings = _settings(model, name)
    divides = not str(model.config.model_type).startswith(_MULTIPLIES_LOGITS_SCALING)
    scale = 1.0
    for setting in _FACTORS:
        scale *= settings.get(setting, 1.0)
    for setting in _DIVISORS:
        value = settings.get(setting, 1.0)
        scale *= 1 / value if divides else value
    caps = [settings[setting] for setting in _CAPS if setting in settings]
    return Head(module.weight, getattr(module, "bias", None), scale, min(caps, default=None))


def _settings(model: Any, name: str) -> dict[str, float]:
    """Return the settings of the logits that have a value in the configuration."""
    config, found = model.config.get_text_config(), {}
    for setting in (*_FACTORS, *_DIVISORS, *_CAPS):
        value = getattr(config, setting, None)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise MismatchError(
                f"the {name} transforms its logits by {setting}={value!r}, which the loss does not support; "
                "use another model family"
            )
        found[setting] = float(value)
    return found


def described_head(head: Head) -> str:
    """Return "151,936 x 4,096 in bfloat16, 1.2 GiB": rows and width, dtype, and bytes."""
    rows, width = head.weight.shape
    size = sum(part.nbytes for part in (head.weight, head.bias) if part is not None)
    return f"{rows:,} x {width:,} in {str(head.weight.dtype).removeprefix('torch.')}, {byte_size(size)}"
