from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from vopd.training.monitoring.progress import Progress
from vopd.training.monitoring.samples import sample_table


def record(**changed: Any) -> dict[str, Any]:
    sample = {"prompt": "1 + 1 =", "completion": "is 2", "truncated": False, "tokens": ["is", " 2"]}
    return {**sample, "rewards": [-1.0, 0.5], "advantages": [-0.5, 1.0], **changed}


def shown(*records: dict[str, Any]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(sample_table(records, 7))
    return stream.getvalue()


def test_a_row_has_prompt_completion_length_rewards_and_advantages() -> None:
    text = shown(record(), record(completion="so", truncated=True, tokens=["so"], rewards=[], advantages=[]))
    assert "step 7" in text and "1 + 1 =" in text and "is 2" in text and "so (cut off)" in text
    assert "-0.25" in text and "-1.00 to +0.50" in text and "+0.25" in text


def test_an_estimator_without_rewards() -> None:
    sample = record()
    del sample["rewards"], sample["advantages"]
    assert "is 2" in shown(sample)


def test_what_a_model_wrote_does_no_harm_to_the_terminal() -> None:
    text = shown(record(completion="\x1b[2J [red]x[/red] [/nothing]", prompt="p\x00q"))
    assert "\x1b[2J" not in text and "[red]x[/red] [/nothing]" in text and "\\x1b[2J" in text and "\x00" not in text


def test_of_a_long_prompt_the_end_of_a_long_completion_the_beginning() -> None:
    text = shown(record(prompt="y" * 500 + "Z", completion="Q" + "x" * 5000))
    assert "Z" in text and "Q" in text and text.count("y") < 130 and text.count("x") < 610


def test_the_table_of_each_step_goes_where_the_progress_goes(
    make_trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(show_samples=1, samples_per_step=2)
    stream = io.StringIO()
    trainer._progress.stream = stream
    trainer.train()
    text = stream.getvalue()
    assert text.count("completion") == 2 and "step 1" in text and "step 2/2" in text
    silent = make_trainer()
    silent._progress.stream = io.StringIO()
    silent.train()
    assert "completion" not in silent._progress.stream.getvalue()


def test_under_a_live_line_the_table_goes_above_it() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    class State:
        is_world_process_zero, global_step, max_steps = True, 0, 4

    progress = Progress(Terminal())
    progress.on_train_begin(None, State(), None)
    progress.show(sample_table([record()], 1))
    progress.close()
    assert "is 2" in progress.stream.getvalue()  # type: ignore[attr-defined]
