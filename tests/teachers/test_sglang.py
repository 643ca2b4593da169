"""A teacher on an SGLang server: what is asked, which answers are refused, and the gradients that come of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from messages import says
from teachers.stub_sglang import FAULTS_OF_SCORES, FAULTS_OF_STATES, StubSGLang
from teachers.stub_states import states_of
from teachers.test_server_training import largest_difference
from vopd.errors import ConfigurationError, MismatchError, TeacherServerError
from vopd.experiments.pair import embedded_pair
from vopd.teachers.server import Patience, Servers
from vopd.teachers.server.discovery import find_model, pooling_servers
from vopd.teachers.server.engines.sglang import SGLang
from vopd.teachers.server.questions import BadAnswer, Question, StatesQuestion

Make = Callable[..., Any]
NAME = "stub-teacher"
WIDTH, LAST = 128, 639
# The teacher's most likely token follows the first one, an unlikely one the second, and 60 is in the prompt.
IDS = (70, 80, 90, 60, 291, 66)
QUESTION = Question(IDS, start=4, top_k=5)
STATES = StatesQuestion(IDS, 4, torch.float32, WIDTH)
WORDS = {
    "no_echo": "does not echo the ids",
    "wrong_echo": "echoes other ids",
    "wrong_ids": "scores the token 67 instead of 66",
    "wrong_count": "scores 2 positions of 3",
    "truncated": "in 5 tokens of 6",
    "aborted": "stopped working on the request (aborted by an administrator)",
    "null": "is None, not finite",
    "nan": "is nan, not finite",
    "positive": "is 0.5, above 0",
    "short_top_k": "has 4 scores instead of the requested 5",
    "twice_in_top_k": "has 4 scores instead of the requested 5",
    "fewer_positions": "a top k of 1 tokens of 2",
    "shifted_top_k": "the sampled token 291",
    "other_sampled": "the sampled token 291 has two scores",
    "no_states": "has no hidden states",
    "empty_states": "has no hidden states",
    "null_state": "is not a finite number",
    "infinite_state": "is not finite",
    "wrong_width": "(3, 127), but their width must be 128",
    "flat": "(3,), but their width must be 128",
    "too_many": "hidden states of 18 tokens",
    "chunked": "2 tokens, but 3 were requested ... --chunked-prefill-size -1",
}
# Of another form, which the client reports.
FORMS = {"no_top_k": (TypeError, "NoneType"), "ragged": (ValueError, "expected sequence of length 128")}


@pytest.fixture
def serve(serve: Make) -> Make:
    """serve(**options): a stub SGLang server of the embedded teacher, closed after the test."""
    return partial(serve, kind=StubSGLang)


def answered(stub: StubSGLang, question: Question | StatesQuestion, fault: str | None = None) -> Any:
    """What is read from the answer to a question."""
    engine = SGLang()
    if isinstance(question, StatesQuestion):
        _, body = stub.generate(engine.states(question, NAME).body or {}, fault)
        return engine.read_states(question, NAME, body)
    _, body = stub.generate(engine.scores(question, NAME).body or {}, fault)
    return engine.read_scores(question, NAME, body, 640)


@pytest.mark.parametrize("cached", [0, 100])
@pytest.mark.parametrize("start", [1, 4])
def test_scores_are_those_of_the_model(start: int, cached: int, serve: Make) -> None:
    stub = serve(cached=cached)
    found = answered(stub, replace(QUESTION, start=start))
    rows = stub.logprobs(list(IDS), 1.0)[start - 1 : -1]
    assert torch.equal(found.sampled, rows.gather(-1, torch.tensor(IDS[start:]).unsqueeze(-1))[:, 0])
    # The sampled token is among the top k only where it belongs there.
    top = rows.topk(5)
    assert torch.equal(found.top_k_ids, top.indices) and torch.equal(found.top_k_logprobs, top.values)
    assert IDS[4] in found.top_k_ids[4 - start] and IDS[5] not in found.top_k_ids[5 - start]
    alone = answered(stub, replace(QUESTION, start=start, top_k=0))
    assert torch.equal(alone.sampled, found.sampled) and alone.top_k_ids.shape == (6 - start, 0)


@pytest.mark.parametrize("cached", [0, 100])
@pytest.mark.parametrize("start", [1, 4, 6])  # 6: a completion without tokens
def test_states_are_those_of_the_model(start: int, cached: int, serve: Make, pair: Any) -> None:
    stub = serve(cached=cached)
    expected = states_of(pair.teacher, list(IDS))[start - 1 : -1]
    assert torch.equal(answered(stub, replace(STATES, start=start)), expected)
    half = answered(stub, replace(STATES, start=start, dtype=torch.bfloat16, width=None))
    assert torch.equal(half, expected.bfloat16())


@pytest.mark.parametrize(
    ("fault", "question"),
    [*((fault, QUESTION) for fault in FAULTS_OF_SCORES), *((fault, STATES) for fault in FAULTS_OF_STATES)],
)
def test_a_wrong_answer_is_refused(fault: str, question: Question | StatesQuestion, serve: Make) -> None:
    kind, words = FORMS[fault] if fault in FORMS else (BadAnswer, WORDS[fault])
    with pytest.raises(kind, match=says(words)):
        answered(serve(), question, fault)


def test_a_score_that_contradicts_the_top_k_is_refused(serve: Make) -> None:
    with pytest.raises(BadAnswer, match="66 is more likely than the top k"):
        answered(serve(), replace(QUESTION, ids=(*IDS[:4], 66, 66)), "other_sampled")


def test_the_last_id_of_the_vocabulary_is_shown_as_another(serve: Make, pair: Any) -> None:
    stub, ids = serve(), (*IDS[:4], LAST, 66)
    found = answered(stub, replace(QUESTION, ids=ids))
    assert found.sampled[0] == stub.logprobs(list(ids), 1.0)[3, LAST]
    engine, (_, body) = SGLang(), stub.generate(SGLang().scores(QUESTION, NAME).body, None)
    body["meta_info"]["input_token_logprobs"][1][1] = 0
    with pytest.raises(BadAnswer, match="scores the token 0 instead of 291"):
        engine.read_scores(QUESTION, NAME, body, 640)


def test_ids_beyond_the_common_vocabulary_leave_the_top_k(serve: Make) -> None:
    engine, (_, body) = SGLang(), serve().generate(SGLang().scores(QUESTION, NAME).body, None)
    whole = engine.read_scores(QUESTION, NAME, body, None)
    limit = int(whole.top_k_ids.max())
    found = engine.read_scores(QUESTION, NAME, body, limit)
    kept = whole.top_k_ids < limit
    assert not kept.all() and torch.equal(found.top_k_logprobs.isfinite().sum(-1), kept.sum(-1))
    for row, answer, inside in zip(found.top_k_logprobs, whole.top_k_logprobs, kept):
        assert torch.equal(row[row.isfinite()], answer[inside])


def test_what_is_sent_is_repeated_until_it_is_answered(serve: Make) -> None:
    stub = serve(faults=lambda number: "wrong_echo" if number == 0 else None)
    servers = Servers(stub.url, patience=Patience(pause=0.01))
    model = find_model(servers, None).model
    assert torch.equal(model.score(QUESTION).sampled, answered(stub, QUESTION).sampled)
    assert servers.counts["retries"] == 1


def test_a_text_is_written_encoded_and_decoded(serve: Make, pair: Any) -> None:
    stub = serve()
    model = find_model(Servers(stub.url), None).model
    ended, cut = (model.continuation(IDS[:4], most, stub.url) for most in (64, 3))
    assert ended.ids == tuple(stub.written(list(IDS[:4]), 64)) and ended.end_id == pair.tokenizer.eos_token_id
    assert cut.ids == ended.ids[:3] and cut.end_id is None
    text = model.decoded(ended.ids, stub.url)
    assert text.endswith(pair.tokenizer.eos_token) and model.encoded(text, stub.url) == list(ended.ids)


def test_what_a_server_is_and_gives_is_found(serve: Make) -> None:
    with_states, without = serve(), serve(gives_states=False)
    model = find_model(Servers(with_states.url), None)
    assert model.model.engine.name == "SGLang" and model.length == 256
    assert pooling_servers(model.model, QUESTION) == ({with_states.url: WIDTH}, "")
    widths, refusal = pooling_servers(find_model(Servers(without.url), None).model, QUESTION)
    assert widths == {} and "--enable-return-hidden-states" in refusal
    with pytest.raises(TeacherServerError, match=says("Input length (256 tokens)")):  # no lack of states
        pooling_servers(model.model, Question((70,) * 256, 1))


def test_an_adapter_is_not_taken_for_its_model(serve: Make) -> None:
    servers = Servers(serve(adapters=("adapter",)).url)
    assert find_model(servers, NAME).model.name == NAME
    with pytest.raises(ConfigurationError, match=says("'adapter' is an adapter on 'stub-teacher' ... merge")):
        find_model(servers, "adapter")


@pytest.mark.parametrize(("estimator", "top_k"), [("opd", None), ("rao_blackwell_teacher_top_k", 5)])
def test_the_gradient_from_scores_is_that_of_a_local_teacher(
    estimator: str, top_k: int | None, serve: Make, make_trainer: Make, gradients_of: Make
) -> None:
    settings = {"estimator": estimator, "loss_top_k": top_k, "max_grad_norm": 0}
    expected = gradients_of(make_trainer(str(embedded_pair().teacher), **settings))
    stub = serve(gives_states=top_k is None, cached=9)  # states are of no use without the teacher's files
    trainer = make_trainer(teacher_server_url=stub.url, **settings)
    assert trainer.teachers.positions == 249
    assert largest_difference(expected, gradients_of(trainer)) < 1e-4


def test_the_gradient_from_states_is_that_of_a_local_teacher(
    serve: Make, make_trainer: Make, gradients_of: Make
) -> None:
    teacher = str(embedded_pair().teacher)
    settings = {"estimator": "vopd", "loss_top_k": None, "max_grad_norm": 0, "temperature": 1.3}
    expected = gradients_of(make_trainer(teacher, **settings))
    stub = serve(cached=9)
    trainer = make_trainer(teacher, teacher_server_url=stub.url, teacher_server_dtype="float32", **settings)
    assert trainer.teachers.positions == 249
    assert largest_difference(expected, gradients_of(trainer)) < 1e-4


def test_chosen_ids_are_refused_before_training(serve: Make, make_trainer: Make) -> None:
    with pytest.raises(ConfigurationError, match=says("'vopd_sparse' ... SGLang does not score ids that are chosen")):
        make_trainer(teacher_server_url=serve(gives_states=False).url, estimator="vopd_sparse")


def test_a_server_of_scores_alone_is_refused_where_states_are_set(serve: Make, make_trainer: Make) -> None:
    with pytest.raises(ConfigurationError, match=says("gives no hidden states ... --enable-return-hidden-states")):
        make_trainer(
            str(embedded_pair().teacher),
            teacher_server_url=serve(gives_states=False).url,
            teacher_server_payload="hidden_states",
        )


def test_the_head_is_compared_with_the_server_s_own_scores(
    serve: Make, make_trainer: Make, pair: Any, tmp_path: Path
) -> None:
    """A head of the right shape that belongs to another model."""
    other = copy.deepcopy(pair.teacher)
    other.lm_head.weight.data = other.lm_head.weight.roll(1, 0)
    other.save_pretrained(tmp_path / "other")
    pair.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(
        MismatchError, match=says("hidden states and output head differ from http ... not of one model")
    ):
        make_trainer(str(tmp_path / "other"), teacher_server_url=serve().url, estimator="vopd", loss_top_k=None)
