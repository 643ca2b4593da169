"""The options of a command as a table for the documentation and as a JSON Schema for editors of YAML files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from vopd.run.options import Option, kinds_of

_JSON_TYPES = {
    bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null",
}  # fmt: skip
_SHOWN_TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}


def json_schema(options: Mapping[str, Option], title: str) -> dict[str, Any]:
    """Return the JSON Schema of a configuration file with these options; unknown keys are not allowed."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _property(option) for name, option in options.items()},
    }


def table(options: Iterable[Option]) -> str:
    """Return a Markdown table: option, type, default, what it does."""
    lines = ["| option | type | default | what it does |", "|---|---|---|---|"]
    for option in options:
        cells = (f"`{option.name}`", _type(option), _default(option), _cell(option.text))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _property(option: Option) -> dict[str, Any]:
    names = list(dict.fromkeys(_JSON_TYPES[kind] for kind in kinds_of(option.kind)))
    # A number in scientific notation without a point, 1e-5, is text to YAML 1.1; it is read as the number.
    if "number" in names and "string" not in names:
        names.append("string")
    found: dict[str, Any] = {"type": names if len(names) > 1 else names[0], "description": _plain(option.text)}
    return found if option.required else {**found, "default": _jsonable(option.default)}


def _type(option: Option) -> str:
    return " or ".join(dict.fromkeys(_SHOWN_TYPES[kind] for kind in kinds_of(option.kind) if kind in _SHOWN_TYPES))


def _default(option: Option) -> str:
    if option.required:
        return "required"
    return "" if option.default is None else f"`{json.dumps(_jsonable(option.default))}`".replace('"', "")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """On one line; argparse wants per cent signs twice, nobody else does."""
    return " ".join(text.split()).replace("%%", "%")


def _jsonable(value: Any) -> Any:
    """Enumerations by their value; anything else that JSON cannot hold as text."""
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)
