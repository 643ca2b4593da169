"""The output head of a causal language model: what turns hidden states into logits, read from module and configuration.

Families transform logits under names of their own. Those known here are turned into a scale and a soft cap; whether a
model really computes what its configuration says is for ``head_checks.check_logits`` to find out.
"""

from __future__ import annotations

from typing import Any

from vopd.errors import ConfigurationError, MismatchError
from vopd.kernels import Head

_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Settings that multiply the logits: Cohere, Muse, Falcon-H1."""

_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
"""Settings that divide them: Granite and MiniCPM3, Inkling."""

_MULTIPLIES_LOGITS_SCALING = ("hyperclovax",)
"""Families in which logits_scaling is a factor."""

_CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Settings that bound the logits: Gemma and others, RecurrentGemma."""


def read_head(model: Any, name: str) -> Head:
    """Return the output head of `model`; weight and bias are the model's own parameters.

    Args:
        model: a causal language model, with or without weights.
        name: "student" or "teacher", for messages.

    Raises:
        MismatchError: there is no head, or a setting of it is no number above 0.
        ConfigurationError: a PEFT adapter sits on it.
    """
    module = model.get_output_embeddings()
    if module is None:
        raise MismatchError(f"the {name} has no output head; use a causal language model")
    if hasattr(module, "base_layer"):
        raise ConfigurationError(
            f"a PEFT adapter on the {name}'s output head is not supported: the loss multiplies hidden states with the "
            "head's weight itself, so the adapter would get no gradient; leave the head out of the target modules, "
            "or in Python train it whole with modules_to_save"
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
    """Those settings of the logits that the configuration gives a value."""
    config, found = model.config.get_text_config(), {}
    for setting in (*_FACTORS, *_DIVISORS, *_CAPS):
        value = getattr(config, setting, None)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise MismatchError(
                f"the {name} transforms its logits by {setting}={value!r}, which the loss cannot follow; "
                "use another model family"
            )
        found[setting] = float(value)
    return found
