"""Whatever goes wrong with a server of hidden states: a passing fault changes nothing, a lasting one is named."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from messages import says
from teachers.stub_states import FAULTS_OF_STATES, MOST_BYTES
from vopd.errors import TeacherServerError
from vopd.experiments.pair import embedded_pair
from vopd.teachers.server import Patience, Servers
from vopd.teachers.server.engines.vllm import VLLM
from vopd.teachers.server.questions import StatesQuestion
from vopd.teachers.server.served import ServedModel

Make = Callable[..., Any]
QUICK = Patience(timeout=20, deadline=60, retries=3, pause=0.01)
QUESTION = StatesQuestion((70, 80, 90, 60, 50, 66), start=2, dtype=torch.bfloat16, width=128)
WORDS = {
    "refused": "in 2 attempts",
    "slow": "in 2 attempts",
    "500": "status 500: not now",
    "503": "status 503: not now",
    "429": "status 429: not now",
    "page": "has no metadata header.* text/html: a web page, 'Sign in'",
    "cut": "without sending complete message body",
    "empty": "has 0 bytes instead of 1536",
    "short": "has 1280 bytes instead of 1536",
    "too_long": "is too long, more than 1536 bytes",
    "no_metadata": "has no metadata header.* application/octet-stream;",
    "bad_metadata": "metadata that are not JSON",
    "stale_model": "from the model 'stub-teacher-of-yesterday'",
    "no_item": "unexpected form",
    "wrong_dtype": "float16",
    "wrong_endianness": "big-endian",
    "wrong_length": "5 x 128 numbers instead of 6 x 128",
    "wrong_width": "6 x 127 numbers instead of 6 x 128",
    "wrong_shape": "128 x 6 numbers instead of 6 x 128",
    "wrong_start": "bytes",
    "wrong_end": "bytes",
    "nan": "not finite",
    "infinite": "not finite",
}


def ask(servers: Servers, question: StatesQuestion = QUESTION) -> Any:
    return ServedModel(servers, VLLM(), "stub-teacher").states(question)


@pytest.mark.parametrize("fault", FAULTS_OF_STATES)
def test_every_fault_is_noticed_and_mended_by_another_attempt(fault: str, pool: Make) -> None:
    server = pool(slow=1.0)
    good = ask(Servers(server.url, patience=QUICK))
    assert good.shape == (4, 128) and good.dtype == torch.bfloat16
    server.faults = lambda number: fault if number < 3 else None
    servers = Servers(server.url, patience=replace(QUICK, timeout=0.3, retries=9) if fault == "slow" else QUICK)
    assert torch.equal(ask(servers), good)
    assert server.seen == [fault, fault] and (servers.counts["retries"] == 2 or fault == "slow")
    server.faults = lambda number: fault
    with pytest.raises(TeacherServerError, match=WORDS[fault]) as raised:
        ask(Servers(server.url, patience=Patience(0.1 if fault == "slow" else 20, 30, 1, 0.01)))
    assert raised.value.exit_code == 5 and server.url in str(raised.value) and "\n" not in str(raised.value)


def test_a_completion_without_tokens_has_no_states(pool: Make) -> None:
    assert ask(Servers(pool().url, patience=QUICK), replace(QUESTION, start=6)).shape == (0, 128)


def test_an_endless_response_is_cut_where_it_is_too_long(pool: Make) -> None:
    """Neither the memory nor what the server can send depends on what it would like to send."""
    server = pool(faults=lambda number: "too_long")
    servers = Servers(server.url, patience=Patience(20, 30, 0, 0.01))
    tracemalloc.start()
    with pytest.raises(TeacherServerError, match="too long"):
        ask(servers)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    while not server.answered:  # it still writes into a connection that is closed
        time.sleep(0.01)
    assert server.answered[0] < MOST_BYTES


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"names": ("other",)}, "status 404: The model `stub-teacher` does not exist"),
        ({"pools": "embed"}, "status 400: Try switching ... --pooler-config.task token_embed"),
        ({"pools": None}, "status 404"),
        ({"max_model_len": 5}, "status 400: This model's maximum context length is 5"),
    ],
)
def test_a_refusal_is_final(options: dict[str, Any], named: str, serve: Make) -> None:
    server = serve(**{"pools": "token_embed", **options})
    servers = Servers(server.url, patience=QUICK)
    with pytest.raises(TeacherServerError, match=says(named)):
        ask(servers)
    assert servers.counts["requests"] == 1


def test_a_hundred_faults_leave_no_trace(pool: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Training ends with the weights and the metrics of a run without faults, to the bit."""
    server = pool(slow=0.5)

    def run(name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        trainer = make_trainer(
            str(embedded_pair().teacher),
            teacher_server_url=server.url,
            output_dir=str(tmp_path / name),
            estimator="vopd_optimal",
            loss_top_k=...,
            max_steps=3,
            max_completion_length=6,
            gradient_accumulation_steps=2,
        )
        trainer.teacher.model.servers.patience = Patience(
            timeout=0.3, deadline=120, retries=1000, pause=0.002, longest_pause=0.01
        )
        trainer.train()
        return trainer.model.state_dict(), logged(tmp_path / name)

    expected = run("whole")
    draw, first = random.Random(0), len(server.bodies) + 8
    schedule = [fault for fault in FAULTS_OF_STATES for _ in range(2 if fault == "slow" else 5)]
    draw.shuffle(schedule)
    server.faults = lambda number: schedule.pop() if number >= first and schedule and draw.random() < 0.95 else None
    found = run("faults")
    assert len(server.seen) >= 100 and set(server.seen) == set(FAULTS_OF_STATES)
    assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())
    assert found[1] == expected[1] and found[1][0]["teacher_reward/mean"] < 0


def logged(folder: Path) -> list[dict[str, Any]]:
    """The metrics but times and the counts of requests."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    repeated = ("second", "step_time", "teacher/requests", "teacher/retries", "teacher/bytes")
    return [
        {name: value for name, value in line.items() if not any(part in name for part in repeated)} for line in lines
    ]


def never_scored(ids: list[int]) -> bool:
    """Whether a completion is one of those without states: decided by its text alone."""
    return sum(ids) % 3 == 0


def test_dropped_completions_count_nowhere(
    pool: Make, make_trainer: Make, gradients_of: Make, gradients_without: Make
) -> None:
    """The gradient is that of the batch without them, its normaliser recounted; faults that pass drop nothing."""
    lasting = [fault for fault in FAULTS_OF_STATES if fault not in {"slow", "429"}]
    server, seen = pool(), {}

    def faults(number: int) -> str | None:
        ids = server.bodies[number]["input"]
        attempt = seen[tuple(ids)] = seen.get(tuple(ids), -1) + 1
        if never_scored(ids):
            return lasting[number % len(lasting)]
        return lasting[number % len(lasting)] if attempt < 2 else None

    settings = {
        "teacher_server_url": server.url, "max_grad_norm": 0, "gradient_accumulation_steps": 2,
        "estimator": "vopd", "loss_top_k": ...,
    }  # fmt: skip
    trainer = make_trainer(str(embedded_pair().teacher), teacher_failure="drop", **settings)
    trainer.teacher.model.servers.patience = Patience(timeout=20, deadline=60, retries=3, pause=0.002)
    trainer.teacher.check = lambda: None  # whose text is no completion
    before, server.faults = len(server.bodies), faults
    found = gradients_of(trainer)[0]
    logs = trainer.state.log_history[0]
    asked = {tuple(body["input"]) for body in server.bodies[before:]}
    bad = sum(map(never_scored, asked))
    assert len(asked) == 6 and 0 < bad < 6 and logs["teacher/dropped_rows"] == bad
    assert logs["teacher/retries"] == 3 * bad + 2 * (6 - bad)

    server.faults = lambda number: None
    whole = make_trainer(str(embedded_pair().teacher), **settings)
    for name, value in gradients_without(whole, lambda total: total % 3 == 0).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
