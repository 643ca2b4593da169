"""Which versions of packages are installed."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress


def versions(*packages: str) -> dict[str, str]:
    """The version of vopd and those of `packages` that are installed."""
    from vopd import __version__

    found = {"vopd": __version__}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
