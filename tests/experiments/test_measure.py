"""Measurements against slow, plain computations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vopd.experiments import measure
from vopd.experiments.held_out import HeldOut, write_held_out
from vopd.experiments.measure import (
    Evaluator,
    Measurement,
    greedy_texts,
    held_out_reverse_kl,
    measure_run,
    measure_start,
)
from vopd.experiments.rollouts import like_length, pad, sample_rollouts
from vopd.models import load_model
from vopd.statistics import Interval

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


@pytest.mark.parametrize("size", [2, 128])
def test_reverse_kl_is_the_mean_over_completion_tokens(
    size: int, models: tuple[Any, Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "like_length", lambda rollouts, _: like_length(rollouts, size))
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


def test_every_point_of_a_curve_is_on_its_problems(
    tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    """The start and the end too, which are also measured on all problems."""
    write_held_out([HeldOut(prompt, "8") for prompt in PROMPTS], tmp_path / "held_out.jsonl")
    run = tmp_path / "run"
    for name in ("checkpoint-1", "checkpoint-2", "model"):  # three models that do not differ
        shutil.copytree(tiny_student_dir, run / name)
    (run / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    plan = Measurement(str(tiny_student_dir), str(tiny_teacher_dir), str(tmp_path / "held_out.jsonl"), 6, 3, LENGTH)
    evaluator = Evaluator(plan)
    start, end = measure_start(evaluator), measure_run(evaluator, run)
    few = measure_start(Evaluator(replace(plan, problems=3)))
    assert start["curve_point"] == (few["reverse_kl"]["value"], sum(few["student_outcomes"]) / 3)
    assert end["curve"] == [(1, start["curve_point"][0]), (2, start["curve_point"][0])]
    assert end["accuracy_curve"] == [(1, start["curve_point"][1]), (2, start["curve_point"][1])]
    assert end["reverse_kl"] == start["reverse_kl"] and end["reverse_kl"]["value"] != end["curve"][-1][1]
    assert few["curve_point"] == start["curve_point"]
    right = [True] * 3 + [False] * 3
    assert evaluator.curve_point(evaluator.models.student(run / "model"), right, Interval(0.1, 0.1, 0.1))[1] == 1.0
