"""The benchmark of whole steps, with tiny models."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest


def test_all_contestants_train_on_the_same_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    step, record = importlib.import_module("step"), tmp_path / "record.json"
    step.main(["--dry-run", "--rounds", "1", "--case", "varied", "--json", str(record)])
    parts = json.loads(record.read_text())["cases"]["varied"]
    assert list(parts) == [step.UPDATE, step.WHOLE]
    for rows in parts.values():
        assert [row["contestant"] for row in rows] == [step.TRL, "vopd"]
    recorded = [row["seconds"] * row["tokens_per_second"] for row in parts[step.UPDATE]]
    assert recorded[0] == pytest.approx(recorded[1])
