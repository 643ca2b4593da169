"""Train with every combination of estimators, seeds and learning rates, and compare the results.

Takes the options of `vopd train`, from --config FILE.yaml or --key value; estimator, seed and learning_rate may be
lists, such as --seed 0,1,2. Without model, teacher_model and dataset it trains the embedded pair of small models, by
default with five estimators, seeds 0, 1 and 2, and learning rate 3e-4. Each run gets its own folder in
OUTPUT_DIR/RUN_NAME. Run the same command again to continue: finished runs are kept, a killed run resumes from its last
checkpoint or starts over.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vopd.data.files import as_path
from vopd.errors import ConfigurationError, Faults, Interrupted, check_at_least, require
from vopd.run import directory
from vopd.run.options import Option, Settings, options_of, parse, setting

if TYPE_CHECKING:
    from vopd.experiments.compare import Grid

_MODELS = ("model", "teacher_model", "dataset")
# Options of `vopd train` that may be lists here.
_VARIED: dict[str, type] = {"estimator": str, "seed": int, "learning_rate": float}


@dataclass
class CompareOptions:
    """The options of `vopd compare` that `vopd train` does not have."""

    jobs: int = setting(
        1, "number of runs to train at once, with one thread each; above 1 only for small models on a CPU"
    )
    held_out: str | None = setting(
        None, "held-out problems: a file or folder with columns prompt and answer; required with your own models"
    )
    held_out_kind: str = setting("math", "how held-out answers are graded, as --kind of vopd eval")
    problems: int = setting(300, "number of held-out problems for the student before training and the trained models")
    curve_problems: int = setting(100, "number of held-out problems for intermediate checkpoints")
    target_accuracy: float | None = setting(
        None, "report the samples needed to reach this accuracy; default: the first estimator's final accuracy"
    )
    device: str = setting("auto", "device of the measurements: auto, cpu or cuda")

    def __post_init__(self) -> None:
        from vopd.evaluation.benchmarks import check_kind

        faults = Faults()
        for name in ("jobs", "problems", "curve_problems"):
            faults.check(check_at_least, name, getattr(self, name), 1)
        faults.check(check_kind, self.held_out_kind)
        if self.target_accuracy is not None and not 0 < self.target_accuracy < 1:
            faults.add(ConfigurationError(f"target_accuracy must be between 0 and 1, got {self.target_accuracy}"))
        faults.tell()


def run(arguments: Sequence[str]) -> int:
    """Run `vopd compare` with these arguments and return its exit code."""
    # Needed at the end; check now, not after hours of training.
    require("matplotlib", "report")
    from vopd.experiments.compare import INPUTS, compare, embedded_runs, is_comparison, recipe_runs
    from vopd.experiments.measure import Measurement
    from vopd.models import best_device
    from vopd.run.plan import train_options

    faults = Faults()
    settings = parse("compare", __doc__, _options(train_options()), arguments, faults)
    options = faults.check(settings.build, CompareOptions)
    faults.tell()
    assert options is not None
    own = {entry.name for entry in dataclasses.fields(CompareOptions)}
    recipe = {
        name: value
        for name, value in settings.values.items()
        if settings.origins[name] != "default" and name not in {*own, *_VARIED, "output_dir", "run_name"}
    }
    embedded = not any(name in recipe for name in _MODELS)
    grid = _grid(settings, embedded)
    name = str(settings.values["run_name"] or "compare")
    folder = directory.run_directory(str(settings.values["output_dir"]), name).resolve()
    # A comparison goes on where it was, and replaces what killed runs left, so nothing else may be there.
    directory.check_free(folder, resume=is_comparison(folder) or None)
    with directory.created(folder, *INPUTS):
        if embedded:
            runs, measurement = embedded_runs(
                grid, folder, recipe, problems=options.problems, curve_problems=options.curve_problems
            )
        else:
            held_out = _check_recipe(recipe, options)
            runs = recipe_runs(grid, recipe)
            measurement = Measurement(
                recipe["model"], recipe["teacher_model"], str(held_out), options.problems, options.curve_problems,
                int(recipe.get("max_completion_length", 512)), options.held_out_kind, best_device(options.device),
                chat=_chat(recipe),
            )  # fmt: skip
        try:
            compare(folder, runs, measurement, processes=options.jobs, target=options.target_accuracy, offline=embedded)
        except KeyboardInterrupt as error:
            command = shlex.join(["vopd", "compare", *arguments])
            raise Interrupted(f"interrupted; what is done is kept; to go on: {command}") from error
    return 0


def _options(of_train: Mapping[str, Option]) -> dict[str, Option]:
    """The command's own options first, then those of `vopd train`: none required, some of them lists."""
    changed = {
        name: dataclasses.replace(option, required=False, kind=_VARIED[name] | list if name in _VARIED else option.kind)
        for name, option in of_train.items()
        if name not in {"resume", "dry_run"}
    }
    return {**options_of(CompareOptions, group="comparison"), **changed}


def _grid(settings: Settings, embedded: bool) -> Grid:
    from vopd.estimators import find_estimator
    from vopd.experiments.compare import EMBEDDED_RATE, EMBEDDED_SEEDS, Grid
    from vopd.experiments.demo import DEMO_ESTIMATORS

    usual = {"estimator": DEMO_ESTIMATORS, "seed": EMBEDDED_SEEDS, "learning_rate": (EMBEDDED_RATE,)}
    found: dict[str, list[Any]] = {}
    for name, kind in _VARIED.items():
        value = usual[name] if embedded and settings.origins[name] == "default" else settings.values[name]
        values = value if isinstance(value, list | tuple) else [value]
        try:
            found[name] = [kind(entry) for entry in values]
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{name} must be one {kind.__name__} or a list of them, got {value!r}") from error
    return Grid([find_estimator(name) for name in found["estimator"]], found["seed"], found["learning_rate"])


def _chat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the chat template that the held-out problems get, if the prompts of training get it."""
    names = {"system_prompt": "system_prompt", "thinking": "thinking", "chat_template_kwargs": "options"}
    if not recipe.get("chat_template"):
        return {}
    return {"texts": True, **{own: recipe[name] for name, own in names.items() if recipe.get(name) is not None}}


def _check_recipe(recipe: Mapping[str, Any], options: CompareOptions) -> Path:
    """The file of held-out problems; raises ConfigurationError if the recipe lacks something."""
    missing = [f"--{name}" for name in _MODELS if name not in recipe]
    if missing:
        served = missing == ["--teacher_model"] and "teacher_server_url" in recipe
        why = "from which it loads the teacher that it measures with" if served else "or none for the embedded pair"
        raise ConfigurationError(f"vopd compare needs {' and '.join(missing)}, {why}")
    if options.held_out is None:
        raise ConfigurationError(
            "a comparison is measured on problems that no run trains on: give --held_out FILE.jsonl with prompt and "
            "answer"
        )
    return as_path(options.held_out).resolve()
