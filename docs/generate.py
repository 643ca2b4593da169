"""Fills the generated parts of the documents, and writes configs/train.schema.json.

    python docs/generate.py

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``, in README.md, recipes/README.md or a
page below docs/; PARTS has what each name stands for. tests/test_docs.py fails while one is older than its source.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os.path
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vopd import errors
from vopd.cli import COMMANDS
from vopd.estimators import ESTIMATORS, Estimator
from vopd.estimators.advice import ADVICE, AdviceUnless
from vopd.run.options import Option, kinds_of, options_of
from vopd.run.plan import MAIN_FIELDS, TrainOptions, train_options
from vopd.training import VOPDConfig
from vopd.training.inherited import INHERITED, Range, Refused
from vopd.training.monitoring.glossary import METRICS
from vopd.training.monitoring.guards import GUARDS
from vopd.training.saving.contract import CONTENT, REFUSED, RULES, TOLD
from vopd.training.trl import DistillationConfig

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the study is not installed
from studies.claims import tables  # noqa: E402

SCHEMA = ROOT / "configs" / "train.schema.json"
RECIPES = ROOT / "recipes"
_PART = re.compile(r"^(<!-- generated: ([\w-]+) -->)$.*?^(<!-- end -->)$", re.DOTALL | re.MULTILINE)

# Plain type: what a reader calls it (None is told by the default), and its JSON type.
_TYPES = {
    bool: ("true or false", "boolean"), int: ("whole number", "integer"), float: ("number", "number"),
    str: ("text", "string"), list: ("list", "array"), dict: ("mapping", "object"), type(None): ("", "null"),
}  # fmt: skip


# ---- documents --------------------------------------------------------------------------------------------------


def written() -> Iterator[tuple[Path, str]]:
    """Each generated file, and each document with a generated part, with the text that it ought to have.

    Raises:
        KeyError: a part has a name that stands for nothing.
    """
    for path in (ROOT / "README.md", *sorted(RECIPES.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if text.count("<!-- generated: ") != len(_PART.findall(text)):
            raise ValueError(f"{path.relative_to(ROOT)}: a generated part has no end: <!-- end --> on its own line")
        yield path, _PART.sub(partial(_filled, path), text)
    yield SCHEMA, schema()


def _filled(path: Path, part: re.Match[str]) -> str:
    """A generated part with its markers; links in it lead from the document at `path`."""
    begin, name, end = part.groups()
    text = recipes(os.path.relpath(RECIPES, path.parent)) if name == "recipes" else PARTS[name]()
    return f"{begin}\n{text}\n{end}"


def rows(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *map(list, body)]
    head, *others = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *others])


# ---- estimators, guards, exit codes, metrics ---------------------------------------------------------------------


def which_estimator() -> str:
    """The one answer to which estimator to use."""
    default = VOPDConfig.estimator
    body = []
    for advice in ADVICE:
        estimator, why = f"`{advice.estimator.name}`", advice.why
        if advice.estimator.name == default:
            estimator += " (the default)"
        if isinstance(advice, AdviceUnless):
            estimator += f"; `{advice.instead.name}` {advice.unless}"
            why += f"; {advice.why_instead}"
        body.append((advice.given, estimator, why))
    return rows(("you have", "use", "why"), body)


def estimators() -> str:
    """Every estimator: formula, unbiasedness, and what it needs."""
    head = ("estimator", "baseline b, or loss", "unbiased", "`loss_top_k`", "needs of the teacher", "server of scores")
    body = (
        (f"`{name}`", found.formula, _yes(found.unbiased), _yes(found.needs_top_k, "required", "-"),
         _teacher(found), _yes(found.teacher_scores))
        for name, found in ESTIMATORS.items()
    )  # fmt: skip
    return rows(head, body)


def _teacher(estimator: Estimator) -> str:
    chosen = "k + 1 log-probabilities, normalized" if estimator.needs.full_teacher else "k + 1 logits, unnormalized"
    return {
        "sampled": "the sampled token's log-probability",
        "top_k": "its own top k",
        "chosen": f"{chosen}, at the student's top k and the sampled token",
        "full": "the full distribution",
    }[estimator.need]


def _yes(value: bool, yes: str = "yes", no: str = "no") -> str:
    return yes if value else no


def guards() -> str:
    """Every guard: its option, default, and when it triggers."""
    defaults = {guard: getattr(VOPDConfig, f"guard_{guard.name}") for guard in GUARDS}
    body = ((f"`guard_{guard.name}`", f"{value}", guard.triggers) for guard, value in defaults.items())
    return rows(("guard", "default", "triggers when"), body)


def resume_rules() -> str:
    """What happens when a setting differs from the checkpoint's."""
    named = {rule: ", ".join(f"`{name}`" for name in RULES if RULES[name] == rule) for rule in (REFUSED, CONTENT, TOLD)}
    body = [
        ("refused: the objective or the data", named[REFUSED]),
        ("refused if the content changed: the rendered prompts, or the weights", named[CONTENT]),
        ("reported and recorded: the course of the same training", named[TOLD]),
        ("free: what is written, measured and watched, and where it runs", "every other setting"),
    ]
    return rows(("another value is", "settings"), body)


def exit_codes() -> str:
    """Every exit code, and the error that ends with it."""
    found = {error.exit_code: error for error in vars(errors).values() if _own_code(error)}
    body = [
        ("0", "", "Success."),
        ("1", "", "Any other error: a full disk, a file that cannot be written, a bug (with a traceback)."),
        *((f"{code}", f"`{error.__name__}`", _summary(error)) for code, error in sorted(found.items())),
    ]
    return rows(("exit code", "exception in Python", "meaning"), sorted(body, key=lambda line: int(line[0])))


def _own_code(error: Any) -> bool:
    return inspect.isclass(error) and errors.VOPDError in error.__mro__[1:] and "exit_code" in vars(error)


def metrics() -> str:
    """Every metric, by subject."""
    head = ("metric", "unit", "meaning", "reading it")
    sections = []
    for subject, found in METRICS.items():
        body = ((f'<a id="{m.name}"></a>`{m.name}`', m.unit, m.meaning, m.reading) for m in found)
        sections.append(f"## {subject}\n\n{rows(head, body)}")
    return "\n\n".join(sections)


def _summary(found: Any) -> str:
    """The first paragraph of a docstring, on one line, with code in single backticks."""
    return _plain((inspect.getdoc(found) or "").split("\n\n")[0]).replace("``", "`")


def other_losses(which: str) -> str:
    """A table of the study of other frameworks' losses: its `losses`, or their `intervals`."""
    return rows(*getattr(importlib.import_module("studies.field.table"), which)())


def recipes(folder: str) -> str:
    """Every recipe, by the list at the top of its README.md; `folder` is the way from the page to recipes/."""
    body = []
    for page in sorted(RECIPES.glob("*/README.md")):
        found = dict(re.findall(r"^- (\w+): (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE))
        name = page.parent.name
        if missing := {"What", "Hardware", "Hours", "Numbers", "Status"} - found.keys():
            raise ValueError(f"{page.relative_to(ROOT)}: the list at the top has no {', '.join(sorted(missing))}")
        measured = found["Hours"] != "not measured"
        result = f"{found['Hours']}; {found['Numbers']}" if measured else found["Status"]
        body.append((f"[{name}]({Path(folder, name, page.name).as_posix()})", found["What"], found["Hardware"], result))
    return rows(("recipe", "what", "hardware", "hours; result"), body)


# ---- the study of the claims -------------------------------------------------------------------------------------


def study(name: str) -> str:
    """A table or a sentence of the study's."""
    found = getattr(tables, name)()
    return found if isinstance(found, str) else rows(*found)


def claims_numbers() -> str:
    """All numbers of every claim, as a list under its verdict."""
    return _sections({title: "\n".join(f"- {line}" for line in lines) for title, lines in tables.numbers().items()})


def claims_training() -> str:
    """What training came to, a table for each setting."""
    return _sections({title: rows(*table) for title, table in tables.training().items()})


def _sections(found: Mapping[str, str]) -> str:
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in found.items())


# ---- commands and their options ----------------------------------------------------------------------------------


def own_options(command: str) -> dict[str, Option]:
    """The options that are fields of a command's own dataclass; for `vopd train` of the one beside the trainer's."""
    module = importlib.import_module(f"vopd.cli.{command}")
    return options_of(getattr(module, f"{command.title()}Options", TrainOptions))


def all_options(command: str) -> dict[str, Option]:
    """Every option that a command takes."""
    own = own_options(command)
    return {**train_options(), **own} if _takes_a_run(command) else own


def _takes_a_run(command: str) -> bool:
    return command in ("train", "validate", "compare")


def command_list() -> str:
    """Each command with its first sentence."""
    body = ((f"[`vopd {name}`](#vopd-{name})", _first_sentence(name)) for name in COMMANDS)
    return rows(("command", "what it does"), body)


def commands() -> str:
    """A section for each command: what its --help says, and links to its options."""
    return "\n\n".join(map(_command, COMMANDS))


def _command(name: str) -> str:
    own = "train" if name == "validate" else name
    links = ", ".join(f"[`--{option}`](configuration.md#{own}-{option})" for option in own_options(name))
    if _takes_a_run(name):
        links += ", and every option of the [trainer](configuration.md#vopd-train-method)"
        links += " and of [`vopd train`](configuration.md#vopd-train-models-prompts-run)" if name == "compare" else ""
    usage = f"```text\nvopd {name} [--config FILE.yaml] [--key value ...]\n```"
    return "\n\n".join([f"## vopd {name}", *_about(name), usage, f"Options: {links}."])


def _about(name: str) -> list[str]:
    """The paragraphs that the command's --help begins with."""
    return (inspect.getdoc(importlib.import_module(f"vopd.cli.{name}")) or "").split("\n\n")


def _first_sentence(name: str) -> str:
    return _plain(_about(name)[0]).split(". ")[0].rstrip(".")


def train_part(which: str) -> str:
    """A part of the options of `vopd train`: run, method, main, changed."""
    known, own, of_trl = train_options(), options_of(TrainOptions), options_of(DistillationConfig)
    of_config = {name: option for name, option in known.items() if name not in own}
    chosen: Iterable[Option] = {
        "run": own.values(),
        "method": [option for name, option in of_config.items() if name not in of_trl],
        "main": [known[name] for name in MAIN_FIELDS if name in of_trl],
        "changed": [
            option
            for name, option in of_config.items()
            if name in of_trl.keys() - set(MAIN_FIELDS) and option.default != of_trl[name].default
        ],
    }[which]
    return table(chosen, "train")


def inherited() -> str:
    """What each option of TRL and transformers does here."""
    body = []
    for name, entry in sorted(INHERITED.items()):
        if isinstance(entry, Refused):
            why = entry.why.format(value="N")
            body.append((f"`{name}`", "refused" if entry.effect else "refused: no effect", why))
            continue
        notes = [f"in Python only: {entry.in_python}"] if entry.in_python else []
        notes += [f"a number {entry.values}"] if isinstance(entry.values, Range) else []
        notes += [f"with `{need}`" for need in entry.needs]
        body.append((f"`{name}`", "works", "; ".join([*notes, f"`{entry.test}`"])))
    return rows(("option", "here", "why, or its values and the test that shows it"), body)


def other_commands() -> str:
    """The options of every command that has some of its own."""
    sections = []
    for name in COMMANDS:
        if name not in ("train", "validate"):
            sections.append(f"## vopd {name}\n\n{_inherits(name)}{table(own_options(name).values(), name)}")
    return "\n\n".join(sections)


def _inherits(command: str) -> str:
    if not _takes_a_run(command):
        return ""
    return "These, and every option of `vopd train`, of which `estimator`, `seed` and `learning_rate` may be lists.\n\n"


def table(options: Iterable[Option], command: str) -> str:
    """Option, type, default, what it does; each row is the anchor COMMAND-OPTION."""
    body = []
    for option in options:
        default = "required" if option.required else ""
        if not option.required and option.default is not None:
            default = f"`{json.dumps(_jsonable(option.default))}`".replace('"', "")
        name = f'<a id="{command}-{option.name}"></a>`{option.name}`'
        body.append((name, " or ".join(filter(None, _names(option, 0))), default, _plain(option.text)))
    return rows(("option", "type", "default", "what it does"), body)


# ---- the schema of a configuration file --------------------------------------------------------------------------


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


def _property(option: Option) -> dict[str, Any]:
    names = _names(option, 1)
    # Text is read as a number, since 1e-5 without a point is text to YAML 1.1, and as a list: one entry, or "a,b".
    if {"number", "array"} & set(names) and "string" not in names:
        names.append("string")
    found: dict[str, Any] = {"type": names if len(names) > 1 else names[0], "description": _plain(option.text)}
    return found if option.required else {**found, "default": _jsonable(option.default)}


def _names(option: Option, which: int) -> list[str]:
    """What its types are called, each once: 0 by readers, 1 by JSON."""
    return list(dict.fromkeys(_TYPES[kind][which] for kind in kinds_of(option.kind)))


def _plain(text: str) -> str:
    """On one line; argparse wants per cent signs twice, nothing else does."""
    return " ".join(text.split()).replace("%%", "%")


def _jsonable(value: Any) -> Any:
    """Enumerations by their value; anything else that JSON cannot hold as text."""
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)


PARTS: dict[str, Callable[[], str]] = {
    "which-estimator": which_estimator,
    "estimators": estimators,
    "guards": guards,
    "other-losses": partial(other_losses, "losses"),
    "other-losses-intervals": partial(other_losses, "intervals"),
    "claims-headline": partial(study, "headline"),
    "claims-counts": partial(study, "counts"),
    "claims-verdicts": partial(study, "verdicts"),
    "claims-rules": partial(study, "rules"),
    "claims-numbers": claims_numbers,
    "claims-training": claims_training,
    "claims-primary": partial(study, "primary_comparisons"),
    "claims-biases": partial(study, "biases"),
    "claims-precision": partial(study, "precision"),
    "claims-pilot": partial(study, "pilot"),
    "claims-runs": partial(study, "what_was_run"),
    "claims-when": partial(study, "when_and_where"),
    "claims-repeated": partial(study, "repeated"),
    "claims-first-study": partial(study, "first_study"),
    "resume-rules": resume_rules,
    "exit-codes": exit_codes,
    "metrics": metrics,
    "command-list": command_list,
    "commands": commands,
    "options-run": partial(train_part, "run"),
    "options-method": partial(train_part, "method"),
    "options-main": partial(train_part, "main"),
    "options-changed": partial(train_part, "changed"),
    "options-inherited": inherited,
    "options-of-commands": other_commands,
}


if __name__ == "__main__":
    for path, text in written():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
