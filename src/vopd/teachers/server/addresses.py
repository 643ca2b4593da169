"""Addresses of servers, and the way to them: directly, or through the proxy that the environment names."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vopd.errors import ConfigurationError, installed

# Endpoints that are often copied together with the address.
_ENDPOINT = re.compile(r"(/v1)?(/models|/completions|/chat/completions)?$")
_PROXIES = ("http", "https", "socks5", "socks5h")


def checked_urls(urls: str | Sequence[str], setting: str = "teacher_server_url") -> tuple[str, ...]:
    """Server addresses without a trailing slash, /v1, or an endpoint below it.

    Args:
        urls: one or several addresses.
        setting: their name in errors.

    Raises:
        ConfigurationError: one is not an http(s) address, or contains a password or a key; neither is shown.
    """
    found = []
    for url in [urls] if isinstance(urls, str) else urls:
        text = str(url).strip()
        shown = re.split(r"[?#]", text)[0].rpartition("@")[2]
        try:
            parts = urlsplit(text)
            known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:  # a port or an IPv6 address that is none
            known = False
        if not known or re.search(r"\s", text):
            raise ConfigurationError(f"{setting} {shown!r} is not an address; write http://host:8001")
        if "@" in parts.netloc or parts.query:
            what = "a password" if "@" in parts.netloc else "a query (after the ?)"
            raise ConfigurationError(
                f"{setting} contains {what}, which would end up in logs; give the address alone, and put a key into "
                "the environment variable that teacher_server_key_env names"
            )
        path = parts.path.rstrip("/")
        found.append(f"{parts.scheme}://{parts.netloc}{_ENDPOINT.sub('', path)}")
    if not found:
        raise ConfigurationError(f"{setting} is empty; give one or several addresses")
    return tuple(dict.fromkeys(found))


def is_here(url: str) -> bool:
    """Return whether an address is of this machine, to which no proxy may lead."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost") or host == socket.gethostname().lower()
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


@dataclass(frozen=True)
class Proxy:
    """A proxy.

    Attributes:
        url: its address, with a password if it has one.
        variable: the environment variable that names it.
    """

    url: str
    variable: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} ({self.variable})"


def proxy_of(url: str) -> Proxy | None:
    """Return the proxy that the environment names for an address; None for an address of this machine.

    Raises:
        ConfigurationError: its address cannot be used; the message names the variable.
    """
    parts = urlsplit(url)
    if is_here(url) or proxy_bypass(parts.netloc):
        return None
    named = getproxies()
    scheme = next((scheme for scheme in (parts.scheme, "all") if named.get(scheme)), None)
    if scheme is None:
        return None
    variables = (f"{scheme}_proxy", f"{scheme}_PROXY", f"{scheme}_proxy".upper())
    variable = next((name for name in variables if os.environ.get(name)), "the system's settings")
    proxy = Proxy(named[scheme] if "://" in named[scheme] else f"http://{named[scheme]}", variable)
    _check(proxy, parts.hostname)
    return proxy


def _check(proxy: Proxy, host: str | None) -> None:
    direct = f"or add {host} to NO_PROXY"
    try:
        parts = urlsplit(proxy.url)
        usable = parts.scheme in _PROXIES and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        raise ConfigurationError(
            f"{proxy.variable} is not the address of a proxy; write http://host:port, {direct}"
        ) from None
    if parts.scheme == "socks":
        raise ConfigurationError(f"{proxy}: write socks5:// instead of socks://, which is not known here, {direct}")
    if not usable:
        raise ConfigurationError(f"{proxy} is not the address of a proxy; write http://host:port, {direct}")
    if parts.scheme.startswith("socks") and not installed("socksio"):
        raise ConfigurationError(
            f"{proxy} is a SOCKS proxy, for which a package is missing; run pip install 'httpx[socks]', {direct}"
        )


def certificates(httpx: Any) -> ssl.SSLContext:
    """Return what checks the certificates of servers: as SSL_CERT_FILE or SSL_CERT_DIR says, or the usual authorities.

    Raises:
        ConfigurationError: the variable names no such file or folder, or no certificates are in it.
    """
    named = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
    if named is not None:
        place = os.environ[named]
        if not (os.path.isfile(place) if named == "SSL_CERT_FILE" else os.path.isdir(place)):
            what = "file" if named == "SSL_CERT_FILE" else "folder"
            raise ConfigurationError(f"{named} names no {what}: {place!r}; correct or unset it")
    try:
        context: ssl.SSLContext = httpx.create_ssl_context()
    except OSError as error:  # as ssl.SSLError is
        raise ConfigurationError(
            f"{named}: {os.environ.get(named or '')!r} holds no certificates in PEM format ({error}); correct it"
        ) from error
    return context
