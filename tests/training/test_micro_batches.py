"""A step's completions are cut into micro-batches of like length, and every result stays what it is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from vopd.teachers.texts import Lengths, halved
from vopd.training.batch import Batch

Make = Callable[..., Any]
PROMPTS = [f"{'so ' * (n % 5)}{n} + {n} =" for n in range(8)]
HINTS = [f"{'Hint! ' * (n % 3)}{prompt}" for n, prompt in enumerate(PROMPTS)]
MEASURED = ("seconds", "step_time", "tokens_per_second", "train_")


def turns(completion_ids: list[list[int]]) -> list[float]:
    return [(sum(ids) % 101) / 25 for ids in completion_ids]


def uncut(trainer: Any) -> None:
    """Micro-batches as TRL makes them: in random order, all as wide as the longest completion of the step."""

    def cut(batch: Batch, count: int) -> list[Batch]:
        order, whole = batch.sample_order, {name: value for name, value in vars(batch).items() if value is not None}
        assert order is not None
        places = order.argsort().chunk(count)
        return [replace(batch, **{name: value[rows] for name, value in whole.items() if value.ndim}) for rows in places]

    trainer._cut = cut


def lengthy(prompt_ids: list[int]) -> list[int]:
    """A fixed completion of 1 to 23 tokens for each prompt."""
    length = 1 + 7 * sum(prompt_ids) % 23
    return [2 + (17 * sum(prompt_ids) + 29 * place) % 298 for place in range(length)]


def run(trainer: Any, take_step: Make, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[Any]]:
    """Gradient, metrics and samples of a step."""
    gradient = take_step(trainer, lengthy)
    logged = {name: v for name, v in trainer.state.log_history[0].items() if not name.startswith(MEASURED)}
    samples = [json.loads(line) for line in (folder / "run" / "samples.jsonl").read_text().splitlines()]
    return gradient, logged, samples


def hinted(**more: Any) -> dict[str, Any]:
    columns = {"prompt": PROMPTS, "hint": HINTS, "teacher": ["a", "b"] * 4}
    return {"train_dataset": Dataset.from_dict(columns), **more}


CASES: dict[str, dict[str, Any]] = {
    "vopd": {},
    "optimal": {"estimator": "vopd_optimal"},
    "exact": {"estimator": "full_rkl"},
    "top k": {"estimator": "rao_blackwell_teacher_top_k", "loss_top_k": 4},
    "constant normalizer": {"loss_normalizer": 16},
    "hints": {"teacher_prompt_column": "hint", "trainer": hinted()},
    "rewards": {"num_generations": 2, "max_prompt_length": 64, "trainer": {"reward_funcs": turns}},
    "bf16": {"bf16": True},
}


WAYS = [(case, None) for case in CASES] + [(case, n) for case in ("vopd", "hints") for n in (24, 40, 90, 10_000)]


@pytest.mark.parametrize(("case", "tokens"), WAYS)
def test_every_result_stays_what_it_is(
    case: str, tokens: int | None, make_trainer: Make, take_step: Make, tmp_path: Path
) -> None:
    common = {
        "prompts": PROMPTS, "max_steps": 1, "gradient_accumulation_steps": 4, "max_completion_length": 24,
        "samples_per_step": 3, "max_grad_norm": 0, **CASES[case],
    }  # fmt: skip
    padded = make_trainer(**common)
    uncut(padded)
    expected, metrics, samples = run(padded, take_step, tmp_path)
    padded_widths = {batch.completion_ids.size(1) for batch in padded.micro_batches}
    trainer = make_trainer(**common, max_tokens_per_micro_batch=tokens)
    found, logged, kept = run(trainer, take_step, tmp_path)

    widths = {batch.completion_ids.size(1) for batch in trainer.micro_batches}
    assert len(padded_widths) == 1 and len(widths) > (tokens != 10_000)
    largest = max(value.abs().max() for value in expected.values())
    close = 2e-2 if case == "bf16" else 2e-6
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= close * largest, name
    assert logged.keys() == metrics.keys()
    for name, value in metrics.items():
        assert logged[name] == pytest.approx(value, rel=close, abs=close), name
    assert len(kept) == 3
    for ours, theirs in zip(kept, samples, strict=True):
        assert ours["completion"] == theirs["completion"] and ours["prompt"] == theirs["prompt"]
        assert ours["rewards"] == pytest.approx(theirs["rewards"], abs=max(close, 2e-5))


def test_no_micro_batch_has_a_column_of_padding(make_trainer: Make, take_step: Make) -> None:
    trainer = make_trainer(
        max_steps=1, gradient_accumulation_steps=4, max_completion_length=24, teacher_prompt_column="hint",
        trainer=hinted(),
    )  # fmt: skip
    take_step(trainer, lengthy)
    batches = trainer.micro_batches
    assert [len(batch.completion_ids) for batch in batches] == [2] * 4
    for batch in batches:
        assert batch.teacher_prompt_mask is not None
        for mask in (batch.prompt_mask, batch.completion_mask, batch.teacher_prompt_mask):
            assert mask.any(0).all()
    widths = [max(batch.width, batch.teacher_width) for batch in batches]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]
    kept = sorted(ids for batch in batches for _, ids in batch.unpadded())
    assert kept == sorted(lengthy(ids) for batch in batches for ids, _ in batch.unpadded())


def test_widths_are_multiples_that_were_asked_for(make_trainer: Make, take_step: Make) -> None:
    trainer = make_trainer(
        max_steps=1, gradient_accumulation_steps=4, max_completion_length=24, pad_to_multiple_of=8, prompts=PROMPTS
    )
    take_step(trainer, lengthy)
    widths = [(b.prompt_ids.size(1), b.completion_ids.size(1), b.width) for b in trainer.micro_batches]
    assert all(width % 8 == 0 for widths_of_one in widths for width in widths_of_one) and len(set(widths)) > 1


@pytest.mark.parametrize(("tokens", "multiple"), [(1, None), (24, None), (40, None), (40, 8), (90, None), (10_000, 8)])
def test_a_token_budget_is_kept(tokens: int, multiple: int | None, make_trainer: Make, take_step: Make) -> None:
    """A sequence that is longer is alone; and there are optimizer steps as before."""
    trainer = make_trainer(
        max_steps=2, gradient_accumulation_steps=4, max_completion_length=24, max_tokens_per_micro_batch=tokens,
        prompts=PROMPTS * 2, pad_to_multiple_of=multiple,
    )  # fmt: skip
    take_step(trainer, lengthy)
    sizes = [(len(batch.completion_ids), batch.width) for batch in trainer.micro_batches]
    assert trainer.state.global_step == 2 and sum(rows for rows, _ in sizes) == 8
    assert all(rows == 1 or rows * width <= tokens for rows, width in sizes)
    assert len(sizes) == {1: 8, 10_000: 1}.get(tokens, len(sizes))


@pytest.mark.parametrize("scoring", ["micro_batch", "step"])
def test_a_run_after_one_that_ended_in_the_middle_of_a_step(scoring: str, make_trainer: Make, take_step: Make) -> None:
    """Every step has completions of its own, and is the step of a trainer that was not interrupted."""
    settings = {"prompts": PROMPTS, "gradient_accumulation_steps": 4, "max_grad_norm": 0, "max_steps": 1}
    expected = take_step(make_trainer(**settings), lengthy)
    trainer = make_trainer(**settings, teacher_scoring=scoring)
    whole, seen = trainer.compute_loss, []

    def interrupted(*given: Any, **named: Any) -> Any:
        seen.append(given)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return whole(*given, **named)

    trainer.compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        take_step(trainer, lambda ids: [2, 3, 4])
    trainer.optimizer.zero_grad()
    found = take_step(trainer, lengthy)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert not getattr(trainer.teacher, "_kept", None)


@pytest.mark.parametrize("tokens", [None, 60])
def test_an_evaluation_is_cut_too(tokens: int | None, make_trainer: Make) -> None:
    """In micro-batches that are no larger than those of training, with the numbers of one batch."""

    def evaluated(**settings: Any) -> tuple[dict[str, float], list[torch.Size]]:
        trainer = make_trainer(
            prompts=PROMPTS, per_device_eval_batch_size=8, max_completion_length=24, **settings,
            trainer={"eval_dataset": Dataset.from_dict({"prompt": PROMPTS})},
        )  # fmt: skip
        trainer._generate_single_turn = lambda prompts, *rest, **named: [lengthy(ids) for ids in prompts]
        compute_loss, sizes = trainer.compute_loss, []

        def seen(model: Any, inputs: Any, **named: Any) -> Any:
            sizes.append(inputs["completion_ids"].shape)
            return compute_loss(model, inputs, **named)

        trainer.compute_loss = seen
        found = trainer.evaluate()
        return {n: v for n, v in found.items() if not n.endswith(("runtime", "per_second"))}, sizes

    whole, one = evaluated(per_device_train_batch_size=8)
    parts, sizes = evaluated(per_device_train_batch_size=2, max_tokens_per_micro_batch=tokens)
    assert len(one) == 1 and len(sizes) >= 4 and len({width for _, width in sizes}) > 2
    assert parts == pytest.approx(whole, rel=1e-6, abs=1e-6)


# ---- how rows are grouped --------------------------------------------------------------------------------------------


def some_lengths(seed: int) -> Lengths:
    draw = random.Random(seed)
    rows = draw.randint(1, 40)
    of = {"prompt": [draw.randint(0, 9) for _ in range(rows)], "completion": [draw.randint(1, 99) for _ in range(rows)]}
    return Lengths(of | ({"teacher_prompt": [draw.randint(0, 30) for _ in range(rows)]} if seed % 2 else {}))


@pytest.mark.parametrize("seed", range(20))
def test_groups(seed: int) -> None:
    lengths, draw = some_lengths(seed), random.Random(-seed)
    rows = range(len(lengths.of["completion"]))
    count, tokens = draw.randint(1, len(rows)), draw.randint(1, 400)
    equal, within = lengths.equal(count), lengths.within(tokens)
    more = halved(within, draw.randint(len(within), len(rows)))
    assert len(equal) == count and max(map(len, equal)) - min(map(len, equal)) <= 1
    for groups in (equal, within, more):
        assert sorted(row for group in groups for row in group) == list(rows) and all(groups)
        alone = [lengths.total(row) for group in groups for row in group]
        assert alone == sorted(alone, reverse=True)
    for group in within + more:
        assert len(group) == 1 or len(group) * max(map(lengths.total, group)) <= tokens
    assert len(lengths.within(10**9)) == 1
