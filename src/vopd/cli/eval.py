"""`vopd eval`: sample a model on problems, grade, and score with intervals over problems."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vopd.cli import run_directory
from vopd.cli.options import needed, options_of, parse, setting
from vopd.errors import ConfigurationError, DataError, require
from vopd.evaluation.grading import KINDS

SUMMARY = """\
Sample a model on problems and score it: avg@k and pass@k with 95 % intervals over problems.

The problems come from a reasoning_gym task (graded by its own verifier) or from a file with the columns problem
and answer (graded as mathematics or as multiple choice). Writes OUTPUT_DIR/RUN_NAME with results.json and
samples.jsonl.
"""

_SAMPLES = 8
_TASK_PREFIX = "reasoning_gym:"


@dataclass
class EvalOptions:
    """The options of `vopd eval`."""

    model: str = needed("folder or hub id of the model, or folder of a LoRA adapter")
    model_revision: str | None = setting(None, "branch, tag or commit of the model on the hub")
    task: str | None = setting(None, "reasoning_gym:NAME")
    data: str | None = setting(None, ".jsonl, .json or .parquet file with problem and answer")
    kind: str = setting("math", "how the answers of --data are graded: math or choice")
    count: int | None = setting(None, "use the first N problems of --data; how many --task makes (default 100)")
    task_options: dict | None = setting(None, "options of the task, such as {min_terms: 2}")
    template: str | None = setting(None, "prompt text, with {column} for a column of the data, such as {problem}")
    chat_template: bool = setting(False, "put prompts into the model's chat template")
    thinking: bool | None = setting(None, "turn the chat template's thinking on or off; default: as it chooses")
    chat_template_kwargs: dict | None = setting(None, "further arguments of the chat template")
    samples: int | None = setting(None, f"completions a problem; default {_SAMPLES}, and 1 at temperature 0")
    temperature: float = setting(0.6, "0 takes the most likely token")
    top_p: float = setting(1.0, "keep the smallest set of tokens with this mass")
    top_k: int = setting(0, "keep the k most likely tokens; 0 keeps all")
    max_new_tokens: int = setting(1024, "length limit of a completion")
    batch_size: int = setting(16, "completions computed together")
    seed: int = setting(0, "of the sampling, and of the task's problems")
    dtype: str = setting("auto", "auto, float32, bfloat16 or float16")
    device: str = setting("auto", "auto, cpu, cuda")
    output_dir: str = setting("runs", "folder of all runs")
    run_name: str | None = setting(None, "folder of this evaluation in output_dir; default: eval-MODEL-PROBLEMS")

    def __post_init__(self) -> None:
        if (self.task is None) == (self.data is None):
            raise ConfigurationError("vopd eval needs either --task reasoning_gym:NAME or --data FILE")
        if self.task is not None and not self.task.startswith(_TASK_PREFIX):
            raise ConfigurationError(f"unknown task '{self.task}'; write reasoning_gym:NAME, or --data for a file")
        if self.samples is None:
            self.samples = _SAMPLES if self.temperature > 0 else 1
        elif self.temperature == 0 and self.samples > 1:
            raise ConfigurationError("at temperature 0 all samples are equal; leave --samples out or raise it")
        if self.kind not in KINDS:
            raise ConfigurationError(f"unknown kind '{self.kind}'; choose one of {', '.join(KINDS)}")
        for name in ("samples", "count", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Problems:
    """Problems to sample: the rows that prompts are made of, the gold answers, and what grades them.

    `grade` takes (problem index, completion text) pairs and returns for each the outcome ("right", "wrong",
    "no_answer", "ungradable") and the answer that was read.
    """

    name: str
    rows: list[dict[str, Any]]
    golds: list[str]
    grade: Callable[[list[tuple[int, str]]], list[tuple[str, str | None]]]


def run(arguments: Sequence[str]) -> int:
    """Run `vopd eval` with these arguments and return its exit code."""
    options = parse("eval", SUMMARY, options_of(EvalOptions), arguments).build(EvalOptions)
    require("transformers", "eval").utils.logging.disable_progress_bar()
    problems = find_problems(options)
    name = options.run_name or run_directory.suggest_name("eval", options.model, problems.name)
    folder = run_directory.run_directory(options.output_dir, name)
    run_directory.create(folder, resume=False)
    results, _ = evaluate(options, problems, folder)
    print(summary(results))
    print(f"written to {folder}")
    return 0


def find_problems(options: EvalOptions) -> Problems:
    """Return the problems that `options` name."""
    return task_problems(options) if options.task else file_problems(options)


def evaluate(options: EvalOptions, problems: Problems, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Sample the model on `problems`, grade, and write results.json and samples.jsonl to `folder`; return both."""
    records = _completions(options, problems)
    folder.mkdir(parents=True, exist_ok=True)
    _write_samples(folder, records)  # before grading: hours of sampling must not hang on one bad gold answer
    grades = problems.grade([(record["problem"], record["completion"]) for record in records])
    records = [{**record, "outcome": outcome, "answer": answer} for record, (outcome, answer) in zip(records, grades)]
    results = {**score(records, len(problems.golds)), "settings": asdict(options)}
    _write_samples(folder, records)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="ascii")
    return results, records


def task_problems(options: EvalOptions) -> Problems:
    """Problems of a reasoning_gym task, graded by the task's own verifier."""
    from vopd.data.reasoning import extract_answer, is_right, reasoning_problems

    name = str(options.task).removeprefix(_TASK_PREFIX)
    found = reasoning_problems(name, options.count or 100, options.seed, **(options.task_options or {}))

    def grade(pairs: list[tuple[int, str]]) -> list[tuple[str, str | None]]:
        """Right is full marks from the verifier; some tasks give partial ones."""
        answers = [extract_answer(text) for _, text in pairs]
        return [
            ("no_answer" if answer is None else "right" if is_right(found[index], text) else "wrong", answer)
            for (index, text), answer in zip(pairs, answers)
        ]

    rows = [{"problem": problem.question} for problem in found]
    return Problems(name, rows, [problem.answer for problem in found], grade)


def file_problems(options: EvalOptions) -> Problems:
    """Problems of a local file with the columns problem (or question, prompt) and answer."""
    from vopd.data.prompts import read_rows
    from vopd.evaluation import grade_many

    source = str(options.data)
    rows = [{name.lower(): value for name, value in row.items()} for row in read_rows(source)[: options.count]]
    if not rows:
        raise DataError(f"'{source}' has no rows")
    golds = [_gold(row, index, source) for index, row in enumerate(rows)]

    def grade(pairs: list[tuple[int, str]]) -> list[tuple[str, str | None]]:
        grades = grade_many([(text, golds[index]) for index, text in pairs], options.kind)
        return [(found.outcome, found.answer) for found in grades]

    return Problems(source, rows, golds, grade)


def score(records: Sequence[dict[str, Any]], problems: int) -> dict[str, Any]:
    """Return avg@k, pass@k for k = 1, 2, 4, ... and the shares of what went wrong, from the graded completions.

    A problem whose gold answer cannot be read is left out and counted, never held against the model.
    """
    from vopd.statistics import avg_at_k, pass_at_k

    rows: list[list[str]] = [[] for _ in range(problems)]
    for record in records:
        rows[record["problem"]].append(record["outcome"])
    graded = [[outcome == "right" for outcome in row] for row in rows if "ungradable" not in row]
    if not graded:
        raise DataError("no gold answer could be read; see the column answer")
    samples = len(graded[0])
    ks = sorted({samples, *(2**power for power in range(samples.bit_length()) if 2**power <= samples)})
    outcomes = Counter(record["outcome"] for record in records)
    return {
        "problems": len(graded),
        "ungradable_problems": problems - len(graded),
        "samples": samples,
        "avg_at_k": asdict(avg_at_k(graded)),
        "pass_at_k": {str(k): asdict(pass_at_k(graded, k)) for k in ks},
        "no_answer": outcomes["no_answer"] / len(records),
        "truncated": sum(record["truncated"] for record in records) / len(records),
        "mean_length": sum(record["length"] for record in records) / len(records),
    }


def summary(results: dict[str, Any]) -> str:
    """Return what `vopd eval` prints."""
    from vopd.statistics import Score

    lines = [
        f"{results['problems']} problems, {results['samples']} samples each",
        f"avg@{results['samples']:<4} {Score(**results['avg_at_k'])}",
        *(f"pass@{k:<3} {Score(**found)}" for k, found in results["pass_at_k"].items() if k != "1"),
        f"without answer {results['no_answer']:.1%}, cut at the length limit {results['truncated']:.1%}, "
        f"mean length {results['mean_length']:.0f} tokens",
    ]
    if results["ungradable_problems"]:
        lines.append(f"left out: {results['ungradable_problems']} problems whose gold answer cannot be read")
    if results["no_answer"] > 0.5 and results["settings"]["data"] is not None:
        lines.append(
            "hint: most completions give no answer that can be read; ask for one, for example "
            r"--template '{problem} Put your final answer within \boxed{}.'"
        )
    return "\n".join(lines)


def _completions(options: EvalOptions, problems: Problems) -> list[dict[str, Any]]:
    from vopd.data.rendering import render_prompts, thinking_options
    from vopd.models import load_model, load_tokenizer, sample

    tokenizer = load_tokenizer(options.model, revision=options.model_revision)
    prompts = render_prompts(
        problems.rows,
        problems.name,
        template=options.template,
        tokenizer=tokenizer,
        chat_template=options.chat_template,
        chat_options={
            **(options.chat_template_kwargs or {}),
            **thinking_options(options.thinking, options.chat_template, tokenizer),
        },
    )
    device = _device(options.device)
    model = load_model(options.model, dtype=options.dtype, device=device, revision=options.model_revision)
    print(f"sampling {options.samples} x {len(prompts)} completions on {model.device}", file=sys.stderr)
    completions = sample(
        model,
        tokenizer,
        prompts,
        samples=options.samples or 1,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    return [
        {
            "problem": index,
            "sample": number,
            "prompt": prompts[index],
            "completion": completion.text,
            "gold": problems.golds[index],
            "truncated": completion.truncated,
            "length": len(completion.ids),
        }
        for index, row in enumerate(completions)
        for number, completion in enumerate(row)
    ]


def _gold(row: dict[str, Any], index: int, source: str) -> str:
    if "answer" not in row:
        raise DataError(f"'{source}' row {index} has no column answer; it has: {', '.join(row) or 'none'}")
    value = row["answer"]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise DataError(f"'{source}' row {index}: the answer must be text or a number, not {value!r}")
    return str(value)


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _write_samples(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    # ASCII only: terminal escapes in what a model wrote come out harmless.
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "samples.jsonl").write_text(lines, encoding="ascii")
