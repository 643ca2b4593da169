"""Keeps access keys, tokens and passwords out of messages and files."""

from __future__ import annotations

import os
import re

HIDDEN = "[hidden]"
_NAME = re.compile(r"(^|_)(token|key|secret|password)$", re.IGNORECASE)
# Shorter values are placeholders such as "EMPTY", and may be parts of other words.
_SHORTEST, _SHORTEST_KNOWN = 8, 4
# What is a secret by its place, whatever its value.
_PLACES = (
    (re.compile(r"([?&][\w-]*(?:token|key|secret|password|signature)=)[^&\s'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(r"(authorization['\"]?\s*[:=]\s*b?['\"]?(?:[\w-]+\s+)?)[^\s'\",;}\\]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(bearer\s+)(?=[^\s'\"]*[\d_-])[^\s'\",;}\\]{6,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), HIDDEN),
)
_PASSWORD = re.compile(r"(?<=://)[^/\s@'\"]+@")


def is_secret(name: str) -> bool:
    """Return whether a setting or an environment variable of this name holds a key, a token or a password."""
    return _NAME.search(name) is not None


def hidden(text: str, *known: str) -> str:
    """Return `text` without secrets, for text that comes from a library or a server.

    Left out are the values in `known`, those of environment variables whose names say that they hold a secret, and
    what stands where addresses and headers have one. A server may quote the headers that it was sent.
    """
    words = {word for word in known if len(word) >= _SHORTEST_KNOWN}
    for value in (value for name, value in os.environ.items() if is_secret(name)):
        found = (word.strip("'\"") for word in value.split())
        # A path leads to a file with the key.
        words |= {word for word in found if len(word) >= _SHORTEST and not word.startswith(("/", "~", "."))}
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, HIDDEN)
    for place, instead in _PLACES:
        text = place.sub(instead, text)
    return without_passwords(text)


def without_passwords(text: str) -> str:
    """Return `text` without the user names and passwords of the addresses in it."""
    return _PASSWORD.sub("", text)
