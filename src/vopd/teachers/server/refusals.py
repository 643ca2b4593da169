"""Reads what went wrong with a request: a connection that failed, or an answer that is no answer."""

from __future__ import annotations

import html
import json
import math
import re
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from socket import gaierror
from typing import Any
from urllib.parse import urljoin, urlsplit

from vopd.errors import TeacherServerError, causes, one_line, shortened
from vopd.network import Proxy, is_here

from .questions import BadAnswer

_READ = 1 << 16
# The server is starting, overloaded or being replaced, as most of the statuses from 500: worth another attempt.
_TRANSIENT = frozenset({408, 425, 429})
_NOT_TRANSIENT = frozenset({501, 505})
_ADVICE = {
    403: "it, or a gateway before it, does not let this machine or this key in",
    404: "it is not vLLM's, or teacher_server_url has a wrong path",
    429: "it allows fewer requests; try again later",
    500: "its log says why",
    502: "a gateway answers, but the server behind it is starting or down; try again later",
    503: "it is starting or overloaded; try again later",
    504: "a gateway answers, but the server behind it does not; try again later",
}
# By the code of OpenSSL; else the authority is not known here.
_CERTIFICATES = {
    9: "correct the clock of this machine",
    10: "renew it on the server",
    62: "write the host name that it is for into teacher_server_url",
    64: "write the host name that it is for into teacher_server_url",
}
_UNKNOWN_AUTHORITY = "if you trust it, set SSL_CERT_FILE to a PEM file that holds it, or its authority's"


class Rejected(TeacherServerError):
    """The server refuses the request for good; ``status`` is the HTTP status of its response."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(BadAnswer):
    """No whole response. ``fix`` is what may help; empty if a server on this machine is to be started."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


@dataclass(frozen=True)
class Reply:
    """A response with its status, headers and content, and the key that was sent, which it may quote."""

    status: int
    headers: Mapping[str, str]
    content: bytes | bytearray
    key: str = field(default="", repr=False)

    @property
    def page(self) -> str | None:
        """The title of a web page; None if it is something else."""
        start = self.content[:4096].decode(errors="replace").lstrip()
        if not re.match(r"<(!doctype\s+html|html|head|body)\b", start, re.IGNORECASE):
            return None
        title = re.search(r"<title[^>]*>(.*?)</title", start, re.IGNORECASE | re.DOTALL)
        return html.unescape(title[1]).strip() if title else "without a title"

    @property
    def said(self) -> str:
        """The server's error message, or the first line of the content, shortened and without control characters."""
        if self.page is not None:
            return f"a web page, {shortened(self.page, self.key)!r}"
        text: Any = self.content[:_READ].decode(errors="replace")
        with suppress(ValueError, AttributeError, RecursionError):
            found = json.loads(text)
            text = found.get("error") or found
            text = text.get("message") or text.get("detail") or text
        first = next((line for line in str(text).splitlines() if line.strip()), "")
        return shortened(first, self.key) or "no message"

    @property
    def wait(self) -> float:
        """Seconds until another attempt is welcome, by Retry-After; 0 if it does not say."""
        given = self.headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,9}", given):
            return float(given)
        with suppress(ValueError, TypeError):
            return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
        return 0.0


def refusal(reply: Reply, url: str, path: str, key_name: str, proxy: Proxy | None) -> Exception:
    """The error that a response with another status than 200 stands for: BadAnswer if a retry may help."""
    status, through = reply.status, "" if proxy is None else f" (through the proxy {proxy})"
    said = reply.said
    if status == 401 and not reply.key:
        return TeacherServerError(
            f"the teacher server {url} requires an API key (status 401: {said}); set the environment variable "
            f"{key_name}, or name another one with teacher_server_key_env"
        )
    if status == 401:
        return TeacherServerError(
            f"the teacher server {url} does not accept the API key in {key_name} (status 401: {said}); set it to the "
            "key that the server was started with"
        )
    if status == 407 and proxy is not None:
        return TeacherServerError(f"{proxy_refuses(url, proxy)} (status 407: {said})")
    if 300 <= status < 400 and "location" in reply.headers:
        return Rejected(
            f"the teacher server {url} answers with status {status} and {_redirection(reply, url, path)}", status
        )
    if status in _TRANSIENT or (status >= 500 and status not in _NOT_TRANSIENT):
        asks = f" (it asks to wait {math.ceil(reply.wait)} s)" if reply.wait else ""
        return BadAnswer(f"status {status}{through}: {said}{asks}", status, reply.wait)
    return Rejected(f"the teacher server {url} refuses with status {status}{through}: {said}", status)


def advice(status: int) -> str:
    """What may help where a server answers the first request with a status."""
    return _ADVICE.get(status, "if it is not vLLM's, correct teacher_server_url")


def _redirection(reply: Reply, url: str, path: str) -> str:
    """Where a response redirects to, without its query, and what to do about it. It is not followed: the key is for the
    named server alone."""
    target = urlsplit(urljoin(url + path, reply.headers.get("location", "")))
    where = shortened(f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path}", reply.key)
    if not where.endswith(path):
        return f"redirects to {where}: a login or another page, not a model server; correct teacher_server_url"
    base = where.removesuffix(path)
    what = "the same address with https" if url.startswith("http:") and base == _other(url) else where
    return f"redirects to {what}; if you trust it, set teacher_server_url to {base}"


def unanswered(error: Exception, url: str, proxy: Proxy | None, key: str) -> Exception:
    """The error that a failed connection stands for: Unreachable if a retry may help, else TeacherServerError."""
    chain, host = list(causes(error)), urlsplit(url).hostname
    of = {type(cause).__name__: cause for cause in chain}
    text = shortened(one_line(error), key).rstrip(".")
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            fix = _CERTIFICATES.get(cause.verify_code, _UNKNOWN_AUTHORITY)
            return TeacherServerError(
                f"the certificate of {url} is not accepted ({cause.verify_message.rstrip('.')}); {fix}"
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return TeacherServerError(
                f"{url} does not speak TLS ({cause.reason}); try teacher_server_url={_other(url)}"
            )
    if proxy is not None and ("ProxyError" in of or "ConnectError" in of or "ConnectTimeout" in of):
        if "407" in text:
            return TeacherServerError(proxy_refuses(url, proxy))
        return Unreachable(f"{text}, by the proxy {proxy}", f"correct {proxy.variable}, or add {host} to NO_PROXY")
    through = "" if proxy is None else f", through the proxy {proxy}"
    if any(isinstance(cause, gaierror | UnicodeError) for cause in chain):  # the latter of a name that cannot be one
        return Unreachable(f"the host name {host!r} is not known: {text}", "correct teacher_server_url")
    if any(name.endswith("Timeout") for name in of):
        text = f"no response in time: {text}"
    elif "illegal status line" in text or "illegal request line" in text:
        other = f"try teacher_server_url={_other(url)}, or correct the port"
        return TeacherServerError(f"{url}{through} does not speak HTTP ({text}); {other}")
    elif "DecodingError" in of:
        return BadAnswer(f"the response cannot be decompressed{through}: {text}")
    fix = "" if is_here(url) else "check that it runs there and that this machine may reach its port"
    if any(sign in text for sign in ("disconnected", "reset", "peer closed", "UNEXPECTED_EOF")):
        fix = f"something listens there, but not for this: read its log, or try teacher_server_url={_other(url)}"
    return Unreachable(text + through, fix)


def proxy_refuses(url: str, proxy: Proxy) -> str:
    """The message for a proxy that wants a password."""
    return (
        f"the proxy {proxy} requires a user name and a password for {url}; write http://name:password@host:port into "
        f"{proxy.variable}, or add {urlsplit(url).hostname} to NO_PROXY"
    )


def _other(url: str) -> str:
    """An address with https instead of http, and the other way round."""
    scheme, _, rest = url.partition("://")
    return f"{'http' if scheme == 'https' else 'https'}://{rest}"
