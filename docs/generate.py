"""Writes docs/configuration.md and configs/train.schema.json from the dataclasses that the commands read.

    python docs/generate.py

tests/test_docs.py fails while either is older than the dataclasses.
"""

from __future__ import annotations

import json
from pathlib import Path

from docs.option_tables import json_schema, table
from vopd.cli.compare import CompareOptions
from vopd.cli.demo import DemoOptions
from vopd.cli.doctor import DoctorOptions
from vopd.cli.eval import EvalOptions
from vopd.cli.report import ReportOptions
from vopd.cli.variance import VarianceOptions
from vopd.run.options import options_of
from vopd.run.plan import MAIN_FIELDS, TrainOptions, options
from vopd.training import VOPDConfig
from vopd.training.trl import DistillationConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "configs" / "train.schema.json"

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


def page() -> str:
    """Return the text of docs/configuration.md."""
    known = options(VOPDConfig)
    inherited = {name for name in options_of(DistillationConfig)}
    own = [option for name, option in known.items() if name in options_of(TrainOptions)]
    method = [option for name, option in known.items() if name in options_of(VOPDConfig) and name not in inherited]
    main = [known[name] for name in MAIN_FIELDS if name in inherited]
    changed = [
        option
        for name, option in known.items()
        if name in inherited
        and name not in MAIN_FIELDS
        and _default_differs(name)
        and name not in options_of(TrainOptions)
    ]
    sections = [
        ("`vopd train`: models, prompts, run", "", own),
        ("`vopd train`: method", "Fields of `VOPDConfig` that TRL's configuration does not have.", method),
        (
            "`vopd train`: generation and optimiser",
            "The most used fields of TRL's and transformers' configurations.",
            main,
        ),
        ("`vopd train`: other defaults than TRL's", "", changed),
        ("`vopd eval`", "", list(options_of(EvalOptions).values())),
        ("`vopd variance`", "", list(options_of(VarianceOptions).values())),
        (
            "`vopd compare`",
            "These, and every option of `vopd train`, of which `estimator`, `seed` and `learning_rate` may be lists.",
            list(options_of(CompareOptions).values()),
        ),
        ("`vopd report`", "", list(options_of(ReportOptions).values())),
        ("`vopd demo`", "", list(options_of(DemoOptions).values())),
        ("`vopd doctor`", "", list(options_of(DoctorOptions).values())),
    ]
    parts = [
        f"## {title}\n\n{text + chr(10) + chr(10) if text else ''}{table(rows)}\n" for title, text, rows in sections
    ]
    parts.insert(4, _REST)
    return _HEAD + "\n".join(parts)


_REST = """\
## `vopd train`: everything else

Every other field of `trl.DistillationConfig` and `transformers.TrainingArguments` is accepted under its own name; all
of them are in `configs/train.schema.json`. Fields that would do nothing here, such as `trust_remote_code` or
`resume_from_checkpoint`, are errors that say what does their work.
"""


def schema() -> str:
    """Return the text of configs/train.schema.json."""
    return json.dumps(json_schema(options(VOPDConfig), "vopd train"), indent=2) + "\n"


def _default_differs(name: str) -> bool:
    return options_of(VOPDConfig)[name].default != options_of(DistillationConfig)[name].default


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
