"""The recipe at toy size: it runs, repeats itself, and its loss counts what it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.embedded_pair import recipe as recipes
from tools.embedded_pair.recipe import (
    ModelRecipe,
    build_model,
    build_pair,
    stream_batches,
    supervised_loss,
    train_model,
    unused_row_penalty,
)
from tools.embedded_pair.tokenizer import build_tokenizer
from vopd.errors import ConfigurationError
from vopd.experiments.pair import pair_problems

TOY = ModelRecipe(
    layers=1,
    width=32,
    intermediate=32,
    key_value_heads=1,
    head_rows=320,
    steps=3,
    schedule_steps=4,
    batch=4,
    learning_rate=1e-3,
    seed=1,
)


@pytest.fixture(scope="module")
def problems() -> list[Any]:
    return pair_problems("train", 60, seed=0)


@pytest.fixture(scope="module")
def tokenizer(problems: list[Any]) -> Any:
    return build_tokenizer(problems, 300, seed=0)


@pytest.mark.parametrize("vocabulary", [300, 1000])
def test_tokenizer_has_exactly_the_entries_asked_for(problems: list[Any], vocabulary: int) -> None:
    assert len(build_tokenizer(problems, vocabulary, seed=0)) == vocabulary


def test_impossible_vocabularies_are_refused(problems: list[Any]) -> None:
    with pytest.raises(ConfigurationError, match="the text fills 258"):
        build_tokenizer(problems, 257, seed=0)
    with pytest.raises(ConfigurationError, match="the text fills"):
        build_tokenizer(problems, 50_000, seed=0)


def test_training_repeats_itself(problems: list[Any], tokenizer: Any) -> None:
    first, second = (train_model(TOY, problems, tokenizer, "toy").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_loss_counts_completion_tokens_only(tokenizer: Any) -> None:
    """The loss of a padded batch is the mean over completion tokens of separate, unpadded passes."""
    model = build_model(TOY, tokenizer).eval()
    examples = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14])]
    total, count = 0.0, 0
    for prompt, completion in examples:
        logprobs = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        for place, token in enumerate(completion, start=len(prompt)):
            total -= logprobs[place - 1, token].item()
            count += 1
    loss = supervised_loss(model, examples, tokenizer.pad_token_id, vocabulary=TOY.head_rows)
    assert loss.item() == pytest.approx(total / count, abs=1e-5)


def test_penalty_reaches_unused_rows_only() -> None:
    torch.manual_seed(0)
    rows = torch.randn(2, 4, requires_grad=True)
    hidden = torch.randn(5, 4, requires_grad=True)
    logits = torch.randn(5, 8, requires_grad=True)
    unused_row_penalty(rows, hidden, logits).backward()
    assert rows.grad is not None and rows.grad.abs().sum() > 0
    assert hidden.grad is None and logits.grad is None


def test_no_penalty_without_unused_rows() -> None:
    assert unused_row_penalty(torch.zeros(0, 4), torch.randn(5, 4), torch.randn(5, 8)).item() == 0


def test_batches_draw_wordings_anew(problems: list[Any], tokenizer: Any) -> None:
    batches = stream_batches(problems[:8], tokenizer, 8, seed=0)
    first, second = next(batches), next(batches)
    assert sorted(prompt for prompt, _ in first) == sorted(prompt for prompt, _ in second)
    assert sorted(completion for _, completion in first) != sorted(completion for _, completion in second)
    assert all(completion[-1] == tokenizer.eos_token_id for _, completion in first)


def test_whole_recipe_writes_a_loadable_pair(
    monkeypatch: pytest.MonkeyPatch, problems: list[Any], tmp_path: Path
) -> None:
    """Problems are made few, since everything else is already toy-sized."""
    monkeypatch.setattr(recipes, "pair_problems", lambda split, count, seed: problems[: min(count, 8)])
    measured = build_pair({"teacher": replace(TOY, head_rows=352), "student": TOY}, 300, tmp_path)
    assert set(measured) == {
        "teacher_greedy_accuracy", "student_greedy_accuracy", "held_out_reverse_kl", "seconds"
    }  # fmt: skip
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name, rows in (("teacher", 352), ("student", 320)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert model.lm_head.weight.shape[0] == rows
        assert len(AutoTokenizer.from_pretrained(tmp_path / name)) == 300
    assert (tmp_path / "recipe.json").is_file()
