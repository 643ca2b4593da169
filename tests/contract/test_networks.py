"""Keys, proxies, certificates and answers that are none: one line each, and the key in none of them.

Every server and proxy here is a real one on the loopback address.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import proxy_bypass

import pytest

from cases import Place
from messages import says, told
from vopd import cli
from vopd.errors import ConfigurationError, TeacherServerError
from vopd.network import bypass_proxies, is_here
from vopd.secrets import hidden
from vopd.teachers.server.addresses import checked_urls
from vopd.training.models import rollout_errors

KEY = "sk-example-0123456789"
Make = Callable[..., "Listener"]


class Listener:
    """Reads one request of every connection, and answers with bytes, or with what a function makes of the request.

    Attributes:
        requests: what was read.
    """

    def __init__(self, answer: bytes | Callable[[bytes], bytes], tls: Path | None = None) -> None:
        self.requests: list[bytes] = []
        listener = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError, ValueError):
                    connection = self.request if tls is None else wrapped(self.request, tls)
                    connection.settimeout(2)
                    request = b""
                    while b"\r\n\r\n" not in request and (part := connection.recv(65536)):
                        request += part
                        if part.startswith(b"\x16"):  # of TLS
                            break
                    listener.requests.append(request)
                    connection.sendall(answer(request) if callable(answer) else answer)
                    connection.close()  # whose descriptor is not the request's any more where TLS wraps it

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def wrapped(connection: socket.socket, certificate: Path) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context.wrap_socket(connection, server_side=True)


def reply(status: str, body: Any = b"", **headers: str) -> bytes:
    """An HTTP response; what is no bytes becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content_Length": str(len(content)), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


def quoted(request: bytes) -> bytes:
    """A refusal that quotes the request, as some proxies and debug servers do."""
    header = next(line for line in request.decode().splitlines() if line.lower().startswith("authorization"))
    return reply("400 Bad Request", {"error": {"message": f"bad header {header}, that is {KEY!r}"}})


def quoted_well(request: bytes) -> bytes:
    return reply("200 OK", {"headers": request.decode()})


@pytest.fixture
def listen() -> Iterator[Make]:
    """listen(answer, tls=None): a listener, closed after the test."""
    listeners: list[Listener] = []

    def start(*given: Any, **named: Any) -> Listener:
        listeners.append(Listener(*given, **named))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no key but the test's own."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TEACHER_API_KEY", KEY)


@pytest.fixture
def fails(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[..., str]:
    """fails(command, code, facts): runs it, and returns its only line of an error, which says the facts.

    The key is in nothing that it prints, logs or writes, with the traceback or without.
    """

    def run(command: list[str], code: int, facts: str, key: str = KEY) -> str:
        caplog.set_level(logging.DEBUG)
        assert cli.main(command) == code
        output = "\n".join(capfd.readouterr())
        errors = [line for line in output.splitlines() if line.startswith("vopd: error:")]
        assert "Traceback" not in output and len(errors) == 1 and len(errors[0]) < 600, output
        assert told(facts, errors[0]), errors[0]
        assert errors[0].isprintable()
        assert key[:8] not in output + caplog.text
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
        return errors[0]

    return run


def doctor(url: str) -> list[str]:
    return ["doctor", "--teacher", url]


NOT_FOUND = {"detail": "Not Found"}
ANSWERS = {
    "key refused": (reply("401 Unauthorized", {"error": "No"}), "TEACHER_API_KEY ... status 401: No"),
    "forbidden": (reply("403 Forbidden", b"IP not allowed\nsecond line"), "status 403: IP not allowed ... gateway"),
    "not found": (reply("404 Not Found", NOT_FOUND), "status 404: Not Found ... teacher_server_url"),
    "too many": (reply("429 Too Many", {"error": {"message": "slow down"}}, Retry_After="30"),
                 "status 429: slow down ... wait 30 s"),
    "broken": (reply("500 Oops", {"message": "CUDA error"}), "status 500: CUDA error ... log"),
    "behind a gateway": (reply("502 Bad Gateway", b"<html><title>502 Bad\n Gateway</title></html>"),
                         "status 502: a web page, '502 Bad Gateway' ... starting"),
    "starting": (reply("503 Service Unavailable", b"loading\n", Retry_After="Fri, 01 Jan 2100 00:00:00 GMT"),
                 "status 503: loading ... asks to wait ... starting"),
    "waits for ever": (reply("503 Service Unavailable", b"x", Retry_After="9" * 400), "status 503: x; it is starting"),
    "to https": (lambda request: reply("307 Temporary", Location=f"https://{host(request)}/v1/models"),
                 "status 307 ... the same address with https ... teacher_server_url"),
    "elsewhere": (reply("301 Moved", Location="http://other.example/v1/models?sig=abc"),
                  "status 301 ... http://other.example/v1/models ... teacher_server_url to http://other.example"),
    "login": (reply("302 Found", Location="/login?next=%2Fv1"), "status 302 ... login"),
    "a page": (reply("200 OK", b"<!DOCTYPE html><head><title>Sign in</title>", Content_Type="text/html"),
               "a web page, 'Sign in' ... teacher_server_url"),
    "no models": (reply("200 OK", {"object": "list", "data": []}), "lists no models ... teacher_server_url"),
    "Ollama without models": (reply("200 OK", {"object": "list", "data": None}), "lists no models"),
    "other JSON": (reply("200 OK", {"status": "ok"}), "unexpected form ... KeyError: 'data' ... 'status': 'ok'"),
    "a list": (reply("200 OK", [1, 2]), "unexpected form ... [1, 2]"),
    "no JSON": (reply("200 OK", b"pong"), "not JSON: pong"),
    "cut": (reply("200 OK", b"{}", Content_Length="9"), "no teacher server responds ... received 2 bytes ... log"),
    "nothing": (b"", "no teacher server responds ... disconnected ... log"),
    "no gzip": (reply("200 OK", b"{}", Content_Encoding="gzip"), "decompressed"),
    "too long": (reply("200 OK", gzip.compress(b"1" * (1 << 23)), Content_Encoding="gzip"), "too long"),
    "too deep": (reply("200 OK", b"[" * 200000), "nested too deeply"),
    "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", "no teacher server responds ... disconnected ... log"),
    "HTTP 0.9": (b"hello\r\n\r\n", "does not speak HTTP ... hello ... port"),
    "binary": (b"\x15\x03\x01\x00\x02\x02\x46", "does not speak HTTP ... https"),
    "escapes": (reply("404 Not Found", b"\x1b[31mred\x07"), "\\x1b[31mred\\x07"),
    "an echo": (quoted, "status 400: bad header ... [hidden]"),
    "an echo that is cut": (
        lambda request: reply("400 Bad Request", b"x" * 195 + KEY.encode()), "status 400: " + "x" * 195 + "[hidd"
    ),
    "an echo with status 200": (quoted_well, "unexpected form ... KeyError: 'data'"),
}  # fmt: skip


def host(request: bytes) -> str:
    return next(line.split(": ")[1] for line in request.decode().splitlines() if line.lower().startswith("host: "))


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_none_is_read(answer: str, listen: Make, fails: Callable[..., str]) -> None:
    given, facts = ANSWERS[answer]
    server = listen(given)
    assert server.url in fails(doctor(server.url), 5, facts).replace("https:", "http:")
    assert len(server.requests) == 1 and f"Bearer {KEY}".encode() in server.requests[0]


OTHERS = {
    "llama.cpp": {"models": [], "object": "list", "data": [{"id": "m", "meta": {"n_ctx_train": 64}}]},
    "Ollama": {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "library"}]},
    "TGI": {"object": "list", "data": [{"id": "m", "owned_by": "m", "max_model_len": "64"}]},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_server_is_told_by_what_it_lacks(
    kind: str, place: Place, listen: Make, fails: Callable[..., str]
) -> None:
    def answer(request: bytes) -> bytes:
        if b"/v1/models" in request.split(b"\r\n")[0]:
            return reply("200 OK", OTHERS[kind])
        if b"/pooling" in request.split(b"\r\n")[0]:
            return reply("404 Not Found", {"detail": "Not Found"})
        return reply("200 OK", {"model": "m", "choices": [{"text": " 2", "finish_reason": "stop"}]})

    fails(doctor(listen(answer).url), 5, "no token_ids ... return_token_ids ... vLLM")


def test_an_echo_is_not_in_the_traceback_either(
    listen: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOPD_DEBUG", "1")
    monkeypatch.setenv("SERVER", KEY)
    for answer in (quoted, quoted_well):
        assert cli.main([*doctor(listen(answer).url), "--teacher_server_key_env", "SERVER"]) == 5
        shown = capfd.readouterr().err
        assert "Traceback" in shown and "[hidden]" in shown and KEY not in shown


KEYS = {
    "Bearer": (f"Bearer {KEY}", None),
    "blanks around it": (f" {KEY}\r\n", None),
    "a line end inside": (f"{KEY}\nx", "TEACHER_API_KEY ... blank or control character"),
    "a blank inside": (f"{KEY} x", "TEACHER_API_KEY ... blank or control character"),
    "not ASCII": (f"{KEY}\u2026", "TEACHER_API_KEY ... not ASCII"),
    "quotes": (f'"{KEY}"', "TEACHER_API_KEY ... quotation marks"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_sent_alone_or_refused_unseen(
    kind: str, listen: Make, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, facts = KEYS[kind]
    monkeypatch.setenv("TEACHER_API_KEY", value)
    server = listen(reply("404 Not Found"))
    fails(doctor(server.url), 5 if facts is None else 2, facts or "404")
    if facts is None:
        assert f"authorization: bearer {KEY}\r\n".lower().encode() in server.requests[0].lower()
    else:
        assert not server.requests


def test_an_empty_key_is_none(listen: Make, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", " \n")
    server = listen(reply("401 Unauthorized", {"error": "Unauthorized"}))
    fails(doctor(server.url), 5, "requires an API key ... TEACHER_API_KEY ... teacher_server_key_env")
    assert b"uthorization" not in server.requests[0].partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (f"--teacher_server_key_env {KEY}", "teacher_server_key_env ... TEACHER_API_KEY"),
        ("--teacher_server_key_env hf_Abc123", "teacher_server_key_env ... TEACHER_API_KEY"),
        (
            f"--teacher_server_url http://h:1/v1?api_key={KEY}",
            "teacher_server_url ... query ... teacher_server_key_env",
        ),
        (f"--teacher_server_url http://me:{KEY}@h:1", "teacher_server_url ... password ... teacher_server_key_env"),
        (f"--teacher_server_url http://me:{KEY}@h:port", "'h:port' ... http://host:8001"),
    ],
)
@pytest.mark.parametrize("command", ["doctor", "validate"])
def test_a_key_in_the_wrong_place_is_refused_unseen(
    command: str, options: str, facts: str, place: Place, fails: Callable[..., str]
) -> None:
    if command == "doctor":
        given = [*doctor("http://127.0.0.1:9"), *options.replace("teacher_server_url", "teacher").split()]
    else:
        given = [*served(place, "http://127.0.0.1:9", "validate"), *options.split()]
    line = fails(given, 2, facts)
    assert "hf_Abc123" not in line and not place.out.exists()


def served(place: Place, url: str, command: str = "train") -> list[str]:
    """A run with a teacher at `url`."""
    return [
        command, "--model", str(place.student), "--teacher_server_url", url, "--dataset", str(place.prompts),
        "--estimator", "vopd_teacher_top_k", "--loss_top_k", "5", "--output_dir", str(place.out), "--run_name", "r",
        "--use_cpu", "true", "--per_device_train_batch_size", "4", "--max_completion_length", "8",
        "--teacher_server_timeout", "0.2", "--max_steps", "1",
    ]  # fmt: skip


def test_a_run_is_refused_in_the_same_words_and_leaves_nothing(
    place: Place, listen: Make, fails: Callable[..., str]
) -> None:
    server = listen(reply("403 Forbidden", b"IP not allowed"))
    assert server.url in fails(served(place, server.url), 5, "status 403: IP not allowed")
    assert not place.out.exists()
    silent = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{silent.getsockname()[1]}"
    fails(served(place, url), 5, f"{url} ... no response in time ... vllm serve")
    silent.close()


@dataclass(frozen=True)
class Way:
    """The environment of a request to `url`, and what comes of it; {proxy} and {closed} are host:port."""

    url: str
    facts: str
    code: int = 5
    answer: bytes = reply("404 Not Found")
    asked: bool = False
    environment: dict[str, str] = field(default_factory=dict)


HERE, THERE, SECURE = "http://127.0.0.1:{here}", "http://teacher.example:8001", "https://teacher.example"
WAYS = {
    "loopback": Way(HERE, "status 404", environment={"HTTP_PROXY": "http://{proxy}", "ALL_PROXY": "socks://x"}),
    "a name of this machine": Way(
        "http://localhost:{here}", "status 404", environment={"http_proxy": "http://{proxy}"}
    ),
    "any address": Way("http://0.0.0.0:{here}", "status 404", environment={"all_proxy": "socks5://{proxy}"}),
    "a proxy": Way(
        THERE, "status 404 ... proxy http://{proxy} (HTTP_PROXY)", asked=True,
        environment={"HTTP_PROXY": f"http://me:{KEY}x@{{proxy}}"},
    ),
    "without a scheme": Way(
        THERE, "proxy http://{proxy} (all_proxy)", asked=True, environment={"all_proxy": "{proxy}"}
    ),
    "not that host": Way(
        THERE, "host name 'teacher.example' ... teacher_server_url",
        environment={"HTTP_PROXY": "http://{proxy}", "NO_PROXY": "x.org,teacher.example"},
    ),
    "closed": Way(
        THERE, "proxy http://{closed} ... HTTP_PROXY ... add teacher.example to NO_PROXY",
        environment={"HTTP_PROXY": "http://{closed}"},
    ),
    "wants a password": Way(
        THERE, "proxy http://{proxy} (HTTP_PROXY) ... user name and a password ... NO_PROXY", asked=True,
        environment={"HTTP_PROXY": "http://{proxy}"}, answer=reply("407 Proxy Authentication Required"),
    ),
    "wants one of a tunnel": Way(
        SECURE, "proxy http://{proxy} (HTTPS_PROXY) ... user name and a password ... NO_PROXY", asked=True,
        environment={"HTTPS_PROXY": "http://{proxy}"}, answer=reply("407 Proxy Authentication Required"),
    ),
    "socks": Way(THERE, "socks://x:1 (all_proxy) ... socks5://", 2, environment={"all_proxy": "socks://x:1"}),
    "socks5": Way(
        THERE, "socks5://x:1 (ALL_PROXY) ... pip install 'httpx[socks]' ... NO_PROXY", 2,
        environment={"ALL_PROXY": f"socks5://me:{KEY}@x:1"},
    ),
    "no address": Way(
        THERE, "HTTP_PROXY ... http://host:port", 2, environment={"HTTP_PROXY": f"http://me:{KEY}@x:port"}
    ),
    "no certificates": Way(SECURE, "SSL_CERT_FILE ... '/no/such'", 2, environment={"SSL_CERT_FILE": "/no/such"}),
    "broken certificates": Way(SECURE, "SSL_CERT_FILE ... PEM", 2, environment={"SSL_CERT_FILE": __file__}),
    "no folder of them": Way(SECURE, "SSL_CERT_DIR ... '/no/such'", 2, environment={"SSL_CERT_DIR": "/no/such"}),
    "not needed": Way(HERE, "status 404", environment={"SSL_CERT_FILE": "/no/such.pem"}),
    "unknown host": Way("http://no.such.invalid:1", "host name 'no.such.invalid' ... teacher_server_url"),
    "not a host": Way(f"http://{'a' * 80}.example", "teacher_server_url"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_way_to_a_server_is_named(
    way: str, listen: Make, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, here = WAYS[way], listen(reply("404 Not Found"))
    proxy = listen(case.answer)
    closed = socket.create_server(("127.0.0.1", 0))
    names = {"here": here.port, "proxy": f"127.0.0.1:{proxy.port}", "closed": f"127.0.0.1:{closed.getsockname()[1]}"}
    closed.close()
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value.format(**names))
    fails(doctor(case.url.format(**names)), case.code, case.facts.format(**names))
    assert len(proxy.requests) == case.asked
    assert len(here.requests) == ("{here}" in case.url)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a self-signed certificate of 127.0.0.1, in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=t -days 2 -addext"
    with suppress(FileNotFoundError):
        made = subprocess.run(
            [*command.split(), "subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", "-"],
            capture_output=True,
            check=True,
        )
        path.write_bytes(made.stdout)
        return path
    pytest.skip("needs openssl")


def test_certificates(
    certificate: Path, listen: Make, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secure, plain = listen(reply("404 Not Found"), tls=certificate), listen(reply("400 Bad Request"))
    fails(doctor(secure.url), 5, f"{secure.url} ... self-signed ... SSL_CERT_FILE")
    fails(doctor(plain.url.replace("http:", "https:")), 5, f"TLS ... {plain.url}")
    fails(doctor(secure.url.replace("https:", "http:")), 5, secure.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    fails(doctor(secure.url), 5, "status 404")
    fails(doctor(secure.url.replace("127.0.0.1", "localhost")), 5, "localhost ... host name")
    assert len(secure.requests) == 1


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("http://h:1/", "http://h:1"),
        (" http://h:1/v1\n", "http://h:1"),
        ("http://h:1/v1/models", "http://h:1"),
        ("https://h/team/v1/chat/completions/", "https://h/team"),
        ("http://h:1/pooling", "http://h:1"),
        ("https://h/team", "https://h/team"),
    ],
)
def test_an_endpoint_is_not_the_address(typed: str, meant: str) -> None:
    assert checked_urls(typed) == (meant,)


@pytest.mark.parametrize(
    "typed",
    ["h:8001", "localhost:8001", "http://", "http://h:99999", "http://[::1", "http://h x", 8001, {"a": "http://h:1"}],
)
def test_what_is_no_address_is_refused(typed: Any) -> None:
    with pytest.raises(ConfigurationError, match=says("teacher_server_url ... http://host:8001")):
        checked_urls(typed)


def test_addresses_of_this_machine() -> None:
    here = (
        "127.0.0.1",
        "127.9.9.9",
        "localhost",
        "a.localhost",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        socket.gethostname(),
    )
    assert all(is_here(f"http://{name}:1") for name in here)
    assert not any(is_here(f"http://{name}:1") for name in ("127.0.0.1.example", "10.0.0.1", "[::2]", "localhost.org"))


# ---- the hub, and TRL's client of a vLLM server ---------------------------------------------------------------------

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz01"


@pytest.fixture
def hub(listen: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Listener]:
    """hub(answer): the hub that this process asks from now on; its cache is empty."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def start(answer: Any) -> Listener:
        server = listen(answer)
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        return server

    return start


def quoting(status: str, code: str = "") -> Callable[[bytes], bytes]:
    """A refusal that quotes the request's headers."""
    return lambda request: reply(
        status, {"error": f"no: {request.decode()}"}, **({"X_Error_Code": code} if code else {})
    )


HUB = {
    "expired": (quoting("401 Unauthorized"), "status 401 ... HF_TOKEN"),
    "gated": (quoting("403 Forbidden", "GatedRepo"), "gated ... conditions ... hf auth login"),
    "forbidden": (quoting("403 Forbidden"), "status 403 ... hf auth login"),
    "a login page": (reply("200 OK", b"<html>Sign in", Content_Type="text/html"), "not the hub ... HF_ENDPOINT"),
    "another server": (reply("404 Not Found", b"nginx"), "status 404 ... not the hub ... HF_ENDPOINT"),
    "cut": (b"", "disconnected"),
}


def train(place: Place, *changes: str) -> list[str]:
    """A run of one step. Of two options of one name the last one counts."""
    return [
        "train", "--model", str(place.student), "--teacher_model", str(place.teacher), "--dataset", str(place.prompts),
        "--output_dir", str(place.out), "--run_name", "r", "--use_cpu", "true", "--per_device_train_batch_size", "4",
        "--max_completion_length", "2", "--max_steps", "1", *changes,
    ]  # fmt: skip


@pytest.mark.parametrize("answer", HUB)
def test_what_the_hub_refuses_is_said_without_the_token(
    answer: str, place: Place, hub: Callable[..., Listener], fails: Callable[..., str]
) -> None:
    given, facts = HUB[answer]
    server = hub(given)
    fails(train(place, "--model", "me/mine"), 4, f"'me/mine' ... {facts}", TOKEN)
    line = fails(train(place, "--dataset", "me/set"), 3, "'me/set'", TOKEN)
    assert "Illegal" not in line and not place.out.exists()
    assert server.requests


def test_the_way_to_the_hub_is_named(
    place: Place, hub: Callable[..., Listener], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(b"")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.example")
    from huggingface_hub.utils import close_session

    for variable, value, facts in (
        ("ALL_PROXY", f"socks5://me:{KEY}@x:1", "socks5://x:1 (ALL_PROXY) ... pip install 'httpx[socks]'"),
        ("all_proxy", "socks://x:1", "socks://x:1 (all_proxy) ... socks5://"),
        ("SSL_CERT_FILE", "/no/such", "SSL_CERT_FILE ... '/no/such'"),
        ("HTTPS_PROXY", f"http://me:{KEY}@127.0.0.1:9", "proxy http://127.0.0.1:9 (HTTPS_PROXY)"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            close_session()  # which was opened with another environment
            fails(train(place, "--model", "me/mine"), 4, f"'me/mine' ... {facts}")
    close_session()


def test_an_upload_that_fails_loses_nothing_and_shows_no_token(
    place: Place, hub: Callable[..., Listener], fails: Callable[..., str]
) -> None:
    hub(quoting("403 Forbidden"))
    command = train(place, "--push_to_hub", "true", "--hub_model_id", "me/mine")
    fails(command, 1, f"'me/mine' ... status 403 ... hf upload me/mine {place.out}/r/model", TOKEN)
    assert (place.out / "r" / "model" / "model.safetensors").is_file() and (place.out / "r" / "report.html").is_file()


def test_a_rollout_server_on_this_machine_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "x.org")
    monkeypatch.setenv("NO_PROXY", "")
    bypass_proxies("http://10.0.0.1:8000")
    assert not proxy_bypass("127.0.0.1")
    bypass_proxies("http://127.0.0.1:8000")
    assert proxy_bypass("127.0.0.1") and proxy_bypass("x.org") and not proxy_bypass("10.0.0.1")


@pytest.mark.parametrize("text", ["Request failed: 500, no", f"The vLLM server can't be reached: Bearer {KEY}"])
def test_what_the_rollout_server_refuses_is_no_traceback(text: str) -> None:
    args = SimpleNamespace(use_vllm=True, vllm_mode="server", vllm_server_base_url=f"http://me:{KEY}@h:1")
    with pytest.raises(TeacherServerError, match=says("http://h:1 ... vllm serve")) as raised, rollout_errors(args):
        raise Exception(text)
    assert KEY not in str(raised.value)
    with pytest.raises(ZeroDivisionError), rollout_errors(args):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {KEY}, header 'Bearer {KEY}'", "key [hidden], header 'Bearer [hidden]'"),
        ("Illegal header value b'Bearer abc-123\\n'", "Illegal header value b'Bearer [hidden]\\n'"),
        ("{'Authorization': 'Basic bWU6cHc='}", "{'Authorization': 'Basic [hidden]'}"),
        ("https://me:pw@h/x?a=1&api_key=abc&b=2", "https://h/x?a=1&api_key=[hidden]&b=2"),
        ("the Bearer token is missing; authorization required", "the Bearer token is missing; authorization required"),
        ("12 tokens of key 5: http://h:1/a@b", "12 tokens of key 5: http://h:1/a@b"),
    ],
)
def test_secrets_are_left_out_of_a_text(text: str, shown: str) -> None:
    assert hidden(text) == shown
