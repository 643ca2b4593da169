"""The Triton kernels against dense logits by autograd in float64: on a GPU, or on a CPU in Triton's interpreter.

Skipped where neither is there; ``make test-kernels`` runs them in an environment of their own.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import vopd
from enumeration import top_k
from head_reference import OPTIONS, assert_same_outputs, batch_of, dense, leaves, relative_error, wide
from vopd.kernels import heads, triton_rows
from vopd.kernels.row_pass import ChunkLogits, Support
from vopd.kernels.rows import GradientForm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EVERY = list(vopd.ESTIMATORS)

pytestmark = [
    pytest.mark.skipif(DEVICE == "cpu" and not triton_rows.INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore:.*invalid value encountered:RuntimeWarning"),
]


@pytest.fixture(params=["one_tile", "many_tiles"])
def tiles(request, monkeypatch):
    """A row in less than a tile, and in several whole ones and a part."""
    if request.param == "many_tiles":
        monkeypatch.setattr(triton_rows, "LANES", 32 if DEVICE == "cuda" else 4)
        monkeypatch.setattr(triton_rows, "GRADIENT_BLOCK", 16)


def compare(batch, estimator, limit, tolerance, **arguments):
    """Loss, per-token outputs and gradients of the Triton path against dense float64."""
    exact = wide(batch)
    arguments |= {"estimator": estimator, "top_k": top_k(estimator, 4)}
    ours = vopd.linear_distillation_loss(**batch, **arguments, backend="triton")
    arguments.pop("chunk_size", None)
    theirs = dense(exact, **arguments)
    assert_same_outputs(ours, theirs, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(ours.loss, leaves(batch))
    for left, right, leaf in zip(gradients, torch.autograd.grad(theirs.loss, leaves(exact)), leaves(batch)):
        assert left.dtype == leaf.dtype
        assert relative_error(left, right) < limit


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_value_and_gradient(estimator, options, tiles):
    batch = batch_of(options, device=DEVICE)
    compare(batch, estimator, 1e-11, 1e-10, diagnostics=True, chunk_size=7)


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs(estimator, dtype):
    batch = batch_of(OPTIONS["everything"], dtype=dtype, device=DEVICE)
    compare(batch, estimator, 1e-5 if dtype == torch.float32 else 1e-2, 1e-4)


@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_as_on_cuda(monkeypatch, estimator, dtype, tiles):
    monkeypatch.setattr(heads, "product_dtype", lambda hidden, weight, wide: dtype)
    batch = batch_of(OPTIONS["softcap"], dtype=dtype, device=DEVICE, shape=(20,))
    compare(batch, estimator, 1e-2, 1e-4)


@pytest.mark.parametrize("vocab", [5, 16, 33, 64, 131])
@pytest.mark.parametrize("estimator", ["vopd_optimal", "rao_blackwell_top_k", "vopd_teacher_top_k"])
def test_any_vocabulary(vocab, estimator, tiles):
    batch = batch_of({}, device=DEVICE, vocab=vocab, extra=(0, 3), shape=(4,))
    compare(batch, estimator, 1e-11, 1e-10)


@pytest.mark.parametrize("estimator", EVERY)
def test_a_support_that_is_the_whole_vocabulary(estimator):
    batch = batch_of({}, device=DEVICE, vocab=4, shape=(4,))
    if estimator == "rao_blackwell_top_k":  # its baseline, which then cancels, is any number
        batch["completion_mask"] = torch.ones_like(batch["completion_mask"])
        loss = vopd.linear_distillation_loss(**batch, estimator=estimator, top_k=4, backend="triton").loss
        exact = vopd.linear_distillation_loss(**batch, estimator="full_rkl", backend="torch").loss
        for left, right in zip(torch.autograd.grad(loss, leaves(batch)), torch.autograd.grad(exact, leaves(batch))):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
        return
    compare(batch, estimator, 1e-9, 1e-6)  # the teacher's rest is floored at 1e-9


@pytest.mark.parametrize("estimator", EVERY)
def test_nothing_masked_in(estimator):
    batch = batch_of({}, device=DEVICE)
    batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])
    out = vopd.linear_distillation_loss(**batch, estimator=estimator, top_k=top_k(estimator, 4), backend="triton")
    assert out.loss == 0
    for gradient in torch.autograd.grad(out.loss, leaves(batch)):
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("estimator", [n for n in EVERY if vopd.ESTIMATORS[n].teacher_scores])
def test_a_servers_scores_with_absent_entries(estimator):
    """An absent entry's id means nothing: here it is a token of the support, then one outside it."""
    batch = batch_of({}, device=DEVICE, shape=(6,))
    teacher = (batch.pop("teacher_hidden") @ batch.pop("teacher_head")[:50].T).log_softmax(-1)
    ids, losses = teacher.topk(4).indices, []
    for other in (ids[:, 0], teacher.argmin(-1)):
        for backend in ("torch", "triton"):
            shown = torch.cat([ids[:, :3], other[:, None]], -1)
            logprobs = teacher.gather(-1, shown)
            logprobs[:, 3] = -torch.inf
            sampled = teacher.gather(-1, batch["completion_ids"][:, None]).squeeze(-1)
            scores = vopd.TopKScores(sampled, shown, logprobs)
            out = vopd.linear_distillation_loss(
                **batch, teacher_hidden=None, teacher_head=None, teacher_scores=scores,
                estimator=estimator, backend=backend, diagnostics=True,
            )  # fmt: skip
            losses.append((out.loss, *torch.autograd.grad(out.loss, leaves(batch), retain_graph=True)))
    for values in losses[1:]:
        for left, right in zip(values, losses[0]):
            torch.testing.assert_close(left, right)


@pytest.mark.parametrize("exponent", [1, 4, 7, 10])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_optimal_baseline_keeps_its_digits(exponent, place, tiles):
    """Down to 1 - p_top = 1e-10 in float32, wherever the top token comes along the row."""
    generator = torch.Generator().manual_seed(exponent)
    rest = torch.randn(9, generator=generator, dtype=torch.float64)
    odds = torch.tensor([10.0**exponent - 1], dtype=torch.float64).log() + rest.logsumexp(-1)
    student = torch.cat([rest[:place], odds, rest[place:]]).float().to(DEVICE)
    teacher = torch.randn(10, generator=generator).mul(2).to(DEVICE)
    one = torch.ones(1, 1, device=DEVICE)
    out = vopd.linear_distillation_loss(
        one, student[:, None], one, teacher[:, None], torch.tensor([place], device=DEVICE),
        estimator="vopd_optimal", backend="triton",
    )  # fmt: skip
    exact = vopd.functional.moments(student.double(), teacher.double())
    reference = float(vopd.functional.centred_optimal_baseline(exact))
    assert abs(float(out.advantages) / -reference - 1) < 1e-5


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_half_precision_gradient_keeps_the_columns_of_a_certain_student(slope, with_teacher, tiles):
    """a p + value is a small difference of large numbers at a token of probability 0.9999."""
    if slope and not with_teacher:
        pytest.skip("the slope term needs the teacher")
    student = torch.zeros(2, 40, device=DEVICE)
    student[:, 7] = 14.0
    teacher = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE) if with_teacher else None
    probs = student.double().softmax(-1)
    row_pass = triton_rows.TritonPass(ChunkLogits(student.clone(), None if teacher is None else teacher.clone()))
    nothing = torch.empty(2, 0, dtype=torch.long, device=DEVICE)
    sums = row_pass.sums(Support(nothing, nothing.bool()), 1, False)
    ids = torch.tensor([[7, 7], [3, 7]], device=DEVICE)
    form = GradientForm(
        a=torch.ones(2, device=DEVICE),
        b=torch.full((2,), 1e-7, device=DEVICE) if slope else None,
        ids=ids,
        values=torch.tensor([[-0.5, -0.5], [0.0, -1.0]], device=DEVICE),
    )
    gradient = row_pass.gradient(form, 1 + sums.mass, torch.bfloat16)
    expected = probs.clone()
    expected[:, 7] -= 1
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-2, atol=1e-8)


def test_a_head_that_is_not_a_number_is_not_silently_finite():
    batch = batch_of({}, device=DEVICE, dtype=torch.float32)
    with torch.no_grad():
        batch["student_head"][3] = torch.nan
    assert not torch.isfinite(vopd.linear_distillation_loss(**batch, backend="triton").loss)


def test_half_precision_tiles_may_be_written_in_any_order_of_a_launch(monkeypatch):
    """They lie over the teacher's logits, so that one written too early would be read by another."""
    monkeypatch.setattr(heads, "product_dtype", lambda hidden, weight, wide: torch.bfloat16)
    monkeypatch.setattr(triton_rows, "GRADIENT_BLOCK", 16)
    batch = batch_of({}, dtype=torch.bfloat16, device=DEVICE, vocab=131, shape=(4,))
    own, gradients = triton_rows.TritonPass._write_gradient, []

    def backwards(self, out, a, b, tiles=(0, 9)):
        for tile in reversed(range(*tiles)):
            own(self, out, a, b, (tile, tile + 1))

    for write in (own, backwards):
        monkeypatch.setattr(triton_rows.TritonPass, "_write_gradient", write)
        loss = vopd.linear_distillation_loss(**batch, estimator="full_rkl", backend="triton").loss
        gradients.append(torch.autograd.grad(loss, leaves(batch)))
    for ours, theirs in zip(*gradients):
        assert torch.equal(ours, theirs)
