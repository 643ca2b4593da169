"""Grids of runs: finished ones stay, killed ones are done again, broken ones are kept as such."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from messages import says
from vopd.errors import ConfigurationError, DataError, VOPDError
from vopd.estimators import Estimator
from vopd.estimators.policy_gradient import OPD, VOPD
from vopd.experiments import grid
from vopd.experiments.compare import most_jobs
from vopd.experiments.grid import GridRun, collect, run_grid, run_name
from vopd.experiments.measure import Measurement
from vopd.training.saving.checkpoints import write_manifest

MEASUREMENT = Measurement("student", "teacher", "held_out.jsonl", 2, 2, 8)
# Stands for training and measuring: what it does is told by the run's name; it counts how often it was called.
ENTRY = """
import json, pathlib, sys
folder, name = pathlib.Path(sys.argv[2]), sys.argv[4]
place = folder / name
place.mkdir(exist_ok=True)
with (folder / "calls").open("a") as file:
    file.write(name + "\\n")
if name.startswith("broken"):
    print("vopd: error: not finite"); sys.exit(6)
if name.startswith("wrong"):
    print("vopd: error: no such estimator"); sys.exit(2)
if name == "start":
    found = {"student_outcomes": [True, False], "teacher_outcomes": [True, True], "gradient_noise": {},
             "reverse_kl": {"value": 0.3, "low": 0.2, "high": 0.4}}
else:
    found = {"outcomes": [True, True], "reverse_kl": {"value": 0.1, "low": 0.1, "high": 0.1},
             "curve": [[1, 0.2], [2, 0.1]], "accuracy_curve": [[1, 0.5], [2, 1.0]]}
(place / "measured.json").write_text(json.dumps(found))
"""


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "stand_in.py").write_text(ENTRY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    return "stand_in"


# Estimators that only the stand-in for a run knows.
BROKEN, WRONG = replace(OPD, name="broken"), replace(OPD, name="wrong")


def runs(*estimators: Estimator, rate: float = 1e-3) -> list[GridRun]:
    return [GridRun(one, 0, rate, run_name(one, rate, 0), {"max_steps": 2}) for one in estimators]


def go(folder: Path, entry: str, wanted: list[GridRun], measurement: Measurement = MEASUREMENT) -> list[str]:
    """Names of the processes that were started."""
    (folder / "calls").unlink(missing_ok=True)
    run_grid(wanted, folder, measurement, processes=2, entry=entry, say=lambda line: None)
    return sorted((folder / "calls").read_text().split()) if (folder / "calls").exists() else []


def test_finished_runs_are_not_done_again(tmp_path: Path, entry: str) -> None:
    folder = tmp_path / "grid"
    first = go(folder, entry, runs(OPD))
    assert first == ["opd-lr0.001-seed0", "start"]
    assert go(folder, entry, runs(OPD, VOPD)) == ["vopd-lr0.001-seed0"]
    assert go(folder, entry, runs(OPD, VOPD)) == []


def test_a_killed_run_is_done_anew_or_goes_on(tmp_path: Path, entry: str) -> None:
    """Without an optimizer beside its checkpoint nothing of it is kept, with one all."""
    folder = tmp_path / "grid"
    for estimator, resumable in ((OPD, False), (VOPD, True)):
        checkpoint = folder / run_name(estimator, 1e-3, 0) / "checkpoint-1"
        checkpoint.mkdir(parents=True)
        for name in ("optimizer.pt", "rng_state.pth") if resumable else ("model.safetensors",):
            (checkpoint / name).touch()
        write_manifest(checkpoint, 1)
    go(folder, entry, runs(OPD, VOPD))
    assert not (folder / run_name(OPD, 1e-3, 0) / "checkpoint-1").exists()
    assert (folder / run_name(VOPD, 1e-3, 0) / "checkpoint-1").exists()


def test_a_run_that_breaks_off_is_kept_as_failed(tmp_path: Path, entry: str) -> None:
    folder = tmp_path / "grid"
    wanted = runs(BROKEN, OPD)
    go(folder, entry, wanted)
    broken, whole = collect(wanted, folder, {}).runs
    assert broken.reverse_kl.value == float("inf")
    assert (broken.outcomes, whole.outcomes) == ([False, False], [True, True])
    assert whole.accuracy_curve == [(0, 0.5), (1, 0.5), (2, 1.0)]
    assert go(folder, entry, wanted) == []


def test_a_run_in_a_folder_that_the_comparison_keeps_is_refused(tmp_path: Path, entry: str) -> None:
    start = replace(OPD, name="start")
    with pytest.raises(ConfigurationError, match=says("folder 'start' ... another name")):
        go(tmp_path, entry, [replace(runs(OPD)[0], estimator=start, directory="start")])


def test_any_other_failure_ends_the_grid(tmp_path: Path, entry: str) -> None:
    with pytest.raises(VOPDError, match="no such estimator") as caught:
        go(tmp_path / "grid", entry, runs(WRONG))
    assert caught.value.exit_code == 2


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path, entry: str) -> None:
    folder = tmp_path / "grid"
    go(folder, entry, runs(OPD))
    other = Measurement("student", "teacher", "held_out.jsonl", 3, 2, 8)
    with pytest.raises(ConfigurationError, match="other settings"):
        go(folder, entry, runs(OPD), other)
    changed = [GridRun(OPD, 0, 1e-3, run_name(OPD, 1e-3, 0), {"max_steps": 3})]
    with pytest.raises(ConfigurationError, match=says("other settings: max_steps 2 -> 3 ... another --run_name")):
        go(folder, entry, changed)


def test_a_comparison_that_never_began_does_not_keep_its_settings(tmp_path: Path, entry: str) -> None:
    folder = tmp_path / "grid"
    with pytest.raises(VOPDError, match="no such estimator"):
        go(folder, entry, runs(WRONG))
    (folder / "start" / "measured.json").unlink()
    changed = [replace(run, options={"max_steps": 3}) for run in runs(WRONG)]
    with pytest.raises(VOPDError, match="no such estimator"):
        go(folder, entry, changed)


def test_other_data_under_the_same_name_is_refused(tmp_path: Path, entry: str) -> None:
    folder, prompts = tmp_path / "grid", tmp_path / "p.jsonl"
    wanted = [replace(runs(OPD)[0], options={"max_steps": 2, "dataset": str(prompts), "report_to": "none"})]
    prompts.write_text("1\n")
    go(folder, entry, wanted)
    assert go(folder, entry, [replace(wanted[0], options={**wanted[0].options, "report_to": "trackio"})]) == []
    prompts.write_text("2\n")
    with pytest.raises(ConfigurationError, match=says(f"dataset [{prompts} (sha256 ... -> [{prompts} (sha256")):
        go(folder, entry, wanted)
    (folder / "configs" / f"{wanted[0].directory}.contents.json").unlink()  # as an earlier version leaves it
    assert go(folder, entry, wanted) == []


def test_a_folder_of_before_a_setting_was_added_is_recognised(tmp_path: Path, entry: str) -> None:
    folder = tmp_path / "grid"
    go(folder, entry, runs(OPD))
    path = folder / "measurement.json"
    old = {name: value for name, value in json.loads(path.read_text()).items() if "noise" not in name}
    path.write_text(json.dumps(old))
    assert go(folder, entry, runs(OPD)) == []
    with pytest.raises(ConfigurationError, match="other settings"):
        go(folder, entry, runs(OPD), replace(MEASUREMENT, noise_estimators=["opd"]))


def test_several_rates_are_variants_of_their_own(tmp_path: Path, entry: str) -> None:
    folder = tmp_path / "grid"
    wanted = [*runs(OPD), *runs(OPD, rate=3e-4)]
    go(folder, entry, wanted)
    assert collect(wanted, folder, {}).estimators == ["opd 0.001", "opd 0.0003"]


def test_a_measurement_is_kept_once_a_run_has_begun(tmp_path: Path) -> None:
    grid.prepare(runs(OPD), tmp_path, MEASUREMENT)
    grid.prepare(runs(OPD), tmp_path, replace(MEASUREMENT, problems=3))
    assert json.loads((tmp_path / "measurement.json").read_text())["problems"] == 3
    (tmp_path / "opd").mkdir()
    (tmp_path / "opd" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigurationError, match=says("measurement.json ... other settings ... run_name")):
        grid.prepare(runs(OPD), tmp_path, MEASUREMENT)


def test_runs_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says("two runs ... 'opd-lr0.001-seed0'")):
        grid.prepare([*runs(OPD), *runs(OPD, rate=1.0000001e-3)], tmp_path, MEASUREMENT)


def test_nothing_finished_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="start was not measured"):
        collect(runs(OPD), tmp_path, {})


def test_configurations_hold_all_that_a_run_needs(tmp_path: Path) -> None:
    grid.prepare(runs(OPD), tmp_path, MEASUREMENT)
    text = (tmp_path / "configs" / "opd-lr0.001-seed0.yaml").read_text()
    for line in ("estimator: opd", "learning_rate: 0.001", "seed: 0", "max_steps: 2", "run_name: opd-lr0.001-seed0"):
        assert line in text
    assert json.loads((tmp_path / "measurement.json").read_text())["problems"] == 2


def test_the_most_jobs_are_remembered_also_of_a_call_that_was_interrupted(tmp_path: Path) -> None:
    run = GridRun(OPD, 0, 1e-3, "opd", {})
    assert most_jobs(tmp_path, [run], 1) == 1 and most_jobs(tmp_path, [run], 2) == 2
    assert most_jobs(tmp_path, [run], 1) == 2  # what the first call has finished did share the machine
    old = tmp_path / "old"  # of before jobs were kept: unknown
    (old / "opd").mkdir(parents=True)
    (old / "opd" / "measured.json").write_text("{}")
    assert most_jobs(old, [run], 1) is None and most_jobs(old, [run], 2) is None
