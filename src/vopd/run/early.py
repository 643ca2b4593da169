"""What is wrong with the places that options name, found before anything heavy is imported.

The options of a run are fields of TRL's configuration, whose import takes seconds; files and folders can be checked
without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vopd.data.files import as_path, check_there, is_local
from vopd.data.sources import parse_sources
from vopd.errors import Faults
from vopd.folders import check_model_folder, listed_models

from . import directory
from .options import peek

_MODELS = ("model", "teacher_model")
_DATA = ("dataset", "eval_data", "held_out", "data", "training_prompts")
# Those that may name a benchmark.
_PROBLEMS = ("eval_data", "data", "training_prompts")
_RUN = {"output_dir": str, "run_name": str, "estimator": str, "resume": bool, "dry_run": bool}
# A teacher that is the student itself, or on a server.
_NO_FOLDERS = ("self:", "http://", "https://")


def check_places(command: str, arguments: Sequence[str]) -> Faults:
    """Check the configuration file, local models and data files, and the folder of a run.

    The commands check the same later, in the same words: with the other options, and after more imports.

    Raises:
        ConfigurationError: the configuration file cannot be read; nothing else can be known then.
    """
    faults = Faults()
    if {"-h", "--help"} & set(arguments):
        return faults
    texts = dict.fromkeys((*_MODELS, *_DATA), str)
    given = peek(arguments, {**texts, "dataset": str | list, "teachers": dict, **_RUN})
    if command == "eval":  # one or several models
        models: list[Any] = [*listed_models(given.get("model", ""))]
    else:
        models = [*map(given.get, _MODELS), *(given.get("teachers") or {}).values()]
    for model in models:
        if isinstance(model, str) and not model.startswith(_NO_FOLDERS):
            faults.check(check_model_folder, model)
    for name in _PROBLEMS:
        value = given.get(name, "")
        if not is_local(value) or "=" in value:
            given.pop(name, None)  # a benchmark or an id, or a name with a file
    if "held_out" in given:  # from here on by its full path, for processes that start elsewhere
        given["held_out"] = str(as_path(given["held_out"]).resolve())
    for value in filter(None, map(given.get, _DATA)):
        for source in faults.check(parse_sources, value, {"options": {}}) or ():
            if source.task is None and not source.on_hub:
                faults.check(check_there, source.source)
    if command == "train" and not given.get("dry_run"):
        faults.check(_check_folder, given)
    return faults


def _check_folder(given: dict[str, Any]) -> None:
    """Raises ConfigurationError if the folder of a run is in use or cannot be written to."""
    name, estimator = given.get("run_name"), given.get("estimator", "")
    if name is None and (not estimator or ":" in estimator or "model" not in given):
        return  # the default, and the name of a custom estimator, are known once more is imported
    folder = directory.run_directory(given.get("output_dir", "runs"), name, given.get("model", ""), estimator)
    directory.check_free(folder, resume=given.get("resume", False))
