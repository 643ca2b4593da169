"""From the row of a data set to the text of its prompt: columns, templates, chat templates."""

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
        rows: of a data set.
        source: what errors call them.
        template: text in which {column} stands for that column; None takes the column of `prompt_column`.
        render: as `chat_renderer` gives it.

    Raises:
        DataError: no column with prompts, or a prompt that is not text or empty; with the number of the row.
        ConfigurationError: a template without columns, or a chat template that is not there.
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
    """Return what puts a prompt into the tokenizer's chat template, or leaves it as it is without `chat_template`.

    Raises:
        ConfigurationError: there is no tokenizer for it, or none with a chat template.
    """
    if not chat_template:
        return lambda prompt: prompt
    if tokenizer is None:
        raise ConfigurationError("chat_template needs a tokenizer")
    if not tokenizer.chat_template:
        raise ConfigurationError("this tokenizer has no chat template; leave chat_template off")

    def render(prompt: Any) -> Any:
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if not is_conversation(prompt):
            return prompt
        text: str = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **options or {})
        # The text is tokenized again later: a begin token that the tokenizer puts there itself must not come twice.
        begin = tokenizer.bos_token
        if begin and text.startswith(begin) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            return text.removeprefix(begin)
        return text

    return render


def thinking_options(thinking: bool | None, chat_template: bool, tokenizer: Any) -> dict[str, Any]:
    """Return the options of the chat template that turn thinking on or off; None leaves it to the template.

    Raises:
        ConfigurationError: prompts do not go through a chat template, or the template has no such switch.
    """
    if thinking is None:
        return {}
    if not chat_template:
        raise ConfigurationError(
            "thinking is a switch of the chat template; set chat_template=true, or remove thinking"
        )
    if _THINKING not in str(tokenizer.chat_template or ""):
        raise ConfigurationError(
            f"this tokenizer's chat template has no {_THINKING} switch; remove thinking, or pass what it knows with "
            "chat_template_kwargs"
        )
    return {_THINKING: thinking}


def fill_template(template: str, row: Mapping[str, Any]) -> str:
    """Put the columns of `row` for {column} in `template`; a lone {} and other braces stay.

    Raises:
        ConfigurationError: the template names no column, or one that the row does not have.
        DataError: a named column does not hold text.
    """
    names = _named(template, row)
    for name in names:
        if not isinstance(row[name], str):
            raise DataError(f"column '{name}' is {type(row[name]).__name__} and not text")
    return _FIELD.sub(lambda match: row[match.group(1)], template)


def fill_where_present(template: str, rows: Sequence[Mapping[str, Any]], source: str) -> list[str | None]:
    """Fill `template` for every row that holds something in each of its columns; None for the others.

    Raises:
        ConfigurationError: the template names no column, or one that the rows do not have.
        DataError: a named column holds something else than text, or no row has them all.
    """
    names = _named(template, columns_of(rows))
    texts = [fill_template(template, row) if all(row.get(name) for name in names) else None for row in rows]
    if not any(texts):
        raise DataError(f"no row of '{source}' has all of {', '.join(sorted(names))}, which the teacher's prompt names")
    return texts


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns that any of the rows has, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def prompt_column(columns: Sequence[str], source: str) -> str:
    """Return the column that holds the prompts: the first of prompt, problem, question that is there.

    Raises:
        DataError: none of them is there; names the columns that are.
    """
    for name in PROMPT_COLUMNS:
        if name in columns:
            return name
    present = ", ".join(columns) or "none"
    raise DataError(
        f"'{source}' has no column {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}; "
        f"it has: {present}. Rename one, or give a template such as '{{text}}'"
    )


def empty_rows(rows: Sequence[Mapping[str, Any]], source: str, template: str | None) -> list[int]:
    """Return the numbers of the rows that hold only blanks in the columns that their prompt is made of.

    A value that is missing or no text is not empty: it is an error, which `render_prompts` raises.
    """
    columns = columns_of(rows)
    names = {prompt_column(columns, source)} if template is None else _named(template, columns)
    values = ([row.get(name) for name in names] for row in rows)
    return [index for index, found in enumerate(values) if all(isinstance(it, str) and not it.strip() for it in found)]


def _named(template: str, columns: Iterable[str]) -> set[str]:
    names = set(_FIELD.findall(template))
    unknown = sorted(names - {*columns})
    if unknown or not names:
        wrong = f"names {{{unknown[0]}}}, which is no column" if unknown else "names no column"
        raise ConfigurationError(f"the template {wrong}; the columns are {', '.join(columns)}")
    return names


def is_conversation(prompt: Any) -> bool:
    """True for a list of chat messages."""
    turns = prompt if isinstance(prompt, list) else []
    return bool(turns) and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns)


def _text(prompt: Any) -> str:
    if is_conversation(prompt):
        raise DataError("the prompt is a conversation; set chat_template to render it")
    if not isinstance(prompt, str):
        raise DataError(f"the prompt is {type(prompt).__name__} and not text")
    if not prompt.strip():
        raise DataError("the prompt is empty")
    return prompt
