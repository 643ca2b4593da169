"""Products with heads: dtypes, buffers, gathered rows, and the search for the top k."""

from __future__ import annotations

import importlib.util
import logging
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vopd
from enumeration import top_k
from head_reference import OPTIONS, batch_of, dense, leaves, relative_error, wide
from messages import told
from vopd.kernels import heads
from vopd.kernels.heads import Head, Projection, multiply
from vopd.kernels.support import TILE, top_k_ids


@pytest.mark.parametrize("k", [1, 2, 7, 20])
@pytest.mark.parametrize("vocab", [20, TILE, 8 * TILE, 8 * TILE + 1, 170 * TILE - 1, 170 * TILE])
def test_top_k_is_that_of_a_sort(k, vocab):
    generator = torch.Generator().manual_seed(k)
    logits = torch.randn(6, vocab, generator=generator)
    logits[3] = logits[3].round()  # ties
    logits[4, :-k] = -torch.inf
    logits[5] = -torch.inf
    ids = top_k_ids(logits, k)
    torch.testing.assert_close(logits.gather(-1, ids), logits.topk(k).values)
    assert all(len(row.unique()) == k for row in ids)


def test_the_logits_of_a_few_rows_need_no_whole_head_in_float32(monkeypatch):
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                self.elements = max(self.elements, result.numel())
            return result

    monkeypatch.setattr(heads, "CAST_ROWS", 8)
    hidden, head = torch.randn(2, 50), Head(torch.randn(30, 50).bfloat16(), torch.randn(30), scale=0.5, softcap=2.0)
    with Largest() as largest:
        found = head.logits(hidden)
    torch.testing.assert_close(found, 2 * torch.tanh(0.5 * (hidden @ head.weight.float().T + head.bias) / 2))
    assert largest.elements == 8 * 50


@pytest.mark.parametrize("elements", [1, 100, 1 << 25])
@pytest.mark.parametrize("k", [1, 9])
def test_gathered_rows_of_the_head_give_the_logits_of_the_whole(monkeypatch, elements, k):
    monkeypatch.setattr(heads, "GATHER_ELEMENTS", elements)
    hidden, head = torch.randn(7, 5), Head(torch.randn(30, 5), torch.randn(30), scale=0.5, softcap=2.0)
    projection = Projection(hidden, head, 28, temperature=2.0, dtype=torch.float32)
    rows, ids = torch.tensor([6, 0, 3, 3]), torch.randint(28, (4, k))
    whole = 2 * torch.tanh(0.5 * (hidden @ head.weight.T + head.bias) / 2) / 2
    torch.testing.assert_close(projection.at(rows, ids), whole[rows].gather(-1, ids))
    assert projection.at(rows[:0], ids[:0]).shape == (0, k)


def test_the_vocabulary_may_be_any_number_and_the_buffer_is_used_again():
    projection = Projection(torch.randn(6, 5), Head(torch.randn(33, 5)), 33, temperature=1.0, dtype=torch.float32)
    first = projection.logits(torch.arange(4))
    assert first.shape == (4, 33) and first.stride(0) % heads.BUFFER_ALIGNMENT == 0
    second = projection.logits(torch.arange(4, 6))
    assert second.data_ptr() == first.data_ptr()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_products_of_half_precision_are_summed_in_float32(alpha, accumulate):
    left, right = torch.randn(3, 400).bfloat16(), torch.randn(400, 4).bfloat16()
    out = torch.full((3, 4), torch.nan) if not accumulate else torch.ones(3, 4)
    expected = alpha * (left.double() @ right.double()) + accumulate
    result = multiply(left, right, out, alpha, accumulate)
    assert result is out
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def placed(dtype, device):
    """Hidden states that say they are on the device."""

    class Placed(torch.Tensor):
        pass

    Placed.device = torch.device(device)
    return torch.ones(2, 2, dtype=dtype).as_subclass(Placed)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_products_are_in_half_precision_on_cuda_only(device):
    half, full = torch.empty(2, 2, dtype=torch.bfloat16), torch.empty(2, 2)
    expected = torch.bfloat16 if device == "cuda" else torch.float32
    assert heads.product_dtype(placed(torch.bfloat16, device), half, torch.float32) == expected
    assert heads.product_dtype(placed(torch.bfloat16, device), full, torch.float32) == torch.float32
    assert heads.product_dtype(placed(torch.bfloat16, device), half, torch.float64) == torch.float64
    with (
        torch.autocast("cuda", dtype=torch.bfloat16) if torch.cuda.is_available() else pytest.MonkeyPatch.context() as p
    ):
        if p is not None and hasattr(p, "setattr"):
            p.setattr(torch, "is_autocast_enabled", lambda kind: True)
            p.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
        assert heads.product_dtype(placed(torch.float32, device), full, torch.float32) == expected


@pytest.mark.parametrize("estimator", list(vopd.ESTIMATORS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_as_on_cuda(monkeypatch, estimator, dtype):
    monkeypatch.setattr(heads, "product_dtype", lambda hidden, weight, wide: dtype)
    batch = batch_of(OPTIONS["everything"], dtype=dtype, shape=(40,))
    exact = wide(batch)
    arguments = {"estimator": estimator, "top_k": top_k(estimator, 4)}
    ours = torch.autograd.grad(vopd.linear_distillation_loss(**batch, **arguments).loss, leaves(batch))
    theirs = torch.autograd.grad(dense(exact, **arguments).loss, leaves(exact))
    for left, right in zip(ours, theirs):
        assert left.dtype == dtype
        assert relative_error(left, right) < 1e-2


INTERPRETED = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["torch", pytest.param("triton", marks=pytest.mark.skipif(not INTERPRETED, reason="triton's interpreter"))]


def under_autocast(estimator="vopd", **arguments):
    """Output of the loss of float32 inputs under autocast to bf16, its gradients, and its batch."""
    batch = batch_of(OPTIONS["everything"], dtype=torch.float32, shape=(40,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vopd.linear_distillation_loss(**batch, estimator=estimator, **arguments)
    return out, torch.autograd.grad(out.loss, leaves(batch)), batch


def rounded(batch):
    """The same values as autocast rounds them, in float64."""

    def change(values):
        if not (isinstance(values, torch.Tensor) and values.is_floating_point()):
            return values
        return values.detach().bfloat16().requires_grad_(values.requires_grad)

    return wide({name: change(values) for name, values in batch.items()})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ["vopd", "vopd_sparse", "full_rkl"])
def test_under_autocast_the_logits_are_those_of_a_linear_layer_and_nothing_else_is_rounded(estimator, backend):
    """Factors are rounded, weights and bias of the head among them; sums, statistics and gradients are not."""
    arguments = {"estimator": estimator, "top_k": top_k(estimator, 4)}
    out, gradients, batch = under_autocast(**arguments, backend=backend)
    exact = rounded(batch)
    expected = dense(exact, **arguments).loss
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, leaves(exact))):
        assert ours.dtype == torch.float32
        assert relative_error(ours, theirs) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_float32_head_keeps_a_float32_gradient_of_half_precision_products(monkeypatch, backend):
    """As on CUDA. Sums of rounded terms have bits that bf16 has no room for."""
    monkeypatch.setattr(heads, "product_dtype", lambda hidden, weight, wide: torch.bfloat16)
    _, (_, head, bias), batch = under_autocast(backend=backend)
    exact = rounded(batch)
    expected = torch.autograd.grad(dense(exact, estimator="vopd").loss, leaves(exact))
    for ours, theirs in zip((head, bias), expected[1:]):
        assert ours.dtype == torch.float32 and (ours.bfloat16() != ours).any()
        assert relative_error(ours, theirs) < 3e-3


def test_autocast_leaves_float64_alone():
    batch = batch_of({}, dtype=torch.float64)
    expected = vopd.linear_distillation_loss(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vopd.linear_distillation_loss(**batch).loss == expected


def test_a_large_normalizer_costs_half_precision_nothing():
    """Gradients are held unweighted: one over a million would push each of float16's below its smallest number."""
    batch = batch_of({}, dtype=torch.float16)
    exact = wide(batch)
    ours = torch.autograd.grad(1e6 * vopd.linear_distillation_loss(**batch, normalizer=1e6).loss, leaves(batch))
    theirs = torch.autograd.grad(dense(exact, normalizer=1.0).loss, leaves(exact))
    for left, right in zip(ours, theirs):
        assert relative_error(left, right) < 2e-3


@pytest.fixture
def precision():
    """Sets that of float32 products on CUDA, and puts back what it was."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield lambda value: setattr(torch.backends.cuda.matmul, "fp32_precision", value)
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("device", "dtype", "value", "lines"),
    [
        ("cuda", torch.float32, "tf32", 1),
        ("cuda", torch.float32, "ieee", 0),
        ("cuda", torch.bfloat16, "tf32", 0),
        ("cpu", torch.float32, "tf32", 0),
    ],
)
def test_products_in_tf32_are_told_of_once(caplog, precision, device, dtype, value, lines):
    heads._say_tf32.cache_clear()
    precision(value)
    with caplog.at_level(logging.INFO, logger="vopd"):
        for _ in range(3):
            heads.tell_of_tf32(torch.device(device), dtype)
    assert len(caplog.records) == lines
    assert all("fp32_precision = 'ieee'" in record.message for record in caplog.records)


def test_every_switch_to_tf32_is_seen(caplog, precision):
    """The older ones set what the loss reads as well."""
    heads._say_tf32.cache_clear()
    torch.backends.cuda.matmul.allow_tf32 = True
    with caplog.at_level(logging.INFO, logger="vopd"):
        heads.tell_of_tf32(torch.device("cuda"), torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = False
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("device", "hidden", "weight", "lines"),
    [
        ("cuda", torch.bfloat16, torch.float32, 1),
        ("cuda", torch.float32, torch.float16, 1),
        ("cuda", torch.float32, torch.float32, 0),
        ("cpu", torch.bfloat16, torch.float32, 0),  # where products are in float32 anyway
    ],
)
def test_mixed_dtypes_are_told_of_once(caplog, device, hidden, weight, lines):
    heads._say_mixed.cache_clear()
    with caplog.at_level(logging.INFO, logger="vopd"):
        for _ in range(3):
            Projection(placed(hidden, device), Head(torch.ones(2, 2, dtype=weight)), 2, 1.0, torch.float32)
    assert len(caplog.records) == lines
    for record in caplog.records:
        facts = [str(dtype).removeprefix("torch.") for dtype in (hidden, weight, torch.float32)]
        assert told(" ... ".join([*facts, "bf16: true", "torch.autocast"]), record.message)


def test_under_autocast_mixed_dtypes_are_what_is_meant(caplog, monkeypatch):
    heads._say_mixed.cache_clear()
    monkeypatch.setattr(heads, "autocast_dtype", lambda device: torch.bfloat16)
    with caplog.at_level(logging.INFO, logger="vopd"):
        Projection(placed(torch.bfloat16, "cuda"), Head(torch.ones(2, 2)), 2, 1.0, torch.float32)
    assert not caplog.records
