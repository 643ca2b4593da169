"""Checks that every token id means the same for student and teacher.

Distillation compares probabilities id by id. If two tokenizers disagree on an id, the loss looks normal but trains
towards a wrong target, so every id is checked before the first step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from vopd.errors import MismatchError

_SHOWN = 3
_FEW = 0.02
"""Share of the ids that may be left out at the end: the largest blocks of reserved tokens are well below it."""
_WITHOUT_ENDS = {
    "student": (
        "would never stop",
        "set eos_token_id in its generation_config.json and eos_token in its tokenizer_config.json to tokens of both "
        "models, or use a teacher that has this one",
    ),
    "teacher": (
        "nothing would teach the student to stop",
        "add this token to the student's tokenizer and resize the student, or use another teacher",
    ),
}


@dataclass(frozen=True)
class CommonVocabulary:
    """The token ids that mean the same for student and teacher: all below `size`.

    Attributes:
        size: their number, to which both heads are cut.
        cut: which ids were left out at the end, in one line; None if there are none.
    """

    size: int
    cut: str | None = None

    def __str__(self) -> str:
        """Say how many ids are the same, and which ones were left out."""
        return f"all {self.size} ids are the same" if self.cut is None else f"{self.size} ids are the same; {self.cut}"


def compare_vocabularies(
    student_tokenizer: Any,
    teacher_tokenizer: Any,
    *,
    student_rows: int | None = None,
    teacher_rows: int | None = None,
    student_ends: Collection[int] = (),
    teacher_ends: Collection[int] = (),
) -> CommonVocabulary:
    """Find the token ids that student and teacher share.

    Output heads often have more rows than there are tokens (151,936 for one size of a family, 152,064 for another). The
    rows beyond the last token stand for no text and must not get probability in either model.

    Models of one family may differ at the end of their vocabularies: one has further added tokens, or a head has no row
    for the last special tokens. From the first such id on all ids are left out, if each is an added token of every
    tokenizer that has it, if they are at most 2 % of all ids, and if no model ends its completions with one of them.

    Args:
        student_tokenizer: the student's tokenizer.
        teacher_tokenizer: the teacher's tokenizer.
        student_rows: rows of the student's output head; checked if given.
        teacher_rows: rows of the teacher's output head; checked if given.
        student_ends: the student's end ids, see `end_ids`; checked if given.
        teacher_ends: the teacher's end ids; checked if given.

    Raises:
        MismatchError: an ordinary id stands for different tokens, a head has too few rows, or an end id is left out.
    """
    student, teacher = _by_id(student_tokenizer), _by_id(teacher_tokenizer)
    sides = (
        _Side("student", student, student_rows, student_tokenizer, student_ends),
        _Side("teacher", teacher, teacher_rows, teacher_tokenizer, teacher_ends),
    )
    total = max(max(student), max(teacher)) + 1
    for side in sides:
        side.check_rows()
    differing = sorted(token for token in student.keys() | teacher.keys() if student.get(token) != teacher.get(token))
    size = min([*differing[:1], *(side.rows for side in sides if side.rows is not None), total])
    if size == total:
        return CommonVocabulary(size)
    if not (_few(size, total) and all(side.added_from(size) for side in sides)):
        shown = ", ".join(
            f"{token} is {student.get(token)!r} for the student and {teacher.get(token)!r} for the teacher"
            for token in differing[:_SHOWN]
        )
        raise MismatchError(
            f"student and teacher use different vocabularies ({len(student)} and {len(teacher)} tokens, "
            f"{len(differing)} ids differ: {shown}); use models of one family, which may differ in a few added tokens "
            "at the end, or TRL's GOLD trainer, which distills across tokenizers"
        )
    found = CommonVocabulary(size, _told(sides, size, total))
    for side in sides:
        side.check_ends(found)
    return found


@dataclass(frozen=True)
class _Side:
    """One of the two models: its tokens by id, rows of its head, and end ids."""

    name: str
    tokens: dict[int, str]
    rows: int | None
    tokenizer: Any
    ends: Collection[int]

    def added_from(self, size: int, *, special: bool = False) -> bool:
        """Whether all its tokens from this id on were added to the tokenizer; or even are special tokens."""
        added = self.tokenizer.added_tokens_decoder.items()
        known = {token for token, entry in added if entry.special or not special}
        return {token for token in self.tokens if token >= size} <= known

    def has(self, token: int) -> bool:
        """Whether it can produce this id, as a token."""
        return token in self.tokens and (self.rows is None or token < self.rows)

    def shown(self, size: int) -> str:
        """The texts of its tokens from this id on, or of the first of them."""
        texts = [self.tokens[token] for token in sorted(self.tokens) if token >= size]
        return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")

    def check_rows(self) -> None:
        """Raise MismatchError if the head lacks rows for more than a few special tokens."""
        size = max(self.tokens) + 1
        if self.rows is None or self.rows >= size:
            return
        if _few(self.rows, size) and self.added_from(self.rows, special=True):
            return
        raise MismatchError(
            f"the {self.name}'s output head has {self.rows} rows but its tokenizer has {size} ids; "
            "this tokenizer does not belong to this model: put the model's own there, or resize the model (of an "
            f"adapter, its base) with resize_token_embeddings({size}) and save it"
        )

    def check_ends(self, common: CommonVocabulary) -> None:
        """Raise MismatchError if it ends completions with an id that is left out."""
        lost = [token for token in sorted(self.ends) if token >= common.size and token in self.tokens]
        if not lost:
            return
        then, fix = _WITHOUT_ENDS[self.name]
        raise MismatchError(
            f"the {self.name} ends completions with {_named(lost, self.tokenizer)}, and without that {then} ("
            f"{common.cut}); {fix}"
        )


def cut_vocabulary(tokenizer: Any, size: int, why: str, ends: Collection[int] = ()) -> CommonVocabulary | None:
    """Leave out the student's ids from `size` on; None if these are not just a few added tokens.

    Args:
        tokenizer: the student's tokenizer.
        size: the first id that the teacher does not share.
        why: what is wrong with these ids, for the line about them.
        ends: the student's end ids.

    Raises:
        MismatchError: an end id is left out.
    """
    student = _Side("student", _by_id(tokenizer), None, tokenizer, ends)
    total = vocabulary_size(tokenizer)
    if not (_few(size, total) and student.added_from(size)):
        return None
    found = CommonVocabulary(size, f"left out of sampling and loss: {_ids(size, total)} ({student.shown(size)}), {why}")
    student.check_ends(found)
    return found


def vocabulary_size(tokenizer: Any) -> int:
    """Return the number of ids up to the last token. A tokenizer may have gaps, which its length does not count."""
    return max(_by_id(tokenizer)) + 1


def _few(size: int, total: int) -> bool:
    return total - size <= _FEW * total


def _told(sides: tuple[_Side, _Side], size: int, total: int) -> str:
    """Which ids are left out, and why."""
    owners = [side for side in sides if any(map(side.has, range(size, total)))]
    if len(owners) == 2:
        why = f", different in student ({sides[0].shown(size)}) and teacher ({sides[1].shown(size)})"
    elif owners:
        why = f" ({owners[0].shown(size)}), only in the {owners[0].name}"
    else:
        why = f" ({sides[0].shown(size)}), without a row in an output head"
    return f"left out of sampling and loss: {_ids(size, total)}{why}"


def _ids(size: int, total: int) -> str:
    return f"id {size}" if total - size == 1 else f"ids {size} to {total - 1}"


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
