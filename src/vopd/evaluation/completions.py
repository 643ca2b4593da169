"""Draw the completions of a checkpoint on a benchmark, batch by batch, each kept as soon as it is there."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vopd.data.chat import chat_renderer, render_prompts, thinking_options
from vopd.errors import ConfigurationError
from vopd.models import Completion

from .benchmarks.definitions import Benchmark, Protocol
from .engines import Sampler, open_sampler, transformers_sampler
from .journal import Journal, weights_digest

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A model to evaluate: its name in the results, and the folder or Hub id, or the loaded model and tokenizer."""

    name: str
    source: str | None = None
    model: Any = None
    tokenizer: Any = None

    def open(self, settings: Settings) -> Sampler:
        """The sampler of this checkpoint."""
        if self.source is None:
            return transformers_sampler(self.model, self.tokenizer)
        return open_sampler(
            self.source,
            backend=settings.backend,
            dtype=settings.dtype,
            device=settings.device,
            revision=settings.revision,
        )

    def identity(self) -> dict[str, Any]:
        """What tells this checkpoint's weights from others."""
        if self.source is None:
            return {"name": self.name, "source": None, "weights": _digest_of(self.model)}
        return {"name": self.name, "source": self.source, "weights": weights_digest(Path(self.source))}


@dataclass(frozen=True)
class Settings:
    """How completions are drawn and prompts are made.

    `samples`, `temperature`, `top_p`, `top_k` and `max_new_tokens` stand above each benchmark's own protocol where
    they are given. `template` makes the prompt from {question} or {problem}, which are the same, and the other text
    columns of the row. `thinking` turns the chat template's thinking on or off, `chat_options` are its further
    arguments. `revision` is that of models on the Hub.
    """

    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16
    seed: int = 0
    template: str | None = None
    chat_template: bool = False
    thinking: bool | None = None
    chat_options: Mapping[str, Any] | None = None
    backend: str = "transformers"
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    def protocol(self, benchmark: Benchmark) -> Protocol:
        """The benchmark's protocol with what is given here.

        Raises:
            ConfigurationError: several samples at temperature 0, or no sample or batch at all.
        """
        names = ("samples", "temperature", "top_p", "top_k", "max_new_tokens")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if given.get("temperature") == 0:
            given.setdefault("samples", 1)
        protocol = replace(benchmark.protocol, **given)
        if protocol.samples < 1 or self.batch_size < 1:
            raise ConfigurationError("samples and batch_size must be at least 1")
        if protocol.temperature == 0 and protocol.samples > 1:
            raise ConfigurationError("at temperature 0 all samples are equal; take 1 sample or raise the temperature")
        return protocol


class Opened:
    """A checkpoint whose model is loaded only when the first batch needs it: a finished evaluation loads none."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self.checkpoint = checkpoint
        self.settings = settings

    @cached_property
    def sampler(self) -> Sampler:
        return self.checkpoint.open(self.settings)


@dataclass(frozen=True)
class Work:
    """One checkpoint on one benchmark."""

    checkpoint: str
    benchmark: Benchmark
    protocol: Protocol
    settings: Settings
    folder: Path

    def completions(self, opened: Opened) -> list[list[Record]]:
        """Records of (problems, samples), drawn now or before."""
        journal = Journal(self.folder / "completions" / _file_name(self.checkpoint, self.benchmark.name))
        batches = plan([question.text for question in self.benchmark.questions], self.protocol.samples, self.settings)
        missing = [index for index in range(len(batches)) if index not in journal.batches]
        if missing:
            prompts = benchmark_prompts(self.benchmark, self.settings, opened.sampler.tokenizer)
        for count, index in enumerate(missing, 1):
            logger.info("%s, %s: batch %d of %d", self.checkpoint, self.benchmark.name, count, len(missing))
            journal.add(index, self._draw(opened.sampler, prompts, batches[index], index))
        records = (record for index in range(len(batches)) for record in journal.batches[index])
        return in_rows(records, len(self.benchmark.questions))

    def _draw(self, sampler: Sampler, prompts: list[str], batch: list[tuple[int, int]], index: int) -> list[Record]:
        chosen = [prompts[problem] for problem, _ in batch]
        drawn = sampler.draw(chosen, self.protocol, batch_seed(self.settings, index))
        return [
            record_of(problem, number, prompts[problem], completion)
            for (problem, number), completion in zip(batch, drawn, strict=True)
        ]


def benchmark_prompts(benchmark: Benchmark, settings: Settings, tokenizer: Any) -> list[str]:
    """The prompt text of every question."""
    thinking = thinking_options(settings.thinking, settings.chat_template, tokenizer)
    return render_prompts(
        [{**question.columns, "question": question.text, "problem": question.text} for question in benchmark.questions],
        benchmark.name,
        settings.template or benchmark.template,
        chat_renderer(tokenizer, settings.chat_template, {**(settings.chat_options or {}), **thinking}),
    )


def in_rows(records: Iterable[Record], problems: int) -> list[list[Record]]:
    """Records by problem, the samples of each in order."""
    rows: list[list[Record]] = [[] for _ in range(problems)]
    for record in records:
        rows[record["problem"]].append(record)
    return [sorted(row, key=lambda record: record["sample"]) for row in rows]


def plan(texts: Sequence[str], samples: int, settings: Settings) -> list[list[tuple[int, int]]]:
    """(problem, sample) pairs of every batch: all samples, longest questions first, so that there is little padding."""
    order = sorted(range(len(texts)), key=lambda problem: (-len(texts[problem]), problem))
    requests = [(problem, number) for problem in order for number in range(samples)]
    return [requests[start : start + settings.batch_size] for start in range(0, len(requests), settings.batch_size)]


def batch_seed(settings: Settings, index: int) -> int:
    """Seed of the batch of that number."""
    return zlib.crc32(f"{settings.seed} {index}".encode())


def record_of(problem: int, number: int, prompt: str, completion: Completion) -> Record:
    """What is kept of one completion."""
    return {
        "problem": problem,
        "sample": number,
        "prompt": prompt,
        "completion": completion.text,
        "tokens": len(completion.ids),
        "truncated": completion.truncated,
    }


def _file_name(checkpoint: str, benchmark: str) -> str:
    readable = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{checkpoint}--{benchmark}")[-80:]
    return f"{readable}-{zlib.crc32(f'{checkpoint} {benchmark}'.encode()):08x}.jsonl"


def _digest_of(model: Any) -> str:
    """Short hash of a loaded model: names, shapes and the first entries of its parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        first = parameter.detach().flatten()[:64].tolist()
        digest.update(f"{name} {tuple(parameter.shape)} {first}".encode())
    return digest.hexdigest()[:16]
