"""The columns of a dataset: which one is the prompt, and templates that name columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vopd.errors import ConfigurationError, DataError

PROMPT_COLUMNS = ("prompt", "messages", "conversations", "conversation", "problem", "question")
_FIELD = re.compile(r"\{(\w+)\}")


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns that occur in any of the rows, in order of first occurrence."""
    return list(dict.fromkeys(name for row in rows for name in row))


def prompt_column(columns: Sequence[str], name: str) -> str:
    """Return the prompt column: the first of `PROMPT_COLUMNS` that exists.

    Raises:
        DataError: none of them exists; lists the columns that do.
    """
    found = next((column for column in PROMPT_COLUMNS if column in columns), None)
    if found is None:
        raise DataError(
            f"{name} has no column {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}; it has: "
            f"{', '.join(columns) or 'none'}. Rename one, or (in vopd train) name them in prompt_template='{{text}}'"
        )
    return found


def chosen_column(columns: Sequence[str], name: str) -> str:
    """Return a line that says which of several possible prompt columns is used; "" if there is only one."""
    found, *others = [column for column in PROMPT_COLUMNS if column in columns]
    if not others:
        return ""
    also = ", ".join(map(repr, others))
    return f"prompts of {name} from column '{found}' (also there: {also}; to use it: prompt_template='{{{others[0]}}}')"


def asked_value(template: str | None, column: str, row: Mapping[str, Any]) -> Any:
    """Return the prompt in a row, unread: the `column`, or the filled `template`.

    A template that is one column and nothing else may name one that is not text.

    Raises:
        DataError: the row has no value in `column`.
        ConfigurationError, DataError: see `fill_template`.
    """
    if template is None:
        if (value := row.get(column)) is None:
            there = next((f"; it has '{name}'" for name in PROMPT_COLUMNS if row.get(name) is not None), "")
            raise DataError(f"there is no '{column}', the column of the other prompts{there}; give all rows the same")
        return value
    whole = _FIELD.fullmatch(template)
    value = row.get(whole[1]) if whole else None
    return value if isinstance(value, list | dict) else fill_template(template, row)


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


def fill_where_present(template: str, rows: Sequence[Mapping[str, Any]], source: str) -> list[Any]:
    """Fill `template` for every row that has a value in each of its columns; None for the other rows.

    Raises:
        ConfigurationError: the template names no column, or a column that the rows do not have.
        DataError: a named column is not text, or no row has a value in all of them.
    """
    names = _named(template, columns_of(rows))
    texts = [asked_value(template, "", row) if all(row.get(name) for name in names) else None for row in rows]
    if not any(texts):
        listed = ", ".join(sorted(names))
        raise DataError(f"no row of '{source}' has a value in all columns of the teacher's template: {listed}")
    return texts


def empty_rows(rows: Sequence[Mapping[str, Any]], name: str, template: str | None) -> list[int]:
    """Return the indices of the rows whose prompt columns contain only whitespace, or conversations without turns.

    A missing value does not count as empty, nor does one that is neither: reading the prompt raises an error for it.
    """
    columns = columns_of(rows)
    names = {prompt_column(columns, name)} if template is None else _named(template, columns)
    values = ([row.get(name) for name in names] for row in rows)
    return [index for index, found in enumerate(values) if all(map(_is_empty, found))]


def _is_empty(value: Any) -> bool:
    return value == [] or (isinstance(value, str) and not value.strip())


def _named(template: str, columns: Iterable[str]) -> set[str]:
    names = set(_FIELD.findall(template))
    unknown = sorted(names - {*columns})
    if unknown or not names:
        wrong = f"names {{{unknown[0]}}}, which is not a column" if unknown else "names no column"
        raise ConfigurationError(f"the template {wrong}; the columns are {', '.join(columns)}")
    return names
