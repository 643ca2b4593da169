"""What the study measures at fixed parameters: variance, bias, slightly wrong samplers; no training.

`python -m studies.claims.fixed --output runs/claims` writes fixed.json there. Deterministic on one machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from studies.claims import controls, design
from studies.claims.design import Setting, Size
from studies.claims.samplers import sampler_table
from vopd.estimators.exact import FULL_RKL
from vopd.experiments.grid import run_name
from vopd.experiments.held_out import HeldOut
from vopd.experiments.rollouts import sample_rollouts
from vopd.experiments.teacher_states import local_states
from vopd.experiments.variance import decompose_variance, variance_profile
from vopd.models import load_model, load_tokenizer

FIXED_FILE = "fixed.json"
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


class Place:
    """A setting's models and rollouts of the student at hand, on prompts that no run is trained on."""

    def __init__(self, setting: Setting, student: Path, contexts: int, seed: int = 3) -> None:
        self.tokenizer = load_tokenizer(setting.student)
        self.student = load_model(student, dtype="float32")
        self.teacher = load_model(setting.teacher, dtype="float32").requires_grad_(False)
        self.vocabulary = len(self.tokenizer)
        problems: list[HeldOut] = setting.held_out(contexts, seed)
        prompts = [problem.prompt for problem in problems]
        self.rollouts = sample_rollouts(
            self.student, self.tokenizer, prompts, max_new_tokens=design.MAX_COMPLETION_TOKENS, batch_size=64, seed=seed
        )


def variance_table(place: Place, size: Size, top_ks: dict[int, Sequence[str]], others: Sequence[str]) -> dict[str, Any]:
    """Token part, total, bias and signal to noise of every estimator, and its token part as a multiple of opd's."""
    found: dict[str, Any] = {}

    def measure(names: Sequence[str], top_k: int | None) -> Any:
        estimators = [controls.estimator_of(name) for name in names]
        return decompose_variance(
            place.student, local_states(place.teacher), place.rollouts, estimators=estimators, top_k=top_k,
            resamples=size.resamples, vocab_size=place.vocabulary, seed=0,
        )  # fmt: skip

    plain = measure([*PLAIN, *others], None)
    vanilla = plain.estimators["opd"]
    for top_k, part in [(None, plain), *((k, measure(names, k)) for k, names in top_ks.items())]:
        for name, noise in part.estimators.items():
            label = name if top_k is None else f"{name}, k = {top_k}"
            record = asdict(noise)
            del record["token_by_context"]
            found[label] = {**record, "token_over_opd": asdict(noise.relative_to(vanilla))}
            if name != "vopd" and top_k is None:
                found[label]["token_over_vopd"] = asdict(noise.relative_to(plain.estimators["vopd"]))
    return {"context": asdict(plain.context), "estimators": found}


def along_training(output: Path, setting: Setting, size: Size) -> list[dict[str, Any]]:
    """The closed-form variances in the logits as the student improves: checkpoints of a run of the exact objective."""
    folder = output / setting.name / run_name(FULL_RKL, design.COMMON_RATE, 0)
    step = size.steps // design.CHECKPOINTS
    places = [(0, setting.student)]
    places += [(n * step, folder / f"checkpoint-{n * step}") for n in range(1, design.CHECKPOINTS + 1)]
    found = []
    for at, model in places:
        if at and not (model / "config.json").is_file():
            continue
        place = Place(setting, model, 4 * size.contexts)
        teacher = local_states(place.teacher)
        profile = variance_profile(place.student, teacher, place.rollouts, vocab_size=place.vocabulary)
        found.append({"step": at, **asdict(profile)})
    return found


def measure_setting(setting: Setting, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything at the start of one setting."""
    main = setting.name == "main"
    place = Place(setting, setting.student, size.contexts)
    others = ("full_rkl", *design.CONTROLS) if main else ("full_rkl", "opd_undetached")
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
    return {"tokens": sum(len(rollout.completion_ids) for rollout in place.rollouts), **table, "samplers": samplers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/claims"))
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    from studies.claims.run import SMALL, facts

    torch.set_num_threads(1)
    size = SMALL if arguments.small else Size()
    path = arguments.output / FIXED_FILE
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def keep(name: str, value: Any) -> None:
        found[name] = value
        path.write_text(json.dumps(found, indent=1) + "\n")

    for name, setting in design.settings().items():
        if name not in found:
            keep(name, measure_setting(setting, size, lambda line: print(line, flush=True)))
    for name, setting in design.settings().items():
        keep(f"{name} along training", along_training(arguments.output, setting, size))
    keep("facts", facts())


if __name__ == "__main__":
    main()
