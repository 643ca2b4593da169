"""Which implementation runs, and what is said when it cannot."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys

import pytest
import torch

import vopd
from head_reference import batch_of
from vopd.errors import ConfigurationError, MissingExtraError
from vopd.kernels import TorchPass, backend_name, backends, choose_pass, heads, logits, trial

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def test_auto_is_torch_on_a_cpu_and_says_nothing(caplog):
    with caplog.at_level(logging.INFO, logger="vopd"):
        assert choose_pass("auto", torch.device("cpu")) is TorchPass
    assert not caplog.records


def test_auto_without_triton_on_a_gpu_is_torch_with_one_line(monkeypatch, caplog):
    monkeypatch.setattr(backends, "installed", lambda name: False)
    backends._tell_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="vopd"):
        for _ in range(3):
            assert choose_pass("auto", torch.device("cuda", 0)) is TorchPass
    assert [record.name for record in caplog.records] == ["vopd"]
    assert "pip install triton" in caplog.text


def test_an_unknown_backend_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="unknown backend 'cuda': use one of auto, torch, triton"):
        vopd.linear_distillation_loss(**batch_of({}), backend="cuda")


@pytest.mark.skipif(HAS_TRITON, reason="triton is installed")
def test_triton_that_is_not_installed_is_answered_with_its_extra():
    with pytest.raises(MissingExtraError, match=r"pip install -e '.\[kernels\]'"):
        vopd.linear_distillation_loss(**batch_of({}), backend="triton")


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
@pytest.mark.parametrize(("interpret", "code"), [("0", 2), ("1", 0)])
def test_triton_on_a_cpu_needs_the_interpreter(interpret, code):
    program = (
        "import sys, torch; from vopd.errors import ConfigurationError; from vopd.kernels import choose_pass\n"
        "try: print(choose_pass('triton', torch.device('cpu')).__name__)\n"
        "except ConfigurationError as error: print(error); sys.exit(error.exit_code)"
    )
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": "src"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("TritonPass" if code == 0 else "TRITON_INTERPRET=1") in done.stdout


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_auto_on_a_gpu_is_triton_where_it_is_right(monkeypatch):
    monkeypatch.setattr(trial, "trouble", lambda device: None)
    assert backend_name("auto", torch.device("cuda", 0)) == "triton"
    assert choose_pass("auto", torch.device("cuda", 0)).__name__ == "TritonPass"


def test_auto_falls_back_with_one_line_where_the_kernels_do_not_run(monkeypatch, caplog):
    monkeypatch.setattr(backends, "installed", lambda name: True)
    monkeypatch.setattr(trial, "trouble", lambda device: "RuntimeError: no C compiler")
    backends._tell_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="vopd"):
        for _ in range(2):
            assert backend_name("auto", torch.device("cuda", 0)) == "torch"
    assert len(caplog.records) == 1 and "no C compiler" in caplog.text and "plain torch" in caplog.text


@pytest.mark.skipif(not INTERPRETED, reason="needs triton's interpreter")
class TestTrial:
    @pytest.fixture(autouse=True)
    def anew(self):
        trial.trouble.cache_clear()
        yield
        trial.trouble.cache_clear()

    def test_right_kernels_pass(self):
        before = torch.random.get_rng_state()
        assert trial.trouble(torch.device("cpu")) is None
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_right_kernels_pass_with_half_precision_products_as_on_cuda(self, monkeypatch):
        monkeypatch.setattr(heads, "product_dtype", lambda hidden, weight, wide: hidden.dtype)
        assert trial.trouble(torch.device("cpu")) is None

    def test_a_step_under_autocast_tries_float32_as_well(self, monkeypatch):
        tried = []

        def as_on_cuda(hidden, weight, wide):
            tried.append(torch.bfloat16 if torch.is_autocast_enabled("cpu") else hidden.dtype)
            return tried[-1]

        monkeypatch.setattr(heads, "product_dtype", as_on_cuda)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert trial.trouble(torch.device("cpu")) is None
        assert set(tried) == {torch.float32, torch.bfloat16}

    def test_a_wrong_gradient_in_half_precision_is_found(self, monkeypatch):
        from vopd.kernels import triton_rows

        own = triton_rows.TritonPass._narrow_gradient
        monkeypatch.setattr(heads, "product_dtype", lambda hidden, weight, wide: hidden.dtype)
        monkeypatch.setattr(triton_rows.TritonPass, "_narrow_gradient", lambda *args: own(*args).mul_(1.05))
        assert "gradient in the hidden states differs" in trial.trouble(torch.device("cpu"))

    def test_a_product_that_forgets_earlier_chunks_is_found(self, monkeypatch):
        monkeypatch.setattr(heads, "product_dtype", lambda hidden, weight, wide: hidden.dtype)

        def forgets(left, right, out, alpha=1.0, accumulate=False):
            return heads.multiply(left, right, out, alpha, accumulate and left.dtype == out.dtype)

        monkeypatch.setattr(logits, "multiply", forgets)
        assert "gradient in the head differs from torch's for bfloat16" in trial.trouble(torch.device("cpu"))

    @pytest.mark.parametrize("spoilt", ["mass2", "d1", "top_d", "logs"])
    def test_a_wrong_sum_is_found(self, monkeypatch, spoilt):
        from vopd.kernels import triton_rows

        own = triton_rows.TritonPass._row_sums

        def wrong(self, *args, **kwargs):
            found, top_ids = own(self, *args, **kwargs)
            return found._replace(**{spoilt: 1.01 * getattr(found, spoilt)}), top_ids

        monkeypatch.setattr(triton_rows.TritonPass, "_row_sums", wrong)
        assert "differs from torch's" in trial.trouble(torch.device("cpu"))

    def test_what_is_raised_is_told_in_one_line(self, monkeypatch):
        from vopd.kernels import triton_rows

        def fail(self, *args):
            raise RuntimeError("Failed to find C compiler.\nmore")

        monkeypatch.setattr(triton_rows.TritonPass, "_write_gradient", fail)
        assert trial.trouble(torch.device("cpu")) == "RuntimeError: Failed to find C compiler."
