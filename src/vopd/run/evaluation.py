"""The options of `vopd eval`, and the evaluation with them; `vopd train` measures accuracy in the same way."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vopd.data.sources import TASK_PREFIX
from vopd.errors import ConfigurationError, check_at_least
from vopd.evaluation.backend import Backend
from vopd.evaluation.benchmarks import Benchmark, check_kind, load_benchmark, training_texts
from vopd.folders import listed_models
from vopd.models.undisturbed import own_generation_config

from .options import needed, setting


@dataclass
class EvalOptions:
    """The options of `vopd eval`."""

    model: str = needed("folders or hub ids of models or LoRA adapters, separated by commas")
    model_revision: str | None = setting(None, "branch, tag or commit of the models on the hub")
    benchmark: str | None = setting(
        None, "names, such as math500,amc23; NAME=FILE reads one from a file, folder or hub id"
    )
    task: str | None = setting(None, "reasoning_gym task, as reasoning_gym:NAME")
    data: str | None = setting(None, "file, pattern, folder or OWNER/NAME on the hub, with columns problem and answer")
    kind: str | None = setting(
        None, "how to grade --data: math, choice, tags (for <answer> tags) or module:function; default: by its columns"
    )
    count: int | None = setting(None, "use only the first N problems; for --task, how many to generate (default 100)")
    task_options: dict | None = setting(None, "options of the task, such as {min_terms: 2}")
    template: str | None = setting(
        None, r"prompt template with {problem}; default: the problem, then a request for a \boxed{} answer"
    )
    chat_template: bool = setting(False, "apply the model's chat template to the prompts")
    thinking: bool | None = setting(
        None, "turn thinking in the chat template on or off; default: the chat template's default"
    )
    system_prompt: str | None = setting(None, "system prompt of the chat template")
    chat_template_kwargs: dict | None = setting(None, "further arguments of the chat template")
    samples: int | None = setting(None, "completions per problem; default: 8, AIME 32, and 1 at temperature 0")
    temperature: float | None = setting(None, "sampling temperature, 0 is greedy; default: 0.6")
    top_p: float | None = setting(
        None, "nucleus sampling: total probability of the tokens to keep; default: 1, multiple choice 0.95"
    )
    top_k: int | None = setting(
        None, "sample from the k most likely tokens, 0 from all; default: 0, multiple choice 20"
    )
    max_new_tokens: int | None = setting(None, "length limit of a completion; default: 4096, files and tasks 1024")
    batch_size: int = setting(16, "completions to generate together")
    seed: int = setting(0, "random seed of the sampling and of the task's problems")
    backend: str = setting("transformers", "engine that generates: transformers or vllm")
    gpu_memory_utilization: float | None = setting(None, "share of the GPU's memory for vLLM; default: vLLM's default")
    max_model_len: int | None = setting(
        None, "vLLM's context: tokens of prompt and completion; default: the model's full context"
    )
    dtype: str = setting("auto", "dtype of the weights: auto (as saved), float32, bfloat16 or float16")
    device: str = setting("auto", "auto, cpu or cuda")
    training_prompts: str | None = setting(
        None, "report problems that occur in these prompts: a file, folder, hub id or dapo_math"
    )
    against: str | None = setting(None, "folder of an earlier evaluation; print the paired difference from it")
    output_dir: str = setting("runs", "parent folder of all runs")
    run_name: str | None = setting(None, "folder of this evaluation in output_dir; default: eval-MODEL-PROBLEMS")

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.benchmark, self.task, self.data)) != 1:
            raise ConfigurationError("vopd eval needs one of --benchmark NAMES, --task reasoning_gym:NAME, --data FILE")
        if self.task is not None and not self.task.startswith(TASK_PREFIX):
            raise ConfigurationError(f"unknown task '{self.task}'; write reasoning_gym:NAME, or use --data for a file")
        if self.model is not None and not listed_models(self.model):
            raise ConfigurationError(f"model is {self.model!r}; write the folder or hub id of a model")
        check_kind(self.kind)
        for name in ("samples", "count", "batch_size", "max_new_tokens"):
            check_at_least(name, getattr(self, name), 1)
        Backend(self.backend, self.gpu_memory_utilization, self.max_model_len)


@dataclass(frozen=True)
class Loaded:
    """A model that has been loaded already, its tokenizer, and the generation configuration that it was saved with."""

    model: Any
    tokenizer: Any
    generation_config: Any


def find_problems(options: EvalOptions) -> list[Benchmark]:
    """Load the benchmarks that `options` name, and check that they can be asked with these options."""
    from vopd.evaluation.completions import Settings

    sources = options.benchmark.split(",") if options.benchmark else [str(options.task or options.data)]
    found = [
        load_benchmark(
            source.strip(), kind=options.kind, count=options.count, seed=options.seed, task_options=options.task_options
        )
        for source in sources
    ]
    settings = Settings(**_sampling(options))
    for benchmark in found:
        settings.applied_to(benchmark)
    return found


def _sampling(options: EvalOptions) -> dict[str, Any]:
    """The settings of an evaluation, by the names that `Settings` has for them."""
    from vopd.evaluation.completions import Settings

    names = {field.name for field in fields(Settings)} - {"revision"}
    return {name: getattr(options, name) for name in names} | {"revision": options.model_revision}


def evaluate(
    options: EvalOptions, benchmarks: Sequence[Benchmark], folder: Path, loaded: Loaded | None = None
) -> dict[str, Any]:
    """Sample the models on `benchmarks`, grade, and write into `folder`; return the content of results.json.

    `loaded` is sampled in place of loading the model that `options` name.
    """
    from vopd.evaluation import runner
    from vopd.evaluation.completions import Checkpoint

    prompts = None if options.training_prompts is None else training_texts(options.training_prompts)
    given = {"benchmarks": list(benchmarks), "output_dir": folder, "training_prompts": prompts, **_sampling(options)}
    if loaded is None:
        return runner.evaluate(listed_models(options.model), **given)
    (source,) = listed_models(options.model)
    checkpoint = Checkpoint(runner.short_names([source])[0], source, loaded.model, loaded.tokenizer)
    with own_generation_config(loaded.model, loaded.generation_config):
        return runner.evaluate(checkpoint, **given)


def command(options: EvalOptions) -> str:
    """Return the `vopd eval` command with these options, without those at their defaults."""
    words = ["vopd", "eval"]
    for entry in fields(options):
        value = getattr(options, entry.name)
        if value == entry.default:
            continue
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        words += [f"--{entry.name}", shlex.quote(text)]
    return " ".join(words)
