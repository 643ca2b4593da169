"""Options in files: those that `--config` names, and the settings that a run writes down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, require
from vopd.secrets import is_secret, without_passwords

RESOLVED = "resolved_config.yaml"
CHOSEN_HERE = "chosen for this machine"


def read_file(path: str) -> dict[str, Any]:
    """Return the options in a YAML file, with underscored names.

    Raises:
        ConfigurationError: the file cannot be read, is no YAML of 'key: value' lines, or has a key twice.
    """
    yaml = require("yaml", "train")
    try:
        content = _load_yaml(Path(path).read_text(encoding="utf-8"))
    except _Twice as error:
        raise ConfigurationError(f"'{path}' {error}; keep one of them") from error
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration file '{path}': {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"'{path}'{where} is not valid YAML; write one 'key: value' per line") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"'{path}' must contain 'key: value' lines")
    return content


class _Twice(Exception):
    """A key of a YAML file occurs twice."""


def load_value(text: str) -> Any:
    """What a dictionary or list on the command line holds, written as in YAML; 1e-5 is a number, as in YAML 1.2.

    Raises:
        ConfigurationError: a dictionary has a key twice.
        yaml.YAMLError: it is no YAML.
    """
    yaml = require("yaml", "train")
    root = yaml.compose(text, _loader())
    try:
        _check_keys(yaml, root)
    except _Twice as error:
        raise ConfigurationError(f"'{text}' {error}; keep one of them") from error
    return None if root is None else yaml.SafeLoader("").construct_document(root)


@cache
def _loader() -> Any:
    yaml = require("yaml", "train")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """A safe loader with its own kinds of numbers."""

    # Not 12e45 without a sign and a point, which may be a commit.
    numbers = re.compile(r"[-+]?(\d+[eE][-+]|(\d+\.\d*|\.\d+)[eE][-+]?)\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", numbers, list("-+.0123456789"))
    return Loader


def _load_yaml(text: str) -> Any:
    """What a YAML file holds, with the keys of its options underscored, and numbers, no, yes, on, off of an option as
    text.

    YAML 1.1 reads the latter as booleans, but `save_strategy: no` is a name; each option converts its own text.

    Raises:
        _Twice: a mapping has a key twice.
    """
    yaml = require("yaml", "train")

    root = yaml.compose(text, _loader())
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        key.value = str(key.value).replace("-", "_")
        # The last character of .inf and .nan, which text cannot be converted to, is no digit.
        number = value.tag.endswith(":float") and value.value[-1].isdigit()
        if number or (value.tag.endswith(":bool") and value.value.lower() not in ("true", "false")):
            value.tag = "tag:yaml.org,2002:str"
    _check_keys(yaml, root)
    return None if root is None else yaml.SafeLoader("").construct_document(root)


def _check_keys(yaml: Any, node: Any) -> None:
    """Raise _Twice if a mapping in a node has a key twice."""
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value in lines:
            raise _Twice(f"has '{key.value}' in line {lines[key.value]} and in line {key.start_mark.line + 1}")
        lines[str(key.value)] = key.start_mark.line + 1
        _check_keys(yaml, value)
    for entry in node.value if isinstance(node, yaml.SequenceNode) else ():
        _check_keys(yaml, entry)


def resolved_origins(path: str) -> dict[str, str]:
    """The origins in a file that a run wrote (`to_yaml`): a run that takes its settings from it has the same ones."""
    if Path(path).name != RESOLVED:
        return {}
    comments = re.findall(r"^(\w+): .*  # ([^,\n]+)", Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    return dict(comments)


def to_yaml(settings: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return settings as YAML, one per line with its origin as a comment, set ones first; secrets are left out.

    The text is a valid `--config` file.
    """
    yaml = require("yaml", "train")
    ranks = {CHOSEN_HERE: 1, "default": 2}

    def rank(name: str) -> tuple[int, str]:
        return ranks.get(origins[name].partition(",")[0], 0), name  # a remark follows the comma

    lines = []
    for name in sorted(settings, key=rank):
        if is_secret(name):
            continue
        # Flow style without width limit: one line for any value, so that a comment can follow.
        text = yaml.safe_dump([_plain(settings[name])], default_flow_style=True, width=float("inf")).strip()
        lines.append(f"{name}: {text[1:-1]}  # {origins[name]}")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """A value that YAML can represent: enumerations by value, unknown types as text, URLs without passwords."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items() if not is_secret(str(name))}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if isinstance(value, str):
        return without_passwords(str(getattr(value, "value", value)))
    return value if value is None or isinstance(value, bool | int | float) else str(value)
