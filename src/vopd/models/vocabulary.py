"""Checks that every token id means the same for student and teacher.

Distillation compares probabilities id by id. If two tokenizers disagree on an id, the loss looks normal but trains
towards a wrong target, so every id is checked before the first step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vopd.errors import MismatchError

_SHOWN = 3


def common_vocabulary(
    student_tokenizer: Any,
    teacher_tokenizer: Any,
    *,
    student_rows: int | None = None,
    teacher_rows: int | None = None,
) -> int:
    """Return the number of token ids that student and teacher share, to which both heads are cut.

    Output heads often have more rows than there are tokens (151,936 for one size of a family, 152,064 for another). The
    rows beyond the last token stand for no text and must not get probability in either model.

    Args:
        student_tokenizer: the student's tokenizer.
        teacher_tokenizer: the teacher's tokenizer.
        student_rows: rows of the student's output head; checked if given.
        teacher_rows: rows of the teacher's output head; checked if given.

    Returns:
        The size of the common vocabulary.

    Raises:
        MismatchError: an id stands for different tokens, or a head has fewer rows than there are tokens.
    """
    student, teacher = _by_id(student_tokenizer), _by_id(teacher_tokenizer)
    differing = sorted(token for token in student.keys() | teacher.keys() if student.get(token) != teacher.get(token))
    if differing:
        shown = ", ".join(
            f"{token} is {student.get(token)!r} for the student and {teacher.get(token)!r} for the teacher"
            for token in differing[:_SHOWN]
        )
        raise MismatchError(
            f"student and teacher use different vocabularies ({len(student)} and {len(teacher)} tokens, "
            f"{len(differing)} ids differ: {shown}); use models of one family, or TRL's GOLD trainer, which distills "
            "across tokenizers"
        )
    size = max(student) + 1
    for name, rows in (("student", student_rows), ("teacher", teacher_rows)):
        if rows is not None and rows < size:
            raise MismatchError(
                f"the {name}'s output head has {rows} rows but its tokenizer has {size} ids; "
                "this tokenizer does not belong to this model: put the model's own there, or resize the model (of an "
                f"adapter, its base) with resize_token_embeddings({size}) and save it"
            )
    return size


def end_ids(model: Any, tokenizer: Any | None = None) -> tuple[int, ...]:
    """Return every id that ends a completion of this model, in ascending order.

    These are the end tokens in the model's generation configuration and the tokenizer's end token.
    """
    ids: set[int] = set()
    configured = getattr(model, "generation_config", None)
    for holder in (configured, getattr(model, "config", None)):
        value = getattr(holder, "eos_token_id", None)
        if value is not None:
            ids.update(value if isinstance(value, Iterable) else [value])
            break
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(ids))


def end_token_difference(student: Any, teacher: Any, student_tokenizer: Any, teacher_tokenizer: Any) -> str | None:
    """Describe how the models' end tokens differ and what to do; None if the student stops at all of the teacher's.

    If the teacher ends with a token at which the student does not stop, the student learns to emit that token and to
    continue: completions grow to the length limit. The usual case is a base student with an instruct teacher.
    """
    own = end_ids(student, student_tokenizer)
    theirs = end_ids(teacher, teacher_tokenizer)
    unknown = [token for token in theirs if token not in own]
    if not unknown:
        return None
    together = sorted({*own, *theirs})
    return (
        f"the teacher ends completions with {_named(theirs, teacher_tokenizer)}, but the student stops at "
        f"{_named(own, student_tokenizer)} only and would continue to the length limit; let the student stop at all of "
        f"them: generation_config.eos_token_id = {together}"
    )


def set_end_ids(model: Any, ids: Iterable[int]) -> None:
    """Let the model stop at each of `ids`, in sampling and, once it is saved, wherever it is loaded."""
    model.generation_config.eos_token_id = sorted(set(ids))


def _by_id(tokenizer: Any) -> dict[int, str]:
    by_id = {token: text for text, token in tokenizer.get_vocab().items()}
    if not by_id:
        raise MismatchError("the tokenizer has no tokens; save the model's tokenizer next to the model")
    return by_id


def _named(ids: Iterable[int], tokenizer: Any) -> str:
    return " or ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)})" for token in ids) or "nothing"
