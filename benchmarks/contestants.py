"""The losses that benchmarks/loss.py compares: from hidden states and heads to a scalar with gradient."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import vopd


@dataclass(frozen=True)
class Inputs:
    """Inputs of a loss, of shapes (N, D_s), (V, D_s), (N, D_t), (V, D_t) and (N,)."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    ids: Tensor

    def first(self, count: int) -> Inputs:
        """The first `count` tokens, with new hidden states that get the gradient."""
        hidden = self.hidden.detach()[:count].requires_grad_()
        return replace(self, hidden=hidden, teacher_hidden=self.teacher_hidden[:count], ids=self.ids[:count])

    def double(self) -> Inputs:
        """The same values in float64."""
        hidden, head = self.hidden.detach().double(), self.head.detach().double()
        return Inputs(
            hidden.requires_grad_(),
            head.requires_grad_(self.head.requires_grad),
            self.teacher_hidden.double(),
            self.teacher_head.double(),
            self.ids,
        )


@dataclass(frozen=True)
class Contestant:
    """A loss, its requirements, and the contestant whose float64 gradient is its reference (None: itself)."""

    loss: Callable[[Inputs], Tensor]
    reference: str | None = None
    package: str | None = None
    gpu_only: bool = False

    def available(self, device: str) -> bool:
        """Whether its package is installed and it runs on this device."""
        installed = self.package is None or importlib.util.find_spec(self.package) is not None
        return installed and (device != "cpu" or not self.gpu_only)


def naive(inputs: Inputs, estimator: str) -> Tensor:
    """Full logits and log-softmax of both models in the models' dtype, with autograd, as in the paper's code."""
    logprobs = (inputs.hidden @ inputs.head.T).log_softmax(-1)
    with torch.no_grad():
        teacher_logprobs = (inputs.teacher_hidden @ inputs.teacher_head.T).log_softmax(-1)
    if estimator == "full_rkl":
        return (logprobs.exp() * (logprobs - teacher_logprobs)).sum(-1).mean()
    ids = inputs.ids.unsqueeze(-1)
    sampled = logprobs.gather(-1, ids).squeeze(-1)
    with torch.no_grad():
        advantages = teacher_logprobs.gather(-1, ids).squeeze(-1) - sampled
        if estimator == "vopd":
            advantages += (logprobs.exp() * (logprobs - teacher_logprobs)).sum(-1)
    return -(advantages * sampled).mean()


def trl_chunked(inputs: Inputs) -> Tensor:
    """TRL's chunked divergence at beta = 1, the exact reverse KL."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence, _ = ChunkedDivergenceFunction.apply(
        inputs.hidden, inputs.head, None, inputs.teacher_hidden, inputs.teacher_head, None,
        1.0, 1.0, 1.0, None, 1.0, None,
    )  # fmt: skip
    return divergence.mean()


def liger_jsd(inputs: Inputs) -> Tensor:
    """Liger's fused linear JSD at beta = 1, the exact reverse KL."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=1.0)
    return loss(inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, inputs.ids)


def ours(
    estimator: str, top_k: int | None = None, diagnostics: bool = False, backend: str = "auto"
) -> Callable[[Inputs], Tensor]:
    """``vopd.linear_distillation_loss``; in float64, where it is its own reference, in plain torch."""

    def loss(inputs: Inputs) -> Tensor:
        return vopd.linear_distillation_loss(
            inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, inputs.ids,
            estimator=estimator, top_k=top_k, diagnostics=diagnostics,
            backend="torch" if inputs.hidden.dtype == torch.float64 else backend,
        ).loss  # fmt: skip

    return loss


CONTESTANTS = {
    "naive opd": Contestant(lambda inputs: naive(inputs, "opd")),
    "naive vopd": Contestant(lambda inputs: naive(inputs, "vopd")),
    "naive full_rkl": Contestant(lambda inputs: naive(inputs, "full_rkl")),
    "trl chunked reverse KL": Contestant(trl_chunked, reference="naive full_rkl", package="trl"),
    "liger fused JSD": Contestant(liger_jsd, reference="naive full_rkl", package="liger_kernel", gpu_only=True),
    "opd": Contestant(ours("opd"), reference="naive opd"),
    "vopd": Contestant(ours("vopd"), reference="naive vopd"),
    "vopd with diagnostics": Contestant(ours("vopd", diagnostics=True), reference="naive vopd"),
    "vopd in plain torch": Contestant(ours("vopd", backend="torch"), reference="naive vopd", gpu_only=True),
    "vopd_optimal": Contestant(ours("vopd_optimal")),
    "vopd_top_k, k = 20": Contestant(ours("vopd_top_k", 20)),
    "vopd_sparse, k = 20": Contestant(ours("vopd_sparse", 20)),
    "vopd_sparse, k = 100": Contestant(ours("vopd_sparse", 100)),
    "vopd_teacher_top_k, k = 20": Contestant(ours("vopd_teacher_top_k", 20)),
    "vopd_teacher_top_k_optimal, k = 20": Contestant(ours("vopd_teacher_top_k_optimal", 20)),
    "rao_blackwell_top_k, k = 20": Contestant(ours("rao_blackwell_top_k", 20)),
    "rao_blackwell_teacher_top_k, k = 20": Contestant(ours("rao_blackwell_teacher_top_k", 20)),
    "full_rkl": Contestant(ours("full_rkl"), reference="naive full_rkl"),
    "top_k_rkl, k = 20": Contestant(ours("top_k_rkl", 20)),
}


@torch.no_grad()
def products(inputs: Inputs) -> None:
    """The matrix products that every implementation needs, one chunk of tokens at a time."""
    for rows, teacher_rows in zip(inputs.hidden.split(1024), inputs.teacher_hidden.split(1024)):
        logits = rows @ inputs.head.T
        teacher_rows @ inputs.teacher_head.T
        logits @ inputs.head
        if inputs.head.requires_grad:
            logits.T @ rows
