"""Turns a row of a dataset into a prompt text: columns, templates, chat templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vopd.errors import ConfigurationError, DataError

PROMPT_COLUMNS = ("prompt", "problem", "question")
_FIELD = re.compile(r"\{(\w+)\}")
_THINKING = "enable_thinking"


def render_prompts(
    rows: Sequence[Mapping[str, Any]], source: str, template: str | None, render: Callable[[Any], Any]
) -> list[str]:
    """Return the prompt text of every row.

    Args:
        rows: rows of a dataset.
        source: name of the rows in errors.
        template: text in which {column} is replaced by that column; None uses the column that `prompt_column` finds.
        render: result of `chat_renderer`.

    Raises:
        DataError: there is no prompt column, or a prompt is empty or not text; names the row.
        ConfigurationError: the template has no columns, or the chat template is missing.
    """
    column = prompt_column(columns_of(rows), source) if template is None else ""
    prompts = []
    for index, row in enumerate(rows):
        try:
            prompts.append(_text(render(row.get(column) if template is None else fill_template(template, row))))
        except DataError as error:
            raise DataError(f"'{source}' row {index}: {error}") from error
    return prompts


def chat_renderer(tokenizer: Any, chat_template: bool, options: Mapping[str, Any] | None) -> Callable[[Any], Any]:
    """Return a function that applies the tokenizer's chat template to a prompt, or nothing without `chat_template`.

    Raises:
        ConfigurationError: there is no tokenizer, or it has no chat template.
    """
    if not chat_template:
        return lambda prompt: prompt
    if tokenizer is None:
        raise ConfigurationError("chat_template needs a tokenizer")
    if not tokenizer.chat_template:
        raise ConfigurationError(
            "this tokenizer has no chat template: leave chat_template off and give prompts as text, or save a "
            "tokenizer with a template into the student's folder"
        )

    def render(prompt: Any) -> Any:
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if not is_conversation(prompt):
            return prompt
        text: str = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **options or {})
        # The text is tokenized again later: if the tokenizer adds the BOS token itself, it must not occur twice.
        begin = tokenizer.bos_token
        if begin and text.startswith(begin) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            return text.removeprefix(begin)
        return text

    return render


def lacks_template(tokenizer: Any, prompts: Sequence[Any]) -> str:
    """Return what is wrong if prompts are chat messages and the tokenizer has no chat template; otherwise ""."""
    if getattr(tokenizer, "chat_template", None) or not any(isinstance(prompt, list) for prompt in prompts):
        return ""
    return (
        "they are chat messages, and it has no chat template; set its chat_template, use an instruct model with its "
        "tokenizer, or pass prompts that are texts"
    )


def thinking_options(thinking: bool | None, chat_template: bool, tokenizer: Any) -> dict[str, Any]:
    """Return the chat template options that turn thinking on or off; None keeps the template's default.

    Raises:
        ConfigurationError: no chat template is applied, or the template has no such option.
    """
    if thinking is None:
        return {}
    if not chat_template:
        raise ConfigurationError(
            "thinking is an option of the chat template; set chat_template=true, or remove thinking"
        )
    if not tokenizer.chat_template:
        raise ConfigurationError(
            "thinking is an option of chat templates, and this tokenizer has none; remove thinking"
        )
    if _THINKING not in str(tokenizer.chat_template):
        raise ConfigurationError(
            f"this tokenizer's chat template has no option {_THINKING}; remove thinking, or pass the options it has "
            "with chat_template_kwargs"
        )
    return {_THINKING: thinking}


def fill_template(template: str, row: Mapping[str, Any]) -> str:
    """Replace each {column} in `template` by that column of `row`; {} and other braces are kept.

    Raises:
        ConfigurationError: the template names no column, or a column that the row does not have.
        DataError: a named column is not text.
    """
    names = _named(template, row)
    for name in names:
        if not isinstance(row[name], str):
            raise DataError(f"column '{name}' must be text, not {type(row[name]).__name__}")
    return _FIELD.sub(lambda match: row[match.group(1)], template)


def fill_where_present(template: str, rows: Sequence[Mapping[str, Any]], source: str) -> list[str | None]:
    """Fill `template` for every row that has a value in each of its columns; None for the other rows.

    Raises:
        ConfigurationError: the template names no column, or a column that the rows do not have.
        DataError: a named column is not text, or no row has a value in all of them.
    """
    names = _named(template, columns_of(rows))
    texts = [fill_template(template, row) if all(row.get(name) for name in names) else None for row in rows]
    if not any(texts):
        listed = ", ".join(sorted(names))
        raise DataError(f"no row of '{source}' has a value in all columns of the teacher's template: {listed}")
    return texts


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns that occur in any of the rows, in order of first occurrence."""
    return list(dict.fromkeys(name for row in rows for name in row))


def prompt_column(columns: Sequence[str], source: str) -> str:
    """Return the prompt column: the first of prompt, problem, question that exists.

    Raises:
        DataError: none of them exists; lists the columns that do.
    """
    for name in PROMPT_COLUMNS:
        if name in columns:
            return name
    present = ", ".join(columns) or "none"
    raise DataError(
        f"'{source}' has no column {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}; "
        f"it has: {present}. Rename one, or set a template such as '{{text}}'"
    )


def empty_rows(rows: Sequence[Mapping[str, Any]], source: str, template: str | None) -> list[int]:
    """Return the indices of the rows whose prompt columns contain only whitespace.

    A missing value, or one that is not text, does not count as empty: `render_prompts` raises an error for it.
    """
    columns = columns_of(rows)
    names = {prompt_column(columns, source)} if template is None else _named(template, columns)
    values = ([row.get(name) for name in names] for row in rows)
    return [index for index, found in enumerate(values) if all(isinstance(it, str) and not it.strip() for it in found)]


def _named(template: str, columns: Iterable[str]) -> set[str]:
    names = set(_FIELD.findall(template))
    unknown = sorted(names - {*columns})
    if unknown or not names:
        wrong = f"names {{{unknown[0]}}}, which is not a column" if unknown else "names no column"
        raise ConfigurationError(f"the template {wrong}; the columns are {', '.join(columns)}")
    return names


def is_conversation(prompt: Any) -> bool:
    """Return whether `prompt` is a list of chat messages."""
    turns = prompt if isinstance(prompt, list) else []
    return bool(turns) and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns)


def _text(prompt: Any) -> str:
    if is_conversation(prompt):
        raise DataError(
            "the prompt is a list of messages; set chat_template=true to render it, or give it as text if the "
            "tokenizer has no chat template"
        )
    if not isinstance(prompt, str):
        raise DataError(f"the prompt must be text, not {type(prompt).__name__}")
    if not prompt.strip():
        raise DataError("the prompt is empty")
    return prompt
