from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vopd
from messages import told
from vopd import cli, errors


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(vopd.__file__).parents[1])}
    return subprocess.run([sys.executable, "-m", "vopd", *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):
    """main() with a command that raises."""

    def call(error: BaseException) -> int:
        def run(arguments: list[str]) -> int:
            raise error

        monkeypatch.setattr(cli.importlib, "import_module", lambda name: SimpleNamespace(run=run))
        return cli.main(["train"])

    return call


def test_help_names_every_command_and_loads_no_torch() -> None:
    probe = (
        "import sys; from vopd.cli import main; code = main(['--help']);"
        "print([m for m in ('torch', 'numpy', 'yaml') if m in sys.modules], code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(vopd.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=environment)
    assert done.stdout.endswith("[] 0\n") and done.stderr == ""
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)


def test_every_command_of_the_help_exists() -> None:
    here = Path(cli.__file__).parent
    assert [name for name in cli.COMMANDS if not (here / f"{name}.py").is_file()] == []


def test_module_runs_as_the_command_and_passes_the_exit_code_on() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"vopd {vopd.__version__}\n")
    assert command("no-such-command").returncode == 2


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: vopd")


def test_unknown_command_has_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert told("vopd ... 'trian' ... 'train'", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.VOPDError, 1),
        (errors.ConfigurationError, 2),
        (errors.MissingExtraError, 2),
        (errors.DataError, 3),
        (errors.MismatchError, 4),
        (errors.TeacherServerError, 5),
        (errors.NonFiniteError, 6),
    ],
)
def test_exit_codes_and_one_clear_line(raising: Any, kind: Any, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(kind("something is\nwrong")) == code
    assert capsys.readouterr().err == "vopd: error: something is wrong\n"


def test_control_characters_from_data_do_not_reach_the_terminal(
    raising: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(errors.DataError("row 3: \x1b[2J\x00 émile"))
    assert capsys.readouterr().err == "vopd: error: row 3: \\x1b[2J\\x00 émile\n"


def test_interrupt(raising: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "vopd: interrupted\n"


def test_full_disk(raising: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(OSError(28, "No space left on device", "runs/x")) == 1
    assert "No space left on device: 'runs/x'" in capsys.readouterr().err
    assert raising(OSError(28, "No space left on device")) == 1  # while a file was written
    assert "No space left on device" in capsys.readouterr().err


def test_debug_shows_the_traceback_too(
    raising: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOPD_DEBUG", "1")
    assert raising(errors.DataError("x")) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.splitlines()[-1] == "vopd: error: x"


def test_bugs_are_not_hidden(raising: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


def test_a_reader_that_closes_early_is_no_error() -> None:
    """As in `vopd --help | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(Path(vopd.__file__).parents[1])}
    environment.pop("PYTHONUNBUFFERED", None)  # buffered, the text is written at the very end
    call = [sys.executable, "-m", "vopd", "--help"]
    done = subprocess.run(call, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
