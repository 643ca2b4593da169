"""Does a server's tokenizer mean the same thing by every id as the student's? Asked over /detokenize and /tokenize."""

from __future__ import annotations

from typing import Any

from vopd.errors import MismatchError

from .client import Rejected, ServedModel

_CHUNK = 2048


def check_vocabulary(model: ServedModel, url: str, tokenizer: Any) -> int | None:
    """Compare every real id of the student's tokenizer with the server's, in chunks.

    A chunk of ids must become the same text on both sides, and its text the same ids. The second half tells apart
    what the first cannot: ids of single bytes, which are no text on their own. It is left out where there is no
    /tokenize.

    Returns:
        The number of ids compared; None where the server has no such addresses.

    Raises:
        MismatchError: an id stands for different text, or a text for different ids.
    """
    ids = sorted(tokenizer.get_vocab().values())
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        text = _detokenize(model, url, chunk)
        if text is None:
            return None
        if not _reads(tokenizer, chunk, text):
            raise _first_difference(model, url, tokenizer, chunk)
        body = {"prompt": text, "add_special_tokens": False}
        try:
            encoded = model.ask("/tokenize", body, lambda found: list(found["tokens"]), url)
        except Rejected:
            continue
        if encoded != tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
            raise MismatchError(
                f"student and teacher server use different vocabularies: both read ids {chunk[0]} to {chunk[-1]} as "
                "the same text, but turn this text into different ids; choose a student and a teacher of one family"
            )
    return len(ids)


def _detokenize(model: ServedModel, url: str, ids: list[int]) -> str | None:
    """What the server reads `ids` as; None where it has no /detokenize."""
    try:
        return model.ask("/detokenize", {"tokens": ids}, lambda body: body["prompt"], url)
    except Rejected as error:
        if error.status in {404, 405}:
            return None
        raise MismatchError(
            f"the teacher server does not know all of the student's ids {ids[0]} to {ids[-1]} ({error}); choose a "
            "student and a teacher of one family"
        ) from error


def _reads(tokenizer: Any, ids: list[int], text: str | None) -> bool:
    """Whether the student reads `ids` as `text`; tidying spaces up afterwards is a habit, not a vocabulary."""
    return text in (tokenizer.decode(ids, clean_up_tokenization_spaces=False), tokenizer.decode(ids))


def _first_difference(model: ServedModel, url: str, tokenizer: Any, chunk: list[int]) -> MismatchError:
    """An error that names the first id of the chunk that is read differently, found by halves."""
    while len(chunk) > 1:
        half = chunk[: len(chunk) // 2]
        differs = not _reads(tokenizer, half, _detokenize(model, url, half))
        chunk = half if differs else chunk[len(half) :]
    ours, theirs = tokenizer.decode(chunk, clean_up_tokenization_spaces=False), _detokenize(model, url, chunk)
    return MismatchError(
        f"student and teacher server use different vocabularies: {chunk[0]} is {ours!r} for the student and "
        f"{theirs!r} for the server; choose a student and a teacher of one family, or TRL's GOLD trainer, which "
        "distils across tokenizers"
    )
