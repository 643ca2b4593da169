"""`vopd report --watch`: the page follows a run that writes, and stops reloading when the run or the watch ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from messages import told
from vopd import cli
from vopd.reporting.comparison import Comparison, write_comparison
from vopd.reporting.report import watch_report
from vopd.training.saving.logs import append, open_log


def test_watching_rewrites_the_page_as_the_run_writes_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is the log writer of training, which acts once after each line that is said."""
    metrics, state, page = (tmp_path / name for name in ("metrics.jsonl", "trainer_state.json", "report.html"))

    def torn(text: str) -> Callable[[], Any]:
        return lambda: metrics.write_text(metrics.read_text() + text)

    actions: list[Callable[[], Any]] = [
        lambda: append(metrics, [{"step": 1, "loss": 1.0, "reverse_kl": 0.5}]),
        torn('{"step": 2, "lo'),
        torn('ss": 0.5, "reverse_kl": 0.25}\n'),
        lambda: state.write_text("{}"),
    ]
    looks = iter(range(20))
    monkeypatch.setattr("vopd.reporting.report.time.sleep", lambda seconds: next(looks))  # never for ever
    open_log(metrics, 0)
    state.write_text("{}")  # of an earlier run in this folder, which is resumed
    os.utime(state, (1, 1))
    said: list[tuple[str, bool]] = []

    def say(line: str) -> None:
        said.append((line, page.is_file() and 'http-equiv="refresh" content="1"' in page.read_text()))
        if actions:
            actions.pop(0)()

    assert watch_report(tmp_path, 0.01, say) == page and not actions
    facts = [
        "waiting ... first logged step",
        "step 1 ... 0.500",
        "step 1 ... 0.500",
        "step 2 ... 0.250",
        "training has ended",
    ]
    assert [told(fact, line) for fact, (line, _) in zip(facts, said, strict=True)] == [True] * 5
    assert [reloads for _, reloads in said] == [False, True, True, True, True]
    assert "refresh" not in page.read_text() and (tmp_path / "report" / "loss.csv").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {metrics.name, state.name, page.name, "report"}


def test_ctrl_c_ends_the_watch_with_a_page_that_no_longer_reloads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"

    def interrupt(seconds: float) -> None:
        assert seconds == 3 and 'content="3"' in page.read_text()
        raise KeyboardInterrupt

    monkeypatch.setattr("vopd.reporting.report.time.sleep", interrupt)
    append(tmp_path / "metrics.jsonl", [{"step": 5, "loss": 1.0}])
    (tmp_path / "resolved_config.yaml").write_text("max_steps: 60  # command line\n")
    assert cli.main(["report", str(tmp_path), "--watch", "--interval", "3"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert told("step 5 of 60 ... written", first) and rest == ["stopped watching", f"written to {page}"]
    assert "refresh" not in page.read_text()


def test_a_run_that_shows_nothing_new_may_have_been_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was killed leaves no sign; before its first step there is no page to end with."""
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr("vopd.reporting.report.time.sleep", sleep)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        watch_report(tmp_path, 1.0, said.append)
    assert len(said) == 2 and told("waiting", said[0]) and told("nothing new ... Ctrl-C", said[1])
    assert not (tmp_path / "report.html").exists()


def test_what_does_not_grow_is_not_watched(
    make_comparison: Callable[[int], Comparison], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_comparison(make_comparison(1), tmp_path)
    assert cli.main(["report", str(tmp_path), "--watch"]) == 3
    assert told("--watch", capsys.readouterr().err)
    assert cli.main(["report", str(tmp_path / "typo"), "--watch"]) == 3
    for interval in ("0", "inf"):
        assert cli.main(["report", str(tmp_path), "--watch", "--interval", interval]) == 2
