"""Records of a made-up study, in which the estimators' figures are chosen: for tests of what is computed from them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from studies.claims import design
from studies.claims.fixed import FEW_TOP_KS, PLAIN, TOP_KS

# Reverse KL of every estimator, in the order in which the study would find them.
LEVELS = {
    "opd": 0.25, "vopd": 0.23, "vopd_top_k": 0.231, "opd_undetached": 0.27, "vopd_optimal": 0.21,
    "rao_blackwell_teacher_top_k": 0.2, "full_rkl": 0.19,
}  # fmt: skip
NOISE = {"opd": 1.0, "vopd": 0.5, "vopd_optimal": 0.2, "rao_blackwell_teacher_top_k": 0.1, "full_rkl": 0.0}
SIZE = design.Size(steps=200, problems=2000)
FACTS = {"date": "2026-01-01", "commit": "0123456789", "processor": "none", "python": "3.11", "torch": "2.13"}


def best_rates() -> dict[str, dict[str, float]]:
    """Vanilla does best at a smaller rate than the others."""
    return {
        setting: {name: 1e-4 if name == "opd" else 3e-4 for name in names}
        for setting, names in design.ESTIMATORS.items()
    }


def record(setting: str, estimator: str, rate: float, seed: int, level: float, noise: float = 0.002) -> dict[str, Any]:
    """A run whose figure is about `level`; its seed decides the noise, most of which all estimators share."""
    shared, own = random.Random(f"{setting} {seed}"), random.Random(f"{setting} {estimator} {rate} {seed}")
    level += shared.gauss(0, 3 * noise) + own.gauss(0, noise)
    curve = []
    for step in SIZE.curve_steps:
        at = level + (0.3 - level) * max(0.0, 1 - step / 140)
        curve.append([step, [[3000 * (at + own.gauss(0, 0.01)), 3000] for _ in range(20)]])
    found = {"setting": setting, "estimator": estimator, "rate": rate, "seed": seed, "reverse_kl": curve}
    return {**found, "accuracy": 0.9 - level, "sampled_accuracy": 0.8 - level}


def records(levels: Mapping[str, float] = LEVELS, noise: float = 0.002) -> list[dict[str, Any]]:
    """Every run of the plan."""
    best = best_rates()
    return [
        record(setting, name, rate, seed, levels[name], noise)
        for setting in design.ESTIMATORS
        for name, rate, seed in design.planned(setting, best[setting], SIZE)
    ]


def study() -> dict[str, Any]:
    """What is kept besides the runs."""
    start = {"accuracy": 0.6, "teacher_accuracy": 0.99, "reverse_kl": 0.32}
    return {
        "sessions": [{**FACTS, "seconds": 7200, "jobs": 2}],
        "size": asdict(SIZE),
        "best_rates": best_rates(),
        "starts": dict.fromkeys(design.ESTIMATORS, start),
    }


def pilot() -> list[dict[str, Any]]:
    """Every estimator at three rates, nearest to the teacher at its own."""
    return [
        {"setting": setting, "estimator": name, "rate": rate, "seed": design.PILOT_SEED,
         "reverse_kl": LEVELS[name] + (0.0 if rate == best else 0.05), "error": 0.001}
        for setting, rates in best_rates().items() for name, best in rates.items() for rate in design.RATES[1:-1]
    ]  # fmt: skip


def fixed(noise: Mapping[str, float] = NOISE) -> dict[str, Any]:
    """Measurements at fixed parameters."""
    return {setting: _fixed(TOP_KS if setting == "main" else FEW_TOP_KS, noise) for setting in design.ESTIMATORS}


def _fixed(top_ks: Mapping[int, Any], noise: Mapping[str, float]) -> dict[str, Any]:
    labels = {name: noise[name] for name in (*PLAIN, "full_rkl")} | {"opd_undetached": 1.2}
    labels |= {f"{name}, k = {k}": noise.get(name, 0.55) for k, names in top_ks.items() for name in names}
    samplers = {
        sampler: {name: {"relative_bias": scale * (0.1 + own)} for name, own in noise.items()}
        for sampler, scale in (("exact", 1e-13), ("temperature 0.9", 0.02), ("top-p 0.95", 0.1))
    }
    bins = [
        {"low": n / 8, "high": (n + 1) / 8, "tokens": 10, "none": 1.0, "value": 0.6, "optimal": 0.3} for n in range(8)
    ]
    return {
        "estimators": {label: _noise(own, noise["opd"], noise["vopd"]) for label, own in labels.items()},
        "samplers": samplers,
        "profile": {"value_hurts_share": around(0.05), "by_position": bins, "by_entropy": bins},
        "along_training": {
            "steps": [0, *SIZE.curve_steps], "value_left": [0.5, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56],
            "optimal_left": [0.2] * 7, "change": around(0.06), "seeds": [100, 101],
        },
        "facts": FACTS,
    }  # fmt: skip


def _noise(own: float, vanilla: float, value: float) -> dict[str, Any]:
    return {
        "token": around(own), "token_over_opd": around(own / vanilla), "token_over_vopd": around(own / value),
        "token_over_top_k": around(0.8), "kept": around((vanilla - own) / (vanilla - value)),
        "relative_bias": around(0.02),
    }  # fmt: skip


def around(value: float, half: float | None = None) -> dict[str, float]:
    """An interval of `half` on either side, or of a twentieth of the value."""
    half = abs(value) / 20 if half is None else half
    return {"value": value, "low": value - half, "high": value + half}


def cost() -> dict[str, Any]:
    """Costs as benchmarks/loss.py writes them."""
    names = ("naive full_rkl", "opd", "vopd", "vopd_optimal", "full_rkl")
    rows = [{"name": name, "seconds": 1.0, "extra_bytes": 1000} for name in names]
    return {"machine": FACTS, "trainable": {"rows": rows}}


def repeated() -> dict[str, Any]:
    """Two runs of each setting that came out the same."""
    same = {"weights": True, "log": True, "measured": True}
    return {"runs": [{"setting": name, "run": str(n), **same} for name in design.ESTIMATORS for n in (0, 1)]}


def write(folder: Path, **others: Any) -> Path:
    """The made-up study as files, some parts of it replaced."""
    parts = {"runs": records, "study": study, "fixed": fixed, "cost": cost, "repeated": repeated}
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(others.get(name) or part()))
    return folder
