"""The rules of the layout, each on a small tree that breaks it and on one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import house


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "src/vopd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


PLACEMENT = "FSDP, DeepSpeed and DTensor are known in placement.py alone"
TRL = "TRL is imported in training/trl.py alone"
PRIVATE = "private names belong to their own class or module"
ESTIMATORS = "estimators are named in estimators/ alone"
SETTINGS = "no **settings on the way from rollout to loss"
BATCH = "the batch is a dataclass"
TRAINER = "a trainer is a Protocol of what is used of it, not Any"
IMPORTS = "imports are relative within a package and absolute between packages"
SIZE = "modules have at most 399 lines and functions 100"
SHAPES = "tensors of public functions and of fields have a shape"
POSIX = "what only POSIX has is imported inside functions"
ENCODINGS = "text is read and written with its encoding named"


@pytest.mark.parametrize(
    ("name", "text", "line", "sentence"),
    [
        ("models/a.py", "x = 1\nfrom torch.distributed.fsdp import fully_shard\n", 2, PLACEMENT),
        ("models/a.py", "from torch.distributed.tensor import DTensor as Sharded\n", 1, PLACEMENT),
        ("models/a.py", "x = weight.full_tensor()\n", 1, PLACEMENT),
        ("models/a.py", "if trainer.is_deepspeed_enabled:\n    pass\n", 1, PLACEMENT),
        ("training/trainer.py", "def to_zero3(model): ...\n", 1, PLACEMENT),
        ("training/trainer.py", "from trl import DistillationTrainer\n", 1, TRL),
        ("teachers/a.py", "def f():\n    import trl.models\n", 2, TRL),
        ("run/a.py", "x = require('trl.trainer', 'train')\n", 1, TRL),
        ("run/a.py", "x = trainer._tokenizer\n", 1, PRIVATE),
        ("run/a.py", "class A:\n    def f(self):\n        return self.trainer._clock\n", 3, PRIVATE),
        ("run/a.py", "x = getattr(trainer, '_clock', None)\n", 1, PRIVATE),
        ("run/a.py", "from .b import _hidden\n", 1, PRIVATE),
        ("reporting/a.py", "'Named in prose: opd.'\nx = 'noise, opd = 1'\n", 2, ESTIMATORS),
        ("training/a.py", "x = f'use {y} or full_rkl'\n", 1, ESTIMATORS),
        ("training/a.py", "def distil(batch, **settings): ...\n", 1, SETTINGS),
        ("teachers/a.py", "class A:\n    def score(self, **more):\n        return f(**more)\n", 2, SETTINGS),
        ("training/trainer.py", "def distil(batch, **options): ...\n", 1, SETTINGS),
        ("training/a.py", "x = batch['rollout_rows']\n", 1, BATCH),
        ("run/a.py", "def f(trainer: Any): ...\n", 1, TRAINER),
        ("run/a.py", "def f(*, trainer: Any | None = None): ...\n", 1, TRAINER),
        ("run/a.py", "from vopd.run.b import c\n", 1, IMPORTS),
        ("run/inner/a.py", "import vopd.run\n", 1, IMPORTS),
        ("run/a.py", "from ..models import load_model\n", 1, IMPORTS),
        ("run/inner/a.py", "from ...models import load_model\n", 1, IMPORTS),
        ("__main__.py", "from .cli import main\n", 1, IMPORTS),
        ("run/a.py", "x = 1\n" * 400, 1, SIZE),
        ("run/a.py", "x = 1\nasync def f():\n" + "    x = 1\n" * 100, 2, SIZE),
        ("functional/a.py", "def f(x: Tensor): ...\n", 1, SHAPES),
        ("functional/a.py", "def f(*, x: torch.Tensor | None = None): ...\n", 1, SHAPES),
        (
            "kernels/a.py",
            "def f(\n    x: Float[Tensor, 'N'],\n) -> tuple[Float[Tensor, 'N'], Tensor]: ...\n",
            3,
            SHAPES,
        ),
        ("kernels/a.py", "class A:\n    x: Tensor\n", 2, SHAPES),
        ("estimators/a.py", "class A:\n    def __init__(self, *x: list[Tensor]): ...\n", 2, SHAPES),
        ("run/a.py", "import os\nfrom fcntl import flock\n", 2, POSIX),
        ("run/a.py", "def f():\n    return select.poll()\n", 2, POSIX),
        ("run/a.py", "if hasattr(os, 'fork'):\n    os.killpg(1, signal.SIGTERM)\n", 2, POSIX),
        ("run/a.py", "x = Popen([], pass_fds=[3])\n", 1, POSIX),
        ("run/a.py", "x = path.read_text(errors='replace')\n", 1, ENCODINGS),
        ("run/a.py", "with path.open('w') as file:\n    pass\n", 1, ENCODINGS),
        ("run/a.py", "x = open(path)\n", 1, ENCODINGS),
    ],
)
def test_each_fault_is_one_line_with_its_place(tmp_path: Path, name: str, text: str, line: int, sentence: str) -> None:
    found = house.faults(tree(tmp_path, {name: text}))
    assert found and {fault.split(": ")[0] for fault in found} == {f"src/vopd/{name}:{line}"}
    assert all(sentence in fault for fault in found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("placement.py", "from torch.distributed.tensor import DTensor\nx = weight.full_tensor()\n"),
        ("run/a.py", '"""FSDP."""\nOPTIONS = ("fsdp", "deepspeed")\nx = f"with DTensor {OPTIONS}"\n'),
        ("training/trl.py", "from trl import DistillationConfig\n"),
        ("cli/a.py", "require('trl', 'train')\nfrom vopd.training import trl\n"),
        ("run/a.py", "class A(B):\n    def f(self, cls):\n        self._x = super()._f(cls._y, A._z)\n"),
        ("run/a.py", "from __future__ import annotations\nx = pair._replace(a=1), config._commit_hash, a.__name__\n"),
        ("training/a.py", "class A(TrainerCallback):\n    def on_log(self, args, **kwargs): ...\n"),
        ("training/a.py", "def reward(completions, **columns):\n    return columns['answer']\n"),
        (
            "training/trainer.py",
            "class A(B):\n    def train(self, **kwargs):\n        return super().train(**kwargs)\n",
        ),
        ("run/a.py", "def f(**settings): ...\n"),
        ("run/a.py", "def f(trainer: Trains, other: Any): ...\n"),
        ("run/inner/a.py", "from ..b import c\nfrom . import d\nfrom vopd.models import e\nfrom vopd import f\n"),
        ("run/a.py", "x = 1\n" * 399),
        ("run/a.py", "def f():\n" + "    x = 1\n" * 99),
        ("training/a.py", "def f(x: Tensor) -> Tensor: ...\n"),
        ("kernels/a.py", "def f(x: Float[Tensor, 'N V'] | None, change: Callable[[Tensor], Tensor]): ...\n"),
        ("kernels/a.py", "def _f(x: Tensor):\n    found: dict[str, Tensor] = {}\n"),
        ("run/a.py", "def f():\n    import resource\n    return hasattr(select, 'poll') and select.poll()\n"),
        ("run/a.py", "x = Popen([], pass_fds=[3] if sys.platform != 'win32' else ())\n"),
        (
            "run/a.py",
            "x = path.open('rb'), read_text(path), sampler.open(settings)\n",
        ),
    ],
)
def test_what_is_allowed_is_no_fault(tmp_path: Path, name: str, text: str) -> None:
    assert house.faults(tree(tmp_path, {name: text})) == []


def test_no_file_name_twice(tmp_path: Path) -> None:
    names = ["data/plots.py", "run/inner/plots.py", "data/base.py", "run/base.py", "cli/train.py", "run/train.py"]
    (found,) = house.faults(tree(tmp_path, dict.fromkeys([*names, "data/__init__.py", "run/__init__.py"], "")))
    assert found.startswith("data/plots.py, run/inner/plots.py: no file name twice")


@pytest.mark.parametrize(("folder", "most"), [("training", 10), ("training/monitoring", 15), ("cli", 15)])
def test_no_folder_is_crowded(tmp_path: Path, folder: str, most: int) -> None:
    files = [f"{folder}/__init__.py", *(f"{folder}/a{n}.py" for n in range(most))]
    assert house.faults(tree(tmp_path, dict.fromkeys(files, ""))) == []
    (found,) = house.faults(tree(tmp_path, {f"{folder}/one_more.py": ""}))
    assert f"src/vopd/{folder}: {most + 1} modules" in found


def test_the_exit_code_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(house, "ROOT", tree(tmp_path, {"run/a.py": "x = 1\n"}))
    assert house.main([]) == 0 and capsys.readouterr().out == "the layout holds\n"
    tree(tmp_path, {"run/a.py": "import trl\n"})
    assert house.main([]) == 1 and len(capsys.readouterr().out.splitlines()) == 1
    assert house.main(["--lines"]) == 0 and capsys.readouterr().out.endswith("     1 in all\n")


def test_lines_of_code_leave_prose_out(tmp_path: Path) -> None:
    prose = '"""What it\nis."""\n\n# why\n'
    text = prose + 'X = 1  # a constant\n"""Of X."""\n\n\ndef f():\n    """F."""\n    return """\n    """\n'
    assert house.code_lines(text) == 4
    (tmp_path / "tools/inner").mkdir(parents=True)
    (tmp_path / "tools/inner/a.py").write_text(text)
    assert house.lines_by_package(tree(tmp_path, {"run/a.py": text, "run/b.py": text, "errors.py": text})) == {
        "run": 8, "errors": 4, "tools": 4
    }  # fmt: skip
