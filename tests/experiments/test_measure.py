"""Measurements against slow, plain computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vopd.experiments.measure import greedy_outcomes, held_out_reverse_kl, sample_contexts
from vopd.experiments.pair import pair_problems, prompt_text
from vopd.models import load_model


@pytest.fixture(scope="module")
def models(tiny_student_dir: Any, tiny_teacher_dir: Any) -> tuple[Any, Any]:
    return load_model(tiny_student_dir), load_model(tiny_teacher_dir)


def test_contexts_are_prompts_with_their_completions(models: tuple[Any, Any], tiny_tokenizer: Any) -> None:
    problems = pair_problems("held_out", 5, seed=0)
    contexts = sample_contexts(models[0], tiny_tokenizer, problems)
    for row, problem in enumerate(problems):
        prompt = (contexts.attention_mask[row] - contexts.completion_mask[row]).bool()
        assert tiny_tokenizer.decode(contexts.input_ids[row][prompt]) == prompt_text(problem)
        assert contexts.completion_mask[row, -1] == 1
        assert contexts.completion_mask[row].diff().clamp(max=0).sum() == 0  # never interrupted


def test_reverse_kl_is_the_mean_over_completion_tokens(models: tuple[Any, Any], tiny_tokenizer: Any) -> None:
    problems = pair_problems("held_out", 6, seed=0)
    contexts = sample_contexts(models[0], tiny_tokenizer, problems, seed=3)
    total, count = 0.0, 0
    for row in range(len(problems)):
        ids = contexts.input_ids[row][contexts.attention_mask[row].bool()]
        length = int(contexts.completion_mask[row].sum())
        with torch.no_grad():
            student, teacher = (
                model(ids[None]).logits[0, -length - 1 : -1, : len(tiny_tokenizer)].log_softmax(-1) for model in models
            )
        total += (student.exp() * (student - teacher)).sum().item()
        count += length
    measured = held_out_reverse_kl(*models, tiny_tokenizer, problems, seed=3)
    assert measured.value == pytest.approx(total / count, rel=1e-4)
    assert measured.low < measured.value < measured.high


def test_a_random_model_is_never_right(models: tuple[Any, Any], tiny_tokenizer: Any) -> None:
    assert greedy_outcomes(models[0], tiny_tokenizer, pair_problems("held_out", 4, seed=0)) == [False] * 4
