"""Checks through /detokenize and /tokenize that every token id is the same for a server and for the student."""

from __future__ import annotations

from typing import Any

from vopd.errors import MismatchError

from .client import Rejected, ServedModel

_CHUNK = 2048


def check_vocabulary(model: ServedModel, url: str, tokenizer: Any) -> int | None:
    """Compare every id of the student's tokenizer with the server's, in chunks.

    A chunk of ids must decode to the same text on both sides, and its text must encode to the same ids. The second
    check catches what the first cannot: ids of single bytes, which are not text on their own. It is skipped if the
    server has no /tokenize.

    Returns:
        The number of ids compared; None if the server has no /detokenize.

    Raises:
        MismatchError: an id decodes to different text, or a text encodes to different ids.
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
                f"student and teacher server use different vocabularies: both decode ids {chunk[0]} to {chunk[-1]} to "
                "the same text, but encode this text to different ids; choose a student and a teacher of one model "
                "family"
            )
    return len(ids)


def _detokenize(model: ServedModel, url: str, ids: list[int]) -> str | None:
    """The text to which the server decodes `ids`; None if it has no /detokenize."""
    try:
        return model.ask("/detokenize", {"tokens": ids}, lambda body: body["prompt"], url)
    except Rejected as error:
        if error.status in {404, 405}:
            return None
        raise MismatchError(
            f"the teacher server does not know all of the student's ids {ids[0]} to {ids[-1]} ({error}); choose a "
            "student and a teacher of one model family"
        ) from error


def _reads(tokenizer: Any, ids: list[int], text: str | None) -> bool:
    """Whether the student decodes `ids` to `text`, with or without cleaning up spaces."""
    return text in (tokenizer.decode(ids, clean_up_tokenization_spaces=False), tokenizer.decode(ids))


def _first_difference(model: ServedModel, url: str, tokenizer: Any, chunk: list[int]) -> MismatchError:
    """An error that names the first id of the chunk that is decoded differently, found by bisection."""
    while len(chunk) > 1:
        half = chunk[: len(chunk) // 2]
        differs = not _reads(tokenizer, half, _detokenize(model, url, half))
        chunk = half if differs else chunk[len(half) :]
    ours, theirs = tokenizer.decode(chunk, clean_up_tokenization_spaces=False), _detokenize(model, url, chunk)
    return MismatchError(
        f"student and teacher server use different vocabularies: {chunk[0]} is {ours!r} for the student and "
        f"{theirs!r} for the server; choose a student and a teacher of one model family, or use TRL's GOLD trainer, "
        "which distills across tokenizers"
    )
