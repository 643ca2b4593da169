"""What reading a model must not do to it. What launchers do to it is tested in tests/launchers."""

from __future__ import annotations

import torch
from torch import nn

from vopd.placement import Placement


def test_a_compiled_model_keeps_the_ddp_around_it(fresh_accelerate: None) -> None:
    """accelerate would put the bare model in its place, and every process would go on with gradients of its own."""
    from accelerate import Accelerator

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        bare = nn.Linear(2, 2)
        around = nn.parallel.DistributedDataParallel(bare)
        compiled = torch.compile(around, backend="eager")
        placement = Placement(Accelerator(cpu=True), lambda *given: None, None)
        assert placement.unwrap(compiled) is bare and compiled._orig_mod is around
    finally:
        torch.distributed.destroy_process_group()
