"""Options in files: those that `--config` names, and the settings that a run writes down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, require

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


def read_value(text: str) -> Any:
    """What a dictionary or list on the command line holds, written as in YAML.

    Raises:
        ConfigurationError: a dictionary has a key twice.
        yaml.YAMLError: it is no YAML.
    """
    yaml = require("yaml", "train")
    root = yaml.compose(text, yaml.SafeLoader)
    try:
        _read_inner(yaml, root)
    except _Twice as error:
        raise ConfigurationError(f"'{text}' {error}; keep one of them") from error
    return yaml.SafeLoader("").construct_document(root)


def _load_yaml(text: str) -> Any:
    """What a YAML file holds, with the keys of its options underscored, and no, yes, on, off of an option as text.

    YAML 1.1 reads them as booleans, but `save_strategy: no` is a name; an option that is a boolean converts them.

    Raises:
        _Twice: a mapping has a key twice.
    """
    yaml = require("yaml", "train")
    root = yaml.compose(text, yaml.SafeLoader)
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        key.value = str(key.value).replace("-", "_")
        if value.tag.endswith(":bool") and value.value.lower() not in ("true", "false"):
            value.tag = "tag:yaml.org,2002:str"
    _read_inner(yaml, root, own=True)
    return None if root is None else yaml.SafeLoader("").construct_document(root)


def _read_inner(yaml: Any, node: Any, own: bool = False) -> None:
    """Read 1e-7 in a dictionary as a number, which YAML 1.1 reads as text, and look for keys that are there twice.

    The file's `own` options are converted to their own types later.
    """
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value in lines:
            raise _Twice(f"has '{key.value}' in line {lines[key.value]} and in line {key.start_mark.line + 1}")
        lines[str(key.value)] = key.start_mark.line + 1
        if (
            not own
            and getattr(value, "style", "") is None
            and re.fullmatch(r"[-+]?\d+e[-+]?\d+", str(value.value), re.I)
        ):
            value.tag = "tag:yaml.org,2002:float"
        _read_inner(yaml, value)
    for entry in node.value if isinstance(node, yaml.SequenceNode) else ():
        _read_inner(yaml, entry)


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
        if _is_secret(name):
            continue
        # Flow style without width limit: one line for any value, so that a comment can follow.
        text = yaml.safe_dump([_plain(settings[name])], default_flow_style=True, width=float("inf")).strip()
        lines.append(f"{name}: {text[1:-1]}  # {origins[name]}")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """A value that YAML can represent: enumerations by value, unknown types as text, URLs without passwords."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items() if not _is_secret(str(name))}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"://[^/@\s]+@", "://", str(getattr(value, "value", value)))
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _is_secret(name: str) -> bool:
    return re.search(r"(^|_)(token|api_key|key|secret|password)$", name) is not None
