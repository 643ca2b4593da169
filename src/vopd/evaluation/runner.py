"""Evaluate checkpoints on benchmarks: sample, grade, score and write. A killed evaluation can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from vopd.atomic import write_whole
from vopd.errors import ConfigurationError, MissingExtraError
from vopd.folders import new_folder
from vopd.reporting.benchmark_curves import draw_accuracy
from vopd.versions import versions

from .benchmarks import Benchmark, load_benchmark, warn_of_overlaps
from .completions import Checkpoint, Settings, draw_all
from .journal import only_one, same_plan, write_lines
from .scores import score

_PACKAGES = ("torch", "transformers", "math-verify", "sympy")


def evaluate(
    models: Any,
    benchmarks: Sequence[str | Benchmark],
    output_dir: str | Path,
    *,
    tokenizer: Any = None,
    training_prompts: Sequence[str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate one or several checkpoints on benchmarks and return the content of results.json.

    Completions are sampled in batches that are planned in advance, each seeded by `seed` and its index, and every
    finished batch is saved. If the evaluation is killed, the same call resumes it and ends with the same results (the
    same bytes on a CPU in float32). Writes into `output_dir`: results.json and samples.jsonl at the end, each complete
    or not at all; plan.json and completions/ on the way; accuracy.png for several checkpoints.

    Args:
        models: a folder or Hub id; a list of them, or a mapping from names to them; a loaded model (with `tokenizer`),
            or a `Checkpoint`. A LoRA adapter is loaded onto its base model.
        benchmarks: names as in `vopd.evaluation.benchmarks.load_benchmark`, or loaded benchmarks.
        output_dir: folder of this evaluation.
        tokenizer: tokenizer of a loaded model.
        training_prompts: prompts that were trained on; questions that occur among them are reported.
        settings: fields of `Settings`.

    Raises:
        ConfigurationError: a setting is out of range, or the folder has another evaluation.
        DataError: a benchmark cannot be read, or a prompt does not fit into the model's context.
        MismatchError: a model cannot be loaded.
    """
    try:
        chosen = Settings(**settings)
    except TypeError as error:
        raise ConfigurationError(f"{error}; settings are {', '.join(Settings.__dataclass_fields__)}") from error
    checkpoints = _checkpoints(models, tokenizer, chosen)
    loaded = [item if isinstance(item, Benchmark) else load_benchmark(item) for item in benchmarks]
    names = [benchmark.name for benchmark in loaded]
    if not loaded or len(set(names)) != len(names):
        raise ConfigurationError("set at least one benchmark, and none twice")
    loaded = [chosen.applied_to(benchmark) for benchmark in loaded]
    folder = Path(output_dir)
    with new_folder(folder, "plan.json", ".lock"), only_one(folder):
        (folder / "completions").mkdir(exist_ok=True)
        head = _head(checkpoints, loaded, chosen)
        same_plan(folder, head)
        entries = _run(checkpoints, loaded, chosen, folder)
        results = {**head, "versions": versions(*_PACKAGES), "results": entries}
        if training_prompts is not None:
            found = warn_of_overlaps(loaded, training_prompts)
            results["contamination"] = {name: list(map(asdict, overlaps)) for name, overlaps in found.items()}
        write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
        if len(checkpoints) > 1:
            with suppress(MissingExtraError):  # the figure is optional, and so is matplotlib
                draw_accuracy(results, folder / "accuracy.png")
    return results


def _checkpoints(models: Any, tokenizer: Any, settings: Settings) -> list[Checkpoint]:
    if isinstance(models, Checkpoint):
        return [models]
    if isinstance(models, Mapping):
        return [Checkpoint(str(name), str(source)) for name, source in models.items()]
    if isinstance(models, str | Path):
        models = [models]
    if not isinstance(models, Sequence):
        if tokenizer is None:
            raise ConfigurationError("a loaded model needs its tokenizer; pass it as tokenizer")
        if settings.backend != "transformers":
            raise ConfigurationError(f"{settings.backend} loads a model itself; pass its folder, or remove backend")
        return [Checkpoint("model", None, models, tokenizer)]
    sources = [str(model) for model in models]
    if not sources or len(set(sources)) != len(sources):
        raise ConfigurationError("set at least one model, and none twice")
    return [Checkpoint(name, source) for name, source in zip(short_names(sources), sources)]


def short_names(sources: Sequence[str]) -> list[str]:
    """The shortest unique ends of the paths: checkpoint-100, or run-a/checkpoint-100."""
    parts = [source.rstrip("/").split("/") for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(sources)


def _head(checkpoints: list[Checkpoint], benchmarks: list[Benchmark], settings: Settings) -> dict[str, Any]:
    """The plan of an evaluation: must be the same to resume it, and is written to results.json."""
    facts = ("name", "kind", "source", "revision", "fingerprint", "questions", "template", "protocol")
    described = [{name: getattr(benchmark, name) for name in facts} for benchmark in benchmarks]
    for entry in described:
        entry |= {"questions": len(entry["questions"]), "protocol": asdict(entry["protocol"])}
    names = ("batch_size", "seed", "chat_template", "thinking", "backend", "revision", "dtype")
    recorded = {name: getattr(settings, name) for name in names} | {"chat_options": settings.chat_template_kwargs}
    for name in ("max_model_len", "system_prompt"):  # evaluations older than these options can still be resumed
        if getattr(settings, name) is not None:
            recorded[name] = getattr(settings, name)
    return {
        "settings": recorded,
        "checkpoints": [checkpoint.identity() for checkpoint in checkpoints],
        "benchmarks": described,
    }


def _run(
    checkpoints: list[Checkpoint], benchmarks: list[Benchmark], settings: Settings, folder: Path
) -> list[dict[str, Any]]:
    """Sample and score everything, write samples.jsonl, and return the entries of results.json."""
    entries, lines = [], []
    for checkpoint in checkpoints:
        for entry, graded in _scored(checkpoint, benchmarks, settings, folder):
            entries.append(entry)
            lines += graded
    write_lines(folder / "samples.jsonl", lines)
    return entries


def _scored(
    checkpoint: Checkpoint, benchmarks: list[Benchmark], settings: Settings, folder: Path
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Entry and lines of each benchmark. The model is loaded only if something has to be sampled, and is closed before
    the next one is loaded: two vLLM engines do not fit on one GPU."""
    scored = []
    with ExitStack() as opened:
        sampler = cache(lambda: opened.enter_context(checkpoint.open(settings)))
        for benchmark in benchmarks:
            drawn = draw_all(checkpoint.name, benchmark, settings, sampler, folder / "completions")
            scored.append(score(checkpoint.name, benchmark, drawn))
    return scored
