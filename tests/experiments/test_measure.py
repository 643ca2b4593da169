"""Measurements against slow, plain computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vopd.experiments.measure import greedy_texts, held_out_reverse_kl
from vopd.experiments.rollouts import pad, sample_rollouts
from vopd.models import load_model

PROMPTS = ["How many legs do two dogs have?", "4 + 5 =", "Seven and one:", "Two hens", "4 + 5 - 7 =", "so"]
LENGTH = 20


@pytest.fixture(scope="module")
def models(tiny_student_dir: Any, tiny_teacher_dir: Any) -> tuple[Any, Any]:
    return load_model(tiny_student_dir), load_model(tiny_teacher_dir)


def sampled(model: Any, tokenizer: Any, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    rollouts = sample_rollouts(model, tokenizer, PROMPTS, max_new_tokens=LENGTH, batch_size=8, seed=seed)
    return pad(rollouts, model.device)


def test_a_batch_is_prompts_with_their_completions(models: tuple[Any, Any], tiny_tokenizer: Any) -> None:
    batch, completion_mask = sampled(models[0], tiny_tokenizer)
    for row, prompt in enumerate(PROMPTS):
        of_prompt = (batch["attention_mask"][row] - completion_mask[row]).bool()
        assert tiny_tokenizer.decode(batch["input_ids"][row][of_prompt]) == prompt
        assert completion_mask[row, -1] == 1
        assert completion_mask[row].diff().clamp(max=0).sum() == 0  # never interrupted
        assert batch["position_ids"][row, -1] == batch["attention_mask"][row].sum() - 1


def test_reverse_kl_is_the_mean_over_completion_tokens(models: tuple[Any, Any], tiny_tokenizer: Any) -> None:
    batch, completion_mask = sampled(models[0], tiny_tokenizer, seed=3)
    total, count = 0.0, 0
    for row in range(len(PROMPTS)):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        length = int(completion_mask[row].sum())
        with torch.no_grad():
            student, teacher = (
                model(ids[None]).logits[0, -length - 1 : -1, : len(tiny_tokenizer)].log_softmax(-1) for model in models
            )
        total += (student.exp() * (student - teacher)).sum().item()
        count += length
    measured = held_out_reverse_kl(*models, tiny_tokenizer, PROMPTS, max_new_tokens=LENGTH, seed=3)
    assert measured.value == pytest.approx(total / count, rel=1e-4)
    assert measured.low < measured.value < measured.high


def test_greedy_texts_are_the_most_likely_tokens(models: tuple[Any, Any], tiny_tokenizer: Any) -> None:
    (text,) = greedy_texts(models[0], tiny_tokenizer, PROMPTS[:1], max_new_tokens=1)
    with torch.no_grad():
        ids = torch.tensor([tiny_tokenizer(PROMPTS[0])["input_ids"]])
        first = models[0](ids).logits[0, -1, : len(tiny_tokenizer)].argmax()
    assert text == tiny_tokenizer.decode([int(first)], skip_special_tokens=True)
