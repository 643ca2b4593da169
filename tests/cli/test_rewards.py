"""Rewards from the command line: a file or flags in, metrics out; mistakes told before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from messages import told

Train = Callable[..., int]
GROUPS = ("--num_generations", "2")


def test_named_rewards_and_ones_own(
    train: Train, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("def brief(completions):\n    return [-len(text) for text in completions]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    given = ("--reward_funcs", "math,mine:brief", "--reward_weights", "1,0.1", *GROUPS)
    assert train(*given, command="validate") == 0
    assert train(*given, "--dry-run") == 0
    assert told("1 prompt x 2 completions ... 8 tokens", capsys.readouterr().out)
    assert train(*given) == 0
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert record["rewards/math/mean"] == 0.0 and record["rewards/brief/mean"] < 0
    assert "brief (weight 0.1), over 2 completions" in (run / "model" / "README.md").read_text()


def test_a_task_brings_its_verifier(train: Train, run: Path) -> None:
    task = ("--dataset", "reasoning_gym:chain_sum", "--max_prompts", "8", "--reward_funcs", "reasoning_gym")
    assert train(*task, *GROUPS) == 0
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert record["rewards/reasoning_gym/mean"] == 0.0 and record["zero_spread_share"] == 1.0


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--reward_funcs", "math"), 2, "num_generations ... 2"),
        (("--reward_funcs", "maths", *GROUPS), 2, "'maths' ... math"),
        (("--reward_funcs", "math", "--reward_weights", "1,2", *GROUPS), 2, "reward_weights ... 2 ... 1"),
        (("--reward_funcs", "math", "--reward_column", "gold", *GROUPS), 3, "gold ... problem, answer, prompt"),
        (("--reward_funcs", "reasoning_gym", *GROUPS), 3, "column 'task'"),
        (("--num_generations", "3"), 2, "multiple of num_generations=3"),
    ],
)
@pytest.mark.parametrize("command", ["train", "validate"])
def test_mistakes(
    more: tuple[str, ...], code: int, message: str, command: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*more, command=command) == code
    assert told(message, capsys.readouterr().err)
