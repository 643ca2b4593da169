"""Checks that the experiment trackers named by `report_to` are known and installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from vopd.errors import ConfigurationError, MissingExtraError, did_you_mean

# Tracker, also the name of its package: how to install it.
TRACKERS = {
    "trackio": "pip install 'vopd[report]'",
    "wandb": "pip install wandb",
    "tensorboard": "pip install tensorboard",
}


def check_trackers(report_to: str | Sequence[str] | None) -> None:
    """Raises ConfigurationError for an unknown tracker, MissingExtraError for one that is not installed."""
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            hint = did_you_mean(name, [*TRACKERS, "none"], f"choose one of {', '.join(TRACKERS)} or none")
            raise ConfigurationError(f"unknown tracker {name!r} in report_to; {hint}")
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"{name} is needed for report_to={name}; install it with {TRACKERS[name]}")
