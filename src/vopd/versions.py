"""The versions of installed packages, and the versions of TRL that are supported."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress

from vopd.errors import ConfigurationError

TESTED_TRL = ("1.16", "1.17")


def versions(*packages: str) -> dict[str, str]:
    """Return the version of vopd and of those `packages` that are installed."""
    from vopd import __version__

    found = {"vopd": __version__}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def check_trl_version(version: str) -> None:
    """Raise ConfigurationError unless vopd was tested with the private hooks of this version of TRL."""
    from packaging.version import Version  # a dependency of trl

    low, high = TESTED_TRL
    if not Version(low) <= Version(version) < Version(high):
        raise ConfigurationError(
            f"vopd is tested with trl >= {low}, < {high}, but trl {version} is installed; "
            f"install it with pip install 'trl>={low},<{high}'"
        )
