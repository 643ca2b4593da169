"""The way to a server: directly, or through the proxy that the environment names, and with which certificates."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vopd.errors import ConfigurationError, installed

_PROXIES = ("http", "https", "socks5", "socks5h")
_CERTIFICATES = {
    "SSL_CERT_FILE": ("file", os.path.isfile, "cafile"),
    "SSL_CERT_DIR": ("folder", os.path.isdir, "capath"),
}


def is_here(url: str) -> bool:
    """Return whether an address is of this machine, to which no proxy may lead."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost") or host == socket.gethostname().lower()
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def bypass_proxies(url: str) -> None:
    """Let all libraries of this process reach an address of this machine directly; no effect on another address."""
    host = urlsplit(url).hostname
    if is_here(url) and host and not proxy_bypass(host):
        hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), host
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, hosts))


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


def check_certificates() -> None:
    """Raise ConfigurationError if SSL_CERT_FILE or SSL_CERT_DIR names no certificates; libraries do not name it."""
    named = next((name for name in _CERTIFICATES if os.environ.get(name)), None)
    if named is None:
        return
    place, (what, is_there, argument) = os.environ[named], _CERTIFICATES[named]
    if not is_there(place):
        raise ConfigurationError(f"{named} names no {what}: {place!r}; correct or unset it")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(**{argument: place})
    except OSError as error:  # as ssl.SSLError is
        raise ConfigurationError(f"{named}: {place!r} holds no certificates in PEM format ({error})") from error
