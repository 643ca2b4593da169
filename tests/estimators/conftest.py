from __future__ import annotations

import pytest
import torch

VOCAB = 7


def _logits(seed: int, scale: float, certain: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    if certain:
        logits[3] = logits.max() + 20
    return logits


# Ordinary, flat, sharp, a student sharper than its teacher, one that is certain and wrong, and both certain.
DISTRIBUTIONS = {
    "ordinary": (_logits(1, 1.0), _logits(2, 1.0)),
    "flat": (_logits(3, 0.05), _logits(4, 0.05)),
    "sharp": (_logits(5, 6.0), _logits(6, 6.0)),
    "student_sharper": (_logits(7, 8.0), _logits(8, 0.5)),
    "certain_and_wrong": (_logits(9, 1.0, certain=True), _logits(10, 2.0)),
    "both_certain": (_logits(11, 1.0, certain=True), _logits(12, 1.0, certain=True)),
}


@pytest.fixture(params=DISTRIBUTIONS.values(), ids=list(DISTRIBUTIONS))
def pair(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher logits of one state, (V,) each, float64."""
    return request.param
