"""Completions on the page: every token on the colour of its advantage, with its numbers at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vopd.errors import DataError

from .page import escape

# Advantage at which the colour is full, in nats: one scale for all runs, so that pages can be laid side by side.
FULL_COLOUR = 4.0
_SHOWN = 16
_SHOWN_TOKENS = 600
# Smaller than this no colour could be told from the ground.
_LEAST = 0.01
# What a record has of every token, and what it is called.
_COLUMNS = {"advantages": "advantage", "rewards": "reward", "reverse_kl": "exact KL"}

KEY = (
    '<p class="note key">Colour by <button data-colour="advantage" aria-pressed="true">advantage</button> '
    '<button data-colour="reward" aria-pressed="false">reward</button></p>'
    '<p class="note key"><span class="up">positive, made likelier</span><span class="down">negative, made less likely'
    "</span> in full colour from 4 nats on. Point at a token, or tap it, for its numbers. Advantages of the optimal "
    "baselines are not centred: where the student is nearly certain they are large and move next to nothing.</p>"
)


def chosen(records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """At most 16 samples, spread evenly over the run from its first step to its last."""
    if len(records) <= _SHOWN:
        return records
    return [records[round(index * (len(records) - 1) / (_SHOWN - 1))] for index in range(_SHOWN)]


def samples_html(records: Sequence[dict[str, Any]], source: str) -> str:
    """The samples one after another. `source` names the file for the error of a record that is none.

    Raises:
        DataError: a record without completion, or with other numbers of values than tokens.
    """
    return "".join(_article(record, source) for record in records)


def _article(record: dict[str, Any], source: str) -> str:
    tokens = record.get("tokens", [record.get("completion")])
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DataError(f"{source}: a sample has no text of its completion; remove the file or the line")
    columns = {label: record[name] for name, label in _COLUMNS.items() if record.get(name) is not None}
    for label, values in columns.items():
        numbers = isinstance(values, list) and all(isinstance(value, int | float | None) for value in values)
        if not numbers or len(values) != len(tokens):
            raise DataError(
                f"{source}: a sample has {len(tokens)} tokens and not a number of {label} for each; remove it"
            )
    rewards = [value for value in columns.get("reward", ()) if value is not None]
    facts = [
        str(record.get("label", "")),
        f"step {record.get('step', '?')}",
        f"{len(tokens)} tokens",
        "cut at the length limit" if record.get("truncated") else "",
        f"mean reward {sum(rewards) / len(rewards):.3f} nats a token" if rewards else "",
    ]
    return (
        f"<article><h3>{escape(' · '.join(filter(None, facts)))}</h3>"
        f'<div class="prompt">{escape(record.get("prompt", ""))}</div>'
        f'<p class="completion">{_coloured(tokens, columns)}</p></article>\n'
    )


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
