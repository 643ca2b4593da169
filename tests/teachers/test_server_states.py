"""A whole trainer whose teacher's rows come from a server's hidden states: it trains as with the teacher itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from messages import says
from teachers.conftest import PROMPTS
from vopd.errors import ConfigurationError, MismatchError, TeacherServerError
from vopd.estimators import ESTIMATORS
from vopd.experiments.pair import embedded_pair
from vopd.models.head_files import load_head
from vopd.teachers.server import Servers
from vopd.teachers.server.discovery import find_model, pooling_servers
from vopd.teachers.server.engines.vllm import VLLM
from vopd.teachers.server.preflight import by_scores, by_states
from vopd.teachers.server.questions import Question
from vopd.teachers.server.refusals import Rejected
from vopd.training.objective import Objective

Make = Callable[..., Any]
TEACHER = str(embedded_pair().teacher)
HINTS = [f"Hint! {prompt}" if place % 3 else "" for place, prompt in enumerate(PROMPTS)]
# Relative, for a parameter, in the Frobenius norm: what rounding in float32 does to a gradient.
ROUNDING = 1e-5


def data(**columns: list[str]) -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS, **columns})


def settings(server: Any = None, **own: Any) -> dict[str, Any]:
    """Arguments of ``make_trainer``: of a run with the teacher's states from a server, or with the teacher itself."""
    exact = {"teacher_model": TEACHER, "max_grad_norm": 0, "estimator": "full_rkl", "loss_top_k": ...}
    served = {} if server is None else {"teacher_server_url": server.url, "teacher_server_dtype": "float32"}
    return exact | served | own


def farthest(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a parameter's gradient, in the Frobenius norm."""
    assert expected.keys() == found.keys()
    return max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())


def turned(model: Any) -> Any:
    """A copy whose hidden states point the other way."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        found.model.norm.weight.mul_(-1)
    return found


def uneven(trainer: Any) -> Any:
    """The trainer, whose completions get different lengths."""
    generate = trainer._generate_single_turn

    def cut(*given: Any, **named: Any) -> list[list[int]]:
        return [ids[: 4 + 4 * (place % 3)] for place, ids in enumerate(generate(*given, **named))]

    trainer._generate_single_turn = cut
    return trainer


def of_every_estimator(trainer: Any) -> dict[str, dict[str, torch.Tensor]]:
    """The gradient of each estimator at the first micro-batch of the trainer."""
    weights, found = dict(trainer.model.named_parameters()), {}

    class Found(Exception):
        """Nothing more is needed."""

    def each(batch: Any, student: Any, scored: Any, normalizer: Any) -> torch.Tensor:
        for name, estimator in ESTIMATORS.items():
            config = copy.copy(trainer.args)
            config.estimator, config.loss_top_k = name, 5 if estimator.needs_top_k else None
            parts = Objective(config, trainer.vocab_size, "torch").parts(batch, student, scored, normalizer=normalizer)
            gradient = torch.autograd.grad(parts[0].loss, list(weights.values()), retain_graph=True)
            found[name] = dict(zip(weights, gradient, strict=True))
        raise Found

    trainer.token_loss = each
    with pytest.raises(Found):
        uneven(trainer).train()
    return found


def test_every_estimator_has_the_gradient_of_the_teacher_in_this_process(pool: Make, make_trainer: Make) -> None:
    expected = of_every_estimator(make_trainer(**settings()))
    found = of_every_estimator(make_trainer(**settings(pool())))
    assert len(expected) == 11
    for name, gradient in expected.items():
        assert farthest(gradient, found[name]) <= ROUNDING, name
    rounded = of_every_estimator(make_trainer(**settings(pool(), teacher_server_dtype="bfloat16")))
    assert 1e-4 < farthest(expected["full_rkl"], rounded["full_rkl"]) < 0.05


def hinted_and_routed(source: Any) -> dict[str, Any]:
    """Rows of two teachers, of which `source` is one, some with prompts for the teacher alone."""
    rows = data(hint=HINTS, teacher=["frozen", "served", "served"] * 2)
    teachers = {"frozen": "self:frozen", "served": source}
    return {
        "teacher_model": None,
        "teacher_prompt_column": "hint",
        "trainer": {"teachers": teachers, "train_dataset": rows},
    }


@pytest.mark.parametrize(
    "own",
    [
        {"temperature": 1.4, "estimator": "vopd_optimal", "max_tokens_per_micro_batch": 100, "teacher_offload": True},
        {"teachers": "two", "estimator": "vopd"},
    ],
)
def test_a_step_has_the_gradient_of_the_teacher_in_this_process(
    own: dict[str, Any], pool: Make, make_trainer: Make, gradients_of: Make
) -> None:
    server, both = pool(), []
    own = {"gradient_accumulation_steps": 2, **own}
    two = own.pop("teachers", None)
    for served in (None, server):
        given = settings(served, **own)
        if two:
            given.pop("teacher_server_url", None)
            given |= hinted_and_routed(TEACHER if served is None else {"server_url": server.url, "model": TEACHER})
        both.append(gradients_of(uneven(make_trainer(**given))))
    ((expected,), (found,)) = both
    assert farthest(expected, found) <= ROUNDING


def test_an_evaluation_measures_what_it_does_with_the_teacher_in_this_process(pool: Make, make_trainer: Make) -> None:
    """The exact divergence among it, which a server of scores cannot give."""
    evaluated = {"trainer": {"eval_dataset": data().select(range(4))}, "per_device_eval_batch_size": 2}
    expected, found = (make_trainer(**settings(server, **evaluated)).evaluate() for server in (None, pool()))
    compared = {name for name in expected if "time" not in name and "second" not in name}
    assert {"eval_loss", "eval_reverse_kl"} <= compared <= set(found)
    for name in compared:
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


def test_a_completion_without_states_counts_nowhere_in_an_evaluation(pool: Make, make_trainer: Make) -> None:
    """What is measured is as without its prompt."""
    server, found = pool(), []
    for rows in ([0], [0, 1]):
        evaluated = {"trainer": {"eval_dataset": data().select(rows)}, "per_device_eval_batch_size": 1}
        trainer = make_trainer(**settings(server, teacher_failure="drop", teacher_server_retries=0, **evaluated))
        unscored = trainer.tokenize(PROMPTS[1:2])[0]
        server.faults = lambda number, ids=unscored: (
            "500" if server.bodies[number]["input"][: len(ids)] == ids else None
        )
        found.append(trainer.evaluate())
        server.faults = lambda number: None
    for name in ("eval_reverse_kl", "eval_teacher_reward/mean", "eval_loss"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-5), name


def test_a_resumed_run_ends_with_the_same_bits(pool: Make, make_trainer: Make, tmp_path: Path) -> None:
    server = pool()
    given = settings(server, max_steps=2, max_completion_length=4, save_strategy="steps", save_steps=1)
    whole = make_trainer(**given, output_dir=str(tmp_path / "whole"))
    whole.train()
    resumed = make_trainer(**given, output_dir=str(tmp_path / "whole"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    theirs = whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in resumed.model.state_dict().items())


def test_states_times_head_give_the_teacher_s_own_scores(pool: Make, serve: Make) -> None:
    """Of the whole vocabulary, however many ids the student shares."""
    text, found = Question((70, 80, 90, 60, 291), 1), []
    for server, measure in ((serve(), by_scores), (pool(), by_states(load_head(TEACHER), torch.float32))):
        model = replace(find_model(Servers(server.url), None).model, vocab_size=300)
        found.append(measure(model, text, server.url, None))
    torch.testing.assert_close(*found)


# ---- what is found out at the start -------------------------------------------------------------------------------


def test_a_generating_server_of_the_list_is_compared_with_and_never_taught_by(
    pool: Make, serve: Make, make_trainer: Make, pair: Any
) -> None:
    pooling, generating = pool(), serve()
    trainer = make_trainer(**settings(pooling, teacher_server_url=[generating.url, pooling.url]))
    compared = len(generating.bodies)
    assert compared
    trainer.train()
    assert len(generating.bodies) == compared and pooling.bodies
    assert all(body["use_activation"] is False for body in pooling.bodies)
    with pytest.raises(MismatchError, match=says("not of one model ... teacher_model")):
        make_trainer(**settings(pooling, teacher_server_url=[pooling.url, serve(pair.student).url]))


def test_a_head_of_another_model_is_refused(
    pool: Make, serve: Make, make_trainer: Make, pair: Any, tmp_path: Path
) -> None:
    server = pool()
    with pytest.raises(MismatchError, match=says("width 128 ... width 64 ... teacher_model")):
        make_trainer(**settings(server, teacher_model=str(embedded_pair().student)))
    other, path = copy.deepcopy(pair.teacher), tmp_path / "other"
    with torch.no_grad():
        other.lm_head.weight.copy_(other.lm_head.weight.flip(0))
    other.save_pretrained(path)
    pair.tokenizer.save_pretrained(path)
    with pytest.raises(MismatchError, match=says("not of one model ... teacher_model")):  # only the head differs
        make_trainer(**settings(server, teacher_model=str(path), teacher_server_url=[server.url, serve().url]))
    turned(other).save_pretrained(path)
    with pytest.raises(MismatchError, match=says("not of one model ... teacher_model")):
        make_trainer(**settings(server, teacher_model=str(path)))


def test_normalized_states_are_refused(pool: Make, make_trainer: Make) -> None:
    with pytest.raises(ConfigurationError, match=says("length 1 ... --pooler-config.use_activation false")):
        make_trainer(**settings(pool(normalizes=True)))


def test_two_servers_of_different_weights_are_refused(pool: Make, make_trainer: Make, pair: Any) -> None:
    urls = [pool().url, pool(turned(pair.teacher)).url]
    with pytest.raises(TeacherServerError, match=says(f"{urls[1]} ... {urls[0]} ... different weights")):
        make_trainer(**settings(teacher_server_url=urls))


def test_other_weights_under_the_same_name_end_the_run(pool: Make, make_trainer: Make, pair: Any) -> None:
    server = pool()
    trainer = make_trainer(**settings(server, max_steps=3, max_completion_length=2, teacher_failure="drop"))
    server.model = turned(pair.teacher)
    with pytest.raises(TeacherServerError, match=says(f"{server.url} ... nats/token ... other weights")):
        trainer.train()


def test_a_server_that_comes_back_with_other_weights_teaches_no_step(pool: Make, make_trainer: Make, pair: Any) -> None:
    """The check of the batch found it as it was, or down; only the failed request shows that it was restarted."""
    server = pool()
    trainer = make_trainer(**settings(server, max_completion_length=2))
    begun = len(server.bodies)

    def restarted(number: int) -> str | None:
        if number <= begun + 1:
            return None
        server.model = turned(pair.teacher)
        return "500" if number == begun + 2 else None

    server.faults = restarted
    with pytest.raises(TeacherServerError, match=says(f"{server.url} ... nats/token ... other weights")):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_gateway_that_lets_only_scores_through_is_no_pooling_server() -> None:
    class Gateway:
        servers, engine = SimpleNamespace(urls=("http://here",)), VLLM()

        def states(self, *given: Any, **named: Any) -> torch.Tensor:
            raise Rejected("not here", 403)

    widths, refusal = pooling_servers(Gateway(), Question((1, 2), 1))  # type: ignore[arg-type]
    assert widths == {} and "status 403" in refusal


def test_what_a_pooling_server_needs_is_named(pool: Make, serve: Make, make_trainer: Make) -> None:
    url = pool().url
    with pytest.raises(ConfigurationError, match=says("teacher_model")):
        make_trainer(**settings(teacher_model=None, teacher_server_url=url))
    with pytest.raises(TeacherServerError, match=says("--pooler-config.task token_embed")):
        make_trainer(**settings(serve(pools="embed")))
    with pytest.raises(ConfigurationError, match=says("full distribution ... --runner pooling")):
        make_trainer(**settings(serve()))
    with pytest.raises(ConfigurationError, match=says("--runner pooling")):
        asked = {"teacher_server_payload": "hidden_states", "estimator": "opd"}
        make_trainer(**settings(serve(), **asked))
    with pytest.raises(ConfigurationError, match=says(f"{url} ... no scores ... teacher_server_payload")):
        make_trainer(teacher_model=TEACHER, teacher_server_url=url, teacher_server_payload="scores")
    with pytest.raises(ConfigurationError, match=says("model beside ... server_url")):
        make_trainer(trainer={"teachers": {"a": url}}, estimator="full_rkl", loss_top_k=...)
