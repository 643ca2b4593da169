"""The metrics reader: whole, cut and broken files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from messages import says
from vopd.errors import DataError
from vopd.reporting.run_files import read_metrics, series, smoothed


def write(folder: Path, text: str) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text(text)
    return path


def test_reads_a_file_and_its_directory(tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    path = write(tmp_path, "".join(json.dumps(record) + "\n" for record in records))
    assert read_metrics(path) == records
    assert read_metrics(tmp_path) == records


@pytest.mark.parametrize("tail", ['{"step": 2, "lo', '{"step": 2, "loss": "\ufffd', "12"])
def test_a_cut_last_line_is_left_out(tmp_path: Path, tail: str) -> None:
    assert read_metrics(write(tmp_path, '{"step": 1}\n' + tail)) == [{"step": 1}]


def test_a_whole_last_line_without_its_break_is_kept(tmp_path: Path) -> None:
    assert read_metrics(write(tmp_path, '{"step": 1}\n{"step": 2}')) == [{"step": 1}, {"step": 2}]


def test_empty_file_and_blank_lines(tmp_path: Path) -> None:
    assert read_metrics(write(tmp_path, "")) == []
    assert read_metrics(write(tmp_path, '{"step": 1}\n\n{"step": 2}\n')) == [{"step": 1}, {"step": 2}]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says("line 2 ... JSON")):
        read_metrics(write(tmp_path, '{"step": 1}\n{"st\n{"step": 3}\n'))
    with pytest.raises(DataError, match=says("line 1 ... object")):
        read_metrics(write(tmp_path, "7\n{}\n"))


def test_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give a run directory"):
        read_metrics(tmp_path / "nowhere")


def test_series_skips_absent_and_non_finite_values(tmp_path: Path) -> None:
    text = '{"step": 1, "loss": 1}\n{"step": 2, "loss": NaN}\n{"step": 3, "eval_loss": 9}\n{"step": 4, "loss": 0.5}\n'
    records = read_metrics(write(tmp_path, text))
    assert series(records, "loss") == ([1, 4], [1.0, 0.5])
    assert series(records, "absent") == ([], [])


def test_of_two_records_of_one_step_the_later_wins() -> None:
    assert series([{"step": 2, "a": 1.0}, {"step": 1, "a": 3.0}, {"step": 2, "a": 2.0}], "a") == ([1, 2], [3.0, 2.0])


def test_smoothed_is_a_centred_mean() -> None:
    assert smoothed([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]
    assert smoothed([1.0, 2.0], 1) == [1.0, 2.0]
    assert smoothed([], 5) == []
