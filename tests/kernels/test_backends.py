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
from vopd.kernels import TorchPass, backends, choose_pass

HAS_TRITON = importlib.util.find_spec("triton") is not None


def test_auto_is_torch_on_a_cpu_and_says_nothing(caplog):
    with caplog.at_level(logging.INFO, logger="vopd"):
        assert choose_pass("auto", torch.device("cpu")) is TorchPass
    assert not caplog.records


def test_auto_without_triton_on_a_gpu_is_torch_with_one_line(monkeypatch, caplog):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    backends._tell_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="vopd"):
        for _ in range(3):
            assert choose_pass("auto", torch.device("cuda", 0)) is TorchPass
    assert [record.name for record in caplog.records] == ["vopd"]
    assert "vopd[kernels]" in caplog.text


def test_an_unknown_backend_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="unknown backend 'cuda': use one of auto, torch, triton"):
        vopd.linear_distillation_loss(**batch_of({}), backend="cuda")


@pytest.mark.skipif(HAS_TRITON, reason="triton is installed")
def test_triton_that_is_not_installed_is_answered_with_its_extra():
    with pytest.raises(MissingExtraError, match=r"pip install 'vopd\[kernels\]'"):
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
def test_auto_on_a_gpu_is_triton():
    assert choose_pass("auto", torch.device("cuda", 0)).__name__ == "TritonPass"
