"""Requests to teacher servers: balanced over their addresses, limited in number, retried within a deadline."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from vopd.errors import TeacherServerError, counted, require, shortened
from vopd.network import check_certificates, proxy_of

from .addresses import checked_urls
from .keys import read_key
from .questions import BadAnswer, Binary, Request
from .refusals import Rejected, Reply, Unreachable, advice, refusal, unanswered

T = TypeVar("T")

# Most bytes of a list of models, and of scores.
_MODELS, _SCORES = 1 << 22, 1 << 30


@dataclass(frozen=True)
class Patience:
    """Timeouts and retries of requests.

    Attributes:
        timeout: seconds that one attempt may take.
        deadline: seconds for all attempts of one request.
        retries: attempts after the first.
        pause: seconds before the first retry; doubled with each retry, times a random number from 0.5 to 1.5.
        longest_pause: largest pause in seconds, before that random number.
    """

    timeout: float = 120.0
    deadline: float = 600.0
    retries: int = 8
    pause: float = 0.5
    longest_pause: float = 30.0


class Servers:
    """One or several servers of the same model.

    Args:
        urls: their addresses.
        key_env: name of the environment variable with the API key; sent only if it is set, and never shown.
        concurrency: concurrent requests, over all addresses.
        patience: timeouts and retries.

    Attributes:
        close: stops all requests; connections close when the last pending response has arrived or failed. Called
            automatically when nothing refers to the servers any more.
        whole: the servers that these are some of; their connections close with the last reference to it.
        counts: requests, retries, bytes, and the seconds of all requests so far.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        key_env: str = "TEACHER_API_KEY",
        concurrency: int = 32,
        patience: Patience | None = None,
    ) -> None:
        self._httpx = require("httpx", "server")
        self.urls = checked_urls(urls)
        self.whole: Servers | None = None
        self.patience = patience or Patience()
        self._key, self._key_env = read_key(key_env), key_env
        self._proxies = {url: proxy_of(url) for url in self.urls}
        self._client = self._opened(concurrency)
        self._free = threading.Semaphore(concurrency)
        self._random = random.Random()  # its own: the random numbers of training must not depend on failures
        self._lock = threading.Lock()
        self._under_way = dict.fromkeys(self.urls, 0)
        self._failed_at = dict.fromkeys(self.urls, -math.inf)
        self._closed = threading.Event()
        self.close = weakref.finalize(self, _give_up, self._closed, self._client, self._lock, self._under_way)
        self.counts = {"requests": 0.0, "retries": 0.0, "bytes_sent": 0.0, "bytes_received": 0.0, "seconds": 0.0}

    def _opened(self, concurrency: int) -> Any:
        """The client: without redirections, which would take the key elsewhere, and with the chosen proxies only."""
        proxied = {url: proxy.url for url, proxy in self._proxies.items() if proxy is not None}
        tls = any(address.startswith("https:") for address in (*self.urls, *proxied.values()))
        if tls:
            check_certificates()
        # Without TLS no certificate is checked, and a wrong SSL_CERT_FILE must not be in the way.
        verify = self._httpx.create_ssl_context() if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        limits = self._httpx.Limits(max_connections=None, max_keepalive_connections=concurrency)
        transport = partial(self._httpx.HTTPTransport, verify=verify, limits=limits)
        return self._httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self.patience.timeout,
            transport=transport(),
            mounts={url: transport(proxy=proxy) for url, proxy in proxied.items()},
            trust_env=False,
            follow_redirects=False,
        )

    def only(self, urls: Sequence[str]) -> Servers:
        """The same servers, whose requests go to these addresses alone."""
        part = copy.copy(self)
        part.urls, part.whole = tuple(urls), self
        return part

    def background(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in a thread, as many at a time as requests may be; the future holds its result or error.

        Threads of an executor would be waited for at the end of the process: a request that no server answers would
        hold up a process that was interrupted, or that ends with an error.
        """
        future: Future[T] = Future()
        threading.Thread(target=_run, args=(future, work, self._free, self._closed), daemon=True).start()
        return future

    def ask(self, request: Request, read: Callable[[Any], T], url: str | None = None, retries: int | None = None) -> T:
        """Send a request and return the result of `read`. If `read` raises BadAnswer, the request is retried.

        Args:
            request: the request.
            read: turns the parsed JSON, or the ``Binary`` response, into the result.
            url: the server to ask; None for the least busy one, chosen again for every attempt.
            retries: attempts after the first; None for those of the patience.

        Raises:
            Rejected: the server refuses the request.
            TeacherServerError: no usable response within the deadline and the number of attempts, or a key is missing.
        """
        patience, ends = self.patience, time.monotonic() + self.patience.deadline
        retries = patience.retries if retries is None else retries
        for attempt in range(retries + 1):
            where = url or self._least_busy()
            try:
                return self._attempt(where, request, read, ends)
            except BadAnswer as error:
                problem, self._failed_at[where] = error, time.monotonic()
            pause = min(patience.pause * 2**attempt, patience.longest_pause) * self._random.uniform(0.5, 1.5)
            if url is not None or len(self.urls) == 1:  # or else another server may answer sooner
                pause = max(pause, problem.wait)
            late = time.monotonic() + pause + min(pause, 1.0) > ends  # an attempt without time would hide what is wrong
            if attempt == retries or late or self._closed.wait(pause):
                raise TeacherServerError(
                    f"the teacher server {where} gave no usable response in {counted(attempt + 1, 'attempt')}: "
                    f"{problem}; check its log, or raise teacher_server_retries and teacher_server_deadline"
                ) from problem
            with self._lock:
                self.counts["retries"] += 1
        raise AssertionError("unreachable")

    def models(self, url: str) -> list[Listed]:
        """The models at an address. Does not retry.

        Raises:
            TeacherServerError: no model server answers there, or it requires a key.
        """
        try:
            seconds = min(10.0, self.patience.timeout)
            return self._attempt(url, Request("/v1/models"), _listed, time.monotonic() + seconds)
        except Unreachable as error:
            port = self._httpx.URL(url).port or 80
            here = f"start one with vllm serve TEACHER --host 127.0.0.1 --port {port}, or correct teacher_server_url"
            raise TeacherServerError(f"no teacher server responds at {url} ({error}); {error.fix or here}") from error
        except BadAnswer as error:
            raise TeacherServerError(
                f"{url}/v1/models gives no usable response: {error}; {advice(error.status)}"
            ) from error
        except Rejected as error:
            fix = "" if 300 <= error.status < 400 else f"; {advice(error.status)}"
            raise Rejected(f"{error}{fix}", error.status) from error

    def _attempt(self, url: str, request: Request, read: Callable[[Any], T], ends: float) -> T:
        """One attempt. Raises BadAnswer if a retry may help."""
        with self._lock:
            if self._closed.is_set():
                raise BadAnswer("given up")
            self._under_way[url] += 1
            self.counts["requests"] += 1
        began = time.monotonic()
        try:
            reply = self._exchange(url, request, ends)
        except (self._httpx.HTTPError, self._httpx.StreamError, self._httpx.InvalidURL, OSError, ValueError) as error:
            raise unanswered(error, url, self._proxies[url], self._key) from error
        finally:
            with self._lock:
                self.counts["seconds"] += time.monotonic() - began
                self._under_way[url] -= 1
                if self._closed.is_set():
                    _close_unused(self._client, self._under_way)
        if reply.status != 200:
            raise refusal(reply, url, request.path, self._key_env, self._proxies[url])
        return self._read(reply, read, request.room is not None)

    def _read(self, reply: Reply, read: Callable[[Any], T], binary: bool) -> T:
        """What `read` makes of a response. Errors have no cause, which could show a key that the server quotes."""
        try:
            if binary and "metadata" not in reply.headers:
                raise BadAnswer(f"the response has no metadata header, which describes bytes; it is {_kind(reply)}")
            if binary:
                return read(Binary(json.loads(reply.headers["metadata"]), memoryview(reply.content)))
            return read(json.loads(reply.content))
        except BadAnswer as error:
            why = shortened(error, self._key)
        except RecursionError:
            why = "the response is nested too deeply"
        except json.JSONDecodeError:
            what = "has metadata that are not JSON" if binary else f"is not JSON: {reply.said}"
            why = f"the response {what if reply.page is None else f'is {reply.said}'}"
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = f"{type(error).__name__}: {shortened(error, self._key)}"
            why = f"the response has an unexpected form ({what})" + ("" if binary else f": {reply.said}")
        raise BadAnswer(why, reply.status)

    def _exchange(self, url: str, request: Request, ends: float) -> Reply:
        """The whole response, which must be complete in time: httpx's timeout only limits silence."""
        seconds = max(0.001, min(self.patience.timeout, ends - time.monotonic()))
        latest = time.monotonic() + seconds
        body = None if request.body is None else json.dumps(request.body).encode()
        method, headers = "GET" if body is None else "POST", {"Content-Type": "application/json"}
        if request.room is not None:  # a part that grows when it is decompressed could be larger than the room
            headers["Accept-Encoding"] = "identity"
        with self._client.stream(method, url + request.path, content=body, headers=headers, timeout=seconds) as answer:
            held = _Held(request, answer.status_code == 200 and "metadata" in answer.headers)
            for part in answer.iter_bytes():
                fits = held.add(part)
                if time.monotonic() > latest:
                    raise BadAnswer(f"no complete response within {seconds:.3g} s")
                if not fits and answer.status_code != 200:
                    break  # its beginning has the message
                if not fits:
                    raise BadAnswer(f"the response is too long, more than {held.room} bytes", answer.status_code)
            with self._lock:
                self.counts["bytes_sent"] += len(body or b"")
                self.counts["bytes_received"] += answer.num_bytes_downloaded
            return Reply(answer.status_code, answer.headers, held.content, self._key)

    def failed_since(self, moment: float) -> bool:
        """Whether a request failed after a moment of ``time.monotonic``: a server may have been restarted."""
        return max(self._failed_at.values()) >= moment

    def _least_busy(self) -> str:
        """The server with the fewest pending requests; those that failed in the last minute come last."""
        recently = time.monotonic() - 60
        with self._lock:
            return min(self.urls, key=lambda url: (self._failed_at[url] > recently, self._under_way[url]))


class _Held:
    """A response as it arrives: a binary one, which has metadata, in a buffer of the size that it must have."""

    def __init__(self, request: Request, described: bool) -> None:
        self._whole = bytearray(request.room) if request.room is not None and described else None
        self._parts: list[bytes] = []
        self._length = 0
        small = request.body is None or request.room is not None  # a list of models, or what is not binary
        self.room = len(self._whole) if self._whole is not None else _MODELS if small else _SCORES

    def add(self, part: bytes) -> bool:
        """Whether there was room for the part."""
        start, self._length = self._length, self._length + len(part)
        if self._length > self.room:
            return False
        if self._whole is None:
            self._parts.append(part)
        else:
            self._whole[start : self._length] = part
        return True

    @property
    def content(self) -> bytes | bytearray:
        """What has arrived."""
        if self._whole is None:
            return b"".join(self._parts)
        del self._whole[self._length :]
        return self._whole


@dataclass(frozen=True)
class Listed:
    """A model that a server lists.

    Attributes:
        name: its name there.
        length: longest sequence; None if not reported.
        owner: who serves it: "vllm", "sglang", ...; empty if not reported.
        path: from where the server has loaded it, or its name; None if not reported.
        base: for an adapter, the name of the model that it belongs to.
    """

    name: str
    length: int | None = None
    owner: str = ""
    path: str | None = None
    base: str | None = None


def _kind(reply: Reply) -> str:
    """The type of a response; with what it says, if it is text."""
    kind = reply.headers.get("content-type", "of no type").partition(";")[0]
    return f"{kind}: {reply.said}" if re.search("text|html|json", kind) else kind


def _run(future: Future[T], work: Callable[[], T], free: threading.Semaphore, closed: threading.Event) -> None:
    with free:
        try:
            if closed.is_set():
                raise TeacherServerError("requests to the teacher servers ended with an error before; start again")
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


def _give_up(
    closed: threading.Event,
    client: Any,
    lock: threading.Lock,
    under_way: dict[str, int],
) -> None:
    with lock:
        closed.set()
        _close_unused(client, under_way)


def _close_unused(client: Any, under_way: dict[str, int]) -> None:
    """Close the connections once no request is pending: a connection that opens later would stay open."""
    if not any(under_way.values()):
        client.close()


def _listed(body: Any) -> list[Listed]:
    if not body["data"]:
        raise BadAnswer("it lists no models", 200)
    return [_entry(entry) for entry in body["data"]]


def _entry(entry: Any) -> Listed:
    length, path, base = (entry.get(part) for part in ("max_model_len", "root", "parent"))
    return Listed(
        str(entry["id"]),
        length if type(length) is int else None,
        str(entry.get("owned_by") or ""),
        path if isinstance(path, str) else None,
        base if isinstance(base, str) else None,
    )
