"""A model server on the loopback address that answers as vLLM does, from a real model, with faults on request.

Its scores and hidden states come from a forward pass of a transformers model in float32, a sequence at a time, so the
same question has the same answer to the bit. `faults` decides for every request of them what goes wrong with it.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from teachers.stub_states import PAGE, chunks, pooled, states_of

NAME = "stub-teacher"

# What may go wrong with scores, in the order of the wire.
FAULTS = (
    "refused", "cut", "slow", "500", "429", "no_json", "wrong_count", "wrong_ids", "no_echo", "nan", "positive",
    "missing", "stale_model",
)  # fmt: skip

# Endpoints of a server that generates and of one that pools, with the method that answers.
_OF_SCORES = {"/v1/completions": "completions", "/inference/v1/generate": "generate"}
_OF_STATES = {"/pooling": "pooling"}

# Close with a reset instead of a farewell.
_LINGER = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class StubServer:
    """Serves `model` until closed.

    Attributes:
        pools: the pooler task of a server that pools; None for one that generates. Only "token_embed" has states.
        normalizes: a pooler that normalizes states even if it is asked not to.
        faults: called with the number of the request of scores or states; returns a name in FAULTS or FAULTS_OF_STATES,
            or None.
        seen: every fault that was committed, in order.
        bodies: every request of scores or states.
        answered: bytes of every answer to one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        pools: str | None = None,
        normalizes: bool = False,
        faults: Callable[[int], str | None] = lambda number: None,
        slow: float = 3.0,
        key: str | None = None,
        heeds_temperature: bool = False,
        scores_chosen: bool = True,
        tokenizes: bool = True,
        max_logprobs: int = 20,
        digits: int | None = None,
        names: tuple[str, ...] = (NAME,),
        max_model_len: int = 256,
        retry_after: str | None = None,
    ) -> None:
        self.model, self.tokenizer, self.faults, self.slow = model.eval(), tokenizer, faults, slow
        self.pools, self.normalizes = pools, normalizes
        self.key, self.heeds_temperature, self.scores_chosen = key, heeds_temperature, scores_chosen
        self.tokenizes, self.max_logprobs, self.digits = tokenizes, max_logprobs, digits
        self.names, self.max_model_len, self.retry_after = names, max_model_len, retry_after
        self.seen: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.answered: list[int] = []
        self.under_way = self.most_under_way = 0
        self.closing = threading.Event()
        self.lock, self.compute = threading.Lock(), threading.Lock()
        handler = type("Handler", (_Handler,), {"stub": self})
        self.http = _Quiet(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop listening: whoever asks from now on is refused.

        Threads that compute are waited for: torch would abort a process that ends meanwhile.
        """
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
        while self.under_way:
            time.sleep(0.01)

    # ---- what the model says ----------------------------------------------------------------------------------

    @torch.no_grad()
    def logprobs(self, ids: list[int], temperature: float) -> torch.Tensor:
        """log q(next | ids up to here), (len(ids), V)."""
        with self.compute:
            logits = self.model(input_ids=torch.tensor([ids])).logits[0].float()
        found = (logits / temperature).log_softmax(-1)
        if self.digits is not None:
            found = torch.round(found * 2**self.digits) / 2**self.digits
        return found

    @torch.no_grad()
    def written(self, ids: list[int], count: int) -> list[int]:
        """The most likely continuation, up to the end token."""
        found: list[int] = []
        while len(found) < count:
            found.append(int(self.logprobs([*ids, *found], 1.0)[-1].argmax()))
            if found[-1] == self.tokenizer.eos_token_id:
                break
        return found

    # ---- endpoints --------------------------------------------------------------------------------------------

    def teaching(self) -> dict[str, str]:
        """The endpoints of scores or states, which a server of the other kind does not have."""
        return _OF_SCORES if self.pools is None else _OF_STATES

    def completions(self, body: dict[str, Any], fault: str | None) -> tuple[int, Any]:
        ids, top_k = body["prompt"], body.get("prompt_logprobs")
        if body["model"] not in self.names:
            return 404, _error(f"The model `{body['model']}` does not exist.")
        if len(ids) + body["max_tokens"] > self.max_model_len:
            return 400, _error(f"This model's maximum context length is {self.max_model_len} tokens.")
        if top_k is not None and top_k > self.max_logprobs:
            return 400, _error(
                f"Requested prompt logprobs of {top_k}, which is greater than max allowed: {self.max_logprobs}"
            )
        written = [0] if top_k is not None else self.written(ids, body["max_tokens"])
        ended = written[-1] == self.tokenizer.eos_token_id
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(written),
            "finish_reason": "stop" if ended else "length",
            "stop_reason": None,
            "token_ids": written,
            "prompt_token_ids": ids,
            "prompt_logprobs": None if top_k is None else self.positions(ids, top_k, body["temperature"]),
        }
        if top_k is not None:
            _spoil(choice, ids, fault)
        return 200, {"object": "text_completion", "model": body["model"], "choices": [choice]}

    def positions(self, ids: list[int], top_k: int, temperature: float) -> list[Any]:
        logprobs = self.logprobs(ids, temperature if self.heeds_temperature else 1.0)
        found: list[Any] = [None]
        for row, token in zip(logprobs[:-1], ids[1:]):
            rank = int((row >= row[token]).sum())  # ties get the worst of theirs
            entries = {str(token): {"logprob": float(row[token]), "rank": rank, "decoded_token": "x"}}
            top = row.topk(top_k)
            for place, (value, other) in enumerate(zip(top.values.tolist(), top.indices.tolist()), start=1):
                entries.setdefault(str(other), {"logprob": value, "rank": place, "decoded_token": "x"})
            found.append(entries)
        return found

    def generate(self, body: dict[str, Any], fault: str | None) -> tuple[int, Any]:
        if not self.scores_chosen:
            return 403, _error("Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out.")
        ids, sampling = body["token_ids"], body["sampling_params"]
        chosen = torch.tensor(sampling["prompt_logprob_token_ids"])
        start = sampling["prompt_logprob_start"]
        if len(chosen) != len(ids) - 1 - start:
            return 400, _error("prompt_logprob_token_ids has another number of rows than the prompt.")
        scores = self.logprobs(ids, 1.0)[start:-1].gather(-1, chosen)
        answer = {"model": body["model"], "prompt_token_ids": ids}
        if fault == "wrong_count":
            scores = scores[:-1]
        elif fault in {"nan", "missing"}:
            scores[0, 0] = float("nan")
        elif fault == "positive":
            scores[-1, -1] = 0.5
        elif fault == "wrong_ids":
            answer["prompt_token_ids"] = ids[::-1]
        elif fault == "no_echo":
            answer["prompt_token_ids"] = None
        return 200, {**answer, "prompt_token_id_logprobs": npy(scores)}

    def pooling(self, body: dict[str, Any], fault: str | None) -> tuple[int, Any]:
        """The metadata and bytes of the states, or an error."""
        ids, task = body["input"], body["task"]
        if body["model"] not in self.names:
            return 404, _error(f"The model `{body['model']}` does not exist.", 404)
        if self.pools != task:
            where = f"Try switching the model's pooling_task via --pooler-config.task {task}. (parameter=task)"
            return 400, _error(where)
        if len(ids) > self.max_model_len:
            return 400, _error(f"This model's maximum context length is {self.max_model_len} tokens.")
        if max(ids) >= self.model.config.vocab_size:
            return 400, _error(f"Token id {max(ids)} is out of vocabulary")
        with self.compute:
            states = states_of(self.model, ids)
        return 200, pooled(states, {**body, "use_activation": True} if self.normalizes else body, fault)

    def tokenize(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not self.tokenizes:
            return 404, {"detail": "Not Found"}
        tokens = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"], verbose=False)[
            "input_ids"
        ]
        return 200, {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens}

    def detokenize(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not self.tokenizes:
            return 404, {"detail": "Not Found"}
        return 200, {"prompt": self.tokenizer.decode(body["tokens"])}

    def models(self) -> dict[str, Any]:
        of_all = {"object": "model", "owned_by": "vllm", "root": self.model.name_or_path, "parent": None}
        return {
            "object": "list",
            "data": [{"id": name, **of_all, "max_model_len": self.max_model_len} for name in self.names],
        }


def npy(array: torch.Tensor) -> str:
    """A float32 tensor as base64 of the .npy format, written without numpy."""
    header = repr({"descr": "<f4", "fortran_order": False, "shape": tuple(array.shape)}).encode("latin1")
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    values = array.float().flatten().tolist()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack(f"<{len(values)}f", *values)
    return base64.b64encode(data).decode()


def _error(message: str, code: int = 400) -> dict[str, Any]:
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(code, "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _spoil(choice: dict[str, Any], ids: list[int], fault: str | None) -> None:
    """Make a good answer a bad one."""
    positions = choice["prompt_logprobs"]
    last, token = positions[-1], str(ids[-1])
    if fault == "wrong_count":
        positions.pop()
    elif fault == "wrong_ids":
        choice["prompt_token_ids"] = [*ids[:-1], ids[-1] ^ 1]
    elif fault == "no_echo":
        del choice["prompt_token_ids"]
    elif fault == "nan":
        last[token]["logprob"] = float("nan")
    elif fault == "positive":
        last[token]["logprob"] = 0.5
    elif fault == "missing":
        del last[token]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that give up in the middle belong to the tests."""


class _Handler(BaseHTTPRequestHandler):
    stub: StubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or else every answer on a connection but the first waits 40 ms

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer(*((200, self.stub.models()) if self.allowed() else (401, _error("Unauthorized"))))
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            self.answer(401, _error("Unauthorized"))
        elif self.path in self.stub.teaching():
            self.teach(body)
        elif self.path in {"/tokenize", "/detokenize"}:
            self.answer(*getattr(self.stub, self.path[1:])(body))
        else:
            self.answer(404, {"detail": "Not Found"})

    def teach(self, body: dict[str, Any]) -> None:
        stub = self.stub
        with stub.lock:
            number = len(stub.bodies)
            stub.bodies.append(body)
            stub.under_way += 1
            stub.most_under_way = max(stub.most_under_way, stub.under_way)
            fault = stub.faults(number)
            if fault is not None:
                stub.seen.append(fault)
        try:
            self.with_fault(body, fault)
        finally:
            with stub.lock:
                stub.under_way -= 1

    def with_fault(self, body: dict[str, Any], fault: str | None) -> None:
        if fault == "refused":  # the connection is reset before anything is answered
            self.connection.setsockopt(*_LINGER)
            self.close_connection = True
            self.connection.close()
            return
        if fault == "slow":
            self.stub.closing.wait(self.stub.slow)
        if fault in {"500", "503", "429"}:
            self.answer(int(fault), _error("not now", int(fault)))
            return
        status, found = getattr(self.stub, self.stub.teaching()[self.path])(body, fault)
        if isinstance(found, tuple):
            self.stream(*found, fault)
            return
        if fault == "stale_model" and status == 200:
            found["model"] = NAME + "-of-yesterday"
        self.answer(status, found, fault, counted=True)

    def stream(self, metadata: dict[str, Any] | str | None, data: bytes, fault: str | None) -> None:
        """A binary answer, whose length the headers do not tell, or a page of another server."""
        metadata, data = (None, PAGE) if fault == "page" else (metadata, data)
        sent = 0
        try:
            self.send_response(200)
            if metadata is not None:
                self.send_header("metadata", metadata if isinstance(metadata, str) else json.dumps(metadata))
            self.send_header("Content-Type", "application/octet-stream" if fault != "page" else "text/html")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in chunks(data, fault):
                self.wfile.write(part)
                sent += len(part)
        except (BrokenPipeError, ConnectionResetError):  # whoever asked has given up
            self.close_connection = True
        if fault == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        self.stub.answered.append(sent)

    def answer(self, status: int, found: Any, fault: str | None = None, counted: bool = False) -> None:
        data = json.dumps(found).encode()
        if fault == "no_json":
            data = data[: len(data) // 2]
        if counted:
            self.stub.answered.append(len(data))
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 429 and self.stub.retry_after is not None:
                self.send_header("Retry-After", self.stub.retry_after)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if fault == "cut":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):  # whoever asked has given up
            self.close_connection = True

    def allowed(self) -> bool:
        return self.stub.key is None or self.headers.get("Authorization") == f"Bearer {self.stub.key}"

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Nothing."""
