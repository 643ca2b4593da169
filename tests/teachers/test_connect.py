"""What is found out about servers before the first rollout, and what is then refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from messages import says, told
from vopd.errors import ConfigurationError, MismatchError, TeacherServerError
from vopd.experiments.pair import embedded_pair
from vopd.teachers.server import Servers
from vopd.teachers.server.discovery import find_model
from vopd.teachers.server.preflight import (
    Findings,
    by_scores,
    compare_ids,
    measured,
    most_top_k,
    refusal_of_chosen,
    untempered,
    written,
)

Make = Callable[..., Any]
PROMPT = (70, 80, 90, 60)


def inspected(*urls: str) -> Findings:
    model = find_model(Servers(urls), None).model
    return measured(model, written(model, PROMPT)[0], by_scores)


def test_servers_with_different_weights_are_refused(serve: Make, make_trainer: Make, pair: Any) -> None:
    urls = [serve().url, serve(pair.student).url]
    with pytest.raises(TeacherServerError, match=says(f"{urls[1]} ... {urls[0]} ... different weights")):
        make_trainer(teacher_server_url=urls)


def test_servers_must_call_the_model_by_one_name(serve: Make) -> None:
    several = serve(names=("a", "b")).url
    with pytest.raises(ConfigurationError, match=says("teacher_server_model ... a, b")):
        find_model(Servers(several), None)
    assert find_model(Servers(several), "b").model.name == "b"
    with pytest.raises(ConfigurationError, match=says("different names ... a, stub-teacher")):
        find_model(Servers([serve().url, serve(names=("a",)).url]), None)


def test_a_vocabulary_is_compared_by_the_server_or_by_a_named_tokenizer(serve: Make, make_trainer: Make) -> None:
    url = serve(tokenizes=False).url
    with pytest.raises(MismatchError, match=says("/detokenize ... folder or hub id")):
        make_trainer(teacher_server_url=url)
    make_trainer(str(embedded_pair().teacher), teacher_server_url=url)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"estimator": "vopd", "loss_top_k": ...}, "full distribution ... server"),
        ({"estimator": "vopd_sparse", "teacher_failure": "drop"}, "teacher_failure=drop ... 'vopd_sparse'"),
    ],
)
def test_a_server_under_a_name_is_held_to_the_rules_of_any_server(
    serve: Make, make_trainer: Make, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=says(named)):
        make_trainer(trainer={"teachers": {"a": serve().url}}, **config)


def test_the_temperature_is_tried_on_every_server(serve: Make) -> None:
    urls = [serve(heeds_temperature=True).url, serve().url]
    found = inspected(*urls)
    assert untempered(found, 1.5) == urls[1:] and untempered(found, 1.0) == []


def test_what_a_server_gives_is_tried(serve: Make) -> None:
    url = serve(max_logprobs=5, max_model_len=200).url
    found = inspected(url)
    assert most_top_k(found, [20, 5, 1]) == (5, "") and refusal_of_chosen(found) == ""
    assert find_model(Servers(url), None).length == 200
    found = inspected(serve(max_logprobs=0, scores_chosen=False).url)
    assert most_top_k(found, [20, 5])[0] == 0 and "Requested prompt logprobs of 5" in most_top_k(found, [20, 5])[1]
    assert "status 403" in refusal_of_chosen(found)


def test_the_first_id_that_means_something_else_is_named(serve: Make, pair: Any, tiny_tokenizer: Any) -> None:
    server = serve()
    server.tokenizer = tiny_tokenizer
    with pytest.raises(MismatchError, match=says("different vocabularies ... for the student ... for the server")):
        compare_ids(find_model(Servers(server.url), None).model, pair.tokenizer)


def test_ends_that_the_student_does_not_know_are_warned_of(
    serve: Make, make_trainer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    written = server.written
    server.written = lambda ids, count: [*written(ids, 2), 7]
    completions = server.completions

    def ended(body: dict[str, Any], fault: str | None) -> tuple[int, Any]:
        status, answer = completions(body, fault)
        if "prompt_logprobs" not in body:
            answer["choices"][0]["finish_reason"] = "stop"
        return status, answer

    server.completions = ended
    with caplog.at_level("WARNING", logger="vopd"):
        make_trainer(teacher_server_url=server.url)
    assert told("teacher ... 7", caplog.text)


def test_the_command_that_starts_a_server_starts_it_where_it_is_looked_for() -> None:
    with pytest.raises(TeacherServerError, match=says("vllm serve TEACHER ... --port 9, or")):  # where nothing listens
        find_model(Servers("http://127.0.0.1:9"), None)
