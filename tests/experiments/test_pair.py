"""The embedded pair as shipped: sizes, vocabulary, splits, and what the models can do."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch

from tools.embedded_pair.worked_steps import worked_completion
from vopd.data.reasoning import is_right
from vopd.errors import ConfigurationError, DataError
from vopd.experiments import pair
from vopd.experiments.measure import greedy_texts, held_out_reverse_kl
from vopd.experiments.pair import (
    EMBEDDED,
    MAX_COMPLETION_TOKENS,
    LoadedPair,
    embedded_pair,
    load_embedded_pair,
    pair_problems,
    prompt_text,
    split_of,
)
from vopd.experiments.rollouts import pad, sample_rollouts


@pytest.fixture(scope="module")
def loaded() -> LoadedPair:
    return load_embedded_pair()


def test_weights_are_small_and_in_the_package() -> None:
    total = sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file())
    assert total < 8_000_000
    assert embedded_pair().teacher.parent == EMBEDDED


def test_missing_weights_name_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(pair, "EMBEDDED", tmp_path)
    with pytest.raises(DataError, match="make embedded-pair"):
        embedded_pair()


def test_models_are_qwen3_with_unequal_untied_heads(loaded: LoadedPair) -> None:
    entries = len(loaded.tokenizer)
    assert entries >= 300
    rows = [model.lm_head.weight.shape[0] for model in (loaded.teacher, loaded.student)]
    assert rows[0] != rows[1]
    assert min(rows) > entries
    for model in (loaded.teacher, loaded.student):
        assert model.config.model_type == "qwen3"
        assert model.config.head_dim == 32
        assert not model.config.tie_word_embeddings
        assert model.dtype == torch.float32
        assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()


def test_tokenizer_pads_left_with_its_own_token(loaded: LoadedPair) -> None:
    tokenizer = loaded.tokenizer
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    batch = tokenizer(["one two", "one two three four five six"], padding=True, return_tensors="pt")
    assert batch["input_ids"][0, 0] == tokenizer.pad_token_id
    assert batch["attention_mask"][0, 0] == 0
    assert batch["attention_mask"][0, -1] == 1


def test_both_directories_hold_the_same_tokenizer() -> None:
    paths = embedded_pair()
    first, second = ((path / "tokenizer.json").read_bytes() for path in (paths.teacher, paths.student))
    assert first == second


def test_tokenizer_keeps_every_text(loaded: LoadedPair) -> None:
    rng = random.Random(0)
    for problem in pair_problems("train", 30, seed=1):
        text = prompt_text(problem) + worked_completion(problem, rng)
        assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text
    assert loaded.tokenizer.decode(loaded.tokenizer("né 日本\t12")["input_ids"]) == "né 日本\t12"


def test_prompt_and_completion_meet_at_a_token_boundary(loaded: LoadedPair) -> None:
    """Training encodes the two apart; text encoded whole must give the same ids."""
    rng = random.Random(0)
    for problem in pair_problems("train", 50, seed=1):
        prompt, completion = prompt_text(problem), worked_completion(problem, rng)
        apart = loaded.tokenizer(prompt)["input_ids"] + loaded.tokenizer(completion)["input_ids"]
        assert loaded.tokenizer(prompt + completion)["input_ids"] == apart


def test_completions_fit_the_limit(loaded: LoadedPair) -> None:
    rng = random.Random(0)
    texts = [worked_completion(problem, rng) for problem in pair_problems("train", 1500, seed=2)]
    lengths = [len(ids) + 1 for ids in loaded.tokenizer(texts)["input_ids"]]
    assert max(lengths) <= MAX_COMPLETION_TOKENS
    assert 25 <= sum(lengths) / len(lengths) <= 40


def test_rows_above_the_tokenizer_are_as_good_as_impossible(loaded: LoadedPair) -> None:
    """Generation excludes them, and their probability is nothing but in states that training never showed."""
    prompts = [prompt_text(problem) for problem in pair_problems("held_out", 64, seed=1)]
    entries = len(loaded.tokenizer)
    for model in (loaded.teacher, loaded.student):
        rows = model.lm_head.weight.shape[0]
        assert model.generation_config.suppress_tokens == list(range(entries, rows))
        rollouts = sample_rollouts(
            model, loaded.tokenizer, prompts, max_new_tokens=MAX_COMPLETION_TOKENS, batch_size=64
        )
        inputs, completion_mask = pad(rollouts, model.device)
        with torch.no_grad():
            logits = model(**inputs).logits
        mass = logits[:, :-1].softmax(-1)[completion_mask[:, 1:].bool()][:, entries:].sum(-1)
        assert mass.median() < 1e-9
        assert mass.mean() < 1e-4


def test_splits_share_no_question_whatever_the_seeds() -> None:
    train = {problem.question for seed in (0, 1) for problem in pair_problems("train", 3000, seed=seed)}
    held_out = {problem.question for seed in (0, 1, 2) for problem in pair_problems("held_out", 800, seed=seed)}
    assert not train & held_out


def test_problems_are_distinct_repeatable_and_two_to_one() -> None:
    problems = pair_problems("held_out", 600, seed=4)
    assert len({problem.question for problem in problems}) == 600
    assert problems == pair_problems("held_out", 600, seed=4)
    assert problems[:100] == pair_problems("held_out", 100, seed=4)
    assert [problem.task for problem in problems].count("leg_counting") == 400


def test_the_split_depends_on_the_text_alone() -> None:
    questions = [problem.question for problem in itertools.islice(pair.stream_problems("chain_sum", 0), 2000)]
    share = sum(split_of(question) == "held_out" for question in questions) / len(questions)
    assert 0.16 < share < 0.24


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown split 'test'"):
        pair_problems("test", 1, seed=0)  # type: ignore[arg-type]


def test_teacher_is_strong_and_student_has_room(loaded: LoadedPair) -> None:
    problems = pair_problems("held_out", 200, seed=11)
    prompts = [prompt_text(problem) for problem in problems]

    def accuracy(model: object) -> float:
        return sum(map(is_right, problems, greedy_texts(model, loaded.tokenizer, prompts, MAX_COMPLETION_TOKENS))) / 200

    assert accuracy(loaded.teacher) >= 0.9
    assert 0.45 <= accuracy(loaded.student) <= 0.78
    divergence = held_out_reverse_kl(
        loaded.student, loaded.teacher, loaded.tokenizer, prompts, max_new_tokens=MAX_COMPLETION_TOKENS
    )
    assert 0.15 <= divergence.low <= divergence.value <= divergence.high <= 0.5


def test_the_recipe_recorded_what_it_measured() -> None:
    record = json.loads((EMBEDDED / "recipe.json").read_text())
    assert record["measured"]["teacher_greedy_accuracy"] >= 0.9
    assert record["recipe"]["seed"] == 0
