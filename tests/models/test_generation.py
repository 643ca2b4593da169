from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from messages import says
from vopd.errors import ConfigurationError, DataError, MismatchError, NonFiniteError
from vopd.models import load_model, load_tokenizer, sample, set_end_ids

PROMPTS = ["How many legs", "4 + 5 =", "So the answer is <answer>"]


@pytest.fixture(scope="module")
def tokenizer(tiny_student_dir: Path) -> Any:
    return load_tokenizer(tiny_student_dir)


@pytest.fixture
def model(tiny_student_dir: Path) -> Any:
    return load_model(tiny_student_dir)


def draw(model: Any, tokenizer: Any, prompts: list[str] = PROMPTS, **changes: Any) -> list[list[Any]]:
    """The completions of each prompt, three where `samples` does not say."""
    settings = {"max_new_tokens": 6, "batch_size": 4, "seed": 7}
    samples = changes.pop("samples", 3)
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    found = sample(model, tokenizer, repeated, **{**settings, **changes})
    return [found[start : start + samples] for start in range(0, len(found), samples)]


def greedy_by_hand(model: Any, ids: list[int], steps: int) -> list[int]:
    new: list[int] = []
    for _ in range(steps):
        logits = model(torch.tensor([ids + new])).logits[0, -1]
        new.append(int(logits.argmax()))
    return new


def test_shape_and_order(model: Any, tokenizer: Any) -> None:
    found = draw(model, tokenizer)
    assert [len(row) for row in found] == [3, 3, 3]
    assert all(1 <= len(completion.ids) <= 6 for row in found for completion in row)


def test_same_seed_same_text_and_another_seed_another(model: Any, tokenizer: Any) -> None:
    assert draw(model, tokenizer) == draw(model, tokenizer)
    assert draw(model, tokenizer) != draw(model, tokenizer, seed=8)


def test_samples_of_one_prompt_differ_and_batches_have_their_own_seeds(model: Any, tokenizer: Any) -> None:
    row = draw(model, tokenizer, PROMPTS[:1], samples=6, batch_size=2)[0]
    assert len({completion.ids for completion in row}) >= 5


def test_greedy_is_the_most_likely_token_with_padding_on_the_left(model: Any, tokenizer: Any) -> None:
    found = draw(model, tokenizer, temperature=0.0)
    for prompt, row in zip(PROMPTS, found):
        expected = greedy_by_hand(model, tokenizer.encode(prompt), 6)
        assert list(row[0].ids) == expected[: len(row[0].ids)]
        assert row[0] == row[1] == row[2]


def test_defaults_that_come_with_the_model_do_not_reach_the_sampler(model: Any, tokenizer: Any) -> None:
    """The generation_config of instruct models has temperature 0.6, top-k 20, penalties: not ours."""
    plain = draw(model, tokenizer, PROMPTS[:1], samples=8)
    model.generation_config.update(temperature=0.01, top_k=1, top_p=0.1, repetition_penalty=5.0, min_p=0.9)
    assert draw(model, tokenizer, PROMPTS[:1], samples=8) == plain


def test_untruncated_sampling_is_the_models_own_distribution(model: Any, tokenizer: Any) -> None:
    """First tokens against softmax(logits): a hidden top-k of 50 would put nothing on the other 250 ids."""
    found = draw(model, tokenizer, PROMPTS[:1], samples=3000, batch_size=1000, max_new_tokens=1)[0]
    counts = torch.bincount(torch.tensor([row.ids[0] for row in found]), minlength=304) / 3000
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode(PROMPTS[0])])).logits[0, -1]
    assert (counts - logits.softmax(-1)).abs().sum() < 0.25
    beyond = logits.argsort(descending=True)[50:]
    assert counts[beyond].sum() == pytest.approx(logits.softmax(-1)[beyond].sum().item(), abs=0.05)


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-6}])
def test_top_k_and_top_p_are_passed_on(model: Any, tokenizer: Any, limit: dict[str, float]) -> None:
    assert draw(model, tokenizer, **limit) == draw(model, tokenizer, temperature=0.0)


def test_stops_at_each_end_id_and_says_what_was_cut(model: Any, tokenizer: Any) -> None:
    free = draw(model, tokenizer, temperature=0.0, samples=1)[0][0]
    assert free.truncated and len(free.ids) == 6
    set_end_ids(model, [free.ids[2], 299])
    stopped = draw(model, tokenizer, temperature=0.0, samples=1)[0][0]
    end = free.ids.index(free.ids[2])
    assert stopped.ids == free.ids[: end + 1] and not stopped.truncated
    assert stopped.text == tokenizer.decode(free.ids[:end], skip_special_tokens=True)


def test_first_token_is_the_end(model: Any, tokenizer: Any) -> None:
    first = draw(model, tokenizer, temperature=0.0, samples=1, max_new_tokens=1)[0][0].ids[0]
    set_end_ids(model, [first])
    assert draw(model, tokenizer, temperature=0.0, samples=1)[0][0].text == ""


def test_end_token_as_padding_changes_nothing(model: Any, tiny_student_dir: Path) -> None:
    """Left padding must be told from the text by length: with pad == end, ids cannot."""
    distinct, same = load_tokenizer(tiny_student_dir), load_tokenizer(tiny_student_dir)
    same.pad_token = same.eos_token
    assert draw(model, same) == draw(model, distinct)


def test_model_and_random_state_are_as_before(model: Any, tokenizer: Any) -> None:
    model.train()
    model.model.layers[0].eval()
    model.config.use_cache = False
    config: GenerationConfig = model.generation_config
    state = torch.get_rng_state()
    draw(model, tokenizer)
    assert model.training and not model.model.layers[0].training
    assert model.generation_config is config and torch.equal(state, torch.get_rng_state())


def test_lora_adapter_is_sampled_and_left_as_it_was(model: Any, tokenizer: Any) -> None:
    import peft

    plain = draw(model, tokenizer, temperature=0.0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    config = model.generation_config
    assert draw(adapted, tokenizer, temperature=0.0) != plain
    assert model.generation_config is config


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_model_that_diverged_is_told_in_one_line(model: Any, tokenizer: Any, temperature: float) -> None:
    """Greedy too, which would take any token."""
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    with pytest.raises(NonFiniteError, match=says("no token can be sampled ... learning_rate")):
        draw(model, tokenizer, temperature=temperature)


def test_no_prompts(model: Any, tokenizer: Any) -> None:
    assert draw(model, tokenizer, []) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"batch_size": 0},
    ],
)
def test_settings_out_of_range(model: Any, tokenizer: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        draw(model, tokenizer, **wrong)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["fine", ""], "prompt 1 ... empty"),
        (["fine", None], "prompt 1 ... text ... NoneType"),
        (["a b " * 300], "512 positions"),
    ],
)
def test_prompts_that_cannot_be_used(model: Any, tokenizer: Any, prompts: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=says(message)):
        draw(model, tokenizer, prompts, samples=1)


def test_tokens_that_the_model_has_no_embedding_of(model: Any, tiny_student_dir: Path) -> None:
    """A prompt may not have one; padding is masked, and may be any token."""
    more, rows = load_tokenizer(tiny_student_dir), model.config.vocab_size
    more.add_tokens([f"<more{number}>" for number in range(8)])
    with pytest.raises(MismatchError, match=says(f"'<more7>' (id 307) ... {rows} embeddings ... its folder")):
        draw(model, more, ["<more7>1+1="])
    usual = draw(model, more, max_new_tokens=40)
    more.pad_token = "<more7>"
    assert draw(model, more, max_new_tokens=40) == usual


def test_head_rows_past_the_tokenizer_are_never_drawn(model: Any, tokenizer: Any) -> None:
    rows = model.get_output_embeddings().weight.shape[0]
    assert rows > len(tokenizer)
    model.get_output_embeddings().weight.data[len(tokenizer) :] *= 50  # now they are likely
    for temperature in (0.0, 1.0):
        for row in draw(model, tokenizer, temperature=temperature):
            assert all(token < len(tokenizer) for completion in row for token in completion.ids)


def test_the_head_multiplies_all_rows_at_once(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a slice, which `generate` gives the head first, torch on a CPU multiplies each row by a copy of the head.
    whole, forward = [], model.lm_head.forward

    def watching(hidden: torch.Tensor) -> torch.Tensor:
        whole.append(hidden.is_contiguous())
        return forward(hidden)

    monkeypatch.setattr(model.lm_head, "forward", watching)
    expected = draw(model, tokenizer)
    assert len(whole) > 6 and all(whole)
    assert not model.lm_head._forward_pre_hooks
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)  # some families do not name theirs
    assert draw(model, tokenizer) == expected
