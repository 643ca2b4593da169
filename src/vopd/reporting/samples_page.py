"""Completions on the page: every token colored by its advantage or reward, with its numbers on hover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vopd.errors import DataError, counted

from .page import escape

# Advantage of the full colour, in nats: one scale for all runs, so that pages can be compared.
FULL_COLOUR = 4.0
_SHOWN = 16
_SHOWN_TOKENS = 600
# Below this a colour is invisible.
_LEAST = 0.01
# Per-token columns of a record, and their labels.
_COLUMNS = {"advantages": "advantage", "rewards": "reward", "reverse_kl": "exact KL"}

KEY = (
    '<p class="note key">Color by <button data-colour="advantage" aria-pressed="true">advantage</button> '
    '<button data-colour="reward" aria-pressed="false">reward</button></p>'
    '<p class="note key"><span class="up">positive: more likely</span><span class="down">negative: less likely</span> '
    "after the update; full color from 4 nats. Point at a token, or tap it, for its numbers. Advantages of the "
    "optimal baselines are not centered: where the student is nearly certain they are large but change very little.</p>"
)


def chosen(records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """At most 16 samples, the newest first, spread evenly over the run from its first step to its last."""
    newest = records[::-1]
    if len(newest) <= _SHOWN:
        return newest
    return [newest[round(index * (len(newest) - 1) / (_SHOWN - 1))] for index in range(_SHOWN)]


def samples_html(records: Sequence[dict[str, Any]], source: str) -> str:
    """One article per sample. `source` names the file in errors.

    Raises:
        DataError: a record without completion, or whose number of values is not its number of tokens.
    """
    return "".join(_article(record, source) for record in records)


def _article(record: dict[str, Any], source: str) -> str:
    tokens = record.get("tokens", [record.get("completion")])
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DataError(f"{source}: a sample has no completion text; remove the file or the line")
    columns = {label: record[name] for name, label in _COLUMNS.items() if record.get(name) is not None}
    for label, values in columns.items():
        numbers = isinstance(values, list) and all(isinstance(value, int | float | None) for value in values)
        if not numbers or len(values) != len(tokens):
            raise DataError(
                f"{source}: a sample has {counted(len(tokens), 'token')} but not one {label} per token; remove the line"
            )
    rewards = [value for value in columns.get("reward", ()) if value is not None]
    facts = [
        str(record.get("label", "")),
        f"step {record.get('step', '?')}",
        counted(len(tokens), "token"),
        "cut off at max_completion_length" if record.get("truncated") else "",
        f"mean reward of the teacher {sum(rewards) / len(rewards):.3f} nats/token" if rewards else "",
        *_scores(record),
    ]
    return (
        f"<article><h3>{escape(' · '.join(filter(None, facts)))}</h3>"
        f'<div class="prompt">{escape(record.get("prompt", ""))}</div>'
        f'<p class="completion">{_coloured(tokens, columns)}</p></article>\n'
    )


def _scores(record: dict[str, Any]) -> list[str]:
    """What each reward function gave the completion; null is no reward."""
    scores, names = record.get("scores"), record.get("scored_by")
    if not isinstance(scores, list) or not isinstance(names, list):
        return []
    return [f"{name} {score:g}" for name, score in zip(names, scores) if isinstance(score, int | float)]


def _coloured(tokens: list[str], columns: dict[str, list[float | None]]) -> str:
    blank: list[float | None] = [None] * len(tokens)
    rewards = columns.get("reward", blank)
    advantages = columns.get("advantage", rewards)
    parts = []
    for index, token in enumerate(tokens[:_SHOWN_TOKENS]):
        numbers = [f"{label}  {_number(values[index])}" for label, values in columns.items()]
        if "exact KL" not in columns and (reward := rewards[index]) is not None:
            numbers.append(f"sampled KL  {_number(-reward)}")
        parts.append(_token(token, advantages[index], rewards[index], "\n".join(numbers)))
    if len(tokens) > _SHOWN_TOKENS:
        parts.append(f"<em> … {len(tokens) - _SHOWN_TOKENS} more tokens in samples.jsonl</em>")
    return "".join(parts)


def _token(text: str, advantage: float | None, reward: float | None, numbers: str) -> str:
    shown = escape(text.replace("\n", "↵\n"))
    if not numbers:
        return shown
    classes, style = [], []
    for value, prefix, name in ((advantage, "", "a"), (reward, "reward-", "r")):
        if value is not None and abs(value) >= _LEAST:
            classes.append(f"{prefix}{'up' if value > 0 else 'down'}")
            style.append(f"--{name}:{0.8 * min(1.0, math.sqrt(abs(value) / FULL_COLOUR)):.2f}")
    tint = f' class="{" ".join(classes)}" style="{";".join(style)}"' if classes else ""
    return f'<span{tint} data-t="{escape(numbers)}">{shown}</span>'


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:+.4f}"
