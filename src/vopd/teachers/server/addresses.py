"""Addresses of teacher servers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from vopd.errors import ConfigurationError

# Endpoints that are often copied together with the address.
_ENDPOINT = re.compile(r"(/v1)?(/models|/completions|/chat/completions|/pooling)?$")


def checked_urls(urls: str | Sequence[str]) -> tuple[str, ...]:
    """Server addresses without a trailing slash, /v1, or an endpoint below it.

    Raises:
        ConfigurationError: one is not an http(s) address, or contains a password or a key; neither is shown.
    """
    found = []
    for url in urls if isinstance(urls, list | tuple) else [urls]:
        text = str(url).strip()
        shown = re.split(r"[?#]", text)[0].rpartition("@")[2]
        try:
            parts = urlsplit(text)
            known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:  # a port or an IPv6 address that is none
            known = False
        if not known or re.search(r"\s", text):
            raise ConfigurationError(f"teacher_server_url {shown!r} is not an address; write http://host:8001")
        if "@" in parts.netloc or parts.query:
            what = "a password" if "@" in parts.netloc else "a query (after the ?)"
            raise ConfigurationError(
                f"teacher_server_url contains {what}, which would end up in logs; give the address alone, and put "
                "a key into the environment variable that teacher_server_key_env names"
            )
        path = parts.path.rstrip("/")
        found.append(f"{parts.scheme}://{parts.netloc}{_ENDPOINT.sub('', path)}")
    if not found:
        raise ConfigurationError("teacher_server_url is empty; give one or several addresses")
    return tuple(dict.fromkeys(found))
