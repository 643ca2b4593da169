"""The loss over several teachers, and which estimators a teacher is enough for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from messages import says
from vopd import ESTIMATORS, TopKScores, VOPDConfig
from vopd.errors import ConfigurationError
from vopd.estimators.checks import check_gives
from vopd.kernels import Head
from vopd.teachers import EVERY_KIND, Scored, States
from vopd.training.batch import Batch
from vopd.training.objective import Objective, combined


def states(width: int, seed: int) -> States:
    torch.manual_seed(seed)
    return States(torch.randn(2, 3, width), Head(torch.randn(11, width)))


def loss(student: States, scored: list[Scored], mask: torch.Tensor, estimator: str, normalizer: Any = None) -> Any:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    batch = Batch(ids[:, :0], ids[:, :0], ids, mask)
    config = VOPDConfig("unused", estimator=estimator, use_cpu=True)
    objective = Objective(config, 11, "torch")
    parts = objective.parts(batch, student, scored, normalizer=normalizer, diagnostics=True)
    return combined(parts)


def loss_of(scored: list[Scored], mask: torch.Tensor, normalizer: float | None = None) -> tuple[Any, torch.Tensor]:
    student = states(4, 0)
    student.hidden.requires_grad_(True)
    output = loss(student, scored, mask, "vopd", normalizer)
    output.loss.backward()
    return output, student.hidden.grad


def test_each_token_is_judged_by_its_own_teacher() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    alone = [loss_of([Scored(states(5, seed))], mask, normalizer=5.0) for seed in (1, 2)]
    first = torch.tensor([[1], [0]])
    both, gradient = loss_of([Scored(states(5, 1), first), Scored(states(5, 2), 1 - first)], mask)
    torch.testing.assert_close(gradient, torch.stack([alone[0][1][0], alone[1][1][1]]))
    torch.testing.assert_close(both.rewards, torch.stack([alone[0][0].rewards[0], alone[1][0].rewards[1]]))
    torch.testing.assert_close(both.variance[1][0], alone[0][0].variance[1][0])


def test_what_one_teacher_cannot_give_is_not_reported() -> None:
    mask = torch.ones(2, 3)
    first = torch.tensor([[1], [0]])
    scored = [Scored(states(5, 1), first), Scored(TopKScores(torch.full((2, 3), -1.0)), 1 - first)]
    output = loss(states(4, 0), scored, mask, "opd")
    assert output.reverse_kl is None and output.variance is None
    assert (output.teacher_logprobs[1] == -1).all()


def test_rows_without_scores_count_nowhere() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    output, gradient = loss_of([Scored(states(5, 1))], mask)
    masked, same = loss_of([Scored(states(5, 1), mask)], torch.ones(2, 3, dtype=torch.long))
    torch.testing.assert_close(same, gradient)
    torch.testing.assert_close(masked.loss, output.loss)


def test_every_estimator_works_from_a_teacher_in_this_process() -> None:
    for estimator in ESTIMATORS.values():
        check_gives(estimator, EVERY_KIND)


def test_an_error_names_what_the_teacher_is_enough_for() -> None:
    with pytest.raises(
        ConfigurationError, match=says("'vopd' ... full distribution ... teacher ... opd ... vopd_teacher_top_k")
    ):
        check_gives(ESTIMATORS["vopd"], {"sampled", "top_k"})
    with pytest.raises(ConfigurationError, match=says("'vopd_sparse' ... student's top k ... the server")):
        check_gives(ESTIMATORS["vopd_sparse"], {"sampled", "top_k"}, "the server")
    check_gives(ESTIMATORS["vopd_teacher_top_k"], {"sampled", "top_k"})
    check_gives(ESTIMATORS["opd"], {"sampled"})
