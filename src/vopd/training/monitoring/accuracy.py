"""Accuracy on benchmarks while a run goes on: small, seeded, and without influence on the training."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vopd.atomic import write_whole
from vopd.errors import ConfigurationError, DataError
from vopd.evaluation.benchmarks.definitions import Benchmark, Protocol, load_benchmark
from vopd.evaluation.benchmarks.overlap import contamination
from vopd.evaluation.completions import Record, Settings, batch_seed, benchmark_prompts, in_rows, plan, record_of
from vopd.evaluation.scoring import graded, sample_lines, score
from vopd.models import context_length, read_completion
from vopd.reporting.run_files import read_metrics

logger = logging.getLogger("vopd")

FOLDER = "evaluation"
"""In the run's directory: the completions of every evaluation, step-000100.jsonl."""


_ASK = {
    "math": r", such as '{problem} Put your final answer within \boxed{}.'",
    "task": ", such as '{problem} Answer in <answer></answer> tags.'",
    "choice": "",
}


def load_benchmarks(args: Any) -> list[Benchmark]:
    """The benchmarks that ``args.eval_benchmarks`` names, each cut to ``eval_benchmark_limit`` questions.

    Raises:
        ConfigurationError, DataError: unknown, twice, or not to be read.
    """
    found = [load_one(name, args) for name in args.eval_benchmarks or ()]
    check_names(found)
    return found


def load_one(name: str, args: Any) -> Benchmark:
    """The benchmark of that name, cut to ``eval_benchmark_limit`` questions."""
    return load_benchmark(name, count=args.eval_benchmark_limit)


def check_names(benchmarks: Sequence[Benchmark]) -> None:
    """Raises ConfigurationError where two would have the same metrics."""
    names = [short_name(benchmark) for benchmark in benchmarks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(f"eval_benchmarks has two that would be logged as {twice!r}; rename a file")


def short_name(benchmark: Benchmark) -> str:
    """What a benchmark is called in the metrics: without "reasoning_gym:"."""
    return benchmark.name.rpartition(":")[2]


def plan_lines(args: Any, benchmarks: Sequence[Benchmark]) -> list[str]:
    """What a run will measure, for those who look before they train."""
    every = f"every {args.eval_benchmark_steps} steps, at the start and at the end"
    return [
        f"accuracy on {short_name(benchmark)} {every}: {len(benchmark.questions)} problems x "
        f"{args.eval_benchmark_samples} samples of up to {_settings(args).protocol(benchmark).max_new_tokens} tokens"
        for benchmark in benchmarks
    ]


def _settings(args: Any) -> Settings:
    return Settings(
        samples=args.eval_benchmark_samples,
        max_new_tokens=args.eval_benchmark_max_new_tokens or args.max_completion_length,
        batch_size=args.per_device_eval_batch_size,
        seed=args.seed,
        template=args.eval_benchmark_template,
        chat_template=bool(args.eval_benchmark_chat_template),
        chat_options=args.chat_template_kwargs,
    )


@dataclass(frozen=True)
class _Work:
    """One benchmark ready to be drawn: the prompt of each question, as text and as ids."""

    benchmark: Benchmark
    protocol: Protocol
    prompts: list[str]
    prompt_ids: list[list[int]]

    @property
    def key(self) -> str:
        return f"eval_{short_name(self.benchmark)}_avg@{self.protocol.samples}"


class BenchmarkRuns(TrainerCallback):
    """Measures avg@k before the first step, every ``eval_benchmark_steps`` steps and after the last.

    Batches are planned beforehand, each with a seed of its own that is the same at every step, and shared out among
    the processes, all of which draw equally often. The first process grades, logs and writes. A run that is resumed
    goes on where its checkpoint was: what was measured up to there stands in the log, and what was due there and left
    out by a run that had to end is made up for.

    Args:
        trainer: a VOPDTrainer, its prompts and models ready.
        benchmarks: from ``load_benchmarks``.

    Raises:
        DataError: a question does not fit the student's positions.
    """

    def __init__(self, trainer: Any, benchmarks: Sequence[Benchmark]) -> None:
        self.trainer = trainer
        args = trainer.args
        if args.eval_benchmark_chat_template is None:
            args.eval_benchmark_chat_template = not isinstance(trainer.train_dataset[0]["prompt"], str)
        self.settings = _settings(args)
        self._formless: set[str] = set()
        self.works = [self._work(benchmark) for benchmark in benchmarks]
        self._warn_of_training_prompts()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % args.eval_benchmark_steps == 0 and not self._is_measured(step):
            self.measure(step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if control.should_training_stop and not last:
            return  # asked to end soon: a resumed run makes up for it
        if last or state.global_step % args.eval_benchmark_steps == 0:
            self.measure(state.global_step)

    def measure(self, step: int) -> None:
        """Draw, grade and log every benchmark. Every process calls this; it waits for all of them once a benchmark."""
        started = time.perf_counter()
        drawn = [self._drawn(work) for work in self.works]
        if not self.trainer.is_world_process_zero():
            return
        logs: dict[str, float] = {}
        lines: list[Record] = []
        for work, rows in zip(self.works, drawn, strict=True):
            grades = graded(work.benchmark, rows)
            found = score(f"step {step}", work.benchmark, rows, grades)
            logs |= _metrics(work.key, found)
            self._warn_of_form(work.benchmark, found["format_rate"])
            lines += sample_lines(f"step {step}", work.benchmark, rows, grades)
        self._write(step, lines)
        self.trainer.log_alone({**logs, "seconds/benchmarks": time.perf_counter() - started})

    def _is_measured(self, step: int) -> bool:
        """Whether the log has the accuracies of the step that a run begins at; the same on every process."""
        from accelerate.utils import broadcast_object_list

        found = [False]
        if self.trainer.is_world_process_zero():
            records = read_metrics(self.trainer.args.output_dir)
            found = [any(record.get("step") == step and self.works[0].key in record for record in records)]
        return bool(broadcast_object_list(found)[0])

    def _work(self, benchmark: Benchmark) -> _Work:
        trainer, protocol = self.trainer, self.settings.protocol(benchmark)
        prompts = benchmark_prompts(benchmark, self.settings, trainer.tokenizer)
        prompt_ids = trainer.tokenize(prompts)
        positions = context_length(trainer.model)
        longest = max(map(len, prompt_ids)) + protocol.max_new_tokens
        if positions is not None and longest > positions:
            raise DataError(
                f"a question of {benchmark.name} with eval_benchmark_max_new_tokens={protocol.max_new_tokens} takes "
                f"{longest} tokens, and the student has {positions} positions; lower it"
            )
        return _Work(benchmark, protocol, prompts, prompt_ids)

    def _drawn(self, work: _Work) -> list[list[Record]]:
        """The records of (problems, samples), on every process."""
        from accelerate.utils import gather_object

        accelerator = self.trainer.accelerator
        texts = [question.text for question in work.benchmark.questions]
        batches = plan(texts, work.protocol.samples, self.settings)
        records: list[Record] = []
        for first in range(0, len(batches), accelerator.num_processes):
            index = first + accelerator.process_index
            # A process that has no batch of its own draws the last one once more: an engine may wait for all of them.
            found = self._batch(work, batches[min(index, len(batches) - 1)], index, len(batches[0]))
            records += found if index < len(batches) else []
        return in_rows(gather_object(records), len(texts))

    def _batch(self, work: _Work, batch: list[tuple[int, int]], index: int, size: int) -> list[Record]:
        """The records of one batch. It is filled up to `size` with its first prompt, whose completions are dropped."""
        trainer = self.trainer
        wanted = [problem for problem, _ in batch]
        filled = wanted + wanted[:1] * (size - len(wanted))
        ids = trainer.draw(
            [work.prompt_ids[problem] for problem in filled], work.protocol, batch_seed(self.settings, index)
        )
        stops = set(trainer.eos_token_ids)
        return [
            record_of(problem, number, work.prompts[problem], read_completion(trainer.tokenizer, row, stops))
            for (problem, number), row in zip(batch, ids)
        ]

    def _write(self, step: int, lines: list[Record]) -> None:
        folder = Path(self.trainer.args.output_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"step-{step:06d}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def _warn_of_form(self, benchmark: Benchmark, format_rate: float) -> None:
        if format_rate < 0.5 and benchmark.name not in self._formless:
            self._formless.add(benchmark.name)
            logger.warning(
                f"most completions on {short_name(benchmark)} give no answer that can be read: ask for one with "
                f"eval_benchmark_template{_ASK[benchmark.kind]}, or raise eval_benchmark_max_new_tokens if they are "
                "cut off"
            )

    def _warn_of_training_prompts(self) -> None:
        if not self.trainer.is_world_process_zero():
            return
        prompts = [_text(prompt) for prompt in self.trainer.train_dataset["prompt"]]
        for work in self.works:
            shared = len(contamination(work.benchmark.questions, prompts))
            if shared:
                logger.warning(f"{shared} questions of {work.benchmark.name} occur among the training prompts")


def _metrics(key: str, found: dict[str, Any]) -> dict[str, float]:
    """avg@k with its interval, and the rates without which it cannot be read."""
    average, name = found["avg_at_k"], key.rpartition("_avg@")[0]
    return {
        key: average["value"],
        f"{key}_low": average["low"],
        f"{key}_high": average["high"],
        f"{name}_format_rate": found["format_rate"],
        f"{name}_truncation_rate": found["truncation_rate"],
        f"{name}_mean_length": found["mean_length"],
    }


def _text(prompt: Any) -> str:
    """A training prompt as text, whether it is one or a conversation."""
    if isinstance(prompt, str):
        return prompt
    turns: Iterable[Any] = (turn.get("content") for turn in prompt)
    return "\n".join(turn for turn in turns if isinstance(turn, str))
