"""The tables of docs/reference/other-losses.md, from results.json alone: docs/generate.py puts them there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
NOTHING = 1e-9
"""A relative squared bias below this is what float32 leaves."""
Table = tuple[Sequence[str], list[Sequence[str]]]


def losses() -> Table:
    """Every form: bias and noise in the three settings, and what to use instead."""
    head = ("who runs it", "what it runs", "here", "squared bias", "variance", "noise per signal", "use instead")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    body: list[Sequence[str]] = []
    for name, text in found["texts"].items():
        measured = [setting["forms"][name] for setting in found["settings"].values()]
        ratios = [entry["noise_per_signal_over_opd"] for entry in measured]
        noise = _listed(ratio["value"] for ratio in ratios) if all(ratios) else "no signal"
        variance = _listed(entry["variance_over_opd"]["value"] for entry in measured)
        body.append(
            (text["where"], text["runs"], text["terms"], bias(text, measured), variance, noise, text["instead"])
        )
    return head, body


def bias(text: Mapping[str, str], measured: Sequence[Mapping[str, Any]]) -> str:
    """In words and numbers; the cosine where the gradient points elsewhere, the note of the form at the end."""
    values = [entry["relative_bias"]["value"] for entry in measured]
    cosines = [entry["cosine"] for entry in measured]
    found = []
    if max(values) >= NOTHING:
        found.append(_listed(values))
        if None not in cosines and min(cosines) < 0.999:
            found.append(f"cosine {_listed(cosines)}")
    found += [text["note"]] if text["note"] else []
    return "; ".join(found) or "none"


def intervals() -> Table:
    """The same variances and noise per signal with their 95 % intervals over contexts."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    body: list[Sequence[str]] = []
    for name in found["texts"]:
        for label, key in (("variance", "variance_over_opd"), ("noise per signal", "noise_per_signal_over_opd")):
            values = [setting["forms"][name][key] for setting in found["settings"].values()]
            cells = (f"{short(v['value'])} [{short(v['low'])}, {short(v['high'])}]" if v else "-" for v in values)
            body.append((f"`{name}`", label, *cells))
    return ("form", "vanilla = 1", *found["settings"]), body


def _listed(values: Iterable[float]) -> str:
    return ", ".join(map(short, values))


def short(value: float) -> str:
    """Two significant digits, without an exponent from 0.001 on."""
    return f"{value:.2g}" if value == 0 or abs(value) >= 0.001 else f"{value:.0e}".replace("e-0", "e-")
