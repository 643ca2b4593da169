"""The claims study's plan: how many runs, on which seeds and problems, at which rates; and controls of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from studies.claims import controls, design, pilot
from studies.claims.design import COMMON_RATE, RATES, SMALL, Size
from studies.claims.tables import FIRST
from studies.made_up import best_rates
from vopd import ESTIMATORS
from vopd.errors import ConfigurationError
from vopd.estimators import find_estimator
from vopd.estimators.catalogue import spelled
from vopd.kernels import Rows

MAIN = {"opd", "vopd", "vopd_top_k", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl"}
FEW = {"opd", "vopd", "vopd_optimal", "full_rkl"}
# Where the power calculation's deviations were measured.
POWER_SEEDS = range(11, 19)


def planned(setting: str, best: dict[str, dict[str, float]] | None = None) -> list[design.Wanted]:
    return design.planned(setting, (best or best_rates())[setting], Size())


# ---- runs and seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "names", "seeds"), [("main", MAIN, 12), ("larger", FEW, 8), ("sorting", FEW, 8)])
def test_every_estimator_runs_at_its_own_rate_on_every_seed(setting: str, names: set[str], seeds: int) -> None:
    runs, best = planned(setting), best_rates()[setting]
    assert len(runs) == len(set(runs)) and set(design.ESTIMATORS[setting]) == names
    for name in names:
        assert len({seed for own, rate, seed in runs if (own, rate) == (name, best[name])}) >= seeds
    # Seed by seed: a study that is cut short has all estimators of those it has.
    assert [seed for _, _, seed in runs] == sorted(seed for _, _, seed in runs)


def test_on_main_some_also_run_at_a_common_rate() -> None:
    own_is_common = {name: dict.fromkeys(names, COMMON_RATE) for name, names in design.ESTIMATORS.items()}
    for best in (best_rates(), own_is_common):
        at_common = Counter(name for name, rate, _ in planned("main", best) if rate == COMMON_RATE)
        assert all(at_common[name] >= 8 for name in design.AT_COMMON_RATE)
    assert len(planned("main", own_is_common)) == 12 * len(MAIN) + 8  # no run twice; opd_undetached has no other rate
    assert {rate for _, rate, _ in planned("larger")} == set(best_rates()["larger"].values())


def test_no_seed_of_the_study_was_used_before() -> None:
    first = json.loads((FIRST / "study.json").read_text())["seeds"]
    earlier = {*first, *POWER_SEEDS, design.PILOT_SEED}
    assert len(earlier) == len(first) + len(POWER_SEEDS) + 1
    for setting in design.ESTIMATORS:
        assert not earlier & {seed for _, _, seed in planned(setting)}


def test_checkpoints_that_are_measured_are_saved() -> None:
    size = Size()
    assert size.last_steps == (160, 180, 200) and size.curve_steps == (40, 80, 120, 160, 180, 200)
    for each in (size, SMALL):
        options = run_options("main", "vopd", 0, each)
        assert all(step % options["save_steps"] == 0 for step in each.curve_steps)
        assert options["max_steps"] == each.steps and options["warmup_steps"] < each.last_steps[0]


# ---- problems ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("problems")
    for name in ("main", "sorting"):
        design.write_problems(design.settings()[name], folder / name, SMALL, [100, 101])
    return folder


def prompts(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("setting", ["main", "sorting"])
def test_no_prompt_of_training_is_held_out(written: Path, setting: str) -> None:
    folder = written / setting
    trained = {seed: set(prompts(folder / f"train-seed{seed}.jsonl")) for seed in (100, 101)}
    held_out = {seed: prompts(folder / design.held_out_file(seed)) for seed in (100, 101)}
    start = set(prompts(folder / "held_out.jsonl"))
    assert len(trained[100]) == SMALL.steps * design.BATCH and trained[100] != trained[101]
    assert all(len(set(found)) == SMALL.problems for found in held_out.values()) and held_out[100] != held_out[101]
    assert not set.union(*trained.values()) & {*held_out[100], *held_out[101], *start}


def run_options(setting: str, estimator: str, seed: int, size: Size = SMALL) -> dict[str, Any]:
    found = design.settings()[setting]
    return dict(design.grid_run(found, Path("folder"), size, estimator, 3e-4, seed).options)


def test_all_estimators_of_a_seed_differ_in_nothing_but_the_estimator() -> None:
    seed = [run_options("main", name, 100) for name in (*design.ESTIMATORS["main"], *controls.CONTROLS)]
    top_ks = [options.pop("loss_top_k", None) for options in seed]
    assert all(options == seed[0] for options in seed)
    assert top_ks == [{"vopd_top_k": 5, "rao_blackwell_teacher_top_k": 20}.get(name)
                      for name in (*design.ESTIMATORS["main"], *controls.CONTROLS)]  # fmt: skip
    assert run_options("main", "vopd", 101)["dataset"] != seed[0]["dataset"]


# ---- learning rates ----------------------------------------------------------------------------------------------


def tried(name: str, rate: float, value: float | None, setting: str = "larger") -> dict[str, Any]:
    found = {"setting": setting, "estimator": name, "rate": rate, "seed": design.PILOT_SEED}
    return {**found, "failed": "not finite"} if value is None else {**found, "reverse_kl": value}


def test_the_best_rate_is_that_of_least_reverse_kl() -> None:
    records = [
        tried("opd", 1e-4, 0.2), tried("opd", 3e-4, 0.3), tried("opd", 1e-3, None),
        tried("vopd", 1e-4, None), tried("vopd", 3e-4, 0.3), tried("vopd", 3e-4, 0.1, "sorting"),
        tried("opd", 1e-3, 0.1, "main"),
    ]  # fmt: skip
    assert design.best_rates(records, "larger") == {"opd": 1e-4, "vopd": 3e-4}


def test_neighbours_are_in_the_list_of_rates() -> None:
    assert pilot.neighbours(3e-4) == {1e-4, 3e-4, 1e-3}
    assert pilot.neighbours(RATES[0]) == set(RATES[:2]) and pilot.neighbours(RATES[-1]) == set(RATES[-2:])


@pytest.mark.parametrize(("best", "rates"), [(3e-4, RATES[1:4]), (1e-4, RATES[:4]), (3e-3, RATES[1:])])
def test_the_pilot_goes_on_while_the_best_rate_has_an_untried_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: float, rates: Sequence[float]
) -> None:
    """vopd is nearest to the teacher at `best`, the others at 3e-4; only vopd is tried further out."""

    def run(setting: Any, folder: Path, size: Size, estimator: str, rate: float, seed: int) -> tuple[str, float]:
        assert seed == design.PILOT_SEED
        return estimator, rate

    def measured(setting: str, runs: Sequence[tuple[str, float]], folder: Path) -> list[dict[str, Any]]:
        aims = [RATES.index(best if name == "vopd" else 3e-4) for name, _ in runs]
        return [tried(name, rate, abs(RATES.index(rate) - aim), setting) for (name, rate), aim in zip(runs, aims)]

    monkeypatch.setattr(design, "write_problems", lambda *_: None)
    monkeypatch.setattr(design, "grid_run", run)
    monkeypatch.setattr(pilot, "run_grid", lambda *_, **__: None)
    monkeypatch.setattr(pilot, "records_of", measured)
    monkeypatch.setattr(pilot, "with_figure", lambda record: record)
    records = pilot.run_pilot(tmp_path, SMALL, jobs=1)
    for setting, names in design.ESTIMATORS.items():
        for name in names:
            found = [one["rate"] for one in records if (one["setting"], one["estimator"]) == (setting, name)]
            assert sorted(found) == sorted(rates if name == "vopd" else RATES[1:4])
        assert design.best_rates(records, setting)["vopd"] == best


# ---- controls ----------------------------------------------------------------------------------------------------


def test_controls_are_estimators_of_the_study_s_own() -> None:
    assert not set(controls.CONTROLS) & set(ESTIMATORS)
    for control in controls.CONTROLS.values():
        assert find_estimator(spelled(control)) is control
        with pytest.raises(ConfigurationError):
            find_estimator(control.name)


def test_the_undetached_control_is_the_gradient_of_the_ratio_form() -> None:
    """-r exp(log p - sg[log p]) with r undetached, against autograd: A = r - 1."""
    torch.manual_seed(0)
    logits = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 7, dtype=torch.float64).log_softmax(-1)
    ids = torch.randint(7, (6,))
    logprobs = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    rewards = teacher.gather(1, ids[:, None])[:, 0] - logprobs
    (-rewards * (logprobs - logprobs.detach()).exp()).sum().backward()
    rows = Rows(
        sampled_ids=ids, student_logprobs=logprobs.detach(), support_ids=ids[:, None],
        in_support=torch.ones(6, 1).bool(),
        support_logprobs=logprobs.detach()[:, None], importance=torch.ones(6), other_prob=torch.zeros(6),
        teacher_logprobs=teacher.gather(1, ids[:, None])[:, 0],
    )  # fmt: skip
    form = controls.CONTROLS["opd_undetached"].estimate(rows).form
    expected = form.a[:, None] * logits.detach().softmax(-1)
    expected.scatter_add_(1, form.ids, form.values)
    assert logits.grad is not None
    torch.testing.assert_close(expected, logits.grad)
