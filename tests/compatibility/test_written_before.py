"""What an earlier version wrote is still read: a run is resumed, reported and compared with.

`written/` was made at ec0464f, on a CPU: `vopd train --config train.yaml` in that folder, with the two tiny models of
tests/conftest.py; checkpoint-4 was then deleted. `comparison/comparison.json` is that of a `vopd demo` of the same
version, cut down to two estimators and 30 problems.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vopd import cli
from vopd.errors import ConfigurationError
from vopd.training.saving.resume import resumed

WRITTEN = Path(__file__).with_name("written")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in which the test stands."""
    shutil.copytree(WRITTEN, tmp_path / "written")
    monkeypatch.chdir(tmp_path / "written")
    return tmp_path / "written"


def steps(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without what depends on the machine's speed."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if "seconds" not in name and name != "tokens_per_second"}
        for record in records
    ]


def test_a_run_is_resumed_and_ends_as_it_did(written: Path) -> None:
    shutil.rmtree("run/model")
    shutil.rmtree("run/evaluation/trained")
    assert cli.main(["train", "--config", "train.yaml", "--resume"]) == 0
    before, now = steps(WRITTEN / "run"), steps(written / "run")
    assert [record["step"] for record in now] == [0, 1, 2, 2, 3, 4, 4]
    for old, new in zip(before, now, strict=True):
        assert {name: new.get(name) for name in old} == pytest.approx(old, rel=1e-3)  # later names may stand beside
    old, new = (load_file(folder / "run/model/model.safetensors") for folder in (WRITTEN, written))
    torch.testing.assert_close(new, old, atol=1e-4, rtol=0)
    # The file's columns decide on --kind now.
    assert Path("run/results.json").read_text() == (WRITTEN / "run/results.json").read_text().replace(
        " --kind math", ""
    )


def test_the_page_of_a_run_has_its_numbers(written: Path) -> None:
    assert cli.main(["report", "run"]) == 0
    with Path("run/report/loss.csv").open() as file:
        shown = {int(row["step"]): float(row["value"]) for row in csv.DictReader(file)}
    assert shown == {record["step"]: record["loss"] for record in steps(WRITTEN / "run") if "loss" in record}
    assert "2.3882" in Path("run/report.html").read_text()  # the last step's loss, written out


def test_an_evaluation_is_repeated_and_compared_with(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--count 3 --template {problem} --temperature 0.0 --max_new_tokens 8 --device cpu"
    assert cli.main([
        "eval", "--model", "run/model", "--data", "prompts.jsonl", "--kind", "math", *arguments.split(),
        "--against", "run/evaluation/trained", "--output_dir", ".", "--run_name", "again",
    ]) == 0  # fmt: skip
    before, now = (json.loads(Path(name, "results.json").read_text()) for name in ("run/evaluation/trained", "again"))
    assert now["results"] == before["results"] and now["benchmarks"] == before["benchmarks"]
    assert "+0.0 points [+0.0, +0.0], p = 1" in " ".join(capsys.readouterr().out.split())


def test_a_comparison_is_reported(written: Path) -> None:
    assert cli.main(["report", "comparison"]) == 0
    with Path("comparison/report/held_out.csv").open() as file:
        ends = {row["line"]: float(row["value"]) for row in csv.DictReader(file)}
    assert ends == pytest.approx({"opd": 0.26319, "vopd_optimal": 0.18240}, abs=1e-5)
    page = Path("comparison/report.html").read_text()
    assert "83.3 % [70.0, 96.7]" in page and "-0.081" in page


def test_rendered_prompts_of_an_earlier_version_are_not_compared(tmp_path: Path) -> None:
    """Its prompts were rendered texts, and `thinking` was among the arguments of the chat template."""
    saved = {"chat_template": True, "thinking": False, "seed": 0}
    earlier = {**saved, "chat_template_kwargs": {"enable_thinking": False}, "dataset": {"name": "p", "content": "a"}}
    now = {
        **saved,
        "chat_template_kwargs": None,
        "dataset": {"name": "p", "content": "b"},
        "last_assistant_turn": "drop",
    }
    manifest = {"settings": earlier, "files": ["optimizer.pt", "rng_state.pth"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found = resumed(tmp_path, 2, now, 4)
    assert not found.changes and {"dataset", "chat_template_kwargs"} <= {*found.lacking}
    with pytest.raises(ConfigurationError, match="thinking"):
        resumed(tmp_path, 2, {**now, "thinking": True}, 4)
    manifest["settings"] = {**earlier, "last_assistant_turn": "drop"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigurationError, match="dataset"):
        resumed(tmp_path, 2, now, 4)
