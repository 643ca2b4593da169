"""Reads training prompts from local files, the Hugging Face Hub, reasoning_gym tasks, or a mixture of these."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.errors import DataError, check_at_least

from .chat import chat_renderer, empty_rows, fill_where_present, render_prompts
from .mixture import mix, most_without_repeats, shares, take
from .sources import DEFAULT_TASK_COUNT, Source, load_rows, parse_sources, with_column
from .tokenized import PROMPT

logger = logging.getLogger(__name__)

TEACHER_PROMPT = "teacher_prompt"


@dataclass(frozen=True)
class Prompts:
    """Prompts and the description of their sources for the model card.

    Attributes:
        dataset: a `datasets.Dataset` with a text column "prompt" and all other columns of the source.
        sources: for each source its name, its version (commit, digest or seed) and its number of prompts.
    """

    dataset: Any
    sources: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The names of the sources, for messages."""
        return " + ".join(entry["source"] for entry in self.sources)


def read_prompts(
    source: str | Path | Sequence[Any],
    *,
    split: str = "train",
    revision: str | None = None,
    count: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    template: str | None = None,
    tokenizer: Any | None = None,
    chat_template: bool = False,
    chat_options: Mapping[str, Any] | None = None,
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
        template: text in which {column} is replaced by that column of the row; {} is kept. By default the prompt is
            the first existing column of prompt, problem, question.
        tokenizer: required for chat_template.
        chat_template: apply the tokenizer's chat template, with the prompt as the user's message. A prompt that is a
            list of messages is rendered unchanged.
        chat_options: additional arguments of the chat template, such as enable_thinking.
        teacher_template: template of a separate prompt for the teacher, stored in the column "teacher_prompt". A row
            with an empty or missing value in one of its columns gets none.
        teacher_column: alternatively, a column that contains the teacher's prompts; the chat template is applied to it.

    Returns:
        The prompts with their sources.

    Raises:
        DataError: a file is missing or unreadable, there are no rows, a column is missing, or a prompt is not text.
        ConfigurationError: a template has no columns, or a tokenizer is required but not given.
    """
    check_at_least("count", count, 1)
    defaults = {"split": split, "revision": revision, "template": template, "options": options or {}}
    sources = parse_sources(source, defaults)
    render = chat_renderer(tokenizer, chat_template, chat_options)
    reader = _Reader(seed, render, teacher_template, teacher_column)
    found = reader.one(sources[0], count) if len(sources) == 1 else reader.several(sources, count)
    texts = list(found.dataset[PROMPT])
    repeats = len(texts) - len(set(texts))
    if repeats:
        logger.warning("'%s' has repeated prompts, which are kept: %d of %d", found.name, repeats, len(texts))
    return found


@dataclass(frozen=True)
class _Reader:
    """Reads sources and renders their prompts with one seed and chat template."""

    seed: int
    render: Callable[[Any], Any]
    teacher_template: str | None
    teacher_column: str | None

    def one(self, source: Source, count: int | None) -> Prompts:
        limits = [limit for limit in (source.count, count) if limit is not None]
        dataset, version = load_rows(source, min(limits, default=None), self.seed)
        dataset, rows = _drop_empty(dataset, source)
        prompts = render_prompts(rows, source.source, source.template, self.render)
        dataset = self._with_teacher_prompts(with_column(dataset, PROMPT, prompts), rows, source.source)
        return Prompts(dataset, [{"source": source.source, "version": version, "prompts": len(dataset)}])

    def _with_teacher_prompts(self, dataset: Any, rows: list[dict[str, Any]], source: str) -> Any:
        """Return `dataset` with the teacher's prompts, made from the original `rows`."""
        if self.teacher_template is not None:
            name, texts = TEACHER_PROMPT, fill_where_present(self.teacher_template, rows, source)
        elif self.teacher_column is not None and self.teacher_column in dataset.column_names:
            name, texts = self.teacher_column, [row[self.teacher_column] for row in rows]
        else:
            return dataset
        return with_column(dataset, name, [text and self.render(text) for text in texts])

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
        for source, part, wanted in zip(sources, found, counts, strict=True):
            read = part or self.one(source, wanted)
            parts.append(take(read.dataset, wanted, source.source))
            facts.append({**read.sources[0], "prompts": wanted})
        return Prompts(mix(parts, [source.source for source in sources]), facts)


def _drop_empty(dataset: Any, source: Source) -> tuple[Any, list[dict[str, Any]]]:
    rows, name = dataset.to_list(), source.source
    empty = empty_rows(rows, name, source.template)
    if not empty:
        return dataset, rows
    full = sorted({*range(len(rows))} - {*empty})
    if not full:
        raise DataError(f"every prompt of '{name}' is empty")
    logger.warning(
        "'%s' has empty prompts, which are dropped: %d of %d, first row %d", name, len(empty), len(rows), empty[0]
    )
    return dataset.select(full), [rows[index] for index in full]
