"""The k largest logits of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

TILE = 128
"""Columns per tile; the first search reads only the largest logit of each tile."""


def top_k_ids(logits: Float[Tensor, "C V"], k: int) -> Int[Tensor, "C {k}"]:
    """Return the ids of the k largest logits of each row, largest first, (C, k).

    The k tiles with the largest maxima contain the k largest logits. One pass for the maxima and a search in k tiles
    therefore replace the several passes of a search over the whole row.
    """
    whole = logits.shape[-1] // TILE
    if 8 * k > whole:
        return logits.topk(k, dim=-1).indices
    tiles = logits[:, : whole * TILE].unflatten(-1, (whole, TILE))
    chosen = tiles.amax(-1).topk(k, dim=-1).indices
    candidates = tiles.gather(1, chosen.unsqueeze(-1).expand(-1, -1, TILE)).flatten(1)
    if logits.shape[-1] > whole * TILE:  # the columns after the last whole tile
        candidates = torch.cat([candidates, logits[:, whole * TILE :]], dim=-1)
    places = candidates.topk(k, dim=-1).indices
    tile = chosen.gather(-1, (places // TILE).clamp_max(k - 1))
    return torch.where(places < k * TILE, tile * TILE + places % TILE, places + (whole - k) * TILE)
