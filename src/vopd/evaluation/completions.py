"""Sample a checkpoint's completions on a benchmark, batch by batch, and save each batch at once."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vopd.data.chat import Chat, PromptError, Rendered
from vopd.data.prompt_columns import fill_template
from vopd.errors import ConfigurationError, DataError
from vopd.models import Completion, batch_seed, plan_batches

from .backend import Backend
from .benchmarks import Benchmark
from .engines import Sampler, open_sampler, transformers_sampler
from .journal import Journal, weights_digest

logger = logging.getLogger(__name__)

Record = dict[str, Any]
"""One saved completion: problem, sample, prompt, completion, tokens, truncated."""
Batch = list[tuple[int, int]]


@dataclass(frozen=True)
class Checkpoint:
    """A model to evaluate: its name in the results, its folder or Hub id, and model and tokenizer if it is loaded."""

    name: str
    source: str | None = None
    model: Any = None
    tokenizer: Any = None

    def open(self, settings: Settings) -> Sampler:
        """The sampler of this checkpoint."""
        if self.source is None or self.model is not None:
            return transformers_sampler(self.model, self.tokenizer)
        return open_sampler(self.source, settings.engine, settings.dtype, settings.device, settings.revision)

    def identity(self) -> dict[str, Any]:
        """Identifies this checkpoint's weights."""
        weights = _digest_of(self.model) if self.source is None else weights_digest(Path(self.source))
        return {"name": self.name, "source": self.source, "weights": weights}


@dataclass(frozen=True)
class Settings:
    """How completions are sampled and prompts are made.

    `samples`, `temperature`, `top_p`, `top_k` and `max_new_tokens` override each benchmark's own protocol if they are
    given. `template` makes the prompt from {question} or {problem}, which are the same, and the other text columns of
    the row. `thinking` turns the chat template's thinking mode on or off, `system_prompt` is its first turn, and
    `chat_template_kwargs` are its further arguments. `revision` applies to models on the Hub. `gpu_memory_utilization`
    and `max_model_len` are for vLLM.

    Raises:
        ConfigurationError: the backend is unknown, or an option belongs to another backend.
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
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    backend: str = "transformers"
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        _ = self.engine

    @property
    def engine(self) -> Backend:
        """The backend and its limits."""
        return Backend(self.backend, self.gpu_memory_utilization, self.max_model_len)

    def applied_to(self, benchmark: Benchmark) -> Benchmark:
        """The benchmark with the protocol and template given here, or else its own.

        Raises:
            ConfigurationError: several samples at temperature 0, samples or batch_size below 1, or a template that
                names a column which the problems do not have.
        """
        given = {name: getattr(self, name) for name in vars(benchmark.protocol) if getattr(self, name) is not None}
        if given.get("temperature") == 0:
            given.setdefault("samples", 1)
        protocol = replace(benchmark.protocol, **given)
        if protocol.samples < 1 or self.batch_size < 1:
            raise ConfigurationError("samples and batch_size must be at least 1")
        if protocol.temperature == 0 and protocol.samples > 1:
            raise ConfigurationError("at temperature 0 all samples are equal; set samples=1 or raise temperature")
        applied = replace(benchmark, protocol=protocol, template=self.template or benchmark.template)
        for row in _rows(applied):
            fill_template(applied.template, row)
        return applied


def draw_all(
    checkpoint: str, benchmark: Benchmark, settings: Settings, sampler: Callable[[], Sampler], folder: Path
) -> list[Record]:
    """The records of one checkpoint on one benchmark: those already saved in `folder`, and the others sampled now.

    `sampler` loads the model, and is called only if something has to be sampled.
    """
    journal = Journal(folder / _file_name(checkpoint, benchmark.name))
    batches = benchmark_batches(benchmark, settings)
    missing = [index for index in range(len(batches)) if index not in journal.batches]
    prompts = benchmark_prompts(benchmark, settings, sampler().tokenizer) if missing else []
    for count, index in enumerate(missing, 1):
        logger.info("%s, %s: batch %d of %d", checkpoint, benchmark.name, count, len(missing))
        asked = [prompts[problem] for problem, _ in batches[index]]
        found = sampler().draw(asked, benchmark.protocol, batch_seed(settings.seed, index))
        journal.add(index, records_of(batches[index], prompts, found))
    return [record for index in range(len(batches)) for record in journal.batches[index]]


def benchmark_batches(benchmark: Benchmark, settings: Settings) -> list[Batch]:
    """The (problem, sample) numbers of every batch; the batch's index seeds it."""
    texts = [question.text for question in benchmark.questions]
    return plan_batches(texts, benchmark.protocol.samples, settings.batch_size)


def benchmark_prompts(benchmark: Benchmark, settings: Settings, tokenizer: Any) -> list[Rendered]:
    """The prompt of every question, as text and as ids.

    Raises:
        ConfigurationError: a setting of the chat template has no effect.
        DataError: the chat template refuses a question.
    """
    chat = Chat.of(settings, tokenizer)
    texts = [fill_template(benchmark.template, row) for row in _rows(benchmark)]
    chat.check_used(map(chat.kind, texts))
    try:
        return chat.render(texts)
    except PromptError as error:
        raise DataError(f"question {error.index} of {benchmark.name}: {error}") from error


def _rows(benchmark: Benchmark) -> list[dict[str, Any]]:
    """What the template of the prompts may name."""
    texts = [(question, question.text) for question in benchmark.questions]
    return [{**question.columns, "question": text, "problem": text} for question, text in texts]


def records_of(batch: Batch, prompts: Sequence[Rendered], completions: Sequence[Completion]) -> list[Record]:
    """The records to save for the completions of one batch; `prompts` are those of all problems."""
    return [
        {
            "problem": problem,
            "sample": number,
            "prompt": prompts[problem].text,
            "completion": completion.text,
            "tokens": len(completion.ids),
            "truncated": completion.truncated,
        }
        for (problem, number), completion in zip(batch, completions, strict=True)
    ]


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
