from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vopd
from vopd import cli
from vopd.cli import doctor


def test_names_versions_devices_extras_and_every_estimator(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"vopd          {vopd.__version__}" in text and "torch         2" in text
    assert "hub token: set" in text and "s3cret" not in text
    for name, estimator in vopd.ESTIMATORS.items():
        line = next(line for line in text.split("estimators:")[1].splitlines() if line.split()[:1] == [name])
        assert estimator.need in line.split() and ("unbiased" in line) == estimator.unbiased
        assert "torch on the" in line or "triton on the" in line


def test_missing_packages_are_told_by_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["torch>=2.11", "trl<1.17; extra == 'train'", 'no-such-thing; extra == "report"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: requirements)
    assert doctor.missing_of_extras() == {"train": [], "report": ["no-such-thing"]}


def test_needs_torch_alone() -> None:
    """In a process where everything but torch is out of reach."""
    probe = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'transformers', 'trl', 'yaml', 'datasets', 'numpy', 'rich', 'peft'}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from vopd.cli import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    here = str(Path(vopd.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, env={"PYTHONPATH": here, "PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert "estimators:" in done.stdout
