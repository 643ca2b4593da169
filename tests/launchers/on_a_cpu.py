"""accelerate's FSDP2 on processes without a GPU: on_a_cpu.py ARGUMENTS is `vopd ARGUMENTS` with it."""

from __future__ import annotations

import sys
from typing import Any


def let_accelerate_shard() -> None:
    """accelerate asks for FSDP only where every process has a device. All that it does then runs on a CPU as well."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    made = PartialState.__init__

    def with_devices(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = with_devices


if __name__ == "__main__":
    from vopd.cli import main
    from vopd.run.exit_codes import leave

    let_accelerate_shard()
    leave(main(sys.argv[1:]))
