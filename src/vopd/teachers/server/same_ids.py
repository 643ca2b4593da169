"""Checks through /detokenize and /tokenize that every token id is the same for a server and for the student."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vopd.errors import MismatchError
from vopd.models import CommonVocabulary, vocabulary_size
from vopd.models.vocabulary import cut_vocabulary

from .refusals import Rejected
from .served import ServedModel

_CHUNK = 2048


def check_vocabulary(
    model: ServedModel, url: str, tokenizer: Any, ends: Collection[int] = ()
) -> CommonVocabulary | None:
    """Compare every id of the student's tokenizer with the server's, in chunks.

    A chunk of ids must decode to the same text on both sides, and its text must encode to the same ids. The second
    check catches what the first cannot: ids of single bytes, which are not text on their own. It is skipped if the
    server has no /tokenize. Added tokens of the student at the end, which the server does not have, are left out.

    Args:
        model: the model on its servers.
        url: the server.
        tokenizer: the student's tokenizer.
        ends: the student's end ids besides the tokenizer's.

    Returns:
        The ids that are the same; None if its /detokenize cannot be used.

    Raises:
        MismatchError: an id decodes to different text, or a text encodes to different ids.
    """
    ids, common, start = sorted(tokenizer.get_vocab().values()), CommonVocabulary(vocabulary_size(tokenizer)), 0
    while chunk := ids[start : start + _CHUNK]:
        text, _ = _asked(model, url, chunk)
        if text is None:
            return None
        if not _reads(tokenizer, chunk, text):
            common = _cut(model, url, tokenizer, chunk, ends)
            ids = [token for token in ids if token < common.size]
            continue
        start += _CHUNK
        try:
            encoded = model.encoded(text, url)
        except Rejected:
            continue
        if encoded != tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
            raise MismatchError(
                f"student and teacher server use different vocabularies: both decode ids {chunk[0]} to {chunk[-1]} to "
                "the same text, but encode this text to different ids; choose a student and a teacher of one model "
                "family"
            )
    return common


def _asked(model: ServedModel, url: str, ids: list[int]) -> tuple[str | None, str]:
    """The text to which the server decodes `ids`, or the empty text and why it refuses them; None if /detokenize cannot
    be used."""
    try:
        return model.decoded(ids, url), ""
    except Rejected as error:
        # Other statuses refuse the path, whatever the ids: it is not there, or a gateway does not let it through.
        return ("", str(error)) if error.status in {400, 422} else (None, "")


def _reads(tokenizer: Any, ids: list[int], text: str | None) -> bool:
    """Whether the student decodes `ids` to `text`, with or without cleaning up spaces."""
    return text in (tokenizer.decode(ids, clean_up_tokenization_spaces=False), tokenizer.decode(ids))


def _cut(model: ServedModel, url: str, tokenizer: Any, chunk: list[int], ends: Collection[int]) -> CommonVocabulary:
    """The vocabulary up to the first id of the chunk that the server decodes differently, found by bisection.

    Raises:
        MismatchError: that id is an ordinary token.
    """
    while len(chunk) > 1:
        half = chunk[: len(chunk) // 2]
        differs = not _reads(tokenizer, half, _asked(model, url, half)[0])
        chunk = half if differs else chunk[len(half) :]
    ours, (theirs, refusal) = tokenizer.decode(chunk, clean_up_tokenization_spaces=False), _asked(model, url, chunk)
    found = cut_vocabulary(tokenizer, chunk[0], "not the same on the server", {*ends, tokenizer.eos_token_id})
    if found is None:
        raise MismatchError(
            f"student and teacher server use different vocabularies: {chunk[0]} is {ours!r} for the student and "
            f"{refusal or repr(theirs)} for the server; choose a student and a teacher of one model family, or use "
            "TRL's GOLD trainer, which distills across tokenizers"
        )
    return found
