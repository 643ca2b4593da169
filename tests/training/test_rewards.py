"""Rewards beside the teacher: which functions there are, what they are given, and what they do to a step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from messages import says, told
from vopd.errors import ConfigurationError, DataError, NonFiniteError
from vopd.training.rewards.functions import Rewards

REAL_TOKENS = 300

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")


def rewards(given: Any, **settings: Any) -> Rewards:
    return Rewards(given, settings.get("weights"), settings.get("num_generations", 2), settings.get("column", "answer"))


def scores(given: Any, completions: list[Any], **columns: Any) -> list[float]:
    """The rewards of one function for these completions."""
    (reward,) = rewards(given).rewards
    return reward.scorer({"prompts": ["p"] * len(completions), "completions": completions, **columns})


def test_math_and_choice_grade_against_the_column() -> None:
    texts = ["so \\boxed{1/2}", "\\boxed{0.5}", "\\boxed{2}", "no answer", "\\boxed{1}"]
    found = scores("math", texts, answer=["0.5", "\\frac{1}{2}", "0.5", "0.5", None])
    assert found[:4] == [1.0, 1.0, 0.0, 0.0] and found[4] != found[4]  # no reference answer, no reward
    assert scores("choice", ["The answer is B.", "A"], answer=["B", "B"]) == [1.0, 0.0]
    assert scores("math", [[{"role": "assistant", "content": "\\boxed{7}"}]], answer=[7]) == [1.0]


def test_reasoning_gym_has_the_tasks_own_verifier() -> None:
    from vopd.data.reasoning import reasoning_problems

    problem = reasoning_problems("chain_sum", 1, 0)[0]
    columns = {
        "problem": [problem.question] * 3,
        "task": ["chain_sum", "chain_sum", None],
        "answer": [problem.answer] * 3,
        "metadata": [json.dumps(problem.metadata)] * 3,
    }
    right = f"so <answer>{problem.answer}</answer>"
    found = scores("reasoning_gym", [right, "<answer>x</answer>", right], **columns)
    assert found[:2] == [1.0, pytest.approx(0.0, abs=0.02)] and found[2] != found[2]


def test_functions_get_what_they_ask_for() -> None:
    seen: dict[str, Any] = {}

    def everything(prompts: Any, completions: Any, **rest: Any) -> list[float]:
        seen.update(rest)
        return [1.0] * len(completions)

    def little(completions: Any, level: Any) -> list[Any]:
        return [None if entry > 1 else entry for entry in level]

    assert scores(everything, ["a"], level=[3], trainer_state="s", completion_ids=[[5]]) == [1.0]
    assert seen == {"level": [3], "trainer_state": "s", "completion_ids": [[5]]}
    found = scores(little, ["a", "b"], level=[1, 2])
    assert found[0] == 1.0 and found[1] != found[1]
    assert rewards([little, partial(everything, a=1)]).names == ["little", "everything"]


def test_functions_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def short(completions):\n    return [-len(text) for text in completions]\n"
    (tmp_path / "module_of_rewards.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert rewards("module_of_rewards:short").names == ["short"]
    assert scores("module_of_rewards:short", ["abc"]) == [-3.0]
    with pytest.raises(ConfigurationError, match=says("module_of_rewards ... 'long'")):
        rewards("module_of_rewards:long")
    with pytest.raises(ConfigurationError, match=says("'his_rewards'")):
        rewards("his_rewards:short")


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ("maths", {}, "'maths' ... math, choice, tags, reasoning_gym"),
        ("math", {"num_generations": 1}, "num_generations ... 2"),
        (["math", "choice"], {"weights": [1.0]}, "reward_weights ... 1 value ... 2 reward functions"),
        ([], {"weights": [1.0]}, "reward_weights ... 1 value ... 0 reward functions"),
        ("math", {"weights": [float("nan")]}, "reward_weights ... finite ... nan"),
        (["math", "math"], {}, "math, math ... name"),
        (3, {}, "callable ... int"),
        (max, {}, "'max' ... wrap it in a def"),
    ],
)
def test_what_makes_no_sense_is_refused(given: Any, settings: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=says(message)):
        rewards(given, **settings)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ([1.0], ConfigurationError, "'f' ... 1 for 2 completions"),
        (1.0, ConfigurationError, "'f' ... float for 2 completions"),
        (["good", 1.0], ConfigurationError, "'f' ... 'good' ... number"),
        ([float("nan"), 1.0], NonFiniteError, "'f' ... nan ... None"),
    ],
)
def test_what_a_function_must_not_return(answer: Any, error: type[Exception], message: str) -> None:
    def f(completions: Any) -> Any:
        return answer

    with pytest.raises(error, match=says(message)):
        scores(f, ["a", "b"])


def test_columns_are_checked_before_anything_is_loaded(make_trainer: Callable[..., Any]) -> None:
    def level_reward(completions: Any, level: Any) -> list[float]:
        return [1.0] * len(completions)

    with pytest.raises(DataError, match=says("'math' ... 'answer' ... train_dataset has prompt ... reward_column")):
        make_trainer(trainer={"reward_funcs": "math"}, num_generations=2)
    with pytest.raises(DataError, match=says("'level_reward' ... 'level'")):
        make_trainer(trainer={"reward_funcs": level_reward}, num_generations=2)
    with pytest.raises(ConfigurationError, match=says("2 completions ... multiple of num_generations=4")):
        make_trainer(num_generations=4)
    with pytest.raises(ConfigurationError, match=says("top_p=0.9 ... reward's")):
        make_trainer(trainer={"reward_funcs": "math"}, num_generations=2, estimator="full_rkl", top_p=0.9)
    with pytest.raises(DataError, match="2 prompts|no reference answer"):
        table = Dataset.from_dict({"prompt": ["a", "b"], "answer": [None, ""]})
        make_trainer(trainer={"reward_funcs": "math", "train_dataset": table}, num_generations=2)


# ---- in a step --------------------------------------------------------------------------------------------------


def by_ids(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward that tells any two completions apart."""
    return [(sum((place + 1) * token for place, token in enumerate(ids)) % 101) / 25 for ids in completion_ids]


def numbered(prompts: list[list[int]]) -> list[list[int]]:
    """A fixed completion for each repetition of a prompt in a generation batch, of 1 to 5 tokens."""
    found, seen = [], {}
    for ids in prompts:
        turn = seen[tuple(ids)] = seen.get(tuple(ids), -1) + 1
        length = 1 + (sum(ids) + turn) % 5
        found.append([2 + (17 * sum(ids) + 29 * place + 53 * turn) % 298 for place in range(length)])
    return found


def fixed_rollout(trainer: Any) -> Any:
    trainer._generate_single_turn = lambda prompts, *rest, **named: numbered(prompts)
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_gradient_of_a_step_is_that_of_the_formula_written_out(
    accumulation: int,
    make_trainer: Callable[..., Any],
    take_step: Callable[..., Any],
    tiny_student_dir: Path,
    tiny_teacher_dir: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    prompts, generations, weight = ["Hi", "How many legs do two dogs have?"], 4, 0.3
    trainer = make_trainer(
        prompts=prompts,
        num_generations=generations,
        reward_weights=[weight],
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0,
        trainer={"reward_funcs": by_ids},
    )
    gradient = take_step(fixed_rollout(trainer))
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (tiny_student_dir, tiny_teacher_dir)
    )
    total, tokens, every = torch.zeros(()), 0, []
    for ids in trainer.tokenize(prompts):
        group = numbered([ids] * generations)
        found = by_ids(group)
        every += found
        for place, completion in enumerate(group):
            others = sum(found[:place] + found[place + 1 :]) / (generations - 1)
            sequence = torch.tensor([ids + completion])
            log_p, log_q = (
                model(input_ids=sequence).logits[0, len(ids) - 1 : -1, :REAL_TOKENS].log_softmax(-1)
                for model in (student, teacher)
            )
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)
            at = torch.tensor(completion).unsqueeze(-1)
            advantage = (log_q - log_p).gather(-1, at).squeeze(-1) + kl + weight * (found[place] - others)
            total = total - (advantage.detach() * log_p.gather(-1, at).squeeze(-1)).sum()
            tokens += len(completion)
    (total / tokens).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-5)
    logged = trainer.state.log_history[0]
    assert logged["rewards/by_ids/mean"] == pytest.approx(sum(every) / 8, rel=1e-5)
    assert logged["rewards/by_ids/std"] == pytest.approx(torch.tensor(every).std(correction=0).item(), rel=1e-4)
    assert logged["zero_spread_share"] == 0.0 and logged["group_advantage/std"] > 0
    assert logged["seconds/reward"] >= 0


def test_each_reward_has_its_own_share_of_prompts_without_spread(make_trainer: Callable[..., Any]) -> None:
    def constant(completions: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = make_trainer(
        num_generations=2, per_device_train_batch_size=4, max_steps=1, trainer={"reward_funcs": [by_ids, constant]}
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/constant/zero_spread_share"] == 1.0
    assert logged["rewards/by_ids/zero_spread_share"] == logged["zero_spread_share"] == 0.0


def test_a_completion_is_graded_with_the_columns_of_its_own_row(make_trainer: Callable[..., Any]) -> None:
    prompts = ["a", "bb", "ccc", "dddd"]
    table = Dataset.from_dict({"prompt": prompts, "answer": ["1", "2", "3", "4"]})
    seen: list[tuple[str, str, tuple[int, ...]]] = []

    def keep(prompts: Any, completion_ids: Any, answer: Any, **rest: Any) -> list[float]:
        seen.extend(zip(prompts, answer, map(tuple, completion_ids), strict=True))
        return by_ids(completion_ids)

    trainer = make_trainer(
        num_generations=2, per_device_train_batch_size=4, trainer={"reward_funcs": keep, "train_dataset": table}
    )
    own = {prompt: numbered([ids, ids]) for prompt, ids in zip(prompts, trainer.tokenize(prompts), strict=True)}
    fixed_rollout(trainer).train()
    assert {prompt for prompt, _, _ in seen} == set(own)
    for prompt, answer, ids in seen:
        assert answer == str(len(prompt)) and list(ids) in own[prompt]


def test_samples_hold_the_scores(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    def odd(completion_ids: Any, **kwargs: Any) -> list[Any]:
        return [None if len(ids) % 2 else 1.0 for ids in completion_ids]

    trainer = make_trainer(num_generations=2, max_steps=1, samples_per_step=2, trainer={"reward_funcs": [by_ids, odd]})
    fixed_rollout(trainer).train()
    for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        assert sample["scored_by"] == ["by_ids", "odd"]
        assert sample["scores"][1] == (None if len(sample["tokens"]) % 2 else 1.0)
    trainer.save_model(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert told("by_ids (weight 1) ... odd (weight 1) ... 2 completions per prompt", card)


def test_evaluation_measures_rewards_without_groups(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    held_out = Dataset.from_dict({"prompt": ["x", "y", "z"]})
    trainer = make_trainer(
        num_generations=2,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=1,
        per_device_eval_batch_size=3,
        trainer={"reward_funcs": by_ids, "eval_dataset": held_out},
    )
    fixed_rollout(trainer).train()
    (logged,) = (entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert "eval_rewards/by_ids/mean" in logged and "eval_zero_spread_share" not in logged


def test_each_prompt_of_a_step_is_completed_so_often(make_trainer: Callable[..., Any]) -> None:
    rows: list[list[str]] = []

    def watching(prompts: list[str], completions: Any) -> list[float]:
        rows.append(prompts)
        return [0.0] * len(completions)

    trainer = make_trainer(
        prompts=[f"p {n}" for n in range(6)],
        num_generations=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        max_steps=-1,
        trainer={"reward_funcs": watching},
    )
    trainer.train()
    assert trainer.state.global_step == 6  # 6 prompts in steps of 2, twice
    assert all(step[0] == step[1] != step[2] == step[3] for step in rows)
    for epoch in (rows[:3], rows[3:]):
        assert sorted(prompt for step in epoch for prompt in step[::2]) == [f"p {n}" for n in range(6)]
    assert trainer.state.log_history[0]["zero_spread_share"] == 1.0


def test_resume_with_groups_ends_with_the_same_bits(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    def run(folder: Path, checkpoint: str | None = None) -> dict[str, torch.Tensor]:
        trainer = make_trainer(
            output_dir=str(folder),
            prompts=[f"{n} + {n} =" for n in range(5)],
            num_generations=2,
            gradient_accumulation_steps=2,
            max_steps=-1,
            num_train_epochs=2,
            max_completion_length=3,
            save_strategy="steps",
            save_steps=1,
            trainer={"reward_funcs": by_ids},
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    whole = run(tmp_path / "whole")
    for step in (1, 2, 3):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole", folder)
        resumed = run(folder, str(folder / f"checkpoint-{step}"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), step


@pytest.mark.parametrize("estimator", ["vopd_optimal", "full_rkl"])
def test_a_student_learns_what_is_rewarded(estimator: str, make_trainer: Callable[..., Any]) -> None:
    """Against the teacher's pull, with a sign that a mistake would turn round."""

    def low(completion_ids: list[list[int]]) -> list[float]:
        return [sum(token < 150 for token in ids) / len(ids) for ids in completion_ids]

    def learned(weight: float) -> float:
        trainer = make_trainer(
            estimator=estimator,
            num_generations=8,
            reward_weights=[weight],
            per_device_train_batch_size=32,
            max_steps=20,
            metrics_every=0,
            trainer={"reward_funcs": low},
        )
        trainer.train()
        return [entry["rewards/low/mean"] for entry in trainer.state.log_history if "loss" in entry][-1]

    rewarded, punished = learned(10.0), learned(-10.0)
    assert rewarded > 0.6 and punished < 0.4, (rewarded, punished)
