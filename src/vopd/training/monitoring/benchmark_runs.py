"""Accuracy on benchmarks during training: small, seeded, and without influence on the training."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback

from vopd.data.chat import Rendered, chat_settings
from vopd.errors import ConfigurationError, DataError, counted
from vopd.evaluation.benchmarks import DEFINITIONS, Benchmark, load_benchmark, warn_of_overlaps
from vopd.evaluation.completions import Batch, Record, Settings, benchmark_batches, benchmark_prompts, records_of
from vopd.evaluation.journal import write_lines
from vopd.evaluation.scores import FORM_TEMPLATES, score
from vopd.models import batch_seed, context_length, read_completion
from vopd.reporting.run_files import read_metrics

if TYPE_CHECKING:
    from ..trainer import VOPDTrainer

logger = logging.getLogger("vopd")

FOLDER = "evaluation"
"""Folder in the run's directory with the completions of every evaluation, as in step-000100.jsonl."""


def load_benchmarks(args: Any) -> list[Benchmark]:
    """The benchmarks that ``args.eval_benchmarks`` names, each cut to ``eval_benchmark_limit`` questions.

    Raises:
        ConfigurationError, DataError: a benchmark is unknown, given twice, or cannot be read.
    """
    found = [load_one(name, args) for name in args.eval_benchmarks or ()]
    check_names(found)
    return found


def load_one(name: str, args: Any) -> Benchmark:
    """The benchmark of that name, cut to ``eval_benchmark_limit`` questions."""
    kind = None if name.partition("=")[0] in DEFINITIONS else args.eval_benchmark_kind
    return load_benchmark(name, kind=kind, count=args.eval_benchmark_limit)


def check_names(benchmarks: Sequence[Benchmark]) -> None:
    """Raises ConfigurationError if two benchmarks would log to the same metrics."""
    names = [benchmark.short_name for benchmark in benchmarks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(
            f"eval_benchmarks has two benchmarks that would be logged as {twice!r}; remove one or rename its file"
        )


def plan_lines(args: Any, benchmarks: Sequence[Benchmark]) -> list[str]:
    """What training will measure, for the dry run and `vopd validate`."""
    every = f"every {counted(args.eval_benchmark_steps, 'step')}, at the start and at the end"
    return [
        f"accuracy on {benchmark.short_name} {every}: {counted(len(benchmark.questions), 'problem')} x "
        f"{counted(benchmark.protocol.samples, 'sample')} of up to {benchmark.protocol.max_new_tokens} tokens"
        for benchmark in map(_settings(args).applied_to, benchmarks)
    ]


def _settings(args: Any) -> Settings:
    return Settings(
        samples=args.eval_benchmark_samples,
        max_new_tokens=args.eval_benchmark_max_new_tokens or args.max_completion_length,
        batch_size=args.per_device_eval_batch_size,
        seed=args.seed,
        template=args.eval_benchmark_template,
        **chat_settings(args, bool(args.eval_benchmark_chat_template)),
    )


@dataclass(frozen=True)
class _Prepared:
    """One benchmark ready to be sampled: the prompt of each question, and its batches."""

    benchmark: Benchmark
    prompts: list[Rendered]
    batches: list[Batch]

    @property
    def key(self) -> str:
        return f"eval_{self.benchmark.short_name}_avg@{self.benchmark.protocol.samples}"


class BenchmarkRuns(TrainerCallback):
    """Measures avg@k before the first step, every ``eval_benchmark_steps`` steps and after the last.

    Batches are planned in advance, each with its own seed that is the same at every step, and distributed over the
    processes, all of which sample equally often. The first process grades, logs and writes. A resumed run keeps what
    was logged up to its checkpoint, and makes up for an evaluation that was due there but was skipped because the run
    had to end.

    Args:
        trainer: a trainer whose prompts and models are ready.
        benchmarks: from ``load_benchmarks``.

    Raises:
        DataError: a question does not fit into the student's context.
    """

    def __init__(self, trainer: VOPDTrainer, benchmarks: Sequence[Benchmark]) -> None:
        self.trainer = trainer
        args = trainer.args
        if args.eval_benchmark_chat_template is None:
            conversations = not isinstance(trainer.train_dataset[0]["prompt"], str)
            args.eval_benchmark_chat_template = args.chat_template or conversations
        self.settings = _settings(args)
        self._warned: set[str] = set()
        self.prepared = [self._prepare(self.settings.applied_to(benchmark)) for benchmark in benchmarks]
        if trainer.accelerator.is_main_process:
            warn_of_overlaps(benchmarks, trainer.train_dataset["prompt"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % args.eval_benchmark_steps == 0 and not self._is_measured(step):
            self.measure(step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if control.should_training_stop and not last:
            return  # the run has to end now: a resumed run makes up for it
        if last or state.global_step % args.eval_benchmark_steps == 0:
            self.measure(state.global_step)

    def measure(self, step: int) -> None:
        """Sample, score and log every benchmark. Every process calls this; it waits for all of them per benchmark."""
        started = time.perf_counter()
        drawn = [self._drawn(prepared) for prepared in self.prepared]
        if not self.trainer.accelerator.is_main_process:
            return
        logs: dict[str, float] = {}
        lines: list[Record] = []
        for prepared, records in zip(self.prepared, drawn, strict=True):
            entry, graded = score(f"step {step}", prepared.benchmark, records)
            logs |= _metrics(prepared.key, entry)
            lines += graded
            self._warn_of_form(prepared.benchmark, entry["format_rate"])
        folder = Path(self.trainer.args.output_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / f"step-{step:06d}.jsonl", lines)
        self.trainer.log_alone({**logs, "seconds/benchmarks": time.perf_counter() - started})

    def _is_measured(self, step: int) -> bool:
        """Whether the log already has the accuracies of `step`; the same on every process."""
        found = [False]
        if self.trainer.accelerator.is_main_process:
            records = read_metrics(self.trainer.args.output_dir)
            found = [any(record.get("step") == step and self.prepared[0].key in record for record in records)]
        return bool(broadcast_object_list(found)[0])

    def _prepare(self, benchmark: Benchmark) -> _Prepared:
        prompts = benchmark_prompts(benchmark, self.settings, self.trainer.tokenizer)
        positions, new_tokens = context_length(self.trainer.model), benchmark.protocol.max_new_tokens
        longest = max(len(prompt.ids) for prompt in prompts) + new_tokens
        if positions is not None and longest > positions:
            raise DataError(
                f"a question of {benchmark.name} with eval_benchmark_max_new_tokens={new_tokens} needs "
                f"{longest} tokens, but the student has {positions} positions; lower eval_benchmark_max_new_tokens"
            )
        return _Prepared(benchmark, prompts, benchmark_batches(benchmark, self.settings))

    def _drawn(self, prepared: _Prepared) -> list[Record]:
        """The records of one benchmark, on every process."""
        accelerator, batches = self.trainer.accelerator, prepared.batches
        records: list[Record] = []
        for first in range(0, len(batches), accelerator.num_processes):
            index = first + accelerator.process_index
            # A process without a batch of its own samples the last one again: an engine may wait for all processes.
            found = self._batch(prepared, batches[min(index, len(batches) - 1)], index)
            records += found if index < len(batches) else []
        return list(gather_object(records))

    def _batch(self, prepared: _Prepared, batch: Batch, index: int) -> list[Record]:
        """The records of one batch. A short batch is padded with its first prompt, whose completions are dropped."""
        trainer, stops = self.trainer, set(self.trainer.eos_token_ids)
        wanted = [problem for problem, _ in batch]
        filled = wanted + wanted[:1] * (len(prepared.batches[0]) - len(wanted))
        prompt_ids = [prepared.prompts[problem].ids for problem in filled]
        rows = trainer.draw(prompt_ids, prepared.benchmark.protocol, batch_seed(self.settings.seed, index))
        completions = [read_completion(trainer.tokenizer, row, stops) for row in rows[: len(batch)]]
        return records_of(batch, prepared.prompts, completions)

    def _warn_of_form(self, benchmark: Benchmark, format_rate: float) -> None:
        if format_rate >= 0.5 or benchmark.name in self._warned:
            return
        self._warned.add(benchmark.name)
        template = f", such as '{FORM_TEMPLATES[benchmark.kind]}'" if benchmark.kind in FORM_TEMPLATES else ""
        logger.warning(
            f"most completions on {benchmark.short_name} give no readable answer: ask for one with "
            f"eval_benchmark_template{template}, or raise eval_benchmark_max_new_tokens if they are cut off"
        )


def _metrics(key: str, found: dict[str, Any]) -> dict[str, float]:
    """avg@k with its interval, and the rates needed to interpret it."""
    average, name = found["avg_at_k"], key.rpartition("_avg@")[0]
    return {
        key: average["value"],
        f"{key}_low": average["low"],
        f"{key}_high": average["high"],
        **{f"{name}_{rate}": found[rate] for rate in ("format_rate", "truncation_rate", "mean_length")},
    }
