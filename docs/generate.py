"""Writes docs/configuration.md and configs/train.schema.json from the dataclasses that the commands read.

    python docs/generate.py

tests/test_docs.py fails while either is older than the dataclasses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vopd.cli.compare import CompareOptions
from vopd.cli.demo import DemoOptions
from vopd.cli.doctor import DoctorOptions
from vopd.cli.report import ReportOptions
from vopd.cli.variance import VarianceOptions
from vopd.run.evaluation import EvalOptions
from vopd.run.options import Option, kinds_of, options_of
from vopd.run.plan import MAIN_FIELDS, TrainOptions, train_options
from vopd.training.trl import DistillationConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "configs" / "train.schema.json"

# Plain type: what a reader calls it (None is told by the default), and its JSON type.
_TYPES = {
    bool: ("true or false", "boolean"), int: ("whole number", "integer"), float: ("number", "number"),
    str: ("text", "string"), list: ("list", "array"), dict: ("mapping", "object"), type(None): ("", "null"),
}  # fmt: skip

_HEAD = """\
# Configuration

<!-- Written by docs/generate.py from the dataclasses that the commands read; changes belong there. -->

Every option of a command is a key of its YAML file and a flag of its command line. Precedence: defaults < `--config
FILE.yaml` < `--key value`. Dashes and underscores in a flag are the same; an option that is true or false may stand
alone (`--dry-run`). Lists are `a,b` or `[a, b]`, mappings `{key: value}`. An unknown key is an error that suggests the
nearest known one.

```bash
vopd validate --config mine.yaml                # is it good? loads no weights
vopd train --config mine.yaml --dry-run         # a rendered prompt, vocabularies, memory, steps, disk
vopd train --config mine.yaml --learning_rate 2e-5
```

A run writes all of its settings into `resolved_config.yaml`, each with its origin as a comment, tokens and passwords
left out; given to `--config` it repeats the run. Editors check a YAML file that begins with
`# yaml-language-server: $schema=train.schema.json` against `configs/train.schema.json`.

"""

_REST = """\
## `vopd train`: everything else

Every other field of `trl.DistillationConfig` and `transformers.TrainingArguments` is accepted under its own name; all
of them are in `configs/train.schema.json`. Fields that would do nothing here, such as `trust_remote_code` or
`resume_from_checkpoint`, are errors that say what does their work.
"""

_METHOD = "Fields of `VOPDConfig` that TRL's configuration does not have."
_MAIN = "The most used fields of TRL's and transformers' configurations."
_COMPARE = "These, and every option of `vopd train`, of which `estimator`, `seed` and `learning_rate` may be lists."
_OTHERS = {
    "eval": EvalOptions, "variance": VarianceOptions, "compare": CompareOptions, "report": ReportOptions,
    "demo": DemoOptions, "doctor": DoctorOptions,
}  # fmt: skip


def page() -> str:
    """Return the text of docs/configuration.md."""
    known, own, of_trl = train_options(), options_of(TrainOptions), options_of(DistillationConfig)
    of_config = [option for name, option in known.items() if name not in own]
    method = [option for option in of_config if option.name not in of_trl]
    changed = [
        option
        for option in of_config
        if option.name in of_trl.keys() - set(MAIN_FIELDS) and option.default != of_trl[option.name].default
    ]
    main = [known[name] for name in MAIN_FIELDS if name in of_trl]
    parts = [
        _section("`vopd train`: models, prompts, run", "", own.values()),
        _section("`vopd train`: method", _METHOD, method),
        _section("`vopd train`: generation and optimiser", _MAIN, main),
        _section("`vopd train`: other defaults than TRL's", "", changed),
        _REST,
    ]
    for command, kind in _OTHERS.items():
        text = _COMPARE if command == "compare" else ""
        parts.append(_section(f"`vopd {command}`", text, options_of(kind).values()))
    return _HEAD + "\n".join(parts)


def schema() -> str:
    """Return the text of configs/train.schema.json."""
    return json.dumps(json_schema(train_options()), indent=2) + "\n"


def json_schema(options: Mapping[str, Option]) -> dict[str, Any]:
    """Return the JSON Schema of a configuration file with these options; unknown keys are not allowed."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vopd train",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _property(option) for name, option in options.items()},
    }


def table(options: Iterable[Option]) -> str:
    """Return a Markdown table: option, type, default, what it does."""
    lines = ["| option | type | default | what it does |", "|---|---|---|---|"]
    for option in options:
        called = " or ".join(filter(None, _names(option, 0)))
        default = "required" if option.required else ""
        if not option.required and option.default is not None:
            default = f"`{json.dumps(_jsonable(option.default))}`".replace('"', "")
        text = _plain(option.text).replace("|", "\\|")
        lines.append(f"| `{option.name}` | {called} | {default} | {text} |")
    return "\n".join(lines)


def _section(title: str, text: str, options: Iterable[Option]) -> str:
    return "\n\n".join(filter(None, [f"## {title}", text, table(options)])) + "\n"


def _property(option: Option) -> dict[str, Any]:
    names = _names(option, 1)
    # A number in scientific notation without a point, 1e-5, is text to YAML 1.1; it is read as the number.
    if "number" in names and "string" not in names:
        names.append("string")
    found: dict[str, Any] = {"type": names if len(names) > 1 else names[0], "description": _plain(option.text)}
    return found if option.required else {**found, "default": _jsonable(option.default)}


def _names(option: Option, which: int) -> list[str]:
    """What its types are called, each once: 0 by readers, 1 by JSON."""
    return list(dict.fromkeys(_TYPES[kind][which] for kind in kinds_of(option.kind)))


def _plain(text: str) -> str:
    """On one line; argparse wants per cent signs twice, nobody else does."""
    return " ".join(text.split()).replace("%%", "%")


def _jsonable(value: Any) -> Any:
    """Enumerations by their value; anything else that JSON cannot hold as text."""
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
