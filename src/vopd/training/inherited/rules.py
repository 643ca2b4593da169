"""Checks of the inherited options, made when a configuration is built: before weights and before the first step."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from vopd.errors import ConfigurationError, Faults, MissingExtraError, VOPDError, did_you_mean, one_line

from ..monitoring.glossary import falls, of_evaluation
from ..trl import DistillationConfig
from .table import FOLLOWING, INHERITED, Range, Works

logger = logging.getLogger("vopd")

# Optimizers that step inside the backward pass, before gradients are checked, or that keep other weights for sampling.
_OTHER_STEPS = ("lomo", "galore", "apollo", "schedule_free")


def check_inherited(config: Any) -> None:
    """Check the options that a configuration has set against the table, before transformers changes any.

    Args:
        config: a VOPDConfig.

    Raises:
        ConfigurationError: an option is refused, has no effect, is out of range, or lacks another one.
    """
    faults = Faults()
    for entry in dataclasses.fields(config):
        known = INHERITED.get(entry.name)
        value = getattr(config, entry.name)
        factory = entry.default_factory
        default = entry.default if factory is dataclasses.MISSING else factory()
        if known is None or value == default:
            continue
        if isinstance(known, Works):
            faults.check(_check_value, config, entry.name, value, known)
        elif value not in known.neutral:
            fault = "is not supported" if known.effect else "has no effect here"
            faults.add(ConfigurationError(f"{entry.name} {fault}: {known.why.format(value=value)}"))
    faults.check(_check_evaluation, config)
    faults.tell()


def only_in_python(values: Mapping[str, Any]) -> dict[str, ConfigurationError]:
    """What is wrong with the `values` of a command's options that work only in Python, unless they are defaults."""
    found = {}
    for entry in dataclasses.fields(DistillationConfig):
        known, name = INHERITED.get(entry.name), entry.name
        if isinstance(known, Works) and known.in_python and values[name] != entry.default:
            found[name] = ConfigurationError(f"{name} is not an option of vopd train: {known.in_python}")
    return found


def read_mappings(config: Any, names: Iterable[str]) -> None:
    """Read the options `names` of a configuration, which are mappings, from JSON text, as scripts pass them.

    Raises:
        ConfigurationError: a text is something else; its option is left out.
    """
    faults = Faults()
    for name in names:
        text = getattr(config, name)
        if isinstance(INHERITED.get(name), Works) and isinstance(text, str):
            setattr(config, name, faults.check(_mapping, name, text))
    faults.tell()


def _mapping(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{name} must be {{key: value}}, not {text!r}")
    return found


def _check_value(config: Any, name: str, value: Any, known: Works) -> None:
    if isinstance(known.values, Range):
        known.values.check(name, value)
    elif known.values is not None:
        choices = [getattr(choice, "value", choice) for choice in known.values]
        if value not in choices:
            hint = did_you_mean(value, map(str, choices), f"choose one of {', '.join(map(str, choices))}")
            raise ConfigurationError(f"unknown {name} '{value}'; {hint}")
    for need in known.needs:
        option, _, wanted = need.partition("=")
        found = getattr(config, option)
        if not (found == wanted or (isinstance(found, list) and wanted in found) if wanted else found not in _OFF):
            raise ConfigurationError(f"{name} has no effect without {need}; set {option}, or remove {name}")


_OFF = (None, False, 0, "no")


def _check_evaluation(config: Any) -> None:
    """Settings that an evaluation decides on."""
    evaluates, saves = str(config.eval_strategy), config.save_strategy
    needs = {
        "lr_scheduler_type": config.lr_scheduler_type in FOLLOWING,
        "save_strategy": saves == "best",
    }
    for name, needed in needs.items():
        if needed and config.eval_strategy == "no":
            raise ConfigurationError(
                f"{name}={getattr(config, name)} needs evaluations, which vopd train does not have; choose another "
                "one, or in Python set eval_strategy=steps"
            )
    if saves == "best" and config.metric_for_best_model is None:
        raise ConfigurationError("save_strategy=best needs metric_for_best_model, for example eval_reverse_kl")
    if config.load_best_model_at_end and evaluates != "no" and saves not in ("best", config.eval_strategy):
        raise ConfigurationError(
            f"load_best_model_at_end needs a checkpoint at each evaluation, but save_strategy={saves} and "
            f"eval_strategy={evaluates}; set both to the same"
        )


def complete_best(config: Any) -> None:
    """Set `greater_is_better` for the metric of the best model; transformers knows only that of a loss."""
    if config.greater_is_better is None and config.metric_for_best_model is not None:
        config.greater_is_better = not falls(config.metric_for_best_model)


def check_evaluated(config: Any, eval_dataset: Any) -> None:
    """Raise ConfigurationError if evaluations are asked for, but there is nothing to evaluate on, or not the metric
    that they decide by; warn if it is no measure of progress."""
    if eval_dataset is None and (config.eval_strategy != "no" or config.eval_on_start):
        asked = "eval_on_start" if config.eval_strategy == "no" else f"eval_strategy={config.eval_strategy.value}"
        raise ConfigurationError(f"{asked} needs prompts; pass eval_dataset to VOPDTrainer, or remove it")
    if config.metric_for_best_model is not None:
        _check_best(config, config.metric_for_best_model)


def _check_best(config: Any, name: str) -> None:
    metric, instead = of_evaluation(name), "set metric_for_best_model=eval_reverse_kl"
    if metric is None:
        raise ConfigurationError(
            f"metric_for_best_model={name} is not a metric of evaluations on eval_dataset; {instead}, or another "
            "metric of docs/reference/metrics.md"
        )
    if config.metrics_every == 0 and "metrics_every" in metric.meaning:
        raise ConfigurationError(f"metric_for_best_model={name} is not measured with metrics_every=0; set it to 1")
    if metric.name == "loss" and config.chosen_estimator.samples:
        logger.warning(
            "metric_for_best_model=%s is no measure of progress with estimator %r, whose loss has no meaning beyond "
            "its gradient; %s",
            *(name, config.chosen_estimator.name, instead),
        )


@contextmanager
def own_errors(about: str = "") -> Iterator[None]:
    """Turn what transformers and TRL raise `about` a setting into one line of vopd's own error."""
    try:
        yield
    except VOPDError:
        raise
    except ImportError as error:  # importlib.metadata's, too
        raise MissingExtraError(f"{about}{one_line(error)}") from error
    except (ValueError, TypeError, KeyError, OSError, NotImplementedError) as error:
        raise ConfigurationError(f"{about}{one_line(error)}") from error


def _arguments_of(kind: Any) -> str:
    """The names of what a schedule of transformers takes besides its steps and the optimizer."""
    known = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters
    own = [name for name in known if name not in ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")]
    return ", ".join(own) or "nothing"


def check_optimizer(config: Any) -> None:
    """Check that the optimizer and its schedule can be made; `config` is a finished VOPDConfig.

    Raises:
        ConfigurationError: the optimizer is not supported, or an argument of it or its schedule is missing or unknown.
        MissingExtraError: its package is not installed.
    """
    name, kind = config.optim.value, config.lr_scheduler_type.value
    if any(word in name for word in _OTHER_STEPS):
        raise ConfigurationError(
            f"optim={name} is not supported: it steps where gradients are not checked yet, or samples with other "
            "weights than it trains; use adamw_torch_fused, or train LoRA to save memory"
        )
    with own_errors(f"optim={name}: "):
        _check_optimizer_arguments(config, name)
    takes = _arguments_of(config.lr_scheduler_type)
    try:
        if config.lr_scheduler_kwargs and takes == "nothing":
            raise TypeError("they have no effect")
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
        steps = config.max_steps if config.max_steps > 0 else 1000
        warmup = config.get_warmup_steps(steps)
        arguments = dict(config.lr_scheduler_kwargs or {})
        get_scheduler(kind, optimizer, warmup, steps, scheduler_specific_kwargs=arguments)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConfigurationError(
            f"lr_scheduler_type={kind} with lr_scheduler_kwargs={config.lr_scheduler_kwargs}: {one_line(error)}; this "
            f"schedule takes {takes} in lr_scheduler_kwargs"
        ) from error


def _check_optimizer_arguments(config: Any, name: str) -> None:
    given = config.optim_args
    if given and not all(part.count("=") == 1 for part in given.split(",")):
        raise ConfigurationError(f"optim_args must be name=value, separated by commas, not {given!r}")
    made = Trainer.get_optimizer_cls_and_kwargs(config)
    plain = copy.copy(config)
    plain.optim_args = None
    if given and made == Trainer.get_optimizer_cls_and_kwargs(plain):
        raise ConfigurationError(f"optim_args={given} has no effect on optim={name}; remove it")
