"""Which versions of packages are installed, and which of TRL will do."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress

from vopd.errors import ConfigurationError

TESTED_TRL = ("1.16", "1.17")


def versions(*packages: str) -> dict[str, str]:
    """The version of vopd and those of `packages` that are installed."""
    from vopd import __version__

    found = {"vopd": __version__}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def check_trl_version(version: str) -> None:
    """Raises ConfigurationError unless `version` of TRL is one whose private hooks vopd was tested with."""
    from packaging.version import Version  # which comes with trl

    low, high = TESTED_TRL
    if not Version(low) <= Version(version) < Version(high):
        raise ConfigurationError(
            f"vopd is tested with trl >= {low}, < {high}, but trl {version} is installed; "
            f"install it with pip install 'trl>={low},<{high}'"
        )
