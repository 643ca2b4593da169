"""The page of a run and of a comparison: complete, self-contained, and safe from what a model wrote."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from messages import told
from vopd import cli
from vopd.errors import DataError
from vopd.reporting.comparison import Comparison, write_comparison
from vopd.reporting.drawing import ticks
from vopd.reporting.page import escape
from vopd.reporting.report import write_report
from vopd.reporting.run_report import processor_seconds, timing_split
from vopd.training.saving.logs import append

HOSTILE = ["<script>alert(1)</script>", "\x1b[2J", "\u202e", '"onmouseover="x', "</p>", "\udc80"]
SECTIONS = ["evaluation", "progress", "variance", "time", "samples", "settings"]


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self, tag: str) -> list[str | None]:
        return [attributes.get("id") for name, attributes in self.tags if name == tag]


def metrics(steps: int) -> list[dict[str, Any]]:
    names = ("loss", "sampled_reverse_kl", "reverse_kl", "variance/none", "variance/value", "variance/optimal")
    more = ("value_hurts_share", "seconds/rollout", "seconds/scoring", "seconds/update", "tokens_per_second")
    return [{"step": step, **{name: 0.5 + step for name in names + more}} for step in range(1, steps + 1)]


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_lines(folder / "metrics.jsonl", metrics(5))
    values = [-1.5, 0.0, 2.5, 9.0, 0.1, None]
    sample = {"step": 1, "prompt": HOSTILE[0], "completion": "".join(HOSTILE), "tokens": HOSTILE, "truncated": True}
    write_lines(folder / "samples.jsonl", [{**sample, "rewards": [*values[:5], 0.0], "advantages": values}])
    (folder / "resolved_config.yaml").write_text("estimator: vopd  # command line\nmodel: a<b  # default\n")
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 100}
    entry = {"avg_at_k": score, "problems": 100, "format_rate": 0.75, "truncation_rate": 0.125, "mean_length": 31.0}
    results = {"start": entry, "trained": {**entry, "avg_at_k": {**score, "value": 0.55}}}
    difference = {"value": 0.05, "low": -0.01, "high": 0.1, "p_value": 0.2}
    (folder / "results.json").write_text(json.dumps({**results, "difference": difference}))
    return folder


def assert_alone(path: Path) -> None:
    """No tag, style or script of the page can make a request."""
    text, page = path.read_text(encoding="utf-8"), Page(path)
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"url\(|@import|import\(|fetch\(|XMLHttp", text)
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert not any(name in attributes for _, attributes in page.tags for name in ("src", "href", "srcset", "action"))
    assert {"link", "img", "iframe", "object", "form"}.isdisjoint(tag for tag, _ in page.tags)


def test_a_run_has_all_sections_and_stands_alone(run_folder: Path) -> None:
    path = write_report(run_folder)
    page = Page(path)
    assert path == run_folder / "report.html"
    assert page.ids("section") == SECTIONS
    assert {"reverse_kl", "variance", "value_hurts_share", "timing", "loss"} <= set(page.ids("figure"))
    assert "55.0 % [40.0, 60.0]" in page.text and "+5.0 points [-1.0, +10.0]" in page.text
    assert "75.0%" in page.text and "12.5%" in page.text
    assert_alone(path)


def test_what_a_model_wrote_cannot_become_markup(run_folder: Path) -> None:
    path = write_report(run_folder)
    page, text = Page(path), path.read_text(encoding="utf-8")
    assert [tag for tag, _ in page.tags].count("script") == 1 and "alert(1)" in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "\x1b" not in text and "\u202e" not in text and "\\x1b[2J" in text and "\\udc80" in text


def test_tokens_have_their_numbers_and_colours(run_folder: Path) -> None:
    tokens = [attributes for tag, attributes in Page(write_report(run_folder)).tags if "data-t" in attributes]
    assert len(tokens) == len(HOSTILE)
    assert tokens[0]["data-t"] == "advantage  -1.5000\nreward  -1.5000\nsampled KL  +1.5000"
    assert [token.get("class") for token in tokens[:3]] == ["down reward-down", None, "up reward-up"]
    assert "--a:0.80" in str(tokens[3]["style"]) and "not finite" in str(tokens[5]["data-t"])


def test_figures_and_data_lie_beside_it(drawn: None, run_folder: Path) -> None:
    write_report(run_folder)
    rows = list(csv.reader((run_folder / "report" / "variance.csv").read_text().splitlines()))
    assert rows[:2] == [["line", "step", "value"], ["no baseline", "1", "1.5"]] and len(rows) == 16
    images = {path.stem for path in (run_folder / "report").glob("*.png")}
    assert images == {path.stem for path in (run_folder / "report").glob("*.csv")}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (run_folder / "report").glob("*.png"))


def test_metrics_alone_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 0.0}])
    monkeypatch.setattr("vopd.errors.importlib.import_module", absent)
    path = write_report(tmp_path)
    assert Page(path).ids("section") == SECTIONS and Page(path).ids("figure") == ["loss"]
    assert [entry.name for entry in (tmp_path / "report").iterdir()] == ["loss.csv"]
    assert_alone(path)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_comparison_has_all_sections_and_stands_alone(
    make_comparison: Callable[[int], Comparison], tmp_path: Path, seeds: int
) -> None:
    write_comparison(make_comparison(seeds), tmp_path)
    write_lines(tmp_path / "opd-0" / "metrics.jsonl", metrics(20))
    write_lines(tmp_path / "opd-0" / "samples.jsonl", [{"step": 1, "completion": HOSTILE[0]}])
    path = write_report(tmp_path)
    page = Page(path)
    assert page.ids("section") == [SECTIONS[0], "outcome", *SECTIONS[1:]]
    figures = {"held_out", "noise", "accuracy", "variance_value", "variance_optimal", "value_hurts_share", "timing"}
    assert figures <= set(page.ids("figure"))
    assert "80.0 % [60.0, 95.0]" in page.text and f"{seeds} of {seeds}" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    ratio = list(csv.reader((tmp_path / "report" / "variance_value.csv").read_text().splitlines()))
    assert ratio[1] == ["opd", "1", "1.0"]
    assert_alone(path)


def test_every_kind_of_figure_is_drawn(
    drawn: None, make_comparison: Callable[[int], Comparison], tmp_path: Path
) -> None:
    write_comparison(make_comparison(1), tmp_path)
    write_report(tmp_path)
    names = {"held_out", "noise", "accuracy", "training_reverse_kl"}
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", ""),
        ("metrics.jsonl", "no json\n{}\n"),
        ("samples.jsonl", '{"step": 1, "tokens": 3}\n'),
        ("samples.jsonl", '{"step": 1, "tokens": ["a"], "rewards": [1.0, 2.0]}\n'),
        ("samples.jsonl", '{"step": 1, "tokens": ["a"], "rewards": ["<b>"]}\n'),
        ("results.json", '{"start": {"avg_at_k": 3}}'),
        ("results.json", "[]"),
        ("results.json", "{"),
        ("resolved_config.yaml", "nothing here"),
        ("comparison.json", "{}"),
    ],
)
def test_malformed_files_are_named(run_folder: Path, name: str, text: str) -> None:
    (run_folder / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(name)):
        write_report(run_folder)


def test_the_command(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run_folder)]) == 0
    assert capsys.readouterr().out == f"written to {run_folder / 'report.html'}\n"
    assert cli.main(["report", str(tmp_path / "nothing")]) == 3
    assert cli.main(["report"]) == 2


def test_guards_rewards_and_teachers_have_their_sections(run_folder: Path) -> None:
    step = {"rewards/math/mean": 0.25, "rewards/short/mean": 1.5, "zero_spread_share": 0.5}
    step |= {"reverse_kl/default": 0.75, "reverse_kl/code": 0.125}
    write_lines(run_folder / "metrics.jsonl", [{**record, **step} for record in metrics(5)])
    message = "completions grew to <b>; look for repetition; and stop"
    append(run_folder / "guards.jsonl", [{"step": 4, "guard": "length", "message": message}])
    several = "{code: ['http://gpu:8000'], my own: 'self:frozen', c: 'a dir/t', "
    several += "s: {server_url: ['http://a', 'http://b'], model: a dir/t}}"
    given = {"teacher_model": "big/math", "teachers": several}
    text = "".join(f"{name}: {value}  # a.yaml\n" for name, value in given.items())
    (run_folder / "resolved_config.yaml").write_text(text)
    sample = {"step": 1, "completion": "x", "scores": [0.5, None], "scored_by": ["math", "short"]}
    write_lines(run_folder / "samples.jsonl", [sample])
    path = write_report(run_folder)
    page, text = Page(path), path.read_text()
    assert page.ids("section") == ["guards", *SECTIONS[:2], "rewards", "teachers", *SECTIONS[2:]]
    assert {"rewards", "zero_spread_share", "reverse_kl_by_teacher"} <= set(page.ids("figure"))
    rows = re.findall(r'<tr><th scope="row">([\w ]+)</th><td>(.*?)</td></tr>', text)
    found = {name: cells.split("</td><td>") for name, cells in rows}
    assert "step 4 · guard length" in page.text and "reward math" in page.text and "0.25" in page.text
    assert "<p>completions grew to &lt;b&gt;</p><p>look for repetition; and stop</p>" in text
    assert found["default"] == ["big/math", "in the training process", "0.750", "0.750"]
    assert found["code"] == ["http://gpu:8000", "server", "0.125", "0.125"]
    assert found["my own"][1].startswith("the student itself") and found["my own"][2:] == ["", ""]
    assert found["c"][0] == "a dir/t"
    assert found["s"][:2] == ["http://a, http://b (a dir/t)", "server"]
    assert "1 token · math 0.5<" in text


def test_a_served_teacher_is_shown_with_its_files(run_folder: Path) -> None:
    served = "teacher_server_url: 'http://gpu:8000'  # a.yaml\nteacher_model: org/big  # a.yaml\n"
    (run_folder / "resolved_config.yaml").write_text(served)
    text = write_report(run_folder).read_text()
    assert "teacher http://gpu:8000 (org/big)" in text and "<td>http://gpu:8000 (org/big)</td><td>server</td>" in text


def test_seconds_are_means_per_step_whatever_the_logging_steps() -> None:
    every = [{"step": step, "seconds/update": 2.0, "seconds/processor": 1.5} for step in range(1, 9)]
    fourth = [record for record in every if record["step"] % 4 == 0]
    for records in (every, fourth):
        assert timing_split(records) == {"update": 16.0} and processor_seconds(records) == 12.0
    assert processor_seconds([{"step": 1}]) is None


def test_the_newest_samples_come_first_and_the_first_is_kept(run_folder: Path) -> None:
    write_lines(run_folder / "samples.jsonl", [{"step": step, "completion": "x"} for step in range(1, 41)])
    steps = [int(step) for step in re.findall(r"step (\d+) · 1 token", write_report(run_folder).read_text())]
    assert len(steps) == 16 and (steps[0], steps[-1]) == (40, 1) and steps == sorted(steps, reverse=True)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.5, 1.0])
    assert ticks(-0.3, 0.5) == pytest.approx([-0.2, 0, 0.2, 0.4])
    assert ticks(0, 3e-4) == pytest.approx([0, 1e-4, 2e-4, 3e-4])


def test_escape_keeps_what_can_be_seen() -> None:
    assert escape("naïve <b> & 数学\n") == "naïve &lt;b&gt; &amp; 数学\n"


def variance_results() -> dict[str, Any]:
    """As `vopd variance` writes them."""
    part = {"value": 2.0, "low": 1.0, "high": 4.0}
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    noise = {"token": part, "total": part, "relative_bias": nothing, "signal_to_noise": part, "cosine": part}
    noise["token_by_context"] = [1.0, 2.0, 3.0]
    exact = {**noise, "token": nothing, "signal_to_noise": None, "token_by_context": [0.0, 0.0, 0.0]}
    entry = {"low": 0.0, "high": 0.5, "tokens": 9, "none": 2.0, "value": 1.0, "optimal": 0.5}
    share = {"value": 0.25, "low": 0.2, "high": 0.3}
    profile = {"value_hurts_share": share, "by_position": [entry], "by_entropy": [entry, {**entry, "none": 0.0}]}
    return {
        "settings": {"contexts": 16, "resamples": 64}, "context": part,
        "estimators": {"vopd": noise, "full_rkl": exact}, "profile": profile,
    }  # fmt: skip


def test_a_variance_measurement_has_a_page_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(variance_results()))
    path = write_report(tmp_path)
    page = Page(path)
    assert page.ids("section") == ["measured", "settings"]
    assert {"token_part", "by_entropy", "by_position"} <= set(page.ids("figure"))
    assert told("Verdict ... full_rkl has no sampling noise ... vopd ... only", page.text)
    assert "2 [1, 4]" in page.text and "0, exact" in page.text and "25.0% [20.0%, 30.0%]" in page.text
    rows = list(csv.reader((tmp_path / "report" / "by_entropy.csv").read_text().splitlines()))
    assert rows[1:] == [["0 - 0.5, value", "value", "0.5"], ["0 - 0.5, optimal", "optimal", "0.25"]]
    assert_alone(path)


def test_a_run_shows_the_variance_measured_beside_it(run_folder: Path) -> None:
    (run_folder / "variance").mkdir()
    (run_folder / "variance" / "results.json").write_text(json.dumps(variance_results()))
    page = Page(write_report(run_folder))
    assert page.ids("section") == [*SECTIONS[:3], "measured", *SECTIONS[3:]]
    assert (run_folder / "report" / "token_part.csv").is_file()


def test_seeds_become_one_line_with_their_range(make_comparison: Callable[[int], Comparison], tmp_path: Path) -> None:
    write_comparison(make_comparison(3), tmp_path)
    page = Page(write_report(tmp_path))
    held_out = list(csv.reader((tmp_path / "report" / "held_out.csv").read_text().splitlines()))
    assert held_out[0] == ["line", "step", "value", "low", "high"] and len(held_out) == 1 + 3 * 3
    last = [float(value) for value in held_out[3][2:]]
    assert held_out[3][:2] == ["opd", "4"] and last == pytest.approx([0.41, 0.40, 0.42])
    assert [tag for tag, _ in page.tags].count("polygon") > 0 and told("band ... range", page.text)


def test_a_comparison_whose_runs_all_crashed_has_a_page(
    make_comparison: Callable[[int], Comparison], tmp_path: Path
) -> None:
    found = make_comparison(1)
    write_comparison(replace(found, runs=[replace(run, curve=[]) for run in found.runs]), tmp_path)
    assert "held_out" not in Page(write_report(tmp_path)).ids("figure")


def test_accuracy_on_benchmarks_is_drawn_against_the_step_with_its_intervals(run_folder: Path) -> None:
    scores = {0: (0.1, 0.05, 0.2), 2: (0.3, 0.2, 0.45), 4: (0.5, 0.35, 0.6)}
    found = [
        {"step": step, "eval_sums_avg@4": value, "eval_sums_avg@4_low": low, "eval_sums_avg@4_high": high}
        for step, (value, low, high) in scores.items()
    ]
    found += [{"step": 4, "eval_<b>_avg@2": 0.2, "eval_<b>_avg@2_low": 0.0, "eval_<b>_avg@2_high": 0.4}]
    write_lines(run_folder / "metrics.jsonl", [*metrics(4), *found])
    (run_folder / "results.json").unlink(missing_ok=True)
    page = Page(write_report(run_folder))
    assert "accuracy" in page.ids("figure") and "sums, avg@4" in page.text and "<b>, avg@2" in page.text
    assert "measured no accuracy" not in page.text
    rows = list(csv.reader((run_folder / "report" / "accuracy.csv").read_text().splitlines()))
    assert rows[0] == ["line", "step", "value", "low", "high"]
    assert [float(cell) for cell in rows[2][1:]] == pytest.approx([2, 30, 20, 45])
