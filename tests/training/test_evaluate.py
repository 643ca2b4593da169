"""`evaluate`: the same numbers for the same student, means over tokens in any batches, no trace in training."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset

from messages import says
from training.conftest import PROMPTS
from vopd.errors import DataError

Make = Callable[..., Any]
FIVE = Dataset.from_dict({"prompt": [f"{'so ' * n}{n}" for n in range(5)]})


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """What does not measure the time of the evaluation."""
    clock = ("_runtime", "_per_second", "_preparation_time", "epoch")
    return {name: value for name, value in metrics.items() if not name.endswith(clock)}


def noisy(completions: list[str], **_: Any) -> list[float]:
    """A reward with a random state of its own."""
    return [random.random() for _ in completions]


def test_the_same_student_has_the_same_numbers(make_trainer: Make) -> None:
    """Also in a `predict`, which leaves nothing for the next evaluation; every diagnostic, whatever the step."""
    trainer = make_trainer(
        trainer={"eval_dataset": FIVE, "reward_funcs": noisy}, metrics_every=7, num_generations=2,
        per_device_eval_batch_size=2, learning_rate=0.0, max_steps=1,
    )  # fmt: skip
    first = numbers(trainer.evaluate())
    tested = numbers(trainer.predict(FIVE).metrics)
    trainer.train()
    assert numbers(trainer.evaluate()) == first
    assert tested == {name.replace("eval_", "test_"): value for name, value in first.items()}
    assert first.keys() >= {"eval_reverse_kl", "eval_variance/optimal", "eval_rewards/noisy/mean", "eval_entropy"}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("prompt", "eval_dataset has no column prompt"),
        ("hint", "eval_dataset has no column 'hint' ... teacher_prompt_column"),
        ("key", "reward function ... column 'key' ... eval_dataset"),
    ],
)
def test_other_prompts_are_checked_as_those_of_the_run(column: str, message: str, make_trainer: Make) -> None:
    rows = Dataset.from_dict({name: ["1=", "2="] for name in ("prompt", "hint", "key")})
    given = {"train_dataset": rows, "reward_funcs": lambda key, **_: [1.0] * len(key)}
    trainer = make_trainer(trainer=given, teacher_prompt_column="hint", num_generations=2)
    with pytest.raises(DataError, match=says(message)):
        trainer.evaluate(rows.remove_columns(column))


def test_training_is_the_same_to_the_bit_with_and_without(make_trainer: Make, tmp_path: Path) -> None:
    def run(**evaluation: Any) -> tuple[dict[str, Any], list[Any], float]:
        random.seed(5)
        given = {"eval_dataset": FIVE, "reward_funcs": noisy}
        trainer = make_trainer(
            trainer=given, num_generations=2, max_steps=3, gradient_accumulation_steps=2, **evaluation
        )
        trainer.train()
        steps = [record for record in trainer.state.log_history if "loss" in record]
        kept = [{name: record[name] for name in ("loss", "grad_norm", "reverse_kl", "num_tokens")} for record in steps]
        return trainer.model.state_dict(), kept, random.random()

    plain, log, state = run()
    weights, log_too, state_too = run(eval_strategy="steps", eval_steps=1, eval_on_start=True)
    assert all(torch.equal(weights[name], value) for name, value in plain.items())
    assert (log, state) == (log_too, state_too) and len(log) == 3


def test_the_engine_is_compared_apart(make_trainer: Make) -> None:
    """The difference from the rollout engine at an evaluation's tokens is none of a training step's."""
    trainer = make_trainer(
        trainer={"eval_dataset": FIVE}, max_steps=2, eval_strategy="steps", eval_steps=1, guard_logprobs_stop=None
    )
    generate = trainer._generate_single_turn

    def reporting(*given: Any, **named: Any) -> list[list[int]]:
        found = generate(*given, **named)
        trainer._rollout_logprobs = [[0.0 if trainer.model.training else -99.0] * len(ids) for ids in found]
        return found

    trainer._generate_single_turn = reporting
    trainer.train()
    logs = trainer.state.log_history
    assert [record["eval_rollout/logprob_difference_max"] > 50 for record in logs if "eval_loss" in record] == [
        True
    ] * 2
    assert [record["rollout/logprob_difference_max"] < 50 for record in logs if "loss" in record] == [True] * 2


@pytest.mark.parametrize("normalizer", [None, 3.0])
def test_means_are_over_tokens_however_they_are_batched(
    normalizer: float | None, make_trainer: Make, recorded_completions: Any
) -> None:
    found = []
    for size in (1, 2, 5):
        trainer = make_trainer(
            trainer={"eval_dataset": FIVE}, estimator="full_rkl", per_device_eval_batch_size=size,
            loss_normalizer=normalizer,
        )  # fmt: skip
        trainer._generate_single_turn = lambda prompts, *rest, **named: [recorded_completions(ids) for ids in prompts]
        found.append(numbers(trainer.evaluate()))
    lengths = [len(recorded_completions(ids)) for ids in trainer.tokenize(list(FIVE["prompt"]))]
    assert len(set(lengths)) > 1 and found[0]["eval_completion_length"] == sum(lengths) / 5
    assert found[0]["eval_loss"] == pytest.approx(found[0]["eval_reverse_kl"], rel=1e-5)
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)


def test_several_datasets_have_their_names(make_trainer: Make, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"hard": FIVE.select(range(2)), "easy": FIVE.select(range(2, 4))}
    trainer = make_trainer(trainer={"eval_dataset": few}, max_steps=1, eval_strategy="steps", eval_steps=1)
    trainer.train()
    logs = {name: value for record in trainer.state.log_history for name, value in record.items()}
    assert logs["eval_hard_reverse_kl"] != logs["eval_easy_reverse_kl"] and "eval_reverse_kl" not in logs
    lines = capsys.readouterr().err.splitlines()
    for name in few:
        shown = f"step 1/1  evaluation {name}  loss {logs[f'eval_{name}_loss']:.4g}  reverse KL"
        assert any(line.startswith(shown) for line in lines), lines


def double(number: int) -> int:
    """Double a number.

    Args:
        number: The number to double.

    Returns:
        Twice the number.
    """
    return 2 * number


def test_the_tools_of_a_run_are_counted(make_trainer: Make, tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    """The student calls its tool once, then answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [AutoModelForCausalLM.from_pretrained(path) for path in (tiny_student_dir, tiny_teacher_dir)]
    for model in models:
        model.config.max_position_embeddings = 2048
    tokenizer = AutoTokenizer.from_pretrained(tiny_student_dir)
    tokenizer.chat_template = Path(trl.__file__).with_name("chat_templates").joinpath("qwen3.jinja").read_text()
    prompts = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in PROMPTS[:2]]})
    trainer = make_trainer(
        model=models[0],
        trainer={
            "teacher_model": models[1], "tools": [double], "processing_class": tokenizer, "train_dataset": prompts,
        },
        max_steps=1, max_completion_length=200,
    )  # fmt: skip
    call = '<tool_call>\n{"name": "double", "arguments": {"number": 21}}\n</tool_call>'
    texts = iter([call, "42"])

    def turn(asked: list[Any], *rest: Any, **named: Any) -> list[list[int]]:
        return [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in [next(texts)] * len(asked)]

    trainer._generate_single_turn = turn
    trainer.train()
    logs = trainer.state.log_history[0]
    assert (logs["tools/call_frequency"], logs["tools/failure_frequency"]) == (1.0, 0.0)
    assert logs["num_tokens"] > 2 * 200 and logs["step_time"] > 0
