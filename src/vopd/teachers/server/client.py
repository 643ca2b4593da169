"""Requests to teacher servers: balanced over their addresses, limited in number, retried within a deadline."""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from vopd.errors import ConfigurationError, TeacherServerError, counted, require

from .vllm import Answer, BadAnswer, Question, Request, read, request_of

T = TypeVar("T")

# The server is starting, overloaded or being replaced: worth another attempt.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHOWN = 300


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


class Rejected(TeacherServerError):
    """The server refuses the request for good; ``status`` is the HTTP status of its response."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def checked_urls(urls: str | Sequence[str]) -> tuple[str, ...]:
    """Server addresses without a trailing slash or /v1.

    Raises:
        ConfigurationError: one is not an http(s) address, or contains a password.
    """
    found = []
    for url in [urls] if isinstance(urls, str) else urls:
        parts = urlsplit(str(url).strip())
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            shown = str(url).rpartition("@")[2]  # a password in front of it stays out of the message
            raise ConfigurationError(f"teacher_server_url {shown!r} is not an address; write http://host:8001")
        if "@" in parts.netloc:
            raise ConfigurationError(
                "teacher_server_url contains a password, which would end up in logs; put it into the environment "
                "variable that teacher_server_key_env names"
            )
        path = parts.path.rstrip("/").removesuffix("/v1")
        found.append(f"{parts.scheme}://{parts.netloc}{path}")
    if not found:
        raise ConfigurationError("teacher_server_url is empty; give one or several addresses")
    return tuple(dict.fromkeys(found))


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
        counts: requests, retries and bytes so far.
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
        self.patience = patience or Patience()
        self._key_env = key_env
        key = os.environ.get(key_env, "")
        self._client = self._httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self.patience.timeout,
            limits=self._httpx.Limits(max_connections=None, max_keepalive_connections=concurrency),
        )
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="teacher-server")
        self._random = random.Random()  # its own: the random numbers of training must not depend on failures
        self._lock = threading.Lock()
        self._under_way = dict.fromkeys(self.urls, 0)
        self._failed_at = dict.fromkeys(self.urls, -math.inf)
        self._closed = threading.Event()
        self.close = weakref.finalize(
            self, _give_up, self._closed, self._executor, self._client, self._lock, self._under_way
        )
        self.counts = {"requests": 0.0, "retries": 0.0, "bytes_sent": 0.0, "bytes_received": 0.0}

    def background(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in the pool of requests; the future holds its result or error."""
        return self._executor.submit(work)

    def ask(self, request: Request, read: Callable[[Any], T], url: str | None = None, retries: int | None = None) -> T:
        """Send a request and return the result of `read`. If `read` raises BadAnswer, the request is retried.

        Args:
            request: path and JSON body.
            read: turns the parsed JSON response into the result.
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
            if attempt == retries or time.monotonic() + pause > ends or self._closed.wait(pause):
                raise TeacherServerError(
                    f"the teacher server {where} gave no usable response in {counted(attempt + 1, 'attempt')}: "
                    f"{problem}; check its log, or raise teacher_server_retries and teacher_server_deadline"
                ) from problem
            with self._lock:
                self.counts["retries"] += 1
        raise AssertionError("unreachable")

    def models(self, url: str) -> dict[str, int | None]:
        """The models at an address, and the longest sequence of each if reported. Does not retry.

        Raises:
            TeacherServerError: no model server answers there, or it requires a key.
        """
        try:
            return self._attempt(url, ("/v1/models", None), _lengths, time.monotonic() + 10)
        except (BadAnswer, Rejected) as error:
            raise TeacherServerError(
                f"no teacher server responds at {url} ({error}); start one with vllm serve TEACHER --host 127.0.0.1 "
                f"--port {self._httpx.URL(url).port or 80}, or correct teacher_server_url"
            ) from error

    def _attempt(self, url: str, request: Request, read: Callable[[Any], T], ends: float) -> T:
        """One attempt. Raises BadAnswer if a retry may help."""
        with self._lock:
            if self._closed.is_set():
                raise BadAnswer("given up")
            self._under_way[url] += 1
            self.counts["requests"] += 1
        path, body = request
        try:
            status, content = self._exchange(url + path, None if body is None else json.dumps(body).encode(), ends)
        except (self._httpx.HTTPError, self._httpx.StreamError) as error:
            raise BadAnswer(_shortened(error) or type(error).__name__) from error
        finally:
            with self._lock:
                self._under_way[url] -= 1
                if self._closed.is_set():
                    _close_unused(self._client, self._under_way)
        if status in _TRANSIENT:
            raise BadAnswer(f"status {status}: {_message(content)}")
        if status == 401:
            raise TeacherServerError(
                f"the teacher server {url} requires an API key; set the environment variable {self._key_env}, or name "
                "another one with teacher_server_key_env"
            )
        if status != 200:
            raise Rejected(f"the teacher server {url} refuses with status {status}: {_message(content)}", status)
        try:
            return read(json.loads(content))
        except json.JSONDecodeError as error:
            raise BadAnswer("the response is not JSON") from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise BadAnswer(f"the response has an unexpected form ({type(error).__name__}: {error})") from error

    def _exchange(self, address: str, body: bytes | None, ends: float) -> tuple[int, bytes]:
        """Status and content of the response, which must be complete in time: httpx's timeout only limits silence."""
        seconds = max(0.001, min(self.patience.timeout, ends - time.monotonic()))
        latest, parts = time.monotonic() + seconds, []
        method, headers = "GET" if body is None else "POST", {"Content-Type": "application/json"}
        with self._client.stream(method, address, content=body, headers=headers, timeout=seconds) as answer:
            for part in answer.iter_bytes():
                parts.append(part)
                if time.monotonic() > latest:
                    raise BadAnswer(f"no complete response within {seconds:.0f} s")
            with self._lock:
                self.counts["bytes_sent"] += len(body or b"")
                self.counts["bytes_received"] += answer.num_bytes_downloaded
            return answer.status_code, b"".join(parts)

    def _least_busy(self) -> str:
        """The server with the fewest pending requests; those that failed in the last minute come last."""
        recently = time.monotonic() - 60
        with self._lock:
            return min(self.urls, key=lambda url: (self._failed_at[url] > recently, self._under_way[url]))


@dataclass(frozen=True)
class ServedModel:
    """A model on one or several servers.

    Attributes:
        servers: the servers.
        name: its name there.
        vocab_size: size of the vocabulary; larger ids are padding rows of the output head.
    """

    servers: Servers
    name: str
    vocab_size: int | None = None

    def ask(self, path: str, body: dict[str, Any], read: Callable[[Any], T], url: str) -> T:
        """As ``Servers.ask``; adds the model's name to the body."""
        return self.servers.ask((path, {"model": self.name, **body}), read, url)

    def score(self, question: Question, url: str | None = None, retries: int | None = None) -> Answer:
        """The scores of one completion; arguments and errors as those of ``Servers.ask``."""
        reads = partial(read, question, self.name, vocab_size=self.vocab_size)
        return self.servers.ask(request_of(question, self.name), reads, url, retries)


def _give_up(
    closed: threading.Event,
    executor: ThreadPoolExecutor,
    client: Any,
    lock: threading.Lock,
    under_way: dict[str, int],
) -> None:
    executor.shutdown(wait=False, cancel_futures=True)
    with lock:
        closed.set()
        _close_unused(client, under_way)


def _close_unused(client: Any, under_way: dict[str, int]) -> None:
    """Close the connections once no request is pending: a connection that opens later would stay open."""
    if not any(under_way.values()):
        client.close()


def _lengths(body: Any) -> dict[str, int | None]:
    if not body["data"]:
        raise BadAnswer("/v1/models lists no models")
    return {str(entry["id"]): entry.get("max_model_len") for entry in body["data"]}


def _message(content: bytes) -> str:
    """The server's error message, shortened to one line."""
    text: Any = content.decode(errors="replace")
    with suppress(ValueError, AttributeError):
        found = json.loads(text)
        text = found.get("error", found)
        text = text.get("message", text)
    return _shortened(text) or "no message"


def _shortened(text: object) -> str:
    return " ".join(str(text).split())[:_SHOWN]
