"""Time, memory and gradient error of distillation losses, side by side in one run.

    python benchmarks/loss.py                        the CPU shape, or the reference shape on a GPU
    python benchmarks/loss.py --shape reference --head frozen --json results.json

A call computes the loss and its backward pass from hidden states and heads. Rounds are interleaved, so that other load
on the machine affects all contestants equally. Times are medians: process time of one thread on a CPU, device time on a
GPU. Extra memory is the peak above the inputs and includes the returned gradients.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from contestants import CONTESTANTS, Inputs, products
from torch import Tensor

SHAPES = {  # tokens, student width, teacher width, vocabulary
    "dry": (32, 16, 32, 300),
    "cpu": (1024, 512, 512, 32000),
    "reference": (8192, 2048, 4096, 151936),
    "small_student": (8192, 1024, 2560, 151936),
    "gemma": (4096, 2304, 3584, 262144),
    "long": (32768, 2048, 4096, 151936),
}
LOGIT_SCALE = 4.0
ERROR_ELEMENTS = 1 << 28
"""Largest number of logits in the float64 reference: 2 GiB per tensor. For more, errors are of the first tokens."""


@dataclass(frozen=True)
class Row:
    """One row of the table: seconds, bytes, and relative Frobenius errors of the gradients."""

    name: str
    seconds: float
    extra_bytes: int
    hidden_error: float | None
    head_error: float | None


def make_inputs(shape: tuple[int, int, int, int], device: str, dtype: torch.dtype, trainable: bool) -> Inputs:
    """Hidden states and heads with logits like those of a trained pair: standard deviation 4, correlated models."""
    tokens, student_width, teacher_width, vocab = shape
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    shared = min(student_width, teacher_width)
    hidden = normal(tokens, student_width)
    head = normal(vocab, student_width) * (LOGIT_SCALE / student_width**0.5)
    teacher_hidden = normal(tokens, teacher_width)
    teacher_head = normal(vocab, teacher_width) * (0.25 * LOGIT_SCALE / teacher_width**0.5)
    teacher_hidden[:, :shared] = hidden[:, :shared]
    teacher_head[:, :shared] += 0.9 * head[:, :shared]
    ids = torch.cat(
        [torch.multinomial((rows @ head.T).softmax(-1), 1, generator=generator) for rows in hidden.split(256)]
    ).squeeze(-1)
    return Inputs(
        hidden.to(dtype).requires_grad_(),
        head.to(dtype).requires_grad_(trainable),
        teacher_hidden.to(dtype),
        teacher_head.to(dtype),
        ids,
    )


def run(name: str, inputs: Inputs) -> list[Tensor]:
    """One call: the gradients of the student's hidden states and, if it is trainable, its head."""
    loss = CONTESTANTS[name].loss(inputs)
    return list(torch.autograd.grad(loss, [t for t in (inputs.hidden, inputs.head) if t.requires_grad]))


def seconds(call: Callable[[], object], device: str) -> float:
    """Process time on a CPU, device time on a GPU."""
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def median_seconds(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Medians over interleaved rounds, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            taken = seconds(call, device)
            if turn:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Peak memory above that before the call."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # reset the high-water mark
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def peak_in_child(name: str, arguments: argparse.Namespace, head: str) -> int:
    """Peak memory on a CPU, from a separate process whose allocator frees every tensor immediately."""
    command = [sys.executable, __file__, "--peak-of", name, "--shape", arguments.shape, "--head", head]
    command += ["--dtype", arguments.dtype, "--device", "cpu"]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def errors(name: str, inputs: Inputs) -> tuple[float, float | None]:
    """Relative Frobenius errors of the gradients against the contestant's reference in float64."""
    inputs = inputs.first(max(1, ERROR_ELEMENTS // len(inputs.head)))
    exact = run(CONTESTANTS[name].reference or name, inputs.double())
    found = [float((ours.double() - theirs).norm() / theirs.norm()) for ours, theirs in zip(run(name, inputs), exact)]
    return found[0], found[1] if len(found) > 1 else None


def working(names: Iterable[str], inputs: Inputs) -> list[str]:
    """Those that run on a few tokens: another package's loss that fails here must not take ours with it."""
    found = []
    for name in names:
        try:
            run(name, inputs.first(8))
            found.append(name)
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {error}")
    return found


def measure(arguments: argparse.Namespace, head: str) -> tuple[list[Row], float]:
    """The table for one kind of head, and the time of the matrix products alone."""
    inputs = make_inputs(
        SHAPES[arguments.shape], arguments.device, getattr(torch, arguments.dtype), head == "trainable"
    )
    names = [name for name in arguments.only or CONTESTANTS if CONTESTANTS[name].available(arguments.device)]
    names = working(names, inputs)
    calls: dict[str, Callable[[], object]] = {name: (lambda n=name: run(n, inputs)) for name in names}
    times = median_seconds({**calls, "products": lambda: products(inputs)}, arguments.rounds, arguments.device)
    rows = []
    for name in names:
        peak = peak_in_child(name, arguments, head) if arguments.device == "cpu" else peak_bytes(calls[name], "cuda")
        checked = (None, None) if arguments.no_errors else errors(name, inputs)
        rows.append(Row(name, times[name], peak, *checked))
    return rows, times["products"]


def table(rows: list[Row], products_seconds: float) -> str:
    """Plain text, relative to the naive exact loss."""
    naive = next((row for row in rows if row.name == "naive vopd"), rows[0])
    lines = [
        f"{'loss':34}{'seconds':>9}{'x naive':>9}{'MiB':>8}{'x naive':>9}{'products':>10}{'dH err':>9}{'dW err':>9}"
    ]
    for row in rows:
        found = "".join("        -" if e is None else f"{e:9.1e}" for e in (row.hidden_error, row.head_error))
        lines.append(
            f"{row.name:34}{row.seconds:9.3f}{row.seconds / naive.seconds:9.2f}{row.extra_bytes / 2**20:8.0f}"
            f"{row.extra_bytes / naive.extra_bytes:9.2f}{products_seconds / row.seconds:10.0%}{found}"
        )
    return "\n".join(lines)


def cpu_name() -> str:
    """The name of the processor, if the system provides it."""
    with open("/proc/cpuinfo") as info:
        names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} CPU"


def machine(device: str) -> dict[str, str]:
    """The machine and versions of the measurement."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else f"{cpu_name()}, one thread",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }


def parse() -> argparse.Namespace:
    """Command line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="cpu" if device == "cpu" else "reference")
    parser.add_argument("--head", choices=("both", "trainable", "frozen"), default="both")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32" if device == "cpu" else "bfloat16"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, help="only these contestants")
    parser.add_argument("--no-errors", action="store_true", help="skip the float64 reference")
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--peak-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print one table per kind of head."""
    arguments = parse()
    torch.set_num_threads(1)
    if arguments.peak_of:
        inputs = make_inputs(
            SHAPES[arguments.shape], "cpu", getattr(torch, arguments.dtype), arguments.head == "trainable"
        )
        run(arguments.peak_of, inputs.first(8))  # library workspaces
        print(peak_bytes(lambda: run(arguments.peak_of, inputs), "cpu"))
        return
    records = {"machine": machine(arguments.device), "shape": SHAPES[arguments.shape], "dtype": arguments.dtype}
    print(json.dumps(records))
    for head in ("trainable", "frozen") if arguments.head == "both" else (arguments.head,):
        rows, products_seconds = measure(arguments, head)
        records[head] = {"products_seconds": products_seconds, "rows": [asdict(row) for row in rows]}
        print(f"\n{head} head, matrix products alone {products_seconds:.3f} s")
        print(table(rows, products_seconds), flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main()
