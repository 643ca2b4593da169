"""What must not go in is refused or shows in the loss; what may go in changes nothing that it should not."""

from __future__ import annotations

import pytest
import torch

import vopd
from enumeration import top_k
from messages import says
from vopd.errors import ConfigurationError

EVERY = list(vopd.ESTIMATORS)
FROM_SERVER = [name for name, estimator in vopd.ESTIMATORS.items() if estimator.teacher_scores]
WITH_K = [name for name in FROM_SERVER if vopd.ESTIMATORS[name].needs_top_k]
ROWS, VOCAB = 6, 12
IDS = torch.arange(ROWS)
BAD = [torch.nan, torch.inf]


def logits(vocab: int = VOCAB, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = torch.randn(2, ROWS, vocab, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return student.requires_grad_(), teacher


def run(student, teacher, ids=IDS, estimator="vopd", **options):
    options.setdefault("top_k", top_k(estimator) if teacher is not None else None)
    out = vopd.distillation_loss(student, teacher, ids, estimator=estimator, **options)
    return out, torch.autograd.grad(out.loss, student)[0]


def scores(teacher: torch.Tensor, k: int = 3) -> dict[str, torch.Tensor]:
    logprobs = teacher.log_softmax(-1)
    top = logprobs.topk(k)
    sampled = logprobs.gather(-1, IDS.unsqueeze(-1)).squeeze(-1)
    return {"sampled_logprobs": sampled, "top_k_ids": top.indices.clone(), "top_k_logprobs": top.values.clone()}


# ---- a teacher that is not finite ---------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("value", BAD)
def test_a_teacher_row_that_is_not_finite_is_not_silently_finite(estimator, value):
    student, teacher = logits()
    teacher[2] = value
    out, gradient = run(student, teacher, estimator=estimator)
    assert not torch.isfinite(out.loss)
    assert not torch.isfinite(gradient[2]).all()


@pytest.mark.parametrize("estimator", [name for name in EVERY if name != "top_k_rkl"])  # which never looks at y
def test_a_sampled_token_that_the_teacher_excludes_is_not_silently_finite(estimator):
    student, teacher = logits()
    teacher[2, IDS[2]] = -torch.inf
    out, _ = run(student, teacher, estimator=estimator)
    assert not torch.isfinite(out.loss)


@pytest.mark.parametrize("estimator", FROM_SERVER)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_servers_score_of_the_sampled_token_that_is_not_finite_shows(estimator, value):
    student, teacher = logits()
    given = scores(teacher)
    given["sampled_logprobs"][2] = value
    out, _ = run(student, None, estimator=estimator, teacher_scores=vopd.TopKScores(**given))
    assert not torch.isfinite(out.loss)


@pytest.mark.parametrize("estimator", WITH_K)
@pytest.mark.parametrize("value", BAD)
def test_a_servers_top_k_score_that_is_not_finite_shows(estimator, value):
    """Only -inf marks an absent entry; a NaN taken for one would be lost without a word."""
    student, teacher = logits()
    given = scores(teacher)
    given["top_k_logprobs"][2, 1] = value
    out, _ = run(student, None, estimator=estimator, teacher_scores=vopd.TopKScores(**given))
    assert not torch.isfinite(out.loss)


# ---- a student that excludes tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [name for name in EVERY if vopd.ESTIMATORS[name].unbiased])
@pytest.mark.parametrize("k", [2, 5, VOCAB])
@pytest.mark.parametrize("both", [False, True])
def test_fewer_possible_tokens_than_k_leave_the_gradient_unbiased(estimator, k, both):
    """A student that excludes all but three tokens, alone or with its teacher: the rest of any top k has no mass."""
    student, teacher = (row[0].detach() for row in logits(dtype=torch.float64))
    allowed = 3
    student[allowed:] = -torch.inf
    if both:
        teacher[allowed:] = -torch.inf
    copies = student.expand(allowed, VOCAB).clone().requires_grad_()
    out, gradients = run(
        copies, teacher.expand(allowed, VOCAB), torch.arange(allowed), estimator,
        top_k=k if vopd.ESTIMATORS[estimator].needs_top_k else None, normalizer=1.0, diagnostics=True,
    )  # fmt: skip
    assert torch.isfinite(torch.stack([out.loss, *(value.sum() for value in (*out.variance, out.entropy))])).all()
    exact = student[:allowed].clone().requires_grad_()
    logprobs = exact.log_softmax(-1)
    (logprobs.exp() * (logprobs - teacher.log_softmax(-1)[:allowed])).sum().backward()
    expected = torch.cat([exact.grad, torch.zeros(VOCAB - allowed)])
    torch.testing.assert_close(student.softmax(-1)[:allowed] @ gradients, expected, atol=1e-10, rtol=0)


def test_fewer_possible_tokens_than_k_in_the_truncated_objective():
    student, teacher = (row.detach() for row in logits())
    student[:, 3:] = -torch.inf
    _, expected = run(student.requires_grad_(), teacher, IDS % 3, "top_k_rkl", top_k=3)
    out, gradient = run(student, teacher, IDS % 3, "top_k_rkl", top_k=7)
    assert torch.isfinite(out.loss)
    torch.testing.assert_close(gradient, expected)


# ---- a server's top k ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", WITH_K)
def test_a_token_that_a_server_names_twice_is_refused(estimator):
    student, teacher = logits()
    given = scores(teacher)
    given["top_k_ids"][4, 2] = given["top_k_ids"][4, 0]
    with pytest.raises(ConfigurationError, match=says("token twice")):
        run(student, None, estimator=estimator, teacher_scores=vopd.TopKScores(**given))


@pytest.mark.parametrize("estimator", WITH_K)
@pytest.mark.parametrize("filler", [-1, 0, 10**6])
def test_absent_entries_of_a_server_may_have_any_id(estimator, filler):
    student, teacher = logits()
    given = scores(teacher, 5)
    given["top_k_logprobs"][:, 3:] = -torch.inf
    _, expected = run(
        student, None, estimator=estimator,
        teacher_scores=vopd.TopKScores(**{n: v[:, :3] if v.ndim == 2 else v for n, v in given.items()}),
    )  # fmt: skip
    given["top_k_ids"][:, 3:] = filler
    _, gradient = run(student, None, estimator=estimator, teacher_scores=vopd.TopKScores(**given))
    torch.testing.assert_close(gradient, expected)


def test_ids_and_scores_of_different_shape_are_refused():
    student, teacher = logits()
    given = scores(teacher)
    given["top_k_logprobs"] = given["top_k_logprobs"][:, :2]
    with pytest.raises(ConfigurationError, match="differ in shape"):
        run(student, None, estimator="vopd_teacher_top_k", teacher_scores=vopd.TopKScores(**given))


@pytest.mark.parametrize("estimator", FROM_SERVER)
def test_a_score_of_exactly_zero_is_a_score(estimator):
    """log q(y) = 0 is a teacher that is certain, not padding."""
    student, teacher = logits()
    given = scores(teacher)
    given["sampled_logprobs"] = torch.zeros(ROWS)
    out, gradient = run(student, None, estimator=estimator, teacher_scores=vopd.TopKScores(**given))
    assert (out.rewards == -out.student_logprobs).all()
    assert (gradient.abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("estimator", FROM_SERVER)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_comes_with_a_token_may_have_any_dtype(estimator, dtype):
    """numpy's float64 beside float32 logits, or a rollout engine's half precision."""
    student, teacher = logits()
    given = scores(teacher)
    weights, extra = torch.linspace(0.5, 2, ROWS), torch.linspace(-1, 1, ROWS)
    found = []
    for kind in (torch.float32, dtype):
        wide = {name: value.to(kind) if value.is_floating_point() else value for name, value in given.items()}
        out, gradient = run(
            student, None, estimator=estimator, teacher_scores=vopd.TopKScores(**wide),
            importance_weights=weights.to(kind), extra_advantages=extra.to(kind),
        )  # fmt: skip
        assert out.loss.dtype == out.advantages.dtype == torch.float32
        found.append(gradient)
        run(student, teacher, estimator=estimator, rollout_logprobs=wide["sampled_logprobs"])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5 if dtype == torch.float64 else 1e-2)


# ---- shapes, vocabularies, temperature ----------------------------------------------------------------------------


def test_a_teacher_of_another_length_is_refused():
    student, teacher = logits()
    padded = torch.cat([teacher, teacher[:1]])
    with pytest.raises(ConfigurationError, match=says("teacher_logits ... (7, 12) ... (6, ·)")):
        run(student, padded)
    hidden = torch.randn(2, 3, 4)
    with pytest.raises(ConfigurationError, match=says("teacher_hidden ... shape")):
        vopd.linear_distillation_loss(
            hidden, torch.randn(5, 4), torch.randn(2, 4, 4), torch.randn(5, 4), torch.zeros(2, 3).long()
        )


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("longer", ["student", "teacher"])
def test_rows_that_only_one_model_has_get_no_mass(estimator, longer):
    """Cut before the softmax: columns of zeros in their place would take mass from every token."""
    student, teacher = logits()
    _, expected = run(student, teacher, estimator=estimator)
    wide = torch.cat([student if longer == "student" else teacher, torch.full((ROWS, 4), 9.0)], -1)
    wide = wide.detach().requires_grad_(longer == "student")
    given = (wide, teacher) if longer == "student" else (student, wide)
    _, gradient = run(*given, estimator=estimator)
    torch.testing.assert_close(gradient[:, :VOCAB], expected)
    assert gradient[:, VOCAB:].numel() == 0 or gradient[:, VOCAB:].abs().max() == 0


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("temperature", [1e-4, 1e-2])
def test_low_temperatures_keep_loss_and_gradient_finite(estimator, temperature):
    student, teacher = logits()
    out, gradient = run(student, teacher, estimator=estimator, temperature=temperature)
    assert torch.isfinite(out.loss) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("estimator", [name for name in EVERY if vopd.ESTIMATORS[name].needs_top_k])
@pytest.mark.parametrize("k", [0, -1, True, 2.0, VOCAB + 1])
def test_a_k_without_meaning_is_refused(estimator, k):
    student, teacher = logits()
    with pytest.raises(ConfigurationError, match="top_k"):
        run(student, teacher, estimator=estimator, top_k=k)


@pytest.mark.parametrize("estimator", [name for name in EVERY if vopd.ESTIMATORS[name].needs_top_k])
@pytest.mark.parametrize("k", [1, VOCAB])
def test_the_least_and_the_largest_k_are_finite(estimator, k):
    student, teacher = logits(dtype=torch.bfloat16)
    out, gradient = run(student, teacher, estimator=estimator, top_k=k)
    assert torch.isfinite(out.loss) and torch.isfinite(gradient).all()


# ---- what a token counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", EVERY)
def test_a_token_counts_the_same_wherever_it_stands(estimator):
    """No discount by position: the gradient of a token goes with it through any order of the tokens."""
    student, teacher = logits()
    _, expected = run(student, teacher, estimator=estimator)
    order = torch.tensor([3, 5, 0, 2, 4, 1])
    moved = student.detach()[order].requires_grad_()
    _, gradient = run(moved, teacher[order], IDS[order], estimator=estimator)
    torch.testing.assert_close(gradient, expected[order])


@pytest.mark.parametrize("estimator", ["full_rkl", "top_k_rkl"])
def test_the_direction_is_the_one_that_the_description_names(estimator):
    student, teacher = logits(dtype=torch.float64)
    k = VOCAB if estimator == "top_k_rkl" else None
    out, _ = run(student, teacher, estimator=estimator, top_k=k)
    p, q = (x.detach().log_softmax(-1) for x in (student, teacher))
    reverse, forward = ((a.exp() * (a - b)).sum(-1).mean() for a, b in ((p, q), (q, p)))
    torch.testing.assert_close(out.loss.detach(), reverse)
    assert abs(forward - reverse) > 1e-2
    described = vopd.ESTIMATORS[estimator].description
    assert "reverse KL" in described and "forward" not in described


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_truncated_objective_moves_no_mass_out_of_its_support(k):
    """Unnormalised, the sum over the top k falls fastest by emptying them; renormalised it only moves mass inside."""
    student, teacher = logits(dtype=torch.float64)
    _, gradient = run(student, teacher, estimator="top_k_rkl", top_k=k)
    inside = torch.zeros_like(gradient).scatter(-1, student.topk(k).indices, 1).bool()
    assert gradient[~inside].abs().max() == 0
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(ROWS).double(), atol=1e-12, rtol=0)
    assert k == 1 or gradient.abs().max() > 1e-3
