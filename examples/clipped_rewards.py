"""An estimator of one's own: vanilla OPD with clipped rewards. docs/how-to/custom-estimators.md explains it."""

import torch

from vopd.estimators import Estimate, Estimator, Needs, Rows, policy_gradient

LIMIT = 2.0


def clipped(rows: Rows) -> Estimate:
    """A = min(max(r_y, -LIMIT), LIMIT): less variance, at the price of a bias."""
    advantages = rows.rewards.clamp(-LIMIT, LIMIT)
    return policy_gradient(rows, advantages, baseline=torch.zeros_like(advantages))


CLIPPED = Estimator(
    name="opd_clipped",
    description=f"vanilla OPD with rewards clipped at {LIMIT:g} nats",
    support="sampled",
    needs=Needs(),
    estimate=clipped,
    unbiased=False,
    colour="#a6761d",
)
