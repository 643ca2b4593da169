"""The model card: the README.md saved with every model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from vopd.errors import counted
from vopd.versions import versions

if TYPE_CHECKING:
    from ..trainer import VOPDTrainer

CITATION = """\
@article{oh2026klforakl,
  title         = {KL for a KL: On-Policy Distillation with Control Variate Baseline},
  author        = {Oh and Song and Choi and Choi and Jo},
  year          = 2026,
  eprint        = {2605.07865},
  archivePrefix = {arXiv}
}
"""

_TRAINED = "Trained by on-policy distillation with vopd"
_TEMPLATE = """\
---
{metadata}
---

# {name}

{trained}: the student samples completions and the teacher scores each of their
tokens.

| | |
|---|---|
{rows}
{results}
```bibtex
{citation}```
"""
_PACKAGES = ("torch", "transformers", "trl", "peft")


def card_facts(trainer: VOPDTrainer, name: str) -> dict[str, Any]:
    """The facts in the card of a model called `name`, with those of `trainer.card_notes`."""
    estimator, k = trainer.args.chosen_estimator.name, trainer.args.loss_top_k
    return {
        "name": name,
        "tags": trainer.card_tags,
        "adapter": hasattr(trainer.model, "peft_config"),
        "student": trainer.model.name_or_path,
        "base_model": trainer.model.config.name_or_path,
        "student_revision": getattr(trainer.model.config, "_commit_hash", None),
        "teachers": {name: (placed.name, placed.revision) for name, placed in trainer.teachers.placed.items()},
        "data": [counted(len(trainer.train_dataset), "prompt")],
        "settings": {
            "estimator": estimator if k is None else f"{estimator}, k = {k}",
            "loss backend": trainer.loss_backend,
            "temperature": trainer.args.temperature,
            "optimizer steps": trainer.state.global_step,
            "prompts per step": trainer.args.step_prompts,
            "rewards": trainer.rewards.summary,
            "learning rate": trainer.args.learning_rate,
            "seed": trainer.args.seed,
            "changed on resuming": trainer.checkpoints.history,
        },
        **trainer.card_notes,
    }


def model_card(facts: dict[str, Any]) -> ModelCard:
    """The model card: Markdown with YAML front matter.

    Args:
        facts: name, student, teachers (source and revision by name), settings (by title, "" for none), adapter (bool),
            tags for the Hub; and, if known, base_model (of a student that was an adapter), student_revision, data
            (lines), datasets (hub ids) and results (lines).
    """
    base = facts.get("base_model", facts["student"])
    metadata = ModelCardData(
        library_name="peft" if facts["adapter"] else "transformers",
        # The Hub resolves base_model and datasets by their ids; a local folder means nothing to other people.
        base_model=base if base and not Path(base).exists() else None,
        datasets=facts.get("datasets") or None,
        tags=facts["tags"],
    )
    results = "\n".join(facts.get("results", []))
    text = _TEMPLATE.format(
        metadata=metadata.to_yaml(),
        name=facts["name"],
        trained=_TRAINED,
        rows="\n".join(f"| {title} | {_cell(value)} |" for title, value in _rows(facts).items()),
        results=f"\n## Results\n\n{results}\n" if results else "",
        citation=CITATION,
    )
    return ModelCard(text)


def writes_card(folder: str | Path) -> bool:
    """Whether a model card may be written into `folder`: it has no README.md, or one with a model card of vopd's. Any
    other belongs to somebody else, such as that of a project whose folder is the output_dir."""
    path = Path(folder, "README.md")
    return not path.exists() or _TRAINED in path.read_text(encoding="utf-8", errors="replace")


def write_card(folder: str | Path, facts: dict[str, Any]) -> None:
    """Write the model card as README.md into the folder of a model."""
    model_card(facts).save(Path(folder, "README.md"))


def _rows(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "student": _student(facts),
        "teacher": _teachers(facts["teachers"]),
        "data": "<br>".join(facts.get("data", [])) or "unknown",
        **{title: value for title, value in facts["settings"].items() if value != ""},
        "versions": ", ".join(f"{name} {found}" for name, found in versions(*_PACKAGES).items()),
    }


def _student(facts: dict[str, Any]) -> str:
    """The student; one that was an adapter before training with its base model."""
    student, base = facts["student"], facts.get("base_model", facts["student"])
    described = _with_revision(base, facts.get("student_revision"))
    return described if student == base else f"{_with_revision(student, None)}, an adapter of {described}"


def _with_revision(source: str, revision: str | None) -> str:
    """A hub id unchanged, but only the name of a local folder: a path may reveal private information."""
    called = (Path(source).name if Path(source).exists() else source) or "unknown"
    return called + (f" at {revision}" if revision else "")


def _teachers(found: dict[str, tuple[str, str | None]]) -> str:
    """Each teacher with its revision; several with the names that the dataset uses for them."""
    texts = {name: _with_revision(*teacher) for name, teacher in found.items()}
    return "<br>".join(text if len(texts) == 1 else f"{name}: {text}" for name, text in texts.items())


def _cell(value: Any) -> str:
    """`value` as text that cannot break out of its table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
