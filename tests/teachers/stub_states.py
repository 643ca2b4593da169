"""Last hidden states as vLLM's ``/pooling`` returns them, and what may be wrong with such a response."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

# What may go wrong with states, in the order of the wire; the stub server itself commits those before "cut".
FAULTS_OF_STATES = (
    "refused", "slow", "500", "503", "429", "page", "cut", "empty", "short", "too_long", "no_metadata", "bad_metadata",
    "stale_model", "no_item", "wrong_dtype", "wrong_endianness", "wrong_length", "wrong_width", "wrong_shape",
    "wrong_start", "wrong_end", "nan", "infinite",
)  # fmt: skip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# No client reads so much; a test ends all the same.
MOST_BYTES = 1 << 26
# What a gateway may answer to anybody who has not signed in, with status 200.
PAGE = b"<!doctype html><html><title>Sign in</title></html>"


@torch.no_grad()
def states_of(model: Any, ids: list[int]) -> torch.Tensor:
    """Last hidden states after the final norm, (len(ids), width), float32."""
    found: torch.Tensor = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
    return found


def pooled(states: torch.Tensor, body: dict[str, Any], fault: str | None) -> tuple[dict[str, Any] | str | None, bytes]:
    """The ``metadata`` header and the content of the response to `body`; the header is text if it is no JSON."""
    name, order = body["embed_dtype"], body["endianness"]
    states = states.clone()
    if body.get("use_activation", True):
        states = torch.nn.functional.normalize(states, dim=-1)
    if fault in {"nan", "infinite"}:
        states[-2, 3] = float("nan" if fault == "nan" else "-inf")  # the state that predicts the last token
    elif fault == "wrong_length":
        states = states[1:]
    elif fault == "wrong_width":
        states = states[:, 1:]
    elif fault == "wrong_dtype":
        name = "float16"
    elif fault == "wrong_endianness":
        order = "big" if sys.byteorder == "little" else "little"
    data = raw(states.to(DTYPES[name]), order)
    item = {
        "index": 0,
        "embed_dtype": name,
        "endianness": order,
        "start": 0,
        "end": len(data),
        "shape": [*states.shape],
    }
    metadata = {"id": "pooling-0", "created": 0, "model": body["model"], "data": [item]}
    metadata["usage"] = {"prompt_tokens": len(states), "total_tokens": len(states)}
    return _mislabelled(metadata, fault), data[: _kept(data, states, fault)]


def _mislabelled(metadata: dict[str, Any], fault: str | None) -> dict[str, Any] | str | None:
    item = metadata["data"][0]
    if fault == "no_metadata":
        return None
    if fault == "bad_metadata":
        return json.dumps(metadata)[:-20]
    if fault == "stale_model":
        metadata["model"] += "-of-yesterday"
    elif fault == "no_item":
        metadata["data"] = []
    elif fault == "wrong_shape":
        item["shape"] = item["shape"][::-1]
    elif fault == "wrong_start":
        item["start"] += 4
    elif fault == "wrong_end":
        item["end"] -= 4
    return metadata


def _kept(data: bytes, states: torch.Tensor, fault: str | None) -> int:
    """Number of bytes that are sent: without the last state, which the metadata counts, or none."""
    return {"short": len(data) - len(data) // len(states), "empty": 0}.get(fault or "", len(data))


def raw(values: torch.Tensor, order: str) -> bytes:
    """The bytes of a tensor, without numpy."""
    found = values.contiguous().view(torch.uint8)
    if order not in {"native", sys.byteorder}:
        found = found.unflatten(-1, (-1, values.itemsize)).flip(-1)
    return bytes(found.flatten().tolist())


def chunks(data: bytes, fault: str | None) -> Iterator[bytes]:
    """A body in the form of chunked transfer, as uvicorn sends one of unknown length: whole, in the middle of which it
    ends, or without an end."""
    yield b"%x\r\n" % len(data) if data else b""
    if fault == "cut":
        yield data[: len(data) // 2]
        return
    yield data + b"\r\n" if data else b""
    if fault == "too_long":
        more = b"\0" * (1 << 14)
        for _ in range(MOST_BYTES // len(more)):
            yield b"%x\r\n%s\r\n" % (len(more), more)
    yield b"0\r\n\r\n"
