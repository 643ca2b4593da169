"""Options of a command, defined by dataclasses. Precedence: defaults < file < command line.

A command's options are the fields of one or more dataclasses. They are set in a file, `--config FILE.yaml`, or on the
command line, `--key value` or `--key=value`; dashes and underscores in a key are the same. The origin of every value is
recorded, and an unknown key is an error that suggests the nearest known one.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, cast

from vopd.errors import ConfigurationError, Faults, VOPDError, did_you_mean, first_line, require

from .option_files import load_value, read_file, resolved_origins

T = TypeVar("T")

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NONE = {"none", "null"}
# Plain type: how errors describe its values, and its placeholder in the help.
_PLAIN_TYPES = {
    bool: ("true or false", "true|false"), int: ("a whole number", "N"), float: ("a number", "X"),
    str: ("text", "TEXT"), list: ("a list", "A,B"), dict: ("{key: value}", "{...}"), type(None): ("none", ""),
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One setting: its name, type, default and help text, and whether the help lists it."""

    name: str
    kind: Any
    default: Any
    text: str
    required: bool = False
    group: str = "options"
    shown: bool = True


@dataclass(frozen=True)
class Settings:
    """The value of every option and its origin: "default", the name of a file, or "command line"."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def only(self, names: Iterable[str]) -> Settings:
        """The same settings, with all but those of `names` left at their defaults in what is built from them."""
        return Settings(self.values, {name: self.origins[name] for name in names})

    def without(self, name: str) -> Settings:
        """The same settings, with the option `name` left at its default in what is built from them."""
        return Settings(self.values, {**self.origins, name: "default"})

    def build(self, target: type[T], **fixed: Any) -> T:
        """Make the dataclass `target` from the values that were set; the others keep the defaults of `target`.

        `fixed` overrides everything. Errors that the dataclass raises become ConfigurationError.
        """
        names = [entry.name for entry in dataclasses.fields(target) if entry.init]  # type: ignore[arg-type]
        given = {name: self.values[name] for name in names if self.origins.get(name, "default") != "default"}
        try:
            return target(**{**given, **fixed})
        except VOPDError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigurationError(first_line(error)) from error


def setting(default: Any, help_text: str) -> Any:
    """A dataclass field with a default and a help text."""
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


def needed(help_text: str) -> Any:
    """A dataclass field for a required option."""
    return field(metadata={"help": help_text, "required": True}, default=None)


def options_of(target: type, *, group: str = "options", shown: Sequence[str] | None = None) -> dict[str, Option]:
    """Return the options defined by the fields of a dataclass.

    The help lists them under `group`: all of them, or those in `shown`, in its order.
    """
    kinds = typing.get_type_hints(target)
    found = {}
    for entry in dataclasses.fields(target):
        if entry.init and not entry.name.startswith("_"):
            default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
            text, required = entry.metadata.get("help") or "", "required" in entry.metadata
            listed = shown is None or entry.name in shown
            found[entry.name] = Option(entry.name, kinds[entry.name], default, text, required, group, listed)
    return {**{name: found[name] for name in shown or () if name in found}, **found}


def read_options(kind: type[T], command: str, summary: str, arguments: Sequence[str]) -> T:
    """Parse the command line of a command whose options are the fields of `kind`; see `parse` and `Settings.build`."""
    faults = Faults()
    settings = parse(command, summary, options_of(kind), arguments, faults)
    built = faults.check(settings.build, kind)
    faults.tell()
    return cast(T, built)


def parse(
    command: str,
    summary: str,
    options: Mapping[str, Option],
    arguments: Sequence[str],
    faults: Faults,
) -> Settings:
    """Parse the command line, and the file that it names with `--config`, into settings.

    `--help` prints the options and ends the program. What is wrong is added to `faults`, and its option keeps its
    default: a key is unknown or has no value, a value has the wrong type, the file cannot be read, or a required option
    is missing.
    """
    own = Faults()
    parser = _parser(command, summary, options)
    parsed = own.check(parser.parse_known_args, [_underscored(argument) for argument in arguments])
    given, rest = parsed or (argparse.Namespace(), [])
    for word in rest[:1] + [word for word in rest[1:] if word.startswith("--")]:  # the others may be their values
        own.add(_unknown(word.partition("=")[0].lstrip("-"), options, ""))
    values = {name: option.default for name, option in options.items()}
    origins = dict.fromkeys(options, "default")
    typed = vars(given)
    path = typed.pop("config", None)
    sources = [("command line", "", typed)]
    resolved: dict[str, str] = {}
    if path is not None:
        sources.insert(0, (Path(path).name, f"{path}: ", own.check(read_file, path) or {}))
        resolved = own.check(resolved_origins, path) or {}
    for origin, where, found in sources:
        for name, value in found.items():
            if name not in options:
                own.add(_unknown(name, options, where))
                continue
            with own:
                values[name] = _checked(value, options[name], where)
                is_default = values[name] == options[name].default
                known = resolved.get(name) if where and (is_default or resolved.get(name) != "default") else None
                origins[name] = known or origin
    missing = [f"--{name}" for name, option in options.items() if option.required and values[name] is None]
    if missing and not own.found:  # it may be there under a name that is misspelt, or in a file that cannot be read
        own.add(ConfigurationError(f"vopd {command} needs {' and '.join(missing)}; --help lists the options"))
    for fault in own.found:
        faults.add(fault)
    return Settings(values, origins)


def peek(arguments: Sequence[str], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options among `kinds`, names with their types, from the command line or its `--config` file.

    Other options need not be known; values of another type are left out.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    parser = _Parser(argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
    for name, kind in {"config": str, **kinds}.items():
        parser.add_argument(f"--{name}", nargs="?", const="true" if kind is bool else None)
    parsed = vars(parser.parse_known_args([_underscored(argument) for argument in arguments])[0])
    typed = {name: value for name, value in parsed.items() if value is not None}
    path = typed.pop("config", None)
    found = (read_file(path) if path is not None else {}) | typed
    values = {}
    for name in kinds.keys() & found.keys():
        with suppress(ConfigurationError):
            values[name] = _checked(found[name], Option(name, kinds[name], None, ""), "")
    return values


def convert(text: str, kind: Any, name: str) -> Any:
    """Convert text from the command line to a value of type `kind`.

    none and null are None if that is allowed; true, false, yes, no, on, off, 1 and 0 are booleans; lists are
    comma-separated or in brackets; dictionaries are in braces, as in YAML.

    Raises:
        ConfigurationError: the text is not a value of that type; names the option.
    """
    kinds = kinds_of(kind)
    lowered = text.strip().lower()
    if type(None) in kinds and lowered in _NONE:
        return None
    if bool in kinds and lowered in _TRUE | _FALSE:
        return lowered in _TRUE
    for number in (int, float):  # an integer if it is written as one: 500 steps are not 500.0 steps
        if float in kinds or number in kinds:
            with suppress(ValueError):
                return number(text)
    for container, bracket in ((dict, "{"), (list, "[")):
        if container in kinds and lowered.startswith(bracket):
            yaml = require("yaml", "train")
            with suppress(yaml.YAMLError):
                if isinstance(value := load_value(text), container):
                    return value
            raise _wrong(name, [container], f"'{text}'")
    if list in kinds and (str not in kinds or "," in text):
        return [part.strip() for part in text.split(",")]
    if str in kinds:
        return text
    raise _wrong(name, kinds, f"'{text}'")


def kinds_of(kind: Any) -> list[Any]:
    """The plain types of an annotation: those of a union, list for list[str], str for an enumeration."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return [member for part in typing.get_args(kind) for member in kinds_of(part)]
    if origin is typing.Literal:
        return list(dict.fromkeys(type(value) for value in typing.get_args(kind)))
    if origin is not None:
        return [origin]
    return [kind if kind in _PLAIN_TYPES else str]


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
        text = _help_line(option) if option.shown else argparse.SUPPRESS
        # --dry_run without a value is --dry_run true.
        bare = {"nargs": "?", "const": "true"} if bool in kinds_of(option.kind) else {}
        groups[option.group].add_argument(f"--{option.name}", metavar=_metavar(option.kind), help=text, **bare)
    return parser


def _help_line(option: Option) -> str:
    text = " ".join(option.text.split()).replace("`", "")
    if len(text) > 100:
        text = text.split(". ")[0].rstrip(".")
    if option.required:
        text = f"(required) {text}"
    elif option.default not in (None, "", False, []):
        default = ",".join(option.default) if isinstance(option.default, list) else option.default
        text = f"{text} [{default}]"
    return text.replace("%%", "%").replace("%", "%%")


def _metavar(kind: Any) -> str:
    kinds = [member for member in kinds_of(kind) if member is not type(None)]
    return _PLAIN_TYPES[kinds[-1] if str in kinds else kinds[0]][1]


def _underscored(argument: str) -> str:
    return re.sub("(?<=^--)[^=]*", lambda key: key[0].replace("-", "_"), argument)


def _unknown(name: str, options: Mapping[str, Option], where: str) -> ConfigurationError:
    hint = did_you_mean(name.replace("-", "_"), options, "--help lists the options")
    return ConfigurationError(f"{where}unknown option '{name}'; {hint}")


def _wrong(name: str, kinds: Iterable[Any], given: str) -> ConfigurationError:
    return ConfigurationError(f"{name} must be {' or '.join(_PLAIN_TYPES[kind][0] for kind in kinds)}, not {given}")


def _checked(value: Any, option: Option, where: str) -> Any:
    """Check a value from the command line or a YAML file. Text is converted in both: YAML reads 1e-5 as text."""
    kinds, name = kinds_of(option.kind), f"{where}{option.name}"
    if isinstance(value, str):
        # The default of report_to is the text "none", which is not None.
        if value == option.default:
            return value
        value = convert(value, option.kind, name)
    elif not (type(value) in kinds or (type(value) is int and float in kinds)):
        raise _wrong(name, kinds, repr(value))
    for key, entry in value.items() if isinstance(value, dict) else ():
        if entry is None and ":" in str(key):  # {key:1}, which YAML reads as a key without a value
            raise ConfigurationError(f"{name}: write a space after the colon in '{key}'")
    inner = _entry_kind(option.kind)
    if isinstance(value, list) and inner is not None and str not in kinds_of(inner):
        return [_checked(entry, Option(option.name, inner, None, ""), where) for entry in value]
    return _expanded(value)


def _entry_kind(kind: Any) -> Any:
    """The annotation of the entries, for a list of annotated ones; otherwise None."""
    if typing.get_origin(kind) is list:
        return typing.get_args(kind)[0]
    found = map(_entry_kind, typing.get_args(kind))
    return next((inner for inner in found if inner is not None), None)


def _expanded(value: Any) -> Any:
    """A value with every path in it that begins with ~/, as NAME=~/FILE too, under the home folder."""
    if isinstance(value, str):
        return re.sub(r"^((?:[\w.-]+=)?)(~/.*)", lambda found: found[1] + os.path.expanduser(found[2]), value)
    if isinstance(value, list):
        return [_expanded(entry) for entry in value]
    return {name: _expanded(entry) for name, entry in value.items()} if isinstance(value, dict) else value
