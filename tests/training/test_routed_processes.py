"""Several teachers in two processes: the same training as in one, and no hang where a process has no row of one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.two_processes import launch

PROGRAM = Path(__file__).with_name("routed_run.py")


@pytest.mark.slow
def test_two_processes_with_several_teachers(tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path) -> None:
    found = importlib.util.spec_from_file_location("routed_run", PROGRAM)
    assert found is not None and found.loader is not None
    alone = importlib.util.module_from_spec(found)
    found.loader.exec_module(alone)
    models = (str(tiny_student_dir), str(tiny_teacher_dir))
    alone.main(*models, str(tmp_path / "one"), "2")
    launch(PROGRAM, *models, str(tmp_path / "two"), "1")

    one, two = (load_file(tmp_path / name / "run" / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4)
    records = [
        [json.loads(line) for line in (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert ["reverse_kl/b" in record for record in records[0]] == [True, False, True]
    for ours, theirs in zip(*records, strict=True):
        for name in theirs.keys() - {"tokens_per_second"}:
            if not name.startswith("seconds"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
