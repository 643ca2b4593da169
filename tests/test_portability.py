"""What Windows lacks or has otherwise, taken away on this system: modules, names, UTF-8 in the terminal.

That nothing of it is used unasked, anywhere in the sources, is a rule of tools/house.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import vopd
from tools.house import POSIX_MODULES, POSIX_NAMES

# Only for imports by vopd: other packages ask sys.platform, which cannot be another here.
WINDOWS = f"""
import builtins, types
import vopd

original = builtins.__import__

def without(module):
    found = types.SimpleNamespace(**{{name: value for name, value in vars(module).items()
                                      if name not in {POSIX_NAMES}[module.__name__].split()}})
    if module.__name__ == "os":
        found.name = "nt"
    return found

def imported(name, globals=None, locals=None, fromlist=(), level=0):
    ours = level == 0 and str((globals or {{}}).get("__name__")).startswith("vopd")
    if ours and name in {POSIX_MODULES}:
        raise ModuleNotFoundError(f"No module named '{{name}}'")
    module = original(name, globals, locals, fromlist, level)
    return without(module) if ours and name in {POSIX_NAMES} else module

builtins.__import__ = imported
"""


def run(statements: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(vopd.__file__).parents[1]), str(Path(__file__).parents[1])])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", statements], capture_output=True, text=True, encoding="cp1252",
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip


def test_every_module_is_imported_without_what_only_posix_has(tmp_path: Path) -> None:
    done = run(
        WINDOWS
        + "import importlib, pathlib, pkgutil\n"
        + "for found in pkgutil.walk_packages(vopd.__path__, 'vopd.'):\n"
        + "    if 'triton' not in found.name and not found.name.endswith('__main__'):\n"
        + "        importlib.import_module(found.name)\n"
        + "from vopd import VOPDConfig, VOPDTrainer\n"
        + "from vopd.atomic import write_whole\n"
        + "from vopd.training.saving.checkpoints import write_manifest\n"
        + f"folder = pathlib.Path({str(tmp_path)!r})\n"
        + "write_whole(folder / 'a', 'text')\n"
        + "write_manifest(folder, 1)\n"
        + "from vopd.cli import main\n"
        + "raise SystemExit(main(['--help']))\n"
    )
    assert done.returncode == 0, done.stderr
    assert "vopd train --model STUDENT" in done.stdout
    assert len(list(tmp_path.iterdir())) == 2


def test_a_terminal_without_a_character_shows_its_number() -> None:
    show = "from vopd.run.exit_codes import report_error\nraise SystemExit(report_error(lambda: print('5 → 6 × 7')))\n"
    done = run(show, PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stdout) == (0, "5 \\u2192 6 × 7\n"), done.stderr
