"""Expected gradients under slightly wrong samplers, against a plain sum."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from studies.claims.samplers import ESTIMATORS, moments, sampler_table, samplers
from vopd.experiments.rollouts import Rollout
from vopd.models import load_model

VOCABULARY = 300


@pytest.fixture(scope="module")
def table(tiny_student_dir: Path, tiny_teacher_dir: Path) -> dict[str, dict[str, dict[str, float]]]:
    student, teacher = load_model(tiny_student_dir), load_model(tiny_teacher_dir).requires_grad_(False)
    rollouts = [Rollout([5, 6], [7, 8, 9]), Rollout([6], [8, 5, 30])]
    return sampler_table(student, teacher, rollouts, VOCABULARY, 5)


def test_on_policy_nothing_is_biased(table: dict[str, dict[str, dict[str, float]]]) -> None:
    assert set(table["exact"]) == set(ESTIMATORS)
    for found in table["exact"].values():
        assert found["relative_bias"] < 1e-9 and found["relative_bias_logits"] < 1e-9
    assert table["exact"]["opd"]["variance_over_opd"] == 1
    assert table["exact"]["vopd_optimal"]["variance_over_opd"] < 1


def test_off_policy_everything_is_a_little(table: dict[str, dict[str, dict[str, float]]]) -> None:
    for sampler, found in table.items():
        if sampler != "exact":
            assert all(entry["relative_bias"] > 1e-9 for entry in found.values()), sampler
    assert table["logit noise 0.3"]["opd"]["relative_bias"] > table["logit noise 0.1"]["opd"]["relative_bias"]


def test_the_mean_is_the_plain_sum_over_tokens() -> None:
    """sum_y s_y (r_y - b) (p - e_y) for the value baseline."""
    torch.manual_seed(0)
    own, other = torch.randn(3, 6), torch.randn(3, 6)
    weights = torch.randn(3, 6).softmax(-1)
    ((mean, square),) = moments(own, other, [weights], "vopd", None)
    student, teacher = own.log_softmax(-1), other.log_softmax(-1)
    advantages = teacher - student - (student.exp() * (teacher - student)).sum(-1, keepdim=True)
    directions = student.exp().unsqueeze(1) - torch.eye(6)
    gradients = advantages.unsqueeze(-1) * directions
    torch.testing.assert_close(mean, (weights.unsqueeze(-1) * gradients).sum(1))
    torch.testing.assert_close(square, (weights * gradients.square().sum(-1)).sum(1))


def test_samplers_are_distributions_and_top_p_cuts() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -6.0]])
    found = samplers(logits, logits)
    for name, probabilities in found.items():
        assert float(probabilities.sum()) == pytest.approx(1), name
    # 0.665, 0.245, 0.090, 0.0002: two tokens are 0.91 of the mass, three are 0.9998.
    assert (found["top-p 0.95"] > 0).tolist() == [[True, True, True, False]]
    assert found["temperature 0.9"][0, 0] > found["exact"][0, 0] > found["temperature 1.1"][0, 0]
