"""Reads prompts from local files, the Hugging Face Hub, reasoning_gym tasks, or a mixture of these; and makes a dataset
that is there already ready for training. Both give a column "prompt", and the token ids beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vopd.errors import DataError, check_at_least, counted, require

from .chat import Chat
from .conversations import (
    BESIDE,
    CONTINUE,
    DROP,
    OPTIONS,
    TOOLS,
    Asked,
    Prompt,
    at,
    ends_with_answer,
    read_prompt,
    without_nones,
)
from .mixture import mix, most_without_repeats, shares, take
from .prompt_checks import check_dataset
from .prompt_columns import asked_value, chosen_column, empty_rows, fill_where_present, prompt_column
from .sources import DEFAULT_TASK_COUNT, Source, load_rows, parse_sources, with_column
from .text_rows import RowPlace, row_of
from .tokenized import PROMPT, PROMPT_IDS, TEACHER_PROMPT_IDS, add_ids, asked, has_ids, written_ids

logger = logging.getLogger(__name__)

TEACHER_PROMPT = "teacher_prompt"
_ANSWERS = ("completion", "chosen", "rejected")


@dataclass(frozen=True)
class Example:
    """The first prompt of its kind: the kind in words, where it stands, and the text that the model reads."""

    kind: str
    place: str
    text: str


@dataclass(frozen=True)
class Prompts:
    """Prompts and the description of their sources for the model card.

    Attributes:
        dataset: a `datasets.Dataset` with a column "prompt" of texts or of conversations, and all other columns of the
            source; with the token ids if there is a tokenizer.
        sources: for each source its name, its version (commit, digest or seed) and its number of prompts.
        examples: one prompt of each kind, if there is a tokenizer.
    """

    dataset: Any
    sources: list[dict[str, Any]]
    examples: tuple[Example, ...] = ()

    @property
    def name(self) -> str:
        """The names of the sources, for messages."""
        return " + ".join(entry["source"] for entry in self.sources)

    @property
    def conversations(self) -> bool:
        """Whether there are conversations, which always get the chat template."""
        return not all(isinstance(prompt, str) for prompt in self.dataset[PROMPT][:])


def read_prompts(
    source: str | Path | Sequence[Any],
    *,
    split: str = "train",
    revision: str | None = None,
    count: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    template: str | None = None,
    chat: Chat | None = None,
    teacher_template: str | None = None,
    teacher_column: str | None = None,
) -> Prompts:
    """Read the prompts of one source, or of several sources in proportion to their weights.

    Empty prompts are dropped with a warning that counts them. Repeated prompts are kept, with a warning that counts
    them.

    Args:
        source: a data file, a pattern or folder of files, a hub id, or "reasoning_gym:NAME"; or a list of these and of
            mappings with the fields of `vopd.data.sources.Source`, such as {source: a.jsonl, weight: 2}. A mixture
            has `count` prompts, or by default as many as possible without repeating a row.
        split: split of a hub dataset or of a folder.
        revision: branch, tag or commit of a hub dataset.
        count: use only the first `count` rows; for reasoning_gym, the number of problems to generate (default 1000).
        seed: seed of the reasoning_gym problems.
        options: options of the reasoning_gym task, or arguments of `datasets.load_dataset`, such as name or delimiter.
        template: text in which {column} is replaced by that column of the row; {} is kept. "{messages}" alone takes a
            conversation in that column. By default the prompt is the first existing column of
            `vopd.data.prompt_columns.PROMPT_COLUMNS`.
        chat: renders the prompts and makes their token ids. Without it, prompts are read and not tokenized.
        teacher_template: template of a separate prompt for the teacher, stored in the column "teacher_prompt". A row
            with an empty or missing value in one of its columns gets none.
        teacher_column: alternatively, a column that contains the teacher's prompts.

    Returns:
        The prompts with their sources.

    Raises:
        DataError: a file is missing or unreadable, there are no rows, a column is missing, or a prompt is neither a
            text nor a conversation, or the chat template refuses it.
        ConfigurationError: a template has no columns, or a setting of the chat template is not used.
        MismatchError: the prompts are conversations, and the tokenizer has no chat template.
    """
    check_at_least("count", count, 1)
    defaults = {"split": split, "revision": revision, "template": template, "options": options or {}}
    sources = parse_sources(source, defaults)
    reader = _Reader(seed, chat, teacher_template, teacher_column)
    found = reader.one(sources[0], count) if len(sources) == 1 else reader.several(sources, count)
    if chat is not None:
        chat.check_used(example.kind for example in found.examples)
    written = found.dataset[PROMPT if chat is None else PROMPT_IDS][:]
    repeats = len(written) - len(set(written))
    if repeats:
        logger.warning("'%s' has repeated prompts, which are kept: %d of %d", found.name, repeats, len(written))
    dataset = found.dataset
    for column in (PROMPT, reader.teachers):
        if column in dataset.column_names:
            dataset = _unpacked(dataset, str(column), found.name, chat)
    return replace(found, dataset=dataset)


def settled(dataset: Any, name: str, last_assistant_turn: str = DROP, teacher_column: str | None = None) -> Any:
    """Return `dataset` with a column "prompt" of texts, or of conversations as chat templates take them.

    A dataset that is settled already, and one with a transform, is returned as it is.

    Args:
        dataset: a `datasets.Dataset` with one of the columns in `vopd.data.prompt_columns.PROMPT_COLUMNS`.
        name: of the dataset in messages.
        last_assistant_turn: see `read_prompt`.
        teacher_column: a column with prompts for the teacher, which are read likewise.

    Raises:
        DataError: it is no dataset of texts, there is no such column, or a row is neither a text nor a conversation.
    """
    check_dataset(dataset, name)
    place = row_of(name)
    column, plain = prompt_column(dataset.column_names, name), dataset.with_format(None)
    if dataset.format["format_kwargs"].get("transform") is not None:
        _read_all(dataset[PROMPT][:], place, PROMPT, last_assistant_turn)
        return dataset
    values = plain[column][:]
    prompts, answered = _read_all(values, place, column, last_assistant_turn)
    if PROMPT_IDS not in dataset.column_names:  # otherwise it has been told when they were made
        _tell_columns(dataset.column_names, name, last_assistant_turn, answered, place)
    found = dataset
    if column != PROMPT or prompts != without_nones(values):
        found = _with_prompts(dataset, PROMPT, prompts)
    if teacher_column in dataset.column_names:
        given = plain[teacher_column][:]
        its = [prompt and read_prompt(prompt, last_assistant_turn) for prompt in given]
        found = found if its == without_nones(given) else _with_prompts(found, str(teacher_column), its)
    return found


def with_ids(dataset: Any, chat: Chat, name: str, teacher_column: str | None = None) -> Any:
    """Return a settled dataset with token ids (`add_ids`), and say what a user should know of how it is rendered.

    Raises:
        DataError: the chat template refuses a row.
        ConfigurationError: a setting of the chat template is not used.
    """
    known, given = has_ids(dataset, chat.ids), asked(dataset, PROMPT)
    found = add_ids(dataset, chat.ids, teacher_column, name)
    if not known:
        kinds = list(map(chat.kind, given))
        chat.check_used(kinds)
        _tell_rendered(given, name, chat, row_of(name))
    return found


@dataclass(frozen=True)
class _Reader:
    """Reads sources and renders their prompts with one seed and chat template.

    Until all sources are together, prompts are JSON texts, and so are the columns beside a conversation: the columns of
    two sources differ in their objects' keys.
    """

    seed: int
    chat: Chat | None
    teacher_template: str | None
    teacher_column: str | None

    @property
    def teachers(self) -> str | None:
        """The column of the teacher's prompts."""
        return self.teacher_column if self.teacher_template is None else TEACHER_PROMPT

    def one(self, source: Source, count: int | None) -> Prompts:
        limits = [limit for limit in (source.count, count) if limit is not None]
        dataset, version, place = load_rows(source, min(limits, default=None), self.seed)
        dataset, rows, place = _drop_empty(dataset, source, place)
        name, last = f"'{source.source}'", DROP if self.chat is None else self.chat.last_assistant_turn
        columns = dataset.column_names
        column = prompt_column(columns, name) if source.template is None else ""
        values = []
        for index, row in enumerate(rows):
            with at(place, index):
                values.append(asked_value(source.template, column, row))
        prompts, answered = _read_all(values, place, column, last)
        _tell_columns(columns if source.template is None else [], name, last, answered, place)
        # Those that the template names are in the prompt.
        beside = [name for name in BESIDE if name in columns and f"{{{name}}}" not in (source.template or "")]
        given = [Asked.of({name: row[name] for name in beside}, it) for row, it in zip(rows, prompts, strict=True)]
        examples = self._told(given, name, place)
        dataset = with_column(dataset, PROMPT, list(map(_written, prompts)))
        dataset = dataset.remove_columns([name for name in BESIDE if name in columns and name not in beside])
        for extra in {TOOLS, OPTIONS} & {*beside}:
            dataset = _with_text(dataset, extra, [row[extra] for row in rows])
        its = self._teacher_prompts(rows, source.source, last, place)
        if its is not None:
            dataset = with_column(dataset, str(self.teachers), list(map(_written, its)))
        dataset = self._with_ids(dataset, given, its, place)
        facts = {"source": source.source, "version": version, "prompts": len(dataset)}
        return Prompts(dataset, [facts], examples)

    def _told(self, given: Sequence[Asked], name: str, place: RowPlace) -> tuple[Example, ...]:
        """Say what is to be known of the prompts, and return one of each kind."""
        if self.chat is None:
            return ()
        found: dict[str, Example] = {}
        kinds = []
        for index, one in enumerate(given):
            with at(place, index):
                kinds.append(self.chat.kind(one))
                if kinds[-1] not in found:
                    found[kinds[-1]] = Example(kinds[-1], place(index), self.chat.text(one))
        _tell_rendered(given, name, self.chat, place)
        return tuple(found.values())

    def _teacher_prompts(self, rows: list[dict[str, Any]], source: str, last: str, place: RowPlace) -> list[Any] | None:
        """The teacher's prompts of the original `rows`, None for a row that has none; None without any."""
        if self.teacher_template is not None:
            given = fill_where_present(self.teacher_template, rows, source)
        elif self.teacher_column is not None and any(self.teacher_column in row for row in rows):
            given = [row.get(self.teacher_column) for row in rows]
        else:
            return None
        found = []
        for index, prompt in enumerate(given):
            with at(place, index, str(self.teachers)):
                found.append(read_prompt(prompt, last) if prompt else None)
        return found

    def _with_ids(self, dataset: Any, given: list[Asked], its: list[Any] | None, place: RowPlace) -> Any:
        """Return `dataset` with the ids of its prompts, and with those of the teacher's prompts if there are any."""
        if self.chat is None:
            return dataset
        own = written_ids(given, self.chat.ids, place)
        dataset = with_column(dataset, PROMPT_IDS, own)
        if self.teachers is None:
            return dataset
        if its is None:
            return with_column(dataset, TEACHER_PROMPT_IDS, own)
        theirs = [replace(one, prompt=prompt) for one, prompt in zip(given, its, strict=True)]
        return with_column(dataset, TEACHER_PROMPT_IDS, written_ids(theirs, self.chat.ids, place, own))

    def several(self, sources: Sequence[Source], count: int | None) -> Prompts:
        weights = [source.weight for source in sources]
        # A task generates as many problems as its weight and the sizes of the other sources require.
        found = [None if source.task and source.count is None else self.one(source, None) for source in sources]
        sizes = [None if part is None else len(part.dataset) for part in found]
        total = count or most_without_repeats(weights, sizes) or DEFAULT_TASK_COUNT
        counts = shares(weights, total)
        if 0 in counts:
            name = sources[counts.index(0)].source
            raise DataError(f"'{name}' has no share in a mixture of {total} prompts; raise its weight")
        parts, facts = [], []
        examples: dict[str, Example] = {}
        for source, part, wanted in zip(sources, found, counts, strict=True):
            read = part or self.one(source, wanted)
            parts.append(take(read.dataset, wanted, source.source))
            facts.append({**read.sources[0], "prompts": wanted})
            examples |= {example.kind: example for example in read.examples if example.kind not in examples}
        return Prompts(mix(parts, [source.source for source in sources]), facts, tuple(examples.values()))


def _drop_empty(dataset: Any, source: Source, place: RowPlace) -> tuple[Any, list[dict[str, Any]], RowPlace]:
    """The dataset without rows that have no prompt, its rows, and where they are."""
    rows, name = dataset.to_list(), f"'{source.source}'"
    empty = empty_rows(rows, name, source.template)
    if not empty:
        return dataset, rows, place
    full = sorted({*range(len(rows))} - {*empty})
    if not full:
        raise DataError(f"every prompt of {name} is empty")
    logger.warning(
        "%s has empty prompts, which are dropped: %d of %d, the first: %s",
        name, len(empty), len(rows), place(empty[0]),
    )  # fmt: skip
    return dataset.select(full), [rows[index] for index in full], lambda index: place(full[index])


def _read_all(
    values: Iterable[Any], place: RowPlace, column: str, last_assistant_turn: str
) -> tuple[list[Prompt], list[int]]:
    """The prompts in `values`, and the indices of those that ended with the assistant's turn."""
    prompts, answered = [], []
    for index, value in enumerate(values):
        with at(place, index, column):
            prompt = read_prompt(value)
            if ends_with_answer(prompt):
                answered.append(index)
                prompt = read_prompt(prompt, last_assistant_turn)
            prompts.append(prompt)
    return prompts, answered


def _tell_columns(
    columns: Sequence[str], name: str, last_assistant_turn: str, answered: Sequence[int], place: RowPlace
) -> None:
    """Say which column has the prompts, and what is left out of it."""
    if any(columns) and (line := chosen_column(columns, name)):
        logger.warning("%s", line)
    for column in {*_ANSWERS} & {*columns}:
        logger.warning("the column '%s' of %s is not trained on: the student writes its own", column, name)
    if answered:
        done = "dropped" if last_assistant_turn == DROP else "continued"
        other = CONTINUE if last_assistant_turn == DROP else DROP
        logger.warning(
            "%s of %s ended with the assistant's turn, which is %s (to %s it: last_assistant_turn=%s), the first: %s",
            counted(len(answered), "conversation"), name, done, other, other, place(answered[0]),
        )  # fmt: skip


def _tell_rendered(given: Sequence[Any], name: str, chat: Chat, place: RowPlace) -> None:
    """Say what of the prompts is not rendered as a user may expect."""
    found: dict[str, list[int]] = {}
    for index, one in enumerate(given):
        for note in chat.notes(one):
            found.setdefault(note, []).append(index)
    for note, rows in found.items():
        logger.warning("%d of %d prompts of %s: %s; the first: %s", len(rows), len(given), name, note, place(rows[0]))


def _with_text(dataset: Any, column: str, values: Sequence[Any]) -> Any:
    """Return `dataset` with objects in a column as JSON texts; without the column if nothing is in it."""
    texts = [
        value if value is None or isinstance(value, str) else json.dumps(without_nones(value), default=str)
        for value in values
    ]
    return with_column(dataset, column, texts) if any(texts) else dataset.remove_columns(column)


def _unpacked(dataset: Any, column: str, name: str, chat: Chat | None) -> Any:
    """Return `dataset` with the prompts that are JSON texts in a column."""
    prompts = [None if text is None else json.loads(text) for text in dataset[column][:]]
    if {str, list} <= {*map(type, prompts)}:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if chat is not None and not (chat.texts and not any(map(chat.is_rendered, texts))):
            raise DataError(
                f"{name} has texts and conversations as prompts; set chat_template=true to give the texts the chat "
                "template too, or give all prompts in one form"
            )
        prompts = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in prompts]
    return _with_prompts(dataset, column, prompts)


def _with_prompts(dataset: Any, column: str, prompts: list[Any]) -> Any:
    """Return `dataset` with a column of prompts. Conversations stay as they are: Arrow would give each of their objects
    the keys of all others."""
    if all(isinstance(prompt, str | None) for prompt in prompts):
        return with_column(dataset, column, prompts)
    json_feature = require("datasets", "train").Json()
    return with_column(dataset, column, list(map(_written, prompts)), json_feature)


def _written(prompt: Any) -> str | None:
    return None if prompt is None else json.dumps(prompt, ensure_ascii=False, default=str)
