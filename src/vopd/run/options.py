"""Options of a command, taken from dataclasses: defaults < file < command line.

A command's options are the fields of one or more dataclasses. `--config FILE.yaml` gives some of them,
`--key value` or `--key=value` others; dashes and underscores in a key are the same. Every value remembers
where it came from, and an unknown key is an error that suggests the nearest known one.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union

from vopd.errors import ConfigurationError, VOPDError, require

T = TypeVar("T")

CHOSEN_HERE = "chosen for this machine"
_CHOSEN = ("default", CHOSEN_HERE)

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NONE = {"none", "null"}


@dataclass(frozen=True)
class Option:
    """One setting: its name, its type, its default, and what the help says (None keeps it out of the help).

    `text` is what its dataclass says of it, in the help or not.
    """

    name: str
    kind: Any
    default: Any
    help: str | None
    required: bool = False
    group: str = "options"
    text: str = ""


@dataclass(frozen=True)
class Settings:
    """The value of every option and where it came from: "default", the name of a file, "command line"."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def build(self, target: type[T], **fixed: Any) -> T:
        """Make the dataclass `target` from the values that were given; the rest keeps its own defaults.

        `fixed` wins over everything. Errors that the dataclass raises become ConfigurationError.
        """
        names = {entry.name for entry in dataclasses.fields(target) if entry.init}  # type: ignore[arg-type]
        given = {
            name: value for name, value in self.values.items() if name in names and self.origins[name] != "default"
        }
        try:
            return target(**{**given, **fixed})
        except VOPDError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigurationError(str(error).strip().splitlines()[0]) from error


def setting(default: Any, help_text: str) -> Any:
    """A dataclass field with a default and the line that the help shows for it."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


def needed(help_text: str) -> Any:
    """A dataclass field that must be given."""
    return field(metadata={"help": help_text, "required": True}, default=None)


def options_of(target: type, *, group: str = "options", shown: Sequence[str] | None = None) -> dict[str, Option]:
    """Return the options that the fields of a dataclass make.

    The help lists them under `group`: all, or those in `shown` and in its order.
    """
    kinds = typing.get_type_hints(target)
    found = {}
    for entry in dataclasses.fields(target):
        if not entry.init or entry.name.startswith("_"):
            continue
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        text = entry.metadata.get("help") or ""
        shown_text = text if shown is None or entry.name in shown else None
        required = bool(entry.metadata.get("required"))
        found[entry.name] = Option(entry.name, kinds[entry.name], default, shown_text, required, group, text)
    first = {name: found[name] for name in shown or () if name in found}
    return {**first, **found}


def parse(command: str, summary: str, options: Mapping[str, Option], arguments: Sequence[str]) -> Settings:
    """Read the command line (and the file it names) into settings.

    `--help` prints the options and ends the program.

    Raises:
        ConfigurationError: unknown key, a value of the wrong kind, a key without value, an unreadable file,
            or a required option that is missing.
    """
    parser = _parser(command, summary, options)
    given, rest = parser.parse_known_args([_underscored(argument) for argument in arguments])
    if rest:
        raise ConfigurationError(_unknown(rest[0].partition("=")[0].lstrip("-"), options))
    values = {name: option.default for name, option in options.items()}
    origins = dict.fromkeys(options, "default")
    typed = vars(given)
    path = typed.pop("config", None)
    if path is not None:
        for name, value in _read_file(path).items():
            if name not in options:
                raise ConfigurationError(f"{path}: {_unknown(name, options)}")
            values[name], origins[name] = _checked(value, options[name], f"{path}: "), Path(path).name
    for name, text in typed.items():
        values[name], origins[name] = _converted(text, options[name]), "command line"
    missing = [f"--{name}" for name, option in options.items() if option.required and values[name] is None]
    if missing:
        raise ConfigurationError(f"vopd {command} needs {' and '.join(missing)}")
    return Settings(values, origins)


def convert(text: str, kind: Any, name: str) -> Any:
    """Turn the text of a command line into a value of type `kind`.

    none and null are None where that is allowed; true, false, yes, no are booleans; lists are comma-separated
    or in brackets; dictionaries are in braces, as in YAML.

    Raises:
        ConfigurationError: the text is no value of that type; names the option.
    """
    kinds = kinds_of(kind)
    lowered = text.strip().lower()
    if type(None) in kinds and lowered in _NONE:
        return None
    if bool in kinds and lowered in _TRUE | _FALSE:
        return lowered in _TRUE
    number = _number(text, kinds)
    if number is not None:
        return number
    if dict in kinds and lowered.startswith("{"):
        return _yaml_value(text, dict, name)
    if list in kinds and (str not in kinds or "," in text or lowered.startswith("[")):
        return _yaml_value(text, list, name) if lowered.startswith("[") else [part.strip() for part in text.split(",")]
    if str in kinds:
        return text
    raise ConfigurationError(f"{name} must be {_describe(kinds)}, not '{text}'")


def kinds_of(kind: Any) -> list[Any]:
    """The plain types of an annotation: those of a union, list for list[str], str for an enumeration."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return [member for part in typing.get_args(kind) for member in kinds_of(part)]
    if origin is typing.Literal:
        return list(dict.fromkeys(type(value) for value in typing.get_args(kind)))
    if origin is not None:
        return [origin]
    return [kind] if kind in (bool, int, float, str, list, dict, type(None)) else [str]


def to_yaml(settings: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return settings as YAML, one a line with its origin as a comment, given ones first; secrets are left out.

    The text is itself a valid `--config` file.
    """
    yaml = require("yaml", "train")
    lines = []
    kinds = {name: origin.partition(",")[0] for name, origin in origins.items()}  # what follows is a remark
    for name in sorted(settings, key=lambda name: (kinds[name] in _CHOSEN, kinds[name] == "default", name)):
        if _is_secret(name):
            continue
        # Flow style and no width limit: one line whatever the value, so that a comment can follow.
        text = yaml.safe_dump([_plain(settings[name])], default_flow_style=True, width=float("inf")).strip()
        lines.append(f"{name}: {text[1:-1]}  # {origins[name]}")
    return "\n".join(lines) + "\n"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(message)


def _parser(command: str, summary: str, options: Mapping[str, Option]) -> _Parser:
    parser = _Parser(
        prog=f"vopd {command}",
        description=summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        usage=f"vopd {command} [--config FILE.yaml] [--key value ...]",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    groups: dict[str, Any] = {"options": parser}
    for option in options.values():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        text = argparse.SUPPRESS if option.help is None else _help_line(option)
        # --dry_run alone is --dry_run true.
        bare = {"nargs": "?", "const": "true"} if bool in kinds_of(option.kind) else {}
        groups[option.group].add_argument(f"--{option.name}", metavar=_metavar(option.kind), help=text, **bare)
    return parser


def _help_line(option: Option) -> str:
    text = " ".join((option.help or "").split()).replace("`", "")
    if len(text) > 100:
        text = text.split(". ")[0].rstrip(".")
    if option.required:
        text = f"(required) {text}"
    elif option.default not in (None, "", False):
        default = ",".join(option.default) if isinstance(option.default, list) else option.default
        text = f"{text} [{default}]"
    return text.replace("%%", "%").replace("%", "%%")


def _metavar(kind: Any) -> str:
    kinds = [member for member in kinds_of(kind) if member is not type(None)]
    names = {bool: "true|false", int: "N", float: "X", str: "TEXT", list: "A,B", dict: "{...}"}
    return names.get(kinds[-1] if str in kinds else kinds[0], "TEXT") if kinds else "TEXT"


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    key, sign, value = argument.partition("=")
    return "--" + key[2:].replace("-", "_") + sign + value


def _unknown(name: str, options: Mapping[str, Option]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), options, n=1, cutoff=0.6)
    return f"unknown option '{name}'" + (f"; did you mean '{close[0]}'?" if close else "; --help lists the options")


def _read_file(path: str) -> dict[str, Any]:
    yaml = require("yaml", "train")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration file '{path}': {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"'{path}'{where} is not valid YAML") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"'{path}' must hold 'key: value' lines")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _checked(value: Any, option: Option, where: str) -> Any:
    """A value of a YAML file; text is converted as on the command line, since YAML reads 1e-5 as text."""
    kinds = kinds_of(option.kind)
    if isinstance(value, str):
        try:
            return _converted(value, option)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}{error}") from error
    if type(value) in kinds:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return value
    raise ConfigurationError(f"{where}{option.name} must be {_describe(kinds)}, not {value!r}")


def _converted(text: str, option: Option) -> Any:
    # report_to's default is the text "none", which is not None.
    return text if text == option.default else convert(text, option.kind, option.name)


def _number(text: str, kinds: Iterable[Any]) -> int | float | None:
    """The number in `text`, whole where it is written as one (500 steps are not 500.0 steps), or None."""
    for number in (int, float):
        if float in kinds or number in kinds:
            try:
                return number(text)
            except ValueError:
                continue
    return None


def _describe(kinds: Iterable[Any]) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    names[dict] = "{key: value}"
    return " or ".join(names.get(kind, "none") for kind in kinds)


def _yaml_value(text: str, kind: type, name: str) -> Any:
    yaml = require("yaml", "train")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be {_describe([kind])}, not '{text}'")
    return value


def _plain(value: Any) -> Any:
    """What YAML can hold: enumerations by value, anything unknown by its text, URLs without passwords."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items() if not _is_secret(str(name))}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"://[^/@\s]+@", "://", str(getattr(value, "value", value)))
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _is_secret(name: str) -> bool:
    return re.search(r"(^|_)(token|api_key|key|secret|password)$", name) is not None
