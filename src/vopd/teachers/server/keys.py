"""The API key of a teacher server: only ever in an environment variable, and in no message."""

from __future__ import annotations

import os
import re

from vopd.errors import ConfigurationError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Words of capitals with underscores between them: no key looks like this.
_USUAL = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


def check_key_name(name: str) -> None:
    """Raise ConfigurationError if `name` is not the name of an environment variable, without showing it.

    A key put here by mistake would be written into the run's files. It may look like a name (``hf_...``), but is the
    name of no variable.
    """
    if not _USUAL.fullmatch(name) and not (_VARIABLE.fullmatch(name) and name in os.environ):
        raise ConfigurationError(
            "teacher_server_key_env is not the name of an environment variable, such as TEACHER_API_KEY (its value is "
            "not shown, it may be a key); put the key into that variable, and its name here"
        )


def read_key(name: str) -> str:
    """Return the key in the environment variable `name`; empty if there is none.

    Blanks and line ends around it are dropped, and the word Bearer, which the client sends itself.

    Raises:
        ConfigurationError: `name` is no variable's name, or no header can hold the key. The message does not show it.
    """
    check_key_name(name)
    key = re.sub(r"^bearer\s+", "", os.environ.get(name, "").strip(), flags=re.IGNORECASE)
    if len(key) > 1 and key[0] == key[-1] and key[0] in "'\"":
        raise ConfigurationError(f"the key in {name} has quotation marks around it; remove them")
    wrong = next((place for place, letter in enumerate(key) if not "!" <= letter <= "~"), None)
    if wrong is not None:
        kind = "a blank or control character" if key[wrong] <= " " or key[wrong] == "\x7f" else "not ASCII"
        raise ConfigurationError(
            f"character {wrong + 1} of the key in {name} is {kind}, which no key has; set {name} to the key alone"
        )
    return key
