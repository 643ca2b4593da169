"""`vopd compare`: several estimators, seeds and learning rates on one recipe, and what comes of it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vopd.errors import ConfigurationError, check_at_least, require
from vopd.run import directory
from vopd.run.options import Option, Settings, options_of, parse, setting

SUMMARY = """\
Train with every combination of estimators, seeds and learning rates on one recipe, and compare what comes of it.

The recipe is that of `vopd train`: --config FILE.yaml and --key value, where estimator, seed and learning_rate may be
lists. Without model, teacher_model and dataset it is the embedded pair of small models. Every run is a run directory
in OUTPUT_DIR/RUN_NAME. Called again with the same options it does only what is missing: finished runs stay, a killed
one goes on from its last checkpoint or is done anew.
"""

EMBEDDED_ESTIMATORS = ("opd", "vopd", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl")
EMBEDDED_SEEDS = (0, 1, 2)
EMBEDDED_RATE = 3e-4
_MODELS = ("model", "teacher_model", "dataset")
_VARIED = ("estimator", "seed", "learning_rate")


@dataclass
class CompareOptions:
    """The options of `vopd compare` that are not those of a run."""

    jobs: int = setting(1, "runs at a time, each a process of one thread; more than 1 for small models on a CPU only")
    held_out: str | None = setting(None, "held-out problems, JSON lines with prompt and answer; needed with a recipe")
    held_out_kind: str = setting("math", "how their answers are graded: math, choice, or tags for <answer> tags")
    problems: int = setting(300, "held-out problems for the start and the trained models")
    curve_problems: int = setting(100, "held-out problems for every checkpoint on the way")
    target_accuracy: float | None = setting(
        None, "accuracy whose price in samples and time is told; default: what the first estimator ends with"
    )
    device: str = setting("auto", "where models are measured: auto, cpu, cuda")

    def __post_init__(self) -> None:
        check_at_least("jobs", self.jobs, 1)
        if self.target_accuracy is not None and not 0 < self.target_accuracy < 1:
            raise ConfigurationError(f"target_accuracy must be between 0 and 1, got {self.target_accuracy}")


def run(arguments: Sequence[str]) -> int:
    """Run `vopd compare` with these arguments and return its exit code."""
    require("trl", "train")
    require("transformers", "train").utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    # Drawn at the end: asked for now, not after hours of training.
    require("matplotlib", "report")
    from vopd.experiments.compare import Grid, Measuring, compare, embedded_runs, recipe_runs
    from vopd.models import best_device
    from vopd.run.plan import train_options

    known = _options(train_options())
    settings = parse("compare", SUMMARY, known, arguments)
    options = settings.build(CompareOptions)
    recipe = {
        name: value
        for name, value in settings.values.items()
        if settings.origins[name] != "default" and name not in {*_own(), *_VARIED, "output_dir", "run_name"}
    }
    embedded = not any(name in recipe for name in _MODELS)
    grid = _grid(settings, embedded, Grid)
    measuring = Measuring(options.problems, options.curve_problems, options.held_out_kind)
    name = str(settings.values["run_name"] or "compare")
    folder = directory.run_directory(str(settings.values["output_dir"]), name).resolve()
    if embedded:
        runs, measurement = embedded_runs(grid, folder, recipe, measuring)
    else:
        _check_recipe(recipe, options)
        runs, measurement = recipe_runs(grid, recipe, str(options.held_out), measuring, best_device(options.device))
    compare(
        folder, runs, measurement, processes=options.jobs, target=options.target_accuracy, offline=embedded
    )  # fmt: skip
    return 0


def _own() -> set[str]:
    return {entry.name for entry in dataclasses.fields(CompareOptions)}


def _options(of_train: Mapping[str, Option]) -> dict[str, Option]:
    """Those of `vopd train`, nothing of them required and some of them lists, and the command's own first."""
    kinds = {"estimator": str | list, "seed": int | list, "learning_rate": float | list}
    left_out = {"resume", "dry_run"}
    changed = {
        name: dataclasses.replace(option, required=False, kind=kinds.get(name, option.kind))
        for name, option in of_train.items()
        if name not in left_out
    }
    return {**options_of(CompareOptions, group="comparison"), **changed}


def _grid(settings: Settings, embedded: bool, make: Any) -> Any:
    usual: dict[str, Sequence[Any]] = {"estimator": EMBEDDED_ESTIMATORS, "seed": EMBEDDED_SEEDS}
    usual["learning_rate"] = (EMBEDDED_RATE,)
    found: dict[str, list[Any]] = {}
    for name, kind in (("estimator", str), ("seed", int), ("learning_rate", float)):
        value = settings.values[name]
        if embedded and settings.origins[name] == "default":
            value = list(usual[name])
        values = value if isinstance(value, list | tuple) else [value]
        try:
            found[name] = [kind(entry) for entry in values]
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{name} must be one or several of {kind.__name__}, got {value!r}") from error
    return make(found["estimator"], found["seed"], found["learning_rate"])


def _check_recipe(recipe: Mapping[str, Any], options: CompareOptions) -> None:
    missing = [f"--{name}" for name in _MODELS if name not in recipe]
    if missing:
        raise ConfigurationError(
            f"vopd compare needs {' and '.join(missing)}, or none of the three for the embedded pair"
        )
    if options.held_out is None:
        raise ConfigurationError(
            "a comparison is measured on problems that no run is trained on: give --held_out FILE.jsonl with prompt "
            "and answer"
        )
