"""Checks that the experiment trackers named by `report_to` are known and installed."""

from __future__ import annotations

from collections.abc import Sequence

from vopd.errors import ConfigurationError, MissingExtraError, did_you_mean, installed

# Those in the documentation, each with the name of its package.
TRACKERS = ("trackio", "wandb", "tensorboard")
# Trackers whose package has another name.
_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit"}
# Where the platform provides it, transformers checks it.
_PLATFORMS = ("kubeflow",)


def check_trackers(report_to: str | Sequence[str] | None) -> None:
    """Raises ConfigurationError for an unknown tracker, MissingExtraError for one that is not installed."""
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name in ("none", "all", *_PLATFORMS):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            hint = did_you_mean(name, [*TRACKERS, "none"], f"choose one of {', '.join(TRACKERS)} or none")
            raise ConfigurationError(f"unknown tracker {name!r} in report_to; {hint}")
        package = _PACKAGES.get(name, name)
        if not installed(package):
            raise MissingExtraError(f"{package} is needed for report_to={name}; install it with pip install {package}")
