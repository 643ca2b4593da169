"""Benchmarks by name, from the Hugging Face Hub or local data, with the paper's settings, and reasoning_gym tasks."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from vopd.data.files import exists, is_local, title
from vopd.data.local_data import choose_split, local_rows
from vopd.data.sources import TASK_PREFIX, recorded_commit
from vopd.data.text_rows import PlacedRow
from vopd.errors import ConfigurationError, DataError, check_at_least, counted, did_you_mean, require
from vopd.hub import hub_refusal

from .fields import TASK, Question, find, is_choice, is_task, read_question
from .kinds import check_columns, check_kind, own_grader

logger = logging.getLogger(__name__)

_TEMPLATES = {
    "math": "{question}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "choice": "{question}\nPlease reason step by step, and put the letter of your answer within \\boxed{}.",
    "tags": "{question}\nPlease reason step by step, and put your final answer in <answer></answer> tags.",
}
_PLAIN = "{question}"  # of tasks, whose questions ask for the form, and for graders that vopd does not know
_DEFAULT_TASK_COUNT = 100
Rows = tuple[list[PlacedRow], str, str | None]
"""Rows of a source, each with its place for messages, the source's name, and its commit."""


@dataclass(frozen=True)
class Protocol:
    """How completions are sampled: samples per problem and the sampler's settings. By default, as in the paper."""

    samples: int = 8
    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 4096


CHOICE_PROTOCOL = Protocol(top_p=0.95, top_k=20)
# For files and tasks, which the paper does not cover.
OTHER_PROTOCOL = Protocol(max_new_tokens=1024)


@dataclass(frozen=True)
class Source:
    """A dataset on the Hub: id, split, and the configuration if it has several. Without a split: test, or the only
    one."""

    repository: str
    split: str | None = "test"
    config: str | None = None


@dataclass(frozen=True)
class Definition:
    """A named benchmark: where it is, what it contains, and how the paper runs it.

    `where` keeps only rows with these values, ignoring case. Without a `kind`, the columns decide.
    """

    name: str
    sources: tuple[Source, ...]
    kind: str | None = "math"
    count: int | None = None
    protocol: Protocol = field(default_factory=Protocol)
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """Questions ready to be asked, and their source.

    `template` makes the prompt, with {question} for the text; `revision` is the commit on the Hub, None for
    files and tasks.
    """

    name: str
    kind: str
    questions: tuple[Question, ...]
    source: str
    revision: str | None
    template: str
    protocol: Protocol

    @property
    def short_name(self) -> str:
        """The name without "reasoning_gym:", for metrics and folders."""
        return self.name.removeprefix(TASK_PREFIX)

    @property
    def fingerprint(self) -> str:
        """A hash of ids, texts and reference answers; the same questions have the same hash whatever their source."""
        content = json.dumps([[question.id, question.text, question.gold] for question in self.questions])
        return hashlib.sha256(content.encode()).hexdigest()


_AIME = Protocol(samples=32)
_NAMED = (
    Definition("math500", (Source("HuggingFaceH4/MATH-500"),), count=500),
    Definition("minerva", (Source("math-ai/minervamath"),), count=272),
    Definition("amc23", (Source("math-ai/amc23"),), count=40),
    Definition(
        "aime24",
        (Source("HuggingFaceH4/aime_2024", "train"), Source("Maxwell-Jia/AIME_2024", "train"),
         Source("math-ai/aime24")),
        count=30, protocol=_AIME,
    ),
    Definition(
        "aime25",
        (Source("math-ai/aime25"), Source("yentinglin/aime_2025", "train"), Source("MathArena/aime_2025", "train")),
        count=30, protocol=_AIME,
    ),
    Definition(
        "gpqa_diamond",
        (Source("Idavidrein/gpqa", "train", "gpqa_diamond"), Source("fingertap/GPQA-Diamond")),
        kind="choice", count=198, protocol=CHOICE_PROTOCOL,
    ),
    Definition(
        "sciknoweval", (Source("hicai-zju/SciKnowEval", "test", "v2"),),
        kind="choice", protocol=CHOICE_PROTOCOL, where={"domain": "chemistry"},
    ),
    Definition(
        "dapo_math",
        (Source("guanning-ai/dapo14k", "train"), Source("open-r1/DAPO-Math-17k-Processed", "train", "en")),
    ),
)  # fmt: skip
DEFINITIONS = {definition.name: definition for definition in _NAMED}


def load_benchmark(
    name: str,
    *,
    kind: str | None = None,
    count: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    task_options: Mapping[str, Any] | None = None,
) -> Benchmark:
    """Load a benchmark.

    Args:
        name: one of `DEFINITIONS`; NAME=SOURCE, to read it from this file, folder or Hub id instead of its first
            source; a file, a pattern of files, a folder or OWNER/NAME on the Hub; or "reasoning_gym:NAME".
        kind: how a file's answers are graded: "math", "choice", "tags", or module:function for a grader of your own; by
            default, its columns decide.
        count: use only the first `count` questions; for a task, the number to generate (100).
        seed: seed of a task's problems.
        revision: branch, tag or commit on the Hub; it is resolved to a commit, which is recorded.
        task_options: options of the task's configuration.

    Raises:
        ConfigurationError: the name or kind is unknown, or count is below 1.
        DataError: the source cannot be read, is gated, has no rows, or has a row without question or answer.
    """
    check_at_least("count", count, 1)
    if name.startswith(TASK_PREFIX):
        return _task(name, count or _DEFAULT_TASK_COUNT, seed, dict(task_options or {}))
    name, source = (name, "") if exists(name) else name.partition("=")[::2]  # a path may have a "=" in it
    check_kind(kind)
    definition = DEFINITIONS.get(name) or _unnamed(name)
    rows, where, commit = _read(definition, source or (None if name in DEFINITIONS else name), revision)
    rows = [(place, row) for place, row in rows if _wanted(row, definition)]
    if not rows:
        wanted = "".join(f" with {name} {value}" for name, value in definition.where.items())
        raise DataError(f"'{where}' has no rows{wanted}; choose another source")
    kind = kind or definition.kind or _kind_of([row for _, row in rows])
    questions = _questions(rows, kind, where)
    if count is None and definition.count not in (None, len(questions)):
        logger.warning("'%s' has %s, but %s has %d", where, counted(len(questions), "question"), name, definition.count)
    asked = tuple(questions[:count])
    template = _TEMPLATES.get(kind, _PLAIN)
    return Benchmark(definition.name, kind, asked, where, commit, template, definition.protocol)


def _task(name: str, count: int, seed: int, options: dict[str, Any]) -> Benchmark:
    from vopd.data.reasoning import reasoning_problems

    problems = reasoning_problems(name.removeprefix(TASK_PREFIX), count, seed, **options)
    questions = [
        Question(str(index), problem.question, problem.answer, TASK, problem) for index, problem in enumerate(problems)
    ]
    source = f"{name} seed {seed}" + (f" {json.dumps(options, sort_keys=True)}" if options else "")
    return Benchmark(name, TASK, tuple(questions), source, None, _PLAIN, OTHER_PROTOCOL)


def _unnamed(name: str) -> Definition:
    if not is_local(name) and "/" not in name:
        hint = did_you_mean(name, DEFINITIONS)
        choose = f"{hint} Otherwise choose" if hint else "choose"
        raise ConfigurationError(
            f"unknown benchmark '{name}'; {choose} one of {', '.join(DEFINITIONS)}, a .json, .jsonl, .csv or .parquet "
            f"file, a folder, OWNER/NAME on the hub, or {TASK_PREFIX}NAME"
        )
    return Definition(title(name) or "data", (), kind=None, protocol=OTHER_PROTOCOL)


def _wanted(row: Mapping[str, Any], definition: Definition) -> bool:
    if any(str(find(row, (name,)) or "").lower() != value for name, value in definition.where.items()):
        return False
    # A set with several kinds of tasks: only its multiple-choice rows are graded by letters.
    return not definition.where or definition.kind != "choice" or is_choice(row)


def _kind_of(rows: list[dict[str, Any]]) -> str:
    kinds = {"choice" if is_choice(row) else TASK if is_task(row) else "math" for row in rows}
    if len(kinds) > 1:
        raise DataError(
            "some rows have options, or task and metadata of reasoning_gym, and some have none; split the file, or set "
            "kind"
        )
    return kinds.pop()


def _questions(rows: list[PlacedRow], kind: str, where: str) -> list[Question]:
    questions = [read_question(row, kind, place) for place, row in rows]
    grader = own_grader(kind)
    if grader is not None:
        check_columns(grader, questions, f"'{where}'")
    repeated = {identity for identity, times in Counter(question.id for question in questions).items() if times > 1}
    return [
        replace(question, id=f"{question.id}#{index}") if question.id in repeated else question
        for index, question in enumerate(questions)
    ]


def _read(definition: Definition, given: str | None, revision: str | None) -> Rows:
    if given is not None and (is_local(given) or "://" in given):
        return local_rows(given), given, None
    known = (source for source in definition.sources if given in (None, source.repository))
    source = next(known, None) or Source(str(given), split=None)
    datasets = require("datasets", "eval")
    commit = _commit(source.repository, revision)
    try:
        found = datasets.load_dataset(source.repository, source.config, split=source.split, revision=commit or revision)
    except Exception as error:  # of whichever library makes the request
        raise DataError(_why(source, definition, error)) from error
    if source.split is None:
        found = found[choose_split(found, None, source.repository)]
    rows = [(f"'{source.repository}' row {index}", row) for index, row in enumerate(found.to_list())]
    return rows, source.repository, commit or recorded_commit(found)


def _commit(repository: str, revision: str | None) -> str | None:
    """The commit that a revision currently resolves to; None if the Hub cannot be reached."""
    hub, commit = require("huggingface_hub", "eval"), None
    with suppress(Exception):  # of whichever library makes the request
        commit = hub.HfApi().dataset_info(repository, revision=revision).sha
    return commit


def _why(source: Source, definition: Definition, error: Exception) -> str:
    others = [other.repository for other in definition.sources if other.repository != source.repository]
    others += ["FILE.jsonl"] if definition.sources else []
    instead = ", ".join(f"{definition.name}={other}" for other in others) or "a file or folder that is here"
    if "gated" in str(error).lower():
        return (
            f"'{source.repository}' is gated: accept its conditions at https://huggingface.co/datasets/"
            f"{source.repository} and log in with `hf auth login`, or use {instead}"
        )
    return f"cannot load '{source.repository}': {hub_refusal(error)}; use {instead}"
