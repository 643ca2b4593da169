"""What Windows lacks or has otherwise, taken away on this system: modules, names, UTF-8 in the terminal.

That nothing of it is used unasked, anywhere in the sources, is a rule of tools/house.py.
"""

from __future__ import annotations

import builtins
import importlib
import io
import pkgutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from tools.house import POSIX_MODULES, POSIX_NAMES
from vopd.run.exit_codes import report_error

original = builtins.__import__


def without_posix(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """Imports for vopd alone: other packages ask sys.platform, which cannot be another here."""
    ours = level == 0 and str((globals or {}).get("__name__")).startswith("vopd")
    if ours and name in POSIX_MODULES:
        raise ModuleNotFoundError(f"No module named '{name}'")
    module = original(name, globals, locals, fromlist, level)
    return trimmed(module) if ours and name in POSIX_NAMES else module


def trimmed(module: ModuleType) -> SimpleNamespace:
    lacks = POSIX_NAMES[module.__name__].split()
    found = SimpleNamespace(**{name: value for name, value in vars(module).items() if name not in lacks})
    if module.__name__ == "os":
        found.name = "nt"
    return found


def test_every_module_is_imported_without_what_only_posix_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch.dict(sys.modules), patch("builtins.__import__", without_posix):
        for name in [name for name in sys.modules if name.partition(".")[0] == "vopd"]:
            del sys.modules[name]
        vopd = importlib.import_module("vopd")
        for found in pkgutil.walk_packages(vopd.__path__, "vopd."):
            if "triton" not in found.name and not found.name.endswith("__main__"):
                importlib.import_module(found.name)
        assert vopd.VOPDTrainer is not None
        importlib.import_module("vopd.atomic").write_whole(tmp_path / "a", "text")
        importlib.import_module("vopd.training.saving.checkpoints").write_manifest(tmp_path, 1)
        assert importlib.import_module("vopd.cli").main(["--help"]) == 0
    assert "vopd train --model STUDENT" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2


def test_a_terminal_without_a_character_shows_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert report_error(lambda: print("5 → 6 × 7") or 0) == 0
    terminal.flush()
    assert terminal.buffer.getvalue().decode("cp1252") == "5 \\u2192 6 × 7\n"
