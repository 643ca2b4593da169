"""The options of `vopd eval`, and the evaluation that they ask for; runs measure their own accuracy with them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vopd.data.sources import TASK_PREFIX
from vopd.errors import ConfigurationError, check_at_least, check_known
from vopd.evaluation.backend import Backend
from vopd.evaluation.benchmarks import Benchmark, load_benchmark, training_texts
from vopd.evaluation.grading import KINDS

from .options import needed, setting


@dataclass
class EvalOptions:
    """The options of `vopd eval`."""

    model: str = needed("folders or hub ids of models or LoRA adapters, separated by commas")
    model_revision: str | None = setting(None, "branch, tag or commit of the models on the hub")
    benchmark: str | None = setting(None, "names such as math500,amc23; NAME=FILE reads one from a file or hub id")
    task: str | None = setting(None, "reasoning_gym:NAME")
    data: str | None = setting(None, ".jsonl, .json or .parquet file with problem and answer")
    kind: str | None = setting(None, "how --data is graded: math or choice; default: what its columns say")
    count: int | None = setting(None, "only the first N problems; how many --task makes (default 100)")
    task_options: dict | None = setting(None, "options of the task, such as {min_terms: 2}")
    template: str | None = setting(None, "prompt text with {problem}; default: the problem, then a request for a box")
    chat_template: bool = setting(False, "put prompts into the model's chat template")
    thinking: bool | None = setting(None, "turn the chat template's thinking on or off; default: as it chooses")
    chat_template_kwargs: dict | None = setting(None, "further arguments of the chat template")
    samples: int | None = setting(None, "completions a problem; default 8, AIME 32, and 1 at temperature 0")
    temperature: float | None = setting(None, "default 0.6; 0 takes the most likely token")
    top_p: float | None = setting(None, "keep the smallest set of tokens with this mass; default 1, choice sets 0.95")
    top_k: int | None = setting(None, "keep the k most likely tokens, 0 all; default 0, choice sets 20")
    max_new_tokens: int | None = setting(None, "length limit of a completion; default 4096, files and tasks 1024")
    batch_size: int = setting(16, "completions computed together")
    seed: int = setting(0, "of the sampling, and of the task's problems")
    backend: str = setting("transformers", "transformers or vllm")
    gpu_memory_utilization: float | None = setting(None, "share of the GPU that vLLM takes; default: vLLM's")
    max_model_len: int | None = setting(None, "tokens of prompt and completion that vLLM makes room for; default: all")
    dtype: str = setting("auto", "auto, float32, bfloat16 or float16")
    device: str = setting("auto", "auto, cpu, cuda")
    training_prompts: str | None = setting(None, "report problems that occur in this file, hub data set or dapo_math")
    against: str | None = setting(None, "folder of an earlier evaluation: print the paired difference to it")
    output_dir: str = setting("runs", "folder of all runs")
    run_name: str | None = setting(None, "folder of this evaluation in output_dir; default: eval-MODEL-PROBLEMS")

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.benchmark, self.task, self.data)) != 1:
            raise ConfigurationError("vopd eval needs one of --benchmark NAMES, --task reasoning_gym:NAME, --data FILE")
        if self.task is not None and not self.task.startswith(TASK_PREFIX):
            raise ConfigurationError(f"unknown task '{self.task}'; write reasoning_gym:NAME, or --data for a file")
        if self.kind is not None:
            check_known("kind", self.kind, KINDS)
        for name in ("samples", "count", "batch_size", "max_new_tokens"):
            check_at_least(name, getattr(self, name), 1)
        Backend(self.backend, self.gpu_memory_utilization, self.max_model_len)


def find_problems(options: EvalOptions) -> list[Benchmark]:
    """Return the benchmarks that `options` name, loaded."""
    sources = options.benchmark.split(",") if options.benchmark else [str(options.task or options.data)]
    return [
        load_benchmark(
            source.strip(), kind=options.kind, count=options.count, seed=options.seed, task_options=options.task_options
        )
        for source in sources
    ]


def evaluate(options: EvalOptions, benchmarks: Sequence[Benchmark], folder: Path) -> dict[str, Any]:
    """Sample the models on `benchmarks`, grade, and write into `folder`; return what results.json holds."""
    from vopd.evaluation import runner
    from vopd.evaluation.completions import Settings

    renamed = {"revision": options.model_revision, "chat_options": options.chat_template_kwargs}
    names = {field.name for field in fields(Settings)} - renamed.keys()
    settings = {name: getattr(options, name) for name in names} | renamed
    prompts = None if options.training_prompts is None else training_texts(options.training_prompts)
    return runner.evaluate(models_of(options), list(benchmarks), folder, training_prompts=prompts, **settings)


def models_of(options: EvalOptions) -> list[str]:
    return [name.strip() for name in options.model.split(",") if name.strip()]
