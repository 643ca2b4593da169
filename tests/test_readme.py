"""The code of the README runs as it is written, on tiny models."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"<!-- this block is run by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL)
SMALL = "max_steps=1, per_device_train_batch_size=2, save_strategy='no', use_cpu=True"


@pytest.mark.parametrize("source", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_runs_and_trains(
    source: str, tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(4)))
    for written, here in {
        "path/to/student": tiny_student_dir, "Qwen/Qwen3-1.7B-Base": tiny_student_dir,
        "path/to/teacher": tiny_teacher_dir, "Qwen/Qwen3-8B": tiny_teacher_dir, "prompts.jsonl": prompts,
    }.items():  # fmt: skip
        source = source.replace(f'"{written}"', repr(str(here)))
    source = source.replace('output_dir="runs/first"', f"output_dir={str(tmp_path / 'run')!r}, {SMALL}")
    source = source.replace("max_completion_length=1024", "max_completion_length=4")
    source = source.replace('"runs/first/model"', repr(str(tmp_path / "model")))
    scope: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), scope)

    if "trainer" in scope:
        assert scope["trainer"].state.global_step == 1 and (tmp_path / "model" / "model.safetensors").is_file()
        return
    values = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines() if line.startswith("reverse KL")]
    assert values and all(math.isfinite(value) and value > 0 for value in values)
    gradient = scope["student_logits"].grad if "student_logits" in scope else None
    if gradient is not None:
        assert gradient.abs().sum() > 0
        return
    from vopd.models import load_model

    before, after = load_model(tiny_student_dir).state_dict(), scope["student"].state_dict()
    assert any((before[name] != after[name]).any() for name in before)


def test_the_readme_has_blocks_that_run() -> None:
    assert BLOCKS
