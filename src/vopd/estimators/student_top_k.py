"""The student's top k as the estimators read it from the columns of the statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from vopd.functional.moments import not_none
from vopd.kernels import Rows


def support_logits(rows: Rows) -> tuple[Tensor, Tensor]:
    """Student and teacher logits on S, each up to a constant per row, (N, K); -inf in columns outside S.

    The teacher's come from differences, log p - d', so that its normaliser is not needed.
    """
    student = rows.support_logprobs.masked_fill(~rows.in_support, -torch.inf)
    return student, student - not_none(rows.support_difference)
