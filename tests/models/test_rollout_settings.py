"""The loop of docs/how-to/training-loop.md on four families, against forward passes of one sequence without padding."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vopd.models import load_model, load_tokenizer, rollout_settings

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "training-loop.md").read_text(encoding="utf-8")
(LOOP,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "student.generate(" in block]
TOKENS = 300
ENDS = [1, *range(20, 60)]  # so many that most completions end early
HOSTILE = {
    "temperature": 0.3, "top_k": 3, "top_p": 0.5, "min_p": 0.2, "repetition_penalty": 2.0, "no_repeat_ngram_size": 1,
    "bad_words_ids": [[70]], "begin_suppress_tokens": [71], "do_sample": True,
}  # fmt: skip
SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.3, "bos_token_id": None,
    "pad_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {},
    "Llama": {},
    "Gemma2": {"final_logit_softcapping": 3.0, "sliding_window": 16},
    "Gemma3": {
        "final_logit_softcapping": 3.0, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip
# The loop as it was, piece by piece.
FAULTS = {
    "the tokenizer's end token alone": (
        "settings.completion_mask(completion_ids)",
        "((e := (completion_ids == 1).long()).cumsum(-1) - e == 0).long()",
    ),
    "no attention mask in the loss": ("torch.cat([prompt.attention_mask, completion_mask], 1)", "torch.ones_like(ids)"),
    "no soft cap": ("**options,", ""),
    "the rows of the whole head": ("vocab_size=settings.vocab_size,", ""),
}


def saved(folder: Path, family: str, tokenizer: Any, seed: int, rows: int, **defaults: Any) -> Path:
    torch.manual_seed(seed)
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    model = getattr(transformers, f"{family}ForCausalLM")(config(vocab_size=rows, **SIZES, **FAMILIES[family]))
    model.save_pretrained(folder)
    transformers.GenerationConfig(eos_token_id=ENDS, **defaults).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def places(request: pytest.FixtureRequest, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of a student and a teacher; the padding token is the end token, and heads have more rows than tokens."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<eos>", pad_token="<eos>"
    )
    folder = tmp_path_factory.mktemp(request.param)
    student = saved(folder / "student", request.param, tokenizer, 0, 310, **HOSTILE)
    return student, saved(folder / "teacher", request.param, tokenizer, 1, 320)


def run(places: tuple[Path, Path], fault: tuple[str, str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the loop of the page leaves, and the gradient of its last step."""
    source = LOOP.replace("embedded_pair().student", repr(str(places[0])))
    source = source.replace("embedded_pair().teacher", repr(str(places[1])))
    source = source.replace("max_new_tokens=56", "max_new_tokens=12").replace("lr=1e-4", "lr=0.0")
    if fault is not None:
        assert fault[0] in source
        source = source.replace(*fault)
    gradient: dict[str, Any] = {}

    def stepped(student: Any) -> None:
        gradient.update({name: weight.grad.clone() for name, weight in student.named_parameters()})

    source = source.replace("    optimizer.zero_grad()", "    stepped(student)\n    optimizer.zero_grad()")
    torch.manual_seed(7)
    exec(compile(source, "training-loop.md", "exec"), scope := {"stepped": stepped})
    return scope, gradient


def alone(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """log p at each completion token, from the model's own logits of one sequence."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1, :TOKENS].log_softmax(-1)


def reference(scope: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The mean reverse KL over all tokens, with gradient, and each row's; every completion up to its first end id."""
    rows = []
    for text, drawn in zip(scope["texts"] * 2, scope["completion_ids"].tolist(), strict=True):
        end = next((place for place, token in enumerate(drawn) if token in ENDS), len(drawn))
        prompt, completion = scope["tokenizer"](text)["input_ids"], drawn[: end + 1]
        log_p = alone(scope["student"], prompt, completion)
        log_q = alone(scope["teacher"], prompt, completion).detach()
        rows.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(rows).mean(), rows


def difference(scope: dict[str, Any]) -> float:
    """How far the loop's reverse KL of a token is from the reference; infinite if it trains on other tokens."""
    with torch.no_grad():
        rows = reference(scope)[1]
    mask = scope["completion_mask"].bool()
    if mask.sum(1).tolist() != [len(row) for row in rows]:
        return float("inf")
    return float((scope["output"].reverse_kl[mask] - torch.cat(rows)).abs().max())


def test_loss_and_gradient_are_those_of_unpadded_sequences(places: tuple[Path, Path]) -> None:
    scope, gradient = run(places)
    loss, rows = reference(scope)
    assert not bool(scope["prompt"].attention_mask.all()), "no prompt is padded"
    last = [row[len(kl) - 1] for row, kl in zip(scope["completion_ids"].tolist(), rows)]
    assert set(last) & {*ENDS[1:]}, "no completion ends with an end id beside the tokenizer's"
    assert not bool(scope["completion_mask"].all()), "no completion is padded"
    assert difference(scope) < 1e-4
    torch.testing.assert_close(scope["output"].loss.detach(), loss.detach(), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(loss, [*scope["student"].parameters()])
    for value, own in zip(expected, gradient.values(), strict=True):
        torch.testing.assert_close(own, value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("places", ["Gemma3"], indirect=True)
def test_each_old_fault_shows(places: tuple[Path, Path]) -> None:
    for name, fault in FAULTS.items():
        assert difference(run(places, fault)[0]) > 1e-3, name


def distribution_error(scope: dict[str, Any], attention_mask: Any = None, **settings: Any) -> float:
    """How far the scores that ``generate`` samples from are from the model's own log-probabilities."""
    student, prompt = scope["student"], scope["prompt"]
    mask = prompt.attention_mask if attention_mask is None else attention_mask
    found = student.generate(
        prompt.input_ids, attention_mask=mask, output_scores=True, return_dict_in_generate=True, **settings
    )
    worst = 0.0
    for row, text in enumerate(scope["texts"] * 2):
        drawn = found.sequences[row, prompt.input_ids.shape[1] :].tolist()
        count = next((place for place, token in enumerate(drawn) if token in ENDS), len(drawn) - 1) + 1
        with torch.no_grad():
            expected = alone(student, scope["tokenizer"](text)["input_ids"], drawn[:count])
        scores = torch.stack([step[row] for step in found.scores[:count]]).log_softmax(-1)
        assert bool((scores[:, TOKENS:] == -torch.inf).all())
        worst = max(worst, float((scores[:, :TOKENS] - expected).abs().nan_to_num(posinf=99.0).max()))
    return worst


def test_the_rollout_samples_the_model_s_own_distribution(places: tuple[Path, Path]) -> None:
    scope, _ = run(places)
    assert distribution_error(scope) < 1e-3
    assert distribution_error(scope, torch.ones_like(scope["prompt"].input_ids)) > 1e-2
    # What came with the model fills what a configuration leaves open, unless that one replaces it.
    own = scope["student"].generation_config
    scope["student"].generation_config = transformers.GenerationConfig.from_pretrained(places[0])
    assert distribution_error(scope, generation_config=own) > 1e-2


def test_settings_of_a_model_alone_and_with_a_teacher(places: tuple[Path, Path]) -> None:
    student, teacher = load_model(places[0]), load_model(places[1])
    tokenizer = load_tokenizer(places[0])
    alone, both = rollout_settings(student, tokenizer), rollout_settings(student, tokenizer, teacher, tokenizer)
    assert alone == both and alone.end_ids == tuple(ENDS) and alone.pad_id == 1 and alone.cut is None
    assert (alone.vocab_size, alone.rows, alone.never_sampled) == (300, 310, range(300, 310))
    teacher.generation_config.eos_token_id = [1, 2]
    assert rollout_settings(student, tokenizer, teacher).end_ids == tuple(sorted({*ENDS, 2}))
    mask = alone.completion_mask(torch.tensor([[5, 20, 1, 1], [1, 5, 20, 6], [5, 6, 7, 8]]))
    assert mask.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    greedy = alone.generation_config(5, temperature=0)
    assert not greedy.do_sample and greedy.max_new_tokens == 5


def test_padding_that_has_no_embedding_is_replaced(tiny_student_dir: Path) -> None:
    model, tokenizer = load_model(tiny_student_dir), load_tokenizer(tiny_student_dir)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 300
    assert rollout_settings(model, tokenizer).pad_id == 300  # the head has a row for it
    model.resize_token_embeddings(300)
    assert rollout_settings(model, tokenizer).pad_id == tokenizer.eos_token_id
