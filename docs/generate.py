"""Writes docs/reference/configuration.md and configs/train.schema.json from the dataclasses that the commands read, and
docs/reference/functional.md from the signatures and docstrings of vopd.functional.

    python docs/generate.py

tests/test_docs.py fails while one of them is older than what it is written from.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vopd import functional
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
PAGE = ROOT / "docs" / "reference" / "configuration.md"
SCHEMA = ROOT / "configs" / "train.schema.json"
FUNCTIONAL = ROOT / "docs" / "reference" / "functional.md"

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


_FUNCTIONAL_HEAD = """\
# The equations: `vopd.functional`

<!-- Written by docs/generate.py from signatures and docstrings; changes belong there. -->

Pure functions of tensors that need torch alone: one equation, one function. They are the definitions that the fused
losses are tested against, for a loss of your own and for frameworks that hold full logits. p and q are the student's
and the teacher's probabilities, r = log q - log p is the reward of a token, w_v = |e_v - p|^2. Rewards, baselines and
advantages are in nats.

## In a training loop of your own

<!-- this block is run by tests/test_docs.py -->
```python
import torch

from vopd.functional import moments, policy_gradient_loss, value_baseline

torch.manual_seed(0)
student, teacher = torch.nn.Linear(16, 50), torch.nn.Linear(16, 50)  # states of width 16, 50 tokens
optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
states = torch.randn(128, 16)

for step in range(100):
    student_logits, teacher_logits = student(states), teacher(states).detach()
    stated = moments(student_logits.detach(), teacher_logits)
    value = value_baseline(stated)  # V = -KL(p || q) of each state
    sampled = torch.distributions.Categorical(logits=student_logits).sample().unsqueeze(-1)
    log_p = student_logits.log_softmax(-1).gather(-1, sampled).squeeze(-1)
    log_q = teacher_logits.log_softmax(-1).gather(-1, sampled).squeeze(-1)
    loss = policy_gradient_loss(log_p, log_q - log_p - value).mean()  # the advantages are detached inside
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 33 == 0:
        print(f"reverse KL {-value.mean():.3f} nats a token")
```

For the vocabularies of language models take `vopd.linear_distillation_loss`, which never holds the logits of all tokens
([README](../../README.md)).

## Centred baselines

A function named `centred_` returns b' = b - r_top, with r_top the reward of the student's most likely token. The
advantage is the same, r_y - b = r'_y - b' with r' = r - r_top, but in the second form both log-normalisers cancel. The
estimators use it: where the student is nearly certain, b' is smaller than the rounding of r_top, and nothing of it is
left on the scale of the rewards. And r' is known where only the logits at some ids are, without the rest of their row.

<!-- this block is run by tests/test_docs.py -->
```python
from vopd.functional import centred_value_baseline

difference = student_logits - teacher_logits
top = student_logits.argmax(-1, keepdim=True)
centred_rewards = difference.gather(-1, top) - difference  # r' = r - r_top, without a softmax
advantages = centred_rewards.gather(-1, sampled).squeeze(-1) - centred_value_baseline(stated)
```

## Shapes

The signatures say them, in the notation of [jaxtyping](https://docs.kidger.site/jaxtyping/), and the tests check every
call against them.
"""

# In the order in which they build on each other.
_FUNCTIONAL = ("moments", "baselines", "losses", "gradient_variance", "importance", "group_advantages")


def functional_page() -> str:
    """Return the text of docs/reference/functional.md: what is public in vopd.functional, by module."""
    axes = _plain_markdown(functional).split("\n\n")[-1]
    return "\n".join([_FUNCTIONAL_HEAD, axes, *map(_module, _FUNCTIONAL)]) + "\n"


def _module(name: str) -> str:
    """A section: the docstring of the module, then its public functions and classes."""
    module = importlib.import_module(f"vopd.functional.{name}")
    title, *text = _plain_markdown(module).split("\n\n")
    public = [found for found in vars(module).values() if getattr(found, "__module__", "") == module.__name__]
    entries = [_entry(found) for found in public if found.__name__ in functional.__all__]
    return "\n\n".join([f"\n## {title.rstrip('.')}", *text, *entries])


def _entry(found: Any) -> str:
    """Name, signature as in the source, and what the docstring says but for the arguments."""
    sections = re.split(r"\n\n(?=\w+:)", _plain_markdown(found))
    told = [_fields(section) for section in sections if not section.startswith(("Args:", "Returns:"))]
    return "\n\n".join([f"### `{found.__name__}`", f"```python\n{_signature(found)}\n```", *told])


def _plain_markdown(found: Any) -> str:
    """Its docstring, code in single backticks."""
    return (inspect.getdoc(found) or "").replace("``", "`")


def _signature(found: Any) -> str:
    """The lines of a function's signature, or of a class's fields, as they stand in the source."""
    source = inspect.getsource(found)
    definition: Any = ast.parse(source).body[0]
    head = source.splitlines()[definition.lineno - 1 : definition.body[0].lineno - 1]
    if isinstance(definition, ast.FunctionDef):
        return "\n".join(head).rstrip(":")
    fields = (node for node in definition.body if isinstance(node, ast.AnnAssign))
    return "\n".join([*head, *(f"    {ast.get_source_segment(source, node)}" for node in fields)])


def _fields(section: str) -> str:
    """The section of a docstring that lists attributes as a list of Markdown; any other one as it is."""
    title, _, entries = section.partition("\n")
    return re.sub(r"^    (\w+): ", r"- `\1`: ", entries, flags=re.MULTILINE) if title == "Attributes:" else section


def page() -> str:
    """Return the text of docs/reference/configuration.md."""
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
    FUNCTIONAL.write_text(functional_page(), encoding="utf-8")
