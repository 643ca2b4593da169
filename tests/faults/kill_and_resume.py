"""Kills runs at random moments and resumes them: each has to end with the bits of the run that nothing disturbed.

    python tests/faults/kill_and_resume.py [--trials 30] [--seed 0] [--keep FOLDER]

Every trial starts `vopd train` on a tiny pair of models (float32, CPU; full fine-tuning and LoRA in turns), brings one
fault over it at a random moment, takes the fault away, and calls the same command with --resume. Final weights,
samples.jsonl and metrics.jsonl (but for its clock) have to be equal.

Faults: SIGTERM; SIGKILL; a disk that runs full (a tmpfs of its own, filled up); a disk that turns read-only (the same
tmpfs, mounted anew); a limit on the size of files (which the kernel enforces on every write). Where this user may not
mount, the disks are replaced: full by the limit on sizes, read-only by folders without permission to write.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MOUNTS = "VOPD_TEST_MAY_MOUNT"
STEPS = 12
_MEBIBYTE = 1 << 20


# ---- the run ------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Models and prompts. Everything heavy is imported here, once: runs are forks of this process."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    import torch

    import conftest
    import vopd.cli.train
    import vopd.reporting.report
    import vopd.training  # noqa: F401

    torch.set_num_threads(1)
    tokenizer = conftest.tiny_tokenizer.__wrapped__()
    conftest.save_tiny_model(folder / "student", tokenizer, rows=304, width=32, seed=1, tied=True)
    conftest.save_tiny_model(folder / "teacher", tokenizer, rows=320, width=48, seed=2, tied=False)
    rows = [{"problem": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@cache
def _log(path: Path) -> int:
    """A pipe to a process that appends to `path`: what a run says must not meet the faults of its disk."""
    reader, writer = os.pipe()
    subprocess.Popen(["sh", "-c", 'cat >> "$0"', str(path)], stdin=reader)
    os.close(reader)
    return writer


def start(folder: Path, output: Path, *more: str) -> int:
    """Fork a process that runs `vopd train` into output/run; returns its id."""
    log = _log(folder / "log.txt")
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        from vopd import cli

        code = cli.main([
            "train", "--model", str(folder / "student"), "--teacher_model", str(folder / "teacher"),
            "--dataset", str(folder / "prompts.jsonl"), "--output_dir", str(output), "--run_name", "run",
            "--max_completion_length", "6", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2",
            "--max_steps", str(STEPS), "--learning_rate", "1e-2", "--use_cpu", "true", "--save_strategy", "steps",
            "--save_steps", "2", "--save_total_limit", "2", *more,
        ])  # fmt: skip
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Its exit code, or minus the signal that it died of."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass(frozen=True)
class Result:
    """What a finished run leaves."""

    weights: bytes
    samples: str
    metrics: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Path) -> Result:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        clock = ("seconds/", "tokens_per_second", "step_time")
        return cls(
            next((run / "model").glob("*model.safetensors")).read_bytes(),
            (run / "samples.jsonl").read_text(),
            [{name: value for name, value in record.items() if not name.startswith(clock)} for record in records],
        )

    def differences(self, other: Result) -> str:
        parts = [name for name in ("weights", "samples", "metrics") if getattr(self, name) != getattr(other, name)]
        return ", ".join(parts)


# ---- faults -------------------------------------------------------------------------------------------------------
# Each: brought over the process `child` that writes to the folder `output`; returns what takes it away again.

Undo = Callable[[], Any]
Fault = Callable[[int, Path], Undo]


def sigterm(child: int, output: Path) -> Undo:
    os.kill(child, signal.SIGTERM)
    return lambda: None


def sigkill(child: int, output: Path) -> Undo:
    os.kill(child, signal.SIGKILL)
    return lambda: None


def size_limit(child: int, output: Path) -> Undo:
    hard = resource.prlimit(child, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(child, resource.RLIMIT_FSIZE, (random.choice([0, 300, 3000, 30_000]), hard))
    return lambda: None


def full_disk(child: int, output: Path) -> Undo:
    filler = output / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while stream.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    return filler.unlink


def read_only_disk(child: int, output: Path) -> Undo:
    for _ in range(5000):  # busy while a file is open for writing
        if subprocess.run(["mount", "-o", "remount,ro", str(output)], capture_output=True).returncode == 0:
            break
        time.sleep(0.001)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", str(output)], check=True)


def no_permission(child: int, output: Path) -> Undo:
    folders = [output, *(path for path in output.rglob("*") if path.is_dir())]

    def allow(mode: int) -> None:
        for folder in folders:
            if folder.exists():
                folder.chmod(mode)

    allow(0o555)
    return lambda: allow(0o755)


def faults() -> list[Fault]:
    if os.environ.get(MOUNTS) == "1":
        return [sigterm, sigkill, full_disk, read_only_disk, size_limit]
    return [sigterm, sigkill, size_limit] + ([no_permission] if os.geteuid() else [])


def make_disk(output: Path) -> None:
    output.mkdir()
    if os.environ.get(MOUNTS) == "1":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={8 * _MEBIBYTE}", "tmpfs", str(output)], check=True)


def remove_disk(output: Path) -> None:
    if os.environ.get(MOUNTS) == "1":
        subprocess.run(["umount", str(output)], check=True)
    shutil.rmtree(output)


# How a disturbed run may end: SIGTERM before or after the steps is the system's own, and a fault may come too late.
_ENDS = {"sigterm": {143, -signal.SIGTERM, 0}, "sigkill": {-signal.SIGKILL, 0}}
_DISK = {0, 1, 2}  # 1: a write failed; 2: it already could not be written when the run began


# ---- trials -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way to train, what its undisturbed run left, and the seconds to the end of its first step and of each step."""

    options: tuple[str, ...]
    expected: Result
    start: float
    step: float


def undisturbed(folder: Path, name: str, *options: str) -> Way:
    output = folder / f"whole-{name}"
    make_disk(output)
    began = time.time()
    child = start(folder, output, *options)
    wait_for_step(child, output, 1)
    first = time.time()
    code = wait(child)
    if code != 0:
        raise SystemExit(f"the undisturbed run ended with {code}:\n{(folder / 'log.txt').read_text()}")
    last = max(path.stat().st_mtime for path in (output / "run" / "model").iterdir())
    way = Way(options, Result.of(output / "run"), first - began, (last - first) / STEPS)
    remove_disk(output)
    return way


def wait_for_step(child: int, output: Path, step: int) -> None:
    """Return once the run has logged `step`, or has ended."""
    metrics = output / "run" / "metrics.jsonl"
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if steps_logged(metrics) >= step:
            return
        time.sleep(0.001)


def steps_logged(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def trial(folder: Path, number: int, way: Way, fault: Fault, moment: float) -> tuple[bool, str]:
    """Whether the disturbed and resumed run ended as the undisturbed one, and what happened in one line.

    The fault comes at `moment`, in steps: 3.5 is half a step's time, with its save, after step 3 was logged.
    """
    output = folder / f"trial-{number}"
    make_disk(output)
    try:
        child = start(folder, output, *way.options)
        wait_for_step(child, output, int(moment))
        time.sleep(moment % 1 * (way.step if moment >= 1 else way.start))
        undo = fault(child, output)
        code = wait(child)
        undo()
        step = steps_logged(output / "run" / "metrics.jsonl")
        again = wait(start(folder, output, "--resume", *way.options))
        said = f"{fault.__name__:<14} at {moment:5.2f}, ended after step {step:2} with {code:4}; resumed with {again}"
        if code not in _ENDS.get(fault.__name__, _DISK):
            return False, f"{said}; it should have ended otherwise"
        if again != 0:
            return False, said
        different = Result.of(output / "run").differences(way.expected)
        return not different, said + (f"; differs in {different}" if different else "; the same bits")
    finally:
        remove_disk(output)


def run_trials(folder: Path, trials: int, seed: int) -> int:
    """Run all trials and return how many passed."""
    random.seed(seed)
    prepare(folder)
    ways = [undisturbed(folder, "full"), undisturbed(folder, "lora", "--lora_rank", "2")]
    took = [f"{way.start:.1f} s to the first step, {way.step:.2f} s a step" for way in ways]
    print(f"undisturbed, {STEPS} steps, full: {took[0]}; LoRA: {took[1]}", flush=True)
    kinds, passed = faults(), 0
    for number in range(trials):
        way, fault = ways[number // len(kinds) % 2], kinds[number % len(kinds)]
        good, said = trial(folder, number, way, fault, random.uniform(0, STEPS + 1))
        passed += good
        print(f"{number + 1:3} {'good' if good else 'BAD '} {said}", flush=True)
    print(f"{passed} of {trials}")
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="work in this folder and leave it")
    given = parser.parse_args()
    if MOUNTS not in os.environ:
        may = shutil.which("unshare") and subprocess.run(
            ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True
        ).returncode == 0  # fmt: skip
        os.environ[MOUNTS] = "1" if may else "0"
        if may:  # in a namespace of its own, where a user may mount
            os.execvp("unshare", ["unshare", "-Urm", sys.executable, *sys.argv])
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "OMP_NUM_THREADS", "TRL_EXPERIMENTAL_SILENCE"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = Path(given.keep or tempfile.mkdtemp(prefix="vopd-faults-"))
    folder.mkdir(exist_ok=True)
    passed = run_trials(folder, given.trials, given.seed)
    if passed < given.trials:
        print(f"what the runs said is in {folder / 'log.txt'}")
    elif given.keep is None:
        shutil.rmtree(folder)
    return int(passed < given.trials)


if __name__ == "__main__":
    sys.exit(main())
