"""Does a server's tokenizer mean the same thing by every id as the student's? Asked over /detokenize and /tokenize."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vopd.errors import MismatchError, TeacherServerError

from .client import Refused, Servers

_CHUNK = 2048


def check_vocabulary(servers: Servers, url: str, model: str, tokenizer: Any) -> int | None:
    """Compare every real id of the student's tokenizer with the server's, in chunks.

    A chunk of ids must become the same text on both sides, and its text the same ids. The second half tells apart
    what the first cannot: ids of single bytes, which are no text on their own.

    Returns:
        The number of ids compared; None where the server has no such addresses.

    Raises:
        MismatchError: an id stands for different text, or a text for different ids.
    """
    ids = sorted(tokenizer.get_vocab().values())
    for chunk in _chunks(ids):
        text = servers_text(servers, url, model, chunk)
        if text is None:
            return None
        if not _reads(tokenizer, chunk, text):
            raise _mismatch(_first_difference(servers, url, model, tokenizer, chunk), tokenizer)
        encoded = _ids(servers, url, model, text)
        if encoded is not None and encoded != tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
            raise MismatchError(
                f"student and teacher server use different vocabularies: both read ids {chunk[0]} to {chunk[-1]} as "
                "the same text, but turn this text into different ids; choose a student and a teacher of one family"
            )
    return len(ids)


def servers_text(servers: Servers, url: str, model: str, ids: list[int]) -> str | None:
    """What the server reads `ids` as; None where it has no /detokenize."""
    try:
        return servers.ask("/detokenize", {"model": model, "tokens": ids}, lambda body: body["prompt"], url)
    except Refused as error:
        if _absent(error):
            return None
        raise MismatchError(
            f"the teacher server does not know all of the student's ids {ids[0]} to {ids[-1]} ({error}); choose a "
            "student and a teacher of one family"
        ) from error


def _ids(servers: Servers, url: str, model: str, text: str) -> list[int] | None:
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    try:
        return servers.ask("/tokenize", body, lambda found: list(found["tokens"]), url)
    except Refused:
        return None


def _absent(error: TeacherServerError) -> bool:
    return "status 404" in str(error) or "status 405" in str(error)


def _chunks(ids: list[int]) -> Iterator[list[int]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))


def _reads(tokenizer: Any, ids: list[int], text: str) -> bool:
    """Whether the student reads `ids` as `text`; tidying spaces up afterwards is a habit, not a vocabulary."""
    return text == _text(tokenizer, ids) or text == tokenizer.decode(ids)


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _first_difference(servers: Servers, url: str, model: str, tokenizer: Any, chunk: list[int]) -> tuple[int, str]:
    """The first id of a chunk that is read differently, by halves, and what the server reads it as."""
    while len(chunk) > 1:
        half = chunk[: len(chunk) // 2]
        differs = not _reads(tokenizer, half, servers_text(servers, url, model, half) or "")
        chunk = half if differs else chunk[len(half) :]
    return chunk[0], servers_text(servers, url, model, chunk) or ""


def _mismatch(found: tuple[int, str], tokenizer: Any) -> MismatchError:
    token, theirs = found
    return MismatchError(
        f"student and teacher server use different vocabularies: {token} is {_text(tokenizer, [token])!r} for the "
        f"student and {theirs!r} for the server; choose a student and a teacher of one family, or TRL's GOLD trainer, "
        "which distils across tokenizers"
    )
