"""The claims study's plan: no more runs than it may have, and controls that stay its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from studies.claims import controls, design
from studies.claims.run import SMALL, Study
from vopd import ESTIMATORS
from vopd.errors import ConfigurationError
from vopd.estimators import find_estimator
from vopd.estimators.catalogue import spelled
from vopd.kernels import Rows


def pretend(study: Study, best: dict[str, float]) -> None:
    """Measured files of a pilot in which each estimator is nearest to the teacher at its `best` rate."""
    for run in study.runs("main", design.pilot_runs()):
        folder = study.output / "main" / run.directory
        folder.mkdir(parents=True)
        value = 0.1 if run.learning_rate == best[run.estimator.name] else 0.2
        (folder / "measured.json").write_text(json.dumps({"choice": {"value": value}}))


@pytest.mark.parametrize("others", [0, 3, 8])
def test_never_more_than_130_runs_and_five_seeds_each(tmp_path: Path, others: int) -> None:
    study = Study(tmp_path, design.Size())
    best = {name: 1e-3 if index < others else 3e-4 for index, name in enumerate(design.MAIN)}
    pretend(study, best)
    wanted = {name: list(dict.fromkeys(runs)) for name, runs in study.wanted().items()}
    assert sum(map(len, wanted.values())) <= design.MOST_RUNS
    assert study.best_rates() == best
    for name in (*design.MAIN, *design.CONTROLS):
        assert sum(run[:2] == (name, design.COMMON_RATE) for run in wanted["main"]) == 5
    own = {run[:2] for run in wanted["main"] if run[1] == 1e-3 and run[2] > 0}
    assert len(own) == min(others, 4)
    for name, rate in own:
        assert {run[2] for run in wanted["main"] if run[:2] == (name, rate)} == set(range(5))


def test_before_the_pilot_only_the_fixed_runs_are_known(tmp_path: Path) -> None:
    assert len(set(Study(tmp_path, design.Size()).wanted()["main"])) == 24 + 55 - 8


def test_problems_that_choose_a_rate_serve_nothing_else(tmp_path: Path) -> None:
    design.write_problems(design.settings()["main"], tmp_path, SMALL)

    def prompts(name: str) -> set[str]:
        return {json.loads(line)["prompt"] for line in (tmp_path / name).read_text().splitlines()}

    held_out, choice, train = prompts("held_out.jsonl"), prompts("choice.jsonl"), prompts("train-seed0.jsonl")
    assert (len(held_out), len(choice)) == (SMALL.problems, SMALL.choice_problems)
    assert not held_out & choice and not (held_out | choice) & train


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
