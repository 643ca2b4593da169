"""The benchmark of teachers in the process and behind servers, with the tests' own server."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from teachers.stub_server import StubServer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_states_take_two_bytes_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vopd.experiments.pair import load_embedded_pair

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_of_teachers", BENCHMARKS / "teachers.py")
    assert spec is not None and spec.loader is not None
    teachers, record = importlib.util.module_from_spec(spec), tmp_path / "record.json"
    monkeypatch.setitem(sys.modules, spec.name, teachers)  # dataclasses look there
    spec.loader.exec_module(teachers)

    @contextmanager
    def served(python: str, teacher: Path) -> Iterator[dict[str, str]]:
        pair = load_embedded_pair()
        servers = {
            kind: StubServer(pair.teacher, pair.tokenizer, pools=pools)
            for kind, pools in (("scores", None), ("states", "token_embed"))
        }
        yield {kind: server.url for kind, server in servers.items()}
        for server in servers.values():
            server.close()

    monkeypatch.setattr(teachers, "served", served)
    teachers.main(["python", "--case", "embedded", "--rounds", "1", "--steps", "1", "--json", str(record)])
    found = json.loads(record.read_text())
    rows: dict[str, Any] = {row["contestant"]: row for row in found["cases"]["embedded"]}
    assert list(rows) == list(teachers.CONTESTANTS)
    here, states, _, scores = rows.values()
    assert here["bytes_received"] == 0 < states["waiting"] < states["seconds"]
    # Besides the sequences, the text that shows that the weights are the same is asked for in every step.
    assert 2 * 128 <= states["received_by_token"] < 2 * 128 * 1.2 < scores["received_by_token"]
    large = found["computed"]["networks"][0]
    assert large["bytes_by_step"] == 2 * 4096 * 128_000
    assert large["seconds"]["10"] == pytest.approx(8 * 2 * 4096 * 128_000 / 1e10)
