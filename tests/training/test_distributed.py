"""Two processes train what one does, resume exactly, and stop together."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from messages import told
from training.two_processes import launch

PROGRAM = Path(__file__).with_name("distributed_run.py")


def program() -> Any:
    spec = importlib.util.spec_from_file_location("distributed_run", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_equal_gradients(one: Path, two: Path) -> None:
    """Gradients of the first step, and of the later ones as far as the weights agree, to 1e-5 of the largest."""
    ours, theirs = (torch.load(folder / "gradients.pt") for folder in (one, two))
    assert len(ours) == len(theirs) > 0
    for step, (gradient, other) in enumerate(zip(ours, theirs, strict=True)):
        largest = max(value.abs().max() for value in gradient.values())
        assert gradient.keys() == other.keys() and largest > 1e-3
        for name, value in gradient.items():
            assert (value - other[name]).abs().max() <= (1e-5 if step == 0 else 1e-3) * largest, (step, name)


def check_equal_runs(one: Path, two: Path) -> None:
    """Weights and metrics of two runs on the same completions, up to the order of summation.

    Evaluations too: what fills up the last batches of two processes counts for nothing.
    """
    assert any("eval_reverse_kl" in record for record in metrics(one))
    found = weights(two)
    for name, value in weights(one).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)
    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        for name in theirs.keys() - {"tokens_per_second", "step_time"}:
            if not name.startswith("seconds") and not name.endswith(("_runtime", "_per_second")):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_two_processes(tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path) -> None:
    models = (str(tiny_student_dir), str(tiny_teacher_dir))
    one, two = tmp_path / "one", tmp_path / "two"
    alone = program()
    for name, settings in alone.RECORDED.items():
        alone.train_recorded(alone.make(*models, one / name, 2, **settings))
    alone.train_rewarded(alone.make(*models, one / "rewarded", 2, reward_funcs=alone.by_ids))
    launch(PROGRAM, *models, str(two), "1", str(one))
    for name in (*alone.RECORDED, "rewarded"):
        if name != "dropped":  # where few tokens are left in a step, Adam makes much of the last digits
            check_equal_runs(one / name, two / name)
    measured = [record["step"] for record in metrics(two / "by_tokens") if "eval_chain_sum_avg@2" in record]
    assert measured == [0, 2, 4, 6]
    for name in alone.RECORDED:
        check_equal_gradients(one / name, two / name)
    with pytest.raises(AssertionError):  # some rows were dropped
        check_equal_gradients(one / "by_tokens", one / "dropped")

    whole, resumed = weights(two / "whole"), weights(two / "resumed")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())

    # A checkpoint of the other number of processes: the same prompts, the same optimizer, the same end.
    fewer = alone.make(*models, one / "fewer", 2)
    alone.train_recorded(fewer, str(two / "by_tokens" / f"checkpoint-{alone.MIDDLE_OF_EPOCH_TWO}"))
    for name, folder in (("fewer", one), ("more", two)):
        found = weights(folder / name)
        for key, value in weights(one / "by_tokens").items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=2e-5)
    seeds = [int((two / f"seed-{rank}").read_text()) for rank in range(2)]
    assert seeds == [42 + 2 * alone.MIDDLE_OF_EPOCH_TWO, 43 + 2 * alone.MIDDLE_OF_EPOCH_TWO]
    for rank in range(2):
        assert told("4 prompts ... processes: 1 ... processes: 2 ... run has 8", (two / f"refused-{rank}").read_text())
        if not torch.cuda.is_available():
            assert told("WORLD_SIZE=2 ... training sees 1 ... use_cpu=true", (two / f"apart-{rank}").read_text())

    assert told("another rank", (two / "stopped-0").read_text())
    assert "nonfinite_batch.rank1.safetensors" in (two / "stopped-1").read_text()

    for rank in range(2):
        assert told("id 303 ... 300 ids", (two / f"impossible-{rank}").read_text())
