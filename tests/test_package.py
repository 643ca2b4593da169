from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vopd
from messages import says
from vopd import errors


def heavy_modules_after(statement: str) -> str:
    names = "('torch', 'numpy', 'transformers', 'trl')"
    probe = f"{statement}\nimport sys\nprint([m for m in {names} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(vopd.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("statement", ["import vopd", "import vopd.errors"])
def test_importing_the_package_loads_nothing_heavy(statement: str) -> None:
    assert heavy_modules_after(statement) == "[]"


def test_version_is_the_one_of_the_package_file() -> None:
    assert f'version = "{vopd.__version__}"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        vopd.nothing_of_the_kind  # noqa: B018


def test_every_public_name_resolves() -> None:
    missing = [name for name in vopd.__all__ if getattr(vopd, name, None) is None]
    assert missing == []


def test_require_returns_an_installed_module() -> None:
    assert errors.require("json.decoder", "train").__name__ == "json.decoder"


def test_require_names_the_extra_of_a_missing_package() -> None:
    with pytest.raises(errors.MissingExtraError, match=says("no_such_package ... pip install -e '.[server]'")):
        errors.require("no_such_package.part", "server")


def test_require_passes_on_a_failure_inside_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import something_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_that_is_not_there"):
        errors.require("half_installed", "train")


def test_a_lazy_package_lists_its_public_names_and_no_others() -> None:
    assert dir(vopd) == sorted(vopd.__all__) and {"__version__", "ESTIMATORS", "VOPDTrainer"} <= {*vopd.__all__}


def test_a_near_name_is_suggested_and_a_far_one_is_not() -> None:
    assert errors.did_you_mean("trian", ["train", "eval"]) == "did you mean 'train'?"
    assert errors.did_you_mean("nothing", ["train", "eval"], "there are two") == "there are two"


def test_the_first_line_of_an_error_or_its_kind() -> None:
    assert errors.first_line(ValueError("\nfirst\nsecond")) == "first"
    assert errors.first_line(KeyError()) == "KeyError"
