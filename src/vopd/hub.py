"""What the Hugging Face Hub refuses, or the way to it, on one line."""

from __future__ import annotations

import os
import re
from traceback import walk_tb

from vopd.errors import ConfigurationError, causes, first_line, shortened
from vopd.network import check_certificates, proxy_of

# Packages that make requests.
_CLIENTS = {"httpx", "httpx2", "requests", "urllib3"}
# Of which the libraries say what the hub does not have.
_MISSING = {"RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError", "DatasetNotFoundError"}
_NO_HUB = "what answers is not the hub; correct HF_ENDPOINT, or log in to the network first"
_LOG_IN = "log in with `hf auth login`"


def is_refusal(error: Exception) -> bool:
    """Return whether an error comes from a request that failed: by where it was raised, as it may be of any type."""
    frames = (frame for cause in causes(error) for frame, _ in walk_tb(cause.__traceback__))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] in _CLIENTS for frame in frames)


def hub_refusal(error: Exception) -> str:
    """Return why a request to the Hub failed, and what to do about it, without secrets.

    Errors of transformers and datasets often say only that there is no connection; the cause has the status.
    """
    chain = list(causes(error))
    missing = any(type(cause).__name__ in _MISSING for cause in chain)
    for cause in chain:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status == 404 and not missing:
            return f"status 404: {_NO_HUB}"
        if isinstance(status, int) and status != 404:
            said = getattr(cause, "server_message", None) or str(cause)
            said = shortened(re.split(r"\(Request ID|For more information", said)[0])
            return f"the hub answers with status {status}: {said}; {_fix(status, type(cause).__name__)}"
    if any("not seem to be served by a Hugging Face Hub" in str(cause) for cause in chain):
        return _NO_HUB
    if missing or not is_refusal(error):
        return first_line(error).rstrip(".")
    if any(type(cause).__name__ == "JSONDecodeError" for cause in chain):
        return _NO_HUB
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        check_certificates()
        proxy = proxy_of(endpoint)
    except ConfigurationError as wrong:
        return str(wrong)
    through = "" if proxy is None else f", through the proxy {proxy}"
    last = next((cause for cause in reversed(chain) if str(cause).strip()), error)
    return f"{first_line(last).rstrip('.')}{through}"


def _fix(status: int, kind: str) -> str:
    if kind == "GatedRepoError":
        return f"accept its conditions on its page there, and {_LOG_IN}"
    if status == 401 and os.environ.get("HF_TOKEN"):
        return "correct or unset HF_TOKEN"
    if status in (401, 403):
        return f"{_LOG_IN}, with a token that may do this"
    if status == 429:
        return f"wait some minutes, or {_LOG_IN} for a higher limit"
    return "try again later"
