"""usage: vopd COMMAND [--config FILE.yaml] [--key value ...]

Train a small language model (the student) to match a stronger one (the teacher)
on the student's own samples, with low-variance losses.

commands:
  demo      train an embedded pair of tiny models on this computer and write a report
  train     train your student to match your teacher on your prompts
  eval      sample a model on problems and score it, with confidence intervals
  merge     merge a LoRA adapter into its base model
  report    write the report of a run or comparison: one HTML page with curves and samples
  validate  check the settings of a training run without loading weights
  doctor    show versions, devices, extras and estimators, or check a teacher server
  variance  measure how noisy each estimator's gradient is for your models and prompts
  compare   train with several estimators, seeds and learning rates, and compare the results

first steps:
  vopd demo
  vopd train --model STUDENT --teacher_model TEACHER --dataset prompts.jsonl --run_name first
  vopd report runs/first --watch
  vopd eval --model runs/first/model --data problems.jsonl

STUDENT and TEACHER are model folders, or ids on the Hugging Face Hub.
'vopd COMMAND --help' lists the options of a command; 'vopd --version' prints the version.

exit codes: 0 success, 1 other error, 2 configuration, 3 data, 4 model or
tokenizer mismatch, 5 teacher server, 6 loss or gradient not finite, 7 stopped by
a guard, 130 Ctrl-C, 143 SIGTERM (both save). VOPD_DEBUG=1 shows tracebacks.
"""

# `vopd --help` prints the text above; the --help of a command starts with the docstring of its module.

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from vopd.errors import ConfigurationError, Faults, did_you_mean, require
from vopd.processes import check_alone
from vopd.run.early import check_places
from vopd.run.exit_codes import report_error, tell

# The module of the same name in this package has run(arguments), and is imported only when the command is called.
COMMANDS = ("demo", "train", "eval", "merge", "report", "validate", "doctor", "variance", "compare")
# The options of a run are fields of TRL's configuration: without TRL these commands cannot be parsed.
_OF_A_RUN = {"demo", "train", "validate", "compare"}
_ALONE = {"demo", "eval", "merge", "variance", "compare"}
_ON_MODELS = {"train", "validate", "compare", "variance", "eval"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; errors that vopd raises become one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return report_error(lambda: _run(given))


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(__doc__, end="")
        return 0
    if arguments[0] in {"-V", "--version", "version"}:
        from vopd import __version__

        print(f"vopd {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS, f"there are {', '.join(COMMANDS)}")
        raise ConfigurationError(f"unknown command '{command}'; {hint}")
    if command in _ALONE:
        check_alone(command, os.environ)
    early = check_places(command, rest) if command in _ON_MODELS else Faults()
    for fault in early.found:
        tell(fault)  # at once; the command checks the same with all the rest, and tells what is more
    code = 0
    with early:
        if command in _OF_A_RUN:
            require("trl", "train")
        code = importlib.import_module(f"vopd.cli.{command}").run(rest)
    early.tell()
    return code
