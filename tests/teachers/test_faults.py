"""Whatever goes wrong with a server: a passing fault changes nothing, a lasting one follows the chosen policy."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from messages import says
from teachers.stub_server import FAULTS
from vopd.errors import TeacherServerError
from vopd.teachers.server import Patience, ServedModel, Servers
from vopd.teachers.server.engines.vllm import VLLM
from vopd.teachers.server.questions import Question

Make = Callable[..., Any]
QUICK = Patience(timeout=0.4, deadline=30, retries=3, pause=0.01)
WORDS = {
    "refused": "in 3 attempts",
    "cut": "in 3 attempts",
    "slow": "in 3 attempts",
    "500": "status 500: not now",
    "429": "status 429: not now",
    "no_json": "is not JSON",
    "wrong_count": "scores 5 positions of 6",
    "wrong_ids": "echoes other ids",
    "no_echo": "does not echo the ids",
    "nan": "is nan, not finite",
    "positive": "is 0.5, above 0",
    "missing": "the sampled token 66 has no score",
    "stale_model": "from the model 'stub-teacher-of-yesterday'",
}


def ask(servers: Servers, question: Question | None = None) -> Any:
    question = question or Question((70, 80, 90, 60, 50, 66), start=2, top_k=3)
    return ServedModel(servers, VLLM(), "stub-teacher").score(question)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_noticed_and_mended_by_another_attempt(fault: str, serve: Make) -> None:
    good = ask(Servers(serve().url, patience=QUICK))
    passing = serve(faults=lambda number: fault if number < 2 else None, slow=0.8)
    servers = Servers(passing.url, patience=QUICK)
    again = ask(servers)
    assert passing.seen == [fault, fault] and servers.counts["retries"] == 2
    assert torch.equal(again.sampled, good.sampled) and torch.equal(again.top_k_logprobs, good.top_k_logprobs)
    lasting = Servers(serve(faults=lambda number: fault, slow=0.5).url, patience=Patience(0.2, 30, 2, 0.01))
    with pytest.raises(TeacherServerError, match=WORDS[fault]) as raised:
        ask(lasting)
    assert raised.value.exit_code == 5


@pytest.mark.parametrize("fault", ["wrong_count", "wrong_ids", "no_echo", "nan", "positive", "stale_model"])
def test_scores_of_chosen_ids_are_checked_as_well(fault: str, serve: Make) -> None:
    question = Question((70, 80, 90, 60), start=2, chosen=((5, 6, 90), (60, 8, 60)))
    good = ask(Servers(serve().url, patience=QUICK), question)
    assert good.top_k_ids.tolist() == [[5, 6], [60, 8]] and good.top_k_logprobs[1, 0] == good.sampled[1]
    servers = Servers(serve(faults=lambda number: fault if number == 0 else None).url, patience=QUICK)
    assert torch.equal(ask(servers, question).top_k_logprobs, good.top_k_logprobs)
    assert servers.counts["retries"] == 1


def test_a_server_that_is_down_is_left_for_another(serve: Make) -> None:
    down, up = serve(), serve()
    down.close()
    servers = Servers([down.url, up.url], patience=QUICK)
    for _ in range(6):
        ask(servers)
    assert len(up.bodies) == 6 and servers.counts["retries"] == 1


def test_insisting_ends_with_the_deadline(serve: Make) -> None:
    servers = Servers(serve(faults=lambda number: "500").url, patience=Patience(1, 0.3, 50, 0.02))
    with pytest.raises(TeacherServerError, match="status 500"):
        ask(servers)
    assert 2 < servers.counts["requests"] < 20


def test_a_refusal_is_final(serve: Make) -> None:
    server = serve(max_logprobs=2)
    with pytest.raises(TeacherServerError, match=says("status 400 ... Requested prompt logprobs of 3")):
        ask(Servers(server.url, patience=QUICK))
    assert len(server.bodies) == 1


def test_a_connection_that_opens_while_the_servers_are_given_up_is_closed(
    serve: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = Servers(serve().url, patience=QUICK)
    connect, opened = socket.create_connection, []

    def connect_and_give_up(*given: Any, **named: Any) -> socket.socket:
        opened.append(connect(*given, **named))
        servers.close()
        return opened[-1]

    monkeypatch.setattr(socket, "create_connection", connect_and_give_up)
    ask(servers)
    assert [one.fileno() for one in opened] == [-1]
    with pytest.raises(TeacherServerError, match="given up"):
        ask(servers)


def test_what_is_asked_after_the_servers_were_given_up_says_so(serve: Make) -> None:
    servers = Servers(serve().url)
    servers.close()
    with pytest.raises(TeacherServerError, match="ended with an error before"):
        servers.background(lambda: 1).result()


def test_a_process_ends_while_a_server_does_not_answer() -> None:
    """As after Ctrl-C, or an error of training: nothing waits for what nobody needs any more."""
    program = """
import sys, time
from vopd.teachers.server import Servers
from vopd.teachers.server.questions import Request
servers = Servers(sys.argv[1], concurrency=2)
for _ in range(5):
    servers.background(lambda: servers.ask(Request("/v1/completions", {}), print))
while servers.counts["requests"] < 2:
    time.sleep(0.01)
sys.exit(3)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ended = subprocess.run([sys.executable, "-c", program, url], timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (3, "")


def test_a_hundred_faults_leave_no_trace(serve: Make, make_trainer: Make) -> None:
    """Training ends with the weights of a run without faults, to the bit."""

    def weights(**server: Any) -> tuple[dict[str, torch.Tensor], Any]:
        stub = serve(slow=0.6, **server)
        trainer = make_trainer(
            teacher_server_url=stub.url,
            max_steps=4,
            max_completion_length=6,
            gradient_accumulation_steps=2,
            teacher_server_timeout=0.5,
            teacher_server_retries=80,
        )
        trainer.teacher.model.servers.patience = Patience(
            timeout=0.5, deadline=120, retries=80, pause=0.005, longest_pause=0.02
        )
        trainer.train()
        return trainer.model.state_dict(), stub

    draw = random.Random(0)
    schedule = [*FAULTS] * 8
    draw.shuffle(schedule)

    def faults(number: int) -> str | None:
        return schedule.pop() if number >= 8 and schedule and draw.random() < 0.95 else None

    expected, _ = weights()
    found, stub = weights(faults=faults)
    assert len(stub.seen) >= 100 and set(stub.seen) == set(FAULTS)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def bad_row(body: dict[str, Any]) -> bool:
    """Whether this completion is one of those that are never scored: decided by its text alone."""
    return sum(body["prompt"]) % 3 == 0


def test_dropped_completions_count_nowhere(
    serve: Make, make_trainer: Make, gradients_of: Make, gradients_without: Make
) -> None:
    """The gradient is that of the batch without them, its normaliser recounted."""
    server = serve()
    settings = {"max_grad_norm": 0, "gradient_accumulation_steps": 2, "teacher_server_retries": 0}
    trainer = make_trainer(teacher_server_url=server.url, teacher_failure="drop", **settings)
    server.faults = lambda number: "500" if bad_row(server.bodies[number]) else None
    before = len(server.bodies)
    found = gradients_of(trainer)[0]
    logged = trainer.state.log_history[0]
    dropped = int(logged["teacher/dropped_rows"])
    rows = [body for body in server.bodies[before:] if body["prompt_logprobs"] == 5]  # the watch asks for 0
    assert len(rows) == 6 and 0 < dropped == sum(map(bad_row, rows)) < 6

    whole = make_trainer(teacher_server_url=serve().url, **settings)
    for name, value in gradients_without(whole, lambda total: total % 3 == 0).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def test_the_circuit_saves_a_checkpoint_and_ends_the_run(serve: Make, make_trainer: Make, tmp_path: Path) -> None:
    server = serve()
    trainer = make_trainer(
        teacher_server_url=server.url,
        teacher_failure="drop",
        teacher_drop_limit=0.05,
        teacher_server_retries=0,
        max_steps=20,
        max_completion_length=2,
    )
    server.faults = lambda number: "500"
    with pytest.raises(TeacherServerError, match=says("6 of the last 6 completions ... step 2 ... --resume")) as raised:
        trainer.train()
    assert raised.value.exit_code == 5
    assert trainer.state.global_step == 2
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["teacher/dropped_rows"] for line in lines if "teacher/dropped_rows" in line] == [3, 3]


def test_raising_is_the_default_and_names_the_server(serve: Make, make_trainer: Make) -> None:
    server = serve()
    trainer = make_trainer(teacher_server_url=server.url, teacher_server_retries=1, max_completion_length=2)
    server.faults = lambda number: "refused"
    with pytest.raises(TeacherServerError, match=says(f"{server.url} ... 2 attempts ... last checkpoint ... --resume")):
        trainer.train()


def test_the_steps_before_the_server_was_lost_are_saved_and_go_on_exactly(
    serve: Make, make_trainer: Make, tmp_path: Path
) -> None:
    from transformers import TrainerCallback

    server = serve()
    settings = {"teacher_server_url": server.url, "teacher_server_retries": 0, "save_strategy": "steps"}
    settings |= {"max_completion_length": 2, "max_steps": 4, "gradient_accumulation_steps": 2}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    trainer = make_trainer(save_only_model=True, **settings)

    class Loses(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                server.faults = lambda number: "refused"

    trainer.add_callback(Loses())
    with pytest.raises(TeacherServerError):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    server.faults = lambda number: None
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=True)
    theirs = whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in resumed.model.state_dict().items())


def test_other_weights_under_the_same_name_end_the_run(serve: Make, make_trainer: Make, pair: Any) -> None:
    server = serve()
    trainer = make_trainer(teacher_server_url=server.url, teacher_failure="drop", max_steps=3, max_completion_length=2)
    trainer.train()
    server.model = pair.student
    with pytest.raises(TeacherServerError, match=says(f"{server.url} ... nats/token")):
        trainer.train()


def test_a_server_that_asks_to_wait_is_given_the_time(serve: Make) -> None:
    server = serve(faults=lambda number: "429" if number == 0 else None, retry_after="1")
    began = time.monotonic()
    ask(Servers(server.url, patience=QUICK))
    assert time.monotonic() - began >= 1 and len(server.bodies) == 2
    server.faults = lambda number: "429"
    for asked in ("3600", "Fri, 01 Jan 2100 00:00:00 GMT"):  # longer than the deadline: no use to wait
        server.retry_after = asked
        with pytest.raises(
            TeacherServerError, match=says("status 429: not now ... 1 attempt ... teacher_server_deadline")
        ):
            ask(Servers(server.url, patience=QUICK))
    server.retry_after = "soon"
    with pytest.raises(TeacherServerError, match=says("status 429: not now ... 4 attempts")):
        ask(Servers(server.url, patience=QUICK))


def test_a_busy_server_is_not_waited_for_where_another_one_answers(serve: Make) -> None:
    busy, free = serve(faults=lambda number: "429", retry_after="20"), serve()
    began = time.monotonic()
    servers = Servers([busy.url, free.url], patience=QUICK)
    for _ in range(3):
        ask(servers)
    assert time.monotonic() - began < 5 and len(busy.bodies) == 1 and len(free.bodies) == 3


def test_a_key_that_is_changed_during_a_run_ends_it_with_a_checkpoint(
    serve: Make, make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback

    monkeypatch.setenv("TEACHER_API_KEY", "first-key")
    server = serve(key="first-key")

    class Changes(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                server.key = "second-key"

    trainer = make_trainer(teacher_server_url=server.url, max_steps=3, max_completion_length=2, save_strategy="steps")
    trainer.add_callback(Changes())
    with pytest.raises(TeacherServerError, match=says("TEACHER_API_KEY ... 401 ... --resume")) as raised:
        trainer.train()
    assert "first-key" not in str(raised.value)
    assert (tmp_path / "run" / "checkpoint-1" / "model.safetensors").is_file()
