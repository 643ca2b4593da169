"""What the study measures at fixed parameters: variance, bias, slightly wrong samplers; no training.

`python -m studies.claims.fixed --output runs/claims` writes fixed.json there. Deterministic on one machine. What it has
measured is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from studies.claims import controls, design
from studies.claims.design import SMALL, Setting, Size, held_out_file
from studies.claims.run import Study, facts
from studies.claims.samplers import sampler_table
from vopd.experiments.grid import run_name
from vopd.experiments.held_out import HeldOut, read_held_out
from vopd.experiments.rollouts import sample_rollouts
from vopd.experiments.teacher_states import local_states
from vopd.experiments.variance import Bin, EstimatorNoise, Profile, decompose_variance, variance_profile
from vopd.models import load_model, load_tokenizer
from vopd.statistics import Interval, ratio_of_means, t_interval

FIXED_FILE = "fixed.json"
# Of the problems and the rollouts that everything at the start is measured on.
SEED = 103
PLAIN = ("opd", "vopd", "vopd_optimal")
# Every estimator with a k of its own, at several.
TOP_KS = {
    1: ("vopd_top_k", "vopd_sparse"),
    5: ("vopd_top_k", "vopd_sparse", "rao_blackwell_top_k", "top_k_rkl", "rao_blackwell_teacher_top_k",
        "vopd_teacher_top_k", "vopd_teacher_top_k_optimal"),
    20: ("vopd_top_k", "vopd_sparse", "rao_blackwell_top_k", "top_k_rkl", "rao_blackwell_teacher_top_k",
         "vopd_teacher_top_k", "vopd_teacher_top_k_optimal"),
}  # fmt: skip
# On the other settings only what the claims need there.
FEW_TOP_KS = {5: ("vopd_top_k", "vopd_sparse", "top_k_rkl"), 20: ("rao_blackwell_teacher_top_k",)}
_SAMPLED_TOKENS = 160
_ALONG_CONTEXTS = 96


class Place:
    """A setting's models and rollouts of the student at hand, on prompts that no run is trained on."""

    def __init__(self, setting: Setting, student: Path, problems: Sequence[HeldOut], seed: int = SEED) -> None:
        self.tokenizer = load_tokenizer(setting.student)
        self.student = load_model(student, dtype="float32")
        self.teacher = load_model(setting.teacher, dtype="float32").requires_grad_(False)
        self.vocabulary = len(self.tokenizer)
        prompts = [problem.prompt for problem in problems]
        self.rollouts = sample_rollouts(
            self.student, self.tokenizer, prompts, max_new_tokens=design.MAX_COMPLETION_TOKENS, batch_size=64, seed=seed
        )

    def profile(self) -> Profile:
        """The closed-form variances in the logits."""
        teacher = local_states(self.teacher)
        return variance_profile(self.student, teacher, self.rollouts, vocab_size=self.vocabulary)


def variance_table(
    place: Place, size: Size, top_ks: Mapping[int, Sequence[str]], others: Sequence[str]
) -> dict[str, Any]:
    """Token part, total, bias and signal to noise of every estimator, and its token part as a multiple of opd's."""
    found: dict[str, Any] = {}

    def measure(names: Sequence[str], top_k: int | None) -> Any:
        estimators = [controls.estimator_of(name) for name in names]
        return decompose_variance(
            place.student, local_states(place.teacher), place.rollouts, estimators=estimators, top_k=top_k,
            resamples=size.resamples, vocab_size=place.vocabulary, seed=0,
        )  # fmt: skip

    plain = measure([*PLAIN, *others], None)
    vanilla, value = plain.estimators["opd"], plain.estimators["vopd"]
    for top_k, part in [(None, plain), *((k, measure(names, k)) for k, names in top_ks.items())]:
        for name, noise in part.estimators.items():
            record = asdict(noise)
            del record["token_by_context"]
            record |= {
                "token_over_opd": asdict(noise.relative_to(vanilla)),
                "kept": asdict(kept(noise, vanilla, value)),
            }
            record |= {"token_over_vopd": asdict(noise.relative_to(value))}
            if name == "vopd_sparse":
                record["token_over_top_k"] = asdict(noise.relative_to(part.estimators["vopd_top_k"]))
            found[name if top_k is None else f"{name}, k = {top_k}"] = record
    return {"context": asdict(plain.context), "estimators": found}


def kept(noise: EstimatorNoise, vanilla: EstimatorNoise, value: EstimatorNoise) -> Interval:
    """The reduction of the token part as a share of the value baseline's reduction; the interval is over contexts."""
    own, most, least = (torch.tensor(found.token_by_context) for found in (noise, vanilla, value))
    return ratio_of_means(most - own, most - least)


def left_by(bins: Sequence[Bin], baseline: str) -> float:
    """Variance with a baseline as a multiple of that without, over all tokens of a profile."""
    with_it, without = (sum(entry.tokens * getattr(entry, name) for entry in bins) for name in (baseline, "none"))
    return float(with_it / without)


def along_training(study: Study, name: str) -> dict[str, Any]:
    """What the baselines leave of the variance in the logits as the student improves, in runs of the exact objective.

    Every seed's own held-out problems; means over the seeds at every checkpoint that the study measures, and the change
    from the start to the end with Student's t interval over the seeds.
    """
    setting, size = study.settings[name], study.size
    rate, seeds = study.best[name]["full_rkl"], sorted({seed for _, _, seed in study.wanted()[name]})
    steps = (0, *size.curve_steps)
    left: dict[str, list[list[float]]] = {"value": [], "optimal": []}
    for seed in seeds:
        folder = study.output / name / run_name(controls.estimator_of("full_rkl"), rate, seed)
        problems = read_held_out(folder.parent / held_out_file(seed), min(size.problems, _ALONG_CONTEXTS))
        places = [setting.student, *(folder / f"checkpoint-{step}" for step in size.curve_steps)]
        profiles = [Place(setting, model, problems, seed).profile().by_position for model in places]
        for baseline, rows in left.items():
            rows.append([left_by(bins, baseline) for bins in profiles])
    found = {f"{baseline}_left": torch.tensor(rows).mean(0).tolist() for baseline, rows in left.items()}
    changes = [row[-1] - row[0] for row in left["value"]]
    change = Interval(sum(changes) / len(changes), *t_interval(changes))
    return {"steps": steps, **found, "change": asdict(change), "seeds": seeds}


def measure_setting(setting: Setting, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything at the start of one setting."""
    main = setting.name == "main"
    place = Place(setting, setting.student, setting.held_out(size.contexts, SEED))
    others = ("full_rkl", *controls.CONTROLS) if main else ("full_rkl", "opd_undetached")
    table = variance_table(place, size, TOP_KS if main else FEW_TOP_KS, others)
    say(f"{setting.name}: variance measured")
    samplers = sampler_table(
        place.student,
        place.teacher,
        place.rollouts,
        place.vocabulary,
        _SAMPLED_TOKENS if main else _SAMPLED_TOKENS // 2,
    )
    say(f"{setting.name}: samplers measured")
    tokens = sum(len(rollout.completion_ids) for rollout in place.rollouts)
    profile = Place(setting, setting.student, setting.held_out(4 * size.contexts, SEED)).profile()
    return {"tokens": tokens, **table, "samplers": samplers, "profile": asdict(profile)}


def missing_along(study: Study, found: Mapping[str, Any]) -> list[str]:
    """The settings whose runs are finished and whose development along training is not measured."""
    missing = study.missing()
    return [name for name in study.settings if not missing[name] and "along_training" not in found.get(name, {})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/claims"))
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(arguments.output.resolve(), SMALL if arguments.small else Size())
    study.output.mkdir(parents=True, exist_ok=True)
    path = study.output / FIXED_FILE
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def keep(name: str, value: Any) -> None:
        found[name] = {**found.get(name, {}), **value, "facts": facts()}
        path.write_text(json.dumps(found, indent=1) + "\n")

    for name, setting in study.settings.items():
        if name not in found:
            keep(name, measure_setting(setting, study.size, lambda line: print(line, flush=True)))
    for name in missing_along(study, found):
        keep(name, {"along_training": along_training(study, name)})
        print(f"{name}: along training measured", flush=True)


if __name__ == "__main__":
    main()
