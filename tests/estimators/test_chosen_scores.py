"""A server's scores at the student's top k give the gradients that the teacher's own rows give."""

from __future__ import annotations

import pytest
import torch

import vopd
from vopd.errors import ConfigurationError

NAMES = ("vopd_top_k", "vopd_sparse", "top_k_rkl")


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    student, teacher = 2 * torch.randn(2, 9, 23, dtype=torch.float64)
    return student.requires_grad_(True), teacher, torch.randint(23, (9,))


def chosen(student: torch.Tensor, teacher: torch.Tensor, ids: torch.Tensor, k: int, shift: float = 0.0):
    logprobs = teacher.log_softmax(-1) + shift * torch.arange(len(ids)).unsqueeze(-1)
    top = student.detach().topk(k).indices
    return vopd.TopKScores(logprobs.gather(-1, ids[:, None])[:, 0], top, logprobs.gather(-1, top), chosen=True)


def gradient(student: torch.Tensor, teacher: torch.Tensor | None, ids: torch.Tensor, **options) -> torch.Tensor:
    student.grad = None
    vopd.distillation_loss(student, teacher, ids, **options).loss.backward()
    return student.grad


@pytest.mark.parametrize("k", [1, 4, 23])
@pytest.mark.parametrize("estimator", NAMES)
def test_the_gradient_is_that_of_whole_rows(estimator: str, k: int) -> None:
    student, teacher, ids = example()
    expected = gradient(student, teacher, ids, estimator=estimator, top_k=k)
    scores = chosen(student, teacher, ids, k)
    found = gradient(student, None, ids, estimator=estimator, top_k=k, teacher_scores=scores)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", ["vopd_sparse", "top_k_rkl"])
def test_no_normaliser_is_needed(estimator: str) -> None:
    """So scores at another temperature, divided by it, will do: they are off by a constant a position."""
    student, teacher, ids = example()
    expected = gradient(student, 0.5 * teacher, ids, estimator=estimator, top_k=4)
    scores = chosen(student, 0.5 * teacher, ids, 4, shift=0.3)
    found = gradient(student, None, ids, estimator=estimator, top_k=4, teacher_scores=scores)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    out = vopd.distillation_loss(student, None, ids, estimator=estimator, top_k=4, teacher_scores=scores)
    assert out.rewards is None and out.teacher_logprobs is None


def test_ids_of_another_forward_pass_may_miss_the_top_token() -> None:
    student, teacher, ids = example()
    scores = chosen(student, teacher, ids, 4)
    without = vopd.TopKScores(scores.sampled_logprobs, scores.top_k_ids[:, 1:], scores.top_k_logprobs[:, 1:], True)
    shifted = vopd.TopKScores(without.sampled_logprobs - 1, without.top_k_ids, without.top_k_logprobs - 1, True)
    options = {"estimator": "vopd_sparse", "top_k": 3}
    first = gradient(student, None, ids, teacher_scores=without, **options)
    torch.testing.assert_close(gradient(student, None, ids, teacher_scores=shifted, **options), first)


def test_whose_top_k_it_is_must_fit_the_estimator() -> None:
    student, teacher, ids = example()
    scores = chosen(student, teacher, ids, 4)
    with pytest.raises(
        ConfigurationError, match="than its scores at the student's top k; with these use opd, vopd_top"
    ):
        gradient(student, None, ids, estimator="vopd_teacher_top_k", top_k=4, teacher_scores=scores)
    own = vopd.TopKScores(scores.sampled_logprobs, scores.top_k_ids, scores.top_k_logprobs)
    with pytest.raises(ConfigurationError, match="than its scores at its own top k"):
        gradient(student, None, ids, estimator="vopd_sparse", top_k=4, teacher_scores=own)
