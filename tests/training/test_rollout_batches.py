"""Rollouts by transformers: completions that have ended are not computed further, unless that could go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vopd.models import load_model, set_end_ids


@pytest.fixture
def computed(tiny_student_dir: Any, make_trainer: Callable[..., Any]) -> Callable[..., tuple[Any, list[int]]]:
    """computed(**config): the trainer, and the number of completions in each forward pass of one of its rollouts."""

    def rollout(managed: bool = False, **config: Any) -> tuple[Any, list[int]]:
        model, rows = load_model(tiny_student_dir), list[int]()
        set_end_ids(model, list(range(1, 60)))  # about a fifth of all tokens
        trainer = make_trainer(model=model, max_completion_length=16, **config)
        trainer.placement._fsdp = managed
        model.get_output_embeddings().register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
        torch.manual_seed(0)
        completions = trainer._generate_single_turn([[5] * length for length in range(1, 13)], None, {})
        ended = [
            max(map(len, completions)) if managed or config.get("generation_kwargs") else len(c) for c in completions
        ]
        assert rows == [sum(length > step for length in ended) for step in range(max(ended))]
        assert len(set(map(len, completions))) > 2
        return trainer, rows

    return rollout


@pytest.mark.parametrize(
    "config", [{}, {"gradient_checkpointing": True}, {"top_p": 0.9, "estimator": "full_rkl"}], ids=str
)
def test_ended_completions_leave_the_batch(computed: Callable[..., Any], config: dict[str, Any]) -> None:
    trainer, rows = computed(**config)
    assert rows[0] == 12 and rows[-1] < 12
    assert "generate" not in vars(trainer.model)


@pytest.mark.parametrize("config", [{"managed": True}, {"generation_kwargs": {"use_cache": True}}], ids=str)
def test_they_stay_where_ranks_step_together_or_settings_may_refer_to_them(
    computed: Callable[..., Any], config: dict[str, Any]
) -> None:
    """With sharded weights every rank must run the same number of forward passes."""
    assert set(computed(**config)[1]) == {12}
