from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from messages import says
from vopd.errors import VOPDError
from vopd.training.monitoring.progress import Progress, duration, key_numbers
from vopd.training.saving.logs import RunLog, append, open_log


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def state(step: int, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"is_world_process_zero": True, "global_step": step, "max_steps": 9} | more))


def test_a_resumed_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, [{"step": step} for step in (1, 2, 3, 4)])
    with path.open("a") as torn:
        torn.write('{"step": 2, "loss')
    open_log(path, 2)
    assert read(path) == [{"step": 1}, {"step": 2}]
    append(path, [{"step": 3}])
    assert [record["step"] for record in read(path)] == [1, 2, 3]


def test_a_run_that_starts_over_keeps_the_old_log_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, [{"step": 1}])
    open_log(path, 0)
    assert read(path) == []
    assert read(tmp_path / "metrics.previous.jsonl") == [{"step": 1}]


def test_model_text_cannot_reach_the_terminal_unescaped(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    text = "\x1b[2J \x9b31m \x00 \ud83d é"
    append(path, [{"completion": text}])
    raw = path.read_bytes()
    assert all(32 <= byte < 127 or byte == 10 for byte in raw)
    assert read(path) == [{"completion": text}]


def test_not_a_number_is_absent_from_metrics_and_null_in_samples(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("-inf")
    log = RunLog(str(tmp_path), lambda step: [{"step": step, "rewards": [1.0, infinite]}])
    log.on_step_end(None, state(1), None)
    log.on_log(None, state(1), None, {"loss": 1.0, "grad_norm": nan})
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    assert read(tmp_path / "samples.jsonl") == [{"step": 1, "rewards": [1.0, None]}]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    log = RunLog(str(blocked / "run"), lambda step: [])
    with pytest.raises(VOPDError, match=says("metrics.jsonl ... output_dir")):
        log.on_train_begin(None, state(0), None)


def test_only_steps_are_logged_and_only_by_the_first_process(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), lambda step: [{"step": step}])
    log.on_train_begin(None, state(0), None)
    log.on_log(None, state(1), None, {"loss": 1.0})
    log.on_log(None, state(1, is_world_process_zero=False), None, {"loss": 2.0})
    log.on_log(None, state(1), None, {"eval_loss": 3.0})
    log.on_log(None, state(1), None, {"train_runtime": 4.0, "train_loss": 5.0})
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}, {"step": 1, "eval_loss": 3.0}]


def test_progress_prints_plain_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(stream, first_lines=lambda: ["loss  vopd, torch on cpu"])
    progress.on_train_begin(None, state(0, is_world_process_zero=False), None)
    assert stream.getvalue() == ""
    progress.on_train_begin(None, state(0), None)
    progress.on_log(None, state(3), None, {"loss": 0.5, "reverse_kl": 0.25, "sampled_reverse_kl": 9.0})
    assert stream.getvalue() == "loss  vopd, torch on cpu\nstep 3/9  33%  loss 0.5  reverse KL 0.25\n"


def test_the_remaining_time_is_that_of_the_steps_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("vopd.training.monitoring.progress.time.perf_counter", lambda: now)
    stream = io.StringIO()
    progress = Progress(stream)
    progress.on_train_begin(None, state(5), None)  # resumed after step 5 of 9
    now += 1000  # an evaluation before the first step
    progress.on_step_begin(None, state(5), None)
    for step, seconds, shown in ((6, 100, "eta 5m00s  loss 1  100 s/step"), (7, 20, "eta 2m00s  loss 1  60 s/step")):
        now += seconds
        progress.on_log(None, state(step), None, {"loss": 1.0})
        assert stream.getvalue().splitlines()[-1] == f"step {step}/9  {step / 9:.0%}  {shown}"
        progress.on_step_begin(None, state(step), None)
    now += 30
    assert "eta 1m30s" in progress.line()  # which a live line shows between two steps
    progress.on_log(None, state(9), None, {"loss": 1.0})
    assert "eta" not in progress.line()


def test_a_narrow_line_has_the_most_important_numbers() -> None:
    progress = Progress(io.StringIO())
    progress.on_train_begin(None, state(0), None)
    logs = {
        "loss": 0.5,
        "reverse_kl": 0.25,
        "learning_rate": 1e-6,
        "rewards/math/mean": 0.75,
        "completion_length": 31.5,
    }
    progress.on_log(None, state(3), None, logs)
    line = "step 3/9  33%  loss 0.5  reverse KL 0.25  reward 0.75  lr 1e-06  length 31.5"
    assert progress.line() == line == progress.line(len(line))
    assert progress.line(len(line) - 1) == line.removesuffix("  length 31.5")
    assert progress.line(30) == "step 3/9  33%  loss 0.5"


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (-1, 59.4, 59.6, 192, 3600, 86399, 187200)]
    assert shown == ["0s", "59s", "1m00s", "3m12s", "1h00m", "23h59m", "2d04h"]


def test_progress_is_one_live_line_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(stream)
    progress.on_train_begin(None, state(0), None)
    progress.on_log(None, state(3), None, {"loss": 0.5})
    progress.close()
    progress.close()  # closing twice is harmless
    shown = stream.getvalue()
    assert "3/9" in shown and "loss 0.5" in shown
    assert shown.strip("\n").count("\n") <= 1


def test_key_numbers_fall_back_to_what_is_there() -> None:
    assert key_numbers({"loss": 1.0, "sampled_reverse_kl": 2.0}) == ["loss 1", "sampled reverse KL 2"]
    assert key_numbers({"eval_loss": 1.0, "eval_entropy": 0.5}) == ["loss 1", "entropy 0.5"]
    rewards = {"rewards/math/mean": 0.5, "rewards/math/std": 9.0, "rewards/short/mean": 1.0}
    assert key_numbers(rewards) == ["reward math 0.5", "reward short 1"]
