"""Scoring by a larger local teacher, per micro-batch and once per step: process time, forward passes, states kept.

    python benchmarks/teacher_scoring.py

64 recorded completions in micro-batches of 8, on a CPU with one thread: log-normal lengths (sigma 0.8, mean 0.3 of the
longest), or all of the longest. "padded": micro-batches with the padding of the whole generated batch; "like length":
those that ``Lengths.equal`` cuts. Medians over interleaved rounds. On a CPU teacher_offload copies nothing.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from vopd.models import States, read_head
from vopd.placement import Placement
from vopd.teachers import Rollouts
from vopd.teachers.ahead import Ahead
from vopd.teachers.local import LocalTeacher

ROWS, MICRO_BATCHES, LONGEST, VOCABULARY, ROUNDS = 8, 8, 160, 4096, 3
WIDTH, LAYERS = 384, 6


def batch(seed: int, varied: bool) -> Rollouts:
    """A generated batch of random tokens."""
    random.seed(seed)
    count, middle = ROWS * MICRO_BATCHES, math.log(0.3 * LONGEST) - 0.8**2 / 2
    drawn = [min(LONGEST, max(1, round(random.lognormvariate(middle, 0.8)))) for _ in range(count)]
    lengths = torch.tensor(drawn if varied else [LONGEST] * count)
    prompts = torch.tensor([random.randint(16, 32) for _ in range(count)])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    prompt_mask = (torch.arange(32) >= 32 - prompts[:, None]).long()
    ids, prompt_ids = (torch.randint(2, VOCABULARY, part.shape) for part in (mask, prompt_mask))
    return Rollouts(prompt_ids, prompt_mask, ids, mask, mask, rows=torch.arange(count))


def place() -> tuple[LocalTeacher, LocalTeacher, Placement]:
    """A random teacher, the same one offloaded, and where they are: in one process on the host."""
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=6, num_key_value_heads=3, head_dim=64, max_position_embeddings=512,
    )  # fmt: skip
    alone = SimpleNamespace(state=None, device=torch.device("cpu"), unwrap_model=lambda model, **kept: model)
    placement = Placement(alone, lambda wrapped, model, function, *given: function(*given), None)
    model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    return LocalTeacher(model, placement), LocalTeacher(model, placement, offload=True), placement


def contestants(rollouts: Rollouts, teacher: LocalTeacher, placement: Placement) -> dict[str, Callable[[], int]]:
    """What scores all micro-batches once, and returns the bytes of the states that were kept."""
    student = States(torch.zeros(1), read_head(teacher.model, "student"))
    every, like = range(ROWS * MICRO_BATCHES), rollouts.cut(rollouts.lengths().equal(MICRO_BATCHES), rollouts.lengths())
    padded = [
        Rollouts(**{name: value[start : start + ROWS] for name, value in vars(rollouts).items() if value is not None})
        for start in every[::ROWS]
    ]

    def scored(parts: list[Rollouts], by: Any = teacher) -> int:
        for part in parts:
            by.score(part, student)
        return 0

    def ahead(on_host: bool) -> int:
        whole = Ahead(teacher, placement, ROWS, None, on_host)
        whole.begin(rollouts)
        kept = sum(states.nbytes for states in whole._kept.values())
        return kept + scored(like, whole)

    return {
        "micro_batch, padded": lambda: scored(padded),
        "micro_batch, like length": lambda: scored(like),
        "step": lambda: ahead(False),
        "step_on_host": lambda: ahead(True),
    }


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain, offloaded, placement = place()
    passes: list[Any] = []
    plain.model.model.register_forward_pre_hook(lambda *given: passes.append(given[0]))
    print(f"{'lengths':10}{'offload':>8}  {'scoring':26}{'s':>8}{'ratio':>7}{'passes':>8}{'MB kept':>9}")
    for varied in (True, False):
        found: dict[tuple[bool, str], list[tuple[float, int, int]]] = {}
        for turn in range(ROUNDS):
            for teacher in (plain, offloaded):
                for name, call in contestants(batch(turn, varied), teacher, placement).items():
                    passes.clear()
                    start = time.process_time()
                    kept = call()
                    record = (time.process_time() - start, len(passes), kept)
                    found.setdefault((teacher is offloaded, name), []).append(record)
        for (offload, name), records in found.items():
            base = found[offload, "micro_batch, like length"]
            ratio = statistics.median(own[0] / other[0] for own, other in zip(records, base, strict=True))
            seconds, count, kept = (statistics.median(values) for values in zip(*records, strict=True))
            lengths = "varied" if varied else "equal"
            print(f"{lengths:10}{offload!s:>8}  {name:26}{seconds:8.3f}{ratio:7.2f}{count:8.0f}{kept / 1e6:9.1f}")


if __name__ == "__main__":
    main()
