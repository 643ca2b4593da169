from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import vopd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def code_block_after(marker: str) -> str:
    found = re.search(rf"{re.escape(marker)}\n```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_loop_without_trainer_runs_and_trains(
    tiny_student_dir: Path, tiny_teacher_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = code_block_after("<!-- this block is run by tests/test_readme.py -->")
    for name, folder in (("student", tiny_student_dir), ("teacher", tiny_teacher_dir)):
        source = source.replace(f'"path/to/{name}"', repr(str(folder)))
    scope: dict[str, object] = {}
    exec(compile(source, "README.md", "exec"), scope)

    lines = capsys.readouterr().out.splitlines()
    values = [float(line.split()[2]) for line in lines if line.startswith("reverse KL")]
    assert len(values) == 2 and all(math.isfinite(value) and value > 0 for value in values)
    from vopd.models import load_model

    before, after = load_model(tiny_student_dir).state_dict(), scope["student"].state_dict()  # type: ignore[attr-defined]
    assert any((before[name] != after[name]).any() for name in before)


def estimator_rows() -> dict[str, list[str]]:
    table = README.split("## Estimators")[1].split("## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("| `")]
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_the_table_lists_every_estimator_as_it_is() -> None:
    rows = estimator_rows()
    assert list(rows) == list(vopd.ESTIMATORS)
    for name, estimator in vopd.ESTIMATORS.items():
        _, unbiased, top_k, teacher, server = rows[name]
        assert unbiased == ("yes" if estimator.unbiased else "no"), name
        assert top_k == ("needed" if estimator.needs_top_k else "-"), name
        assert server == ("yes" if estimator.teacher_scores else "no"), name
        assert (teacher == "the full distribution") == (estimator.support == "full"), name


def test_links_to_files_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name}: {target}"


def test_every_make_target_of_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for name in ("README.md", "CONTRIBUTING.md")
        for target in re.findall(r"^make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


def test_every_option_of_the_documents_exists() -> None:
    from vopd.cli.compare import CompareOptions
    from vopd.cli.doctor import DoctorOptions
    from vopd.cli.eval import EvalOptions
    from vopd.run.options import options_of
    from vopd.run.plan import train_options

    commands = (EvalOptions, DoctorOptions, CompareOptions)
    known = {*train_options(), *(name for command in commands for name in options_of(command))}
    known |= {"host", "port", "config", "help", "version", "key", "config_file"}
    named = set(re.findall(r"--([a-z_-]+)", README.split("## Distil your own models")[1].split("## Estimators")[0]))
    assert {name.replace("-", "_") for name in named} <= known
