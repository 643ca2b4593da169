"""Rollouts by an engine that reports log-probabilities: carried to the right tokens, weighed, compared, logged."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from conftest import save_tiny_model
from messages import says, told
from vopd.errors import ConfigurationError, GuardError, MissingExtraError, NonFiniteError, TeacherServerError
from vopd.training import rollout_logprobs as rollout
from vopd.training.rollout_logprobs import MAX_DIFFERENCE, MEAN_DIFFERENCE, padded, sampled_logprobs

CAP = 1.2


def noise(token: int, place: int) -> float:
    """How far the engine's log-probability is from the student's."""
    return 0.4 * math.sin(token * token + place)


class FakeEngine:
    """In place of TRL's VLLMGeneration: recorded completions, and the student's log-probabilities + noise.

    They are those at temperature `reported_at`: the sampling temperature for processed ones, 1 for raw ones.
    """

    last: FakeEngine

    def __init__(
        self,
        model: Any,
        completions: Callable[[list[int]], list[int]],
        noisy: bool,
        reported_at: float,
        **settings: Any,
    ) -> None:
        self.model, self.completions, self.noisy, self.reported_at = model, completions, noisy, reported_at
        self.generation_kwargs, self.logprobs = settings["generation_kwargs"], settings["logprobs"]
        self.syncs = 0
        self.vllm_client = SimpleNamespace(base_url="http://server", session=self)
        FakeEngine.last = self

    environment: ClassVar[dict[str, Any]] = {}  # of the server, as it says

    def get(self, url: str, params: Any) -> Any:
        assert (url, params) == ("http://server/server_info", {"config_format": "json"})
        return SimpleNamespace(ok=True, json=lambda: {"vllm_env": self.environment})

    def sync_weights(self) -> None:
        self.syncs += 1

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], **named: Any) -> tuple[Any, ...]:
        assert self.logprobs == 0
        completions = [self.completions(ids) for ids in prompts]
        reported = []
        for prompt, completion in zip(prompts, completions):
            logits = (
                self.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, :300] / self.reported_at
            )
            scores = logits.log_softmax(-1)[range(len(completion)), completion].tolist()
            reported.append([
                [score + (noise(token, place) if self.noisy else 0.0)]
                for place, (token, score) in enumerate(zip(completion, scores))
            ])  # fmt: skip
        return prompts, completions, reported, [[[token] for token in ids] for ids in completions]


@pytest.fixture
def with_engine(
    make_trainer: Callable[..., Any], recorded_completions: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """As make_trainer, with rollouts by the fake engine."""
    from trl.trainer import distillation_trainer

    def make(*, noisy: bool = True, reported_at: float = 1.0, **settings: Any) -> Any:
        def engine(**given: Any) -> FakeEngine:
            return FakeEngine(completions=recorded_completions, noisy=noisy, reported_at=reported_at, **given)

        monkeypatch.setattr(rollout, "has_vllm", lambda: True)
        monkeypatch.setattr(distillation_trainer, "is_vllm_available", lambda: True)
        monkeypatch.setattr(distillation_trainer, "VLLMGeneration", engine)
        return make_trainer(**({"vllm_mode": "colocate"} | settings), use_vllm=True, max_grad_norm=0)

    return make


def test_values_stay_with_their_tokens_through_padding_shuffling_and_splitting(
    with_engine: Callable[..., Any], recorded_completions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = with_engine(gradient_accumulation_steps=4, max_steps=1)
    loss, seen = trainer.token_loss, []

    def check(batch: Any, states: Any, *rest: Any) -> Any:
        seen.extend(batch.completion_ids.tolist())
        student = states.hidden.detach() @ states.head.weight[:300].detach().T
        scores = student.log_softmax(-1).gather(-1, batch.completion_ids[..., None]).squeeze(-1)
        for row, mask in enumerate(batch.loss_mask.bool()):
            ids = batch.completion_ids[row][mask].tolist()
            wanted = scores[row][mask] + torch.tensor([noise(token, place) for place, token in enumerate(ids)])
            torch.testing.assert_close(batch.rollout_logprobs[row][mask], wanted, atol=1e-5, rtol=0)
            assert (batch.rollout_logprobs[row][~mask] == 0).all()
        return loss(batch, states, *rest)

    monkeypatch.setattr(trainer, "token_loss", check)
    trainer.train()
    assert len(seen) == 8 and len({tuple(row) for row in seen}) > 4


def test_weights_enter_the_gradient_and_the_differences_the_log(
    with_engine: Callable[..., Any], take_step: Callable[..., Any], recorded_completions: Any,
    tiny_student_dir: Path, tiny_teacher_dir: Path,
) -> None:  # fmt: skip
    from transformers import AutoModelForCausalLM

    trainer = with_engine(max_steps=1, importance_cap=CAP, shuffle_dataset=False, gradient_accumulation_steps=2)
    gradient = take_step(trainer)

    load = AutoModelForCausalLM.from_pretrained
    student, teacher = (load(path, dtype=torch.float32) for path in (tiny_student_dir, tiny_teacher_dir))
    losses, differences, weights = [], [], []
    for prompt in trainer.tokenize(list(trainer.train_dataset["prompt"][:4])):
        completion = recorded_completions(prompt)
        ids, here = torch.tensor([prompt + completion]), slice(len(prompt) - 1, -1)
        logp = student(ids).logits[0, here, :300].log_softmax(-1)
        with torch.no_grad():
            reward = teacher(ids).logits[0, here, :300].log_softmax(-1) - logp
        for place, token in enumerate(completion):
            advantage = (reward[place, token] - (logp[place].exp() * reward[place]).sum()).detach()
            weights.append(min(math.exp(-noise(token, place)), CAP))
            losses.append(-weights[-1] * advantage * logp[place, token])
            differences.append(abs(noise(token, place)))
    assert any(weight == CAP for weight in weights) and any(weight < 0.9 for weight in weights)
    torch.stack(losses).mean().backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-5)
    logged = trainer.state.log_history[0]
    assert logged[MEAN_DIFFERENCE] == pytest.approx(sum(differences) / len(differences), abs=1e-5)
    assert logged[MAX_DIFFERENCE] == pytest.approx(max(differences), abs=1e-5)


def test_an_exact_engine_and_weights_turned_off_leave_the_gradient_as_it_is(
    with_engine: Callable[..., Any], make_trainer: Callable[..., Any], take_step: Callable[..., Any],
    recorded_completions: Any,
) -> None:  # fmt: skip
    plain = take_step(make_trainer(max_steps=1, max_grad_norm=0), recorded_completions)
    for settings in ({"noisy": False}, {"importance_sampling": False}):
        trainer = with_engine(max_steps=1, **settings)
        gradient = take_step(trainer)
        for name, value in plain.items():
            torch.testing.assert_close(gradient[name], value, rtol=1e-4, atol=1e-6)
        assert MEAN_DIFFERENCE in trainer.state.log_history[0]


def test_the_engine_is_synchronised_every_step_and_stops_where_generate_does(
    with_engine: Callable[..., Any], tiny_student_dir: Path
) -> None:
    from vopd.models import load_model, set_end_ids

    student = load_model(tiny_student_dir)
    set_end_ids(student, [1, 42])
    with_engine(model=student, max_steps=3, gradient_accumulation_steps=2).train()
    assert FakeEngine.last.syncs == 3
    assert sorted(FakeEngine.last.generation_kwargs["stop_token_ids"]) == [1, 42]


@pytest.mark.parametrize("mode", ["colocate", "server"])
class TestRowsWithoutAToken:
    """They are kept from being sampled wherever the engine is; `make test-server` shows that a real one heeds it."""

    def test_all_are_named_to_the_engine(self, with_engine: Callable[..., Any], mode: str) -> None:
        with_engine(vllm_mode=mode)
        assert FakeEngine.last.generation_kwargs.get("logit_bias") == dict.fromkeys(range(300, 304), -100.0)

    @pytest.fixture
    def wide(self, tmp_path: Path, tiny_tokenizer: Any) -> str:
        """A student with 1069 rows too many, as gpt-oss has them."""
        return str(save_tiny_model(tmp_path / "wide", tiny_tokenizer, rows=1369, width=32, seed=1, tied=True))

    @pytest.mark.parametrize("runner", [None, True])
    def test_more_than_the_newer_runner_takes(
        self, with_engine: Callable[..., Any], wide: str, mode: str, runner: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.choose(runner, monkeypatch)
        with pytest.raises(ConfigurationError, match=says("1069 ... 1024 ... VLLM_USE_V2_MODEL_RUNNER=0")) as raised:
            with_engine(vllm_mode=mode, model=wide)
        assert told({"server": "vllm serve", "colocate": "training processes"}[mode], str(raised.value))

    def test_the_older_runner_takes_them_all(
        self, with_engine: Callable[..., Any], wide: str, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.choose(False, monkeypatch)
        with_engine(vllm_mode=mode, model=wide)
        assert len(FakeEngine.last.generation_kwargs["logit_bias"]) == 1069

    def choose(self, newer: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let both the server and this process be told of a model runner."""
        monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
        if newer is not None:
            monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(newer)))
        environment = {} if newer is None else {"VLLM_USE_V2_MODEL_RUNNER": newer}
        monkeypatch.setattr(FakeEngine, "environment", environment)


def test_a_large_difference_is_told_once(with_engine: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vopd"):
        with_engine(max_steps=2).train()
    assert caplog.text.count("guard logprobs at step 1") == 1 == caplog.text.count("its weights may be stale")
    caplog.clear()
    with_engine(noisy=False, max_steps=2).train()
    assert "stale" not in caplog.text


def test_raw_log_probabilities_at_another_temperature_end_the_run(with_engine: Callable[..., Any]) -> None:
    """Those of the untempered distribution are no log-probabilities of what was sampled."""
    processed = with_engine(noisy=False, temperature=0.5, reported_at=0.5, max_steps=1)
    processed.train()
    assert processed.state.log_history[0][MEAN_DIFFERENCE] < 1e-4
    raw = with_engine(noisy=False, temperature=0.5, reported_at=1.0, max_steps=1)
    with pytest.raises(GuardError, match=says("--logprobs-mode processed_logprobs")):
        raw.train()


class TestWhatTheEngineReports:
    def test_the_sampled_token_among_alternatives(self) -> None:
        found = sampled_logprobs([[7, 9]], [[[-0.1, -2.0], [-0.5]]], [[[3, 7], [9]]])
        assert found == [[-2.0, -0.5]]

    def test_an_engine_without(self) -> None:
        assert sampled_logprobs([[7]], None, None) is None

    @pytest.mark.parametrize("value", [None, math.nan, -math.inf])
    def test_no_number(self, value: Any) -> None:
        with pytest.raises(NonFiniteError, match="set importance_sampling=false"):
            sampled_logprobs([[7]], [[[value]]], [[[7]]])

    def test_one_score_too_few(self) -> None:
        with pytest.raises(NonFiniteError, match=says("1 log-probability ... 2 tokens")):
            sampled_logprobs([[7, 8]], [[[-1.0]]], None)

    @pytest.mark.parametrize("ids", [[[8]], [[8, 9]]])
    def test_scores_of_other_tokens(self, ids: Any) -> None:
        with pytest.raises(NonFiniteError, match=says("token 7 ... log-probabilities of 8")):
            sampled_logprobs([[7]], [[[-1.0] * len(ids[0])]], [ids])

    def test_padding_on_the_right(self) -> None:
        like = torch.zeros(2, 4, dtype=torch.long)
        assert padded([[-1.0], [-2.0, -3.0]], like).tolist() == [[-1, 0, 0, 0], [-2, -3, 0, 0]]


class TestRefusals:
    def test_no_vllm(self, make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rollout, "has_vllm", lambda: False)
        with pytest.raises(MissingExtraError, match=says("vllm ... use_vllm ... install")):
            make_trainer(use_vllm=True)

    def test_weights_through_tools(self) -> None:
        with pytest.raises(ConfigurationError, match="through tool calls"):
            rollout.check_engine(False, True, [print])

    def test_a_server_that_does_not_answer(
        self, with_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: Any, *given: Any, **settings: Any) -> None:
            raise ConnectionError("can't be reached")

        monkeypatch.setattr(FakeEngine, "__init__", refuse)
        with pytest.raises(TeacherServerError, match=says("vllm serve")) as raised:
            with_engine(vllm_mode="server")
        assert raised.value.exit_code == 5
