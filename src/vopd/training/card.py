"""The README.md that is saved with every model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CITATION = """\
@article{oh2026klforakl,
  title         = {KL for a KL: On-Policy Distillation with Control Variate Baseline},
  author        = {Oh and Song and Choi and Choi and Jo},
  year          = 2026,
  eprint        = {2605.07865},
  archivePrefix = {arXiv}
}
"""

_TEMPLATE = """\
---
library_name: {library}
{base}tags:
{tags}
---

# {name}

Trained by on-policy distillation with vopd: the student samples completions, the teacher scores every token of them.

| | |
|---|---|
| student | {student} |
| teacher | {teacher} |
| estimator | {estimator} |
| temperature | {temperature} |
| optimizer steps | {steps} |
| prompts a step | {prompts} |
| learning rate | {learning_rate} |
| seed | {seed} |

```bibtex
{citation}```
"""


def model_card(facts: dict[str, Any], tags: list[str]) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        facts: name, student, teacher, estimator, temperature, steps, prompts, learning_rate, seed, adapter (bool).
        tags: for the Hub.
    """
    student = facts["student"]
    # The Hub resolves base_model by its id; a local folder means nothing to anybody else.
    base = f"base_model: {student}\n" if student and not Path(student).exists() else ""
    return _TEMPLATE.format(
        **{name: facts[name] for name in ("name", "estimator", "temperature", "steps", "prompts", "seed")},
        learning_rate=facts["learning_rate"],
        student=_called(student),
        teacher=_called(facts["teacher"]),
        library="peft" if facts["adapter"] else "transformers",
        base=base,
        tags="\n".join(f"- {tag}" for tag in tags),
        citation=CITATION,
    )


def _called(source: str) -> str:
    """A hub id as it is, of a local folder its name alone: a path may tell more than its owner likes."""
    return (Path(source).name if Path(source).exists() else source) or "not named"
