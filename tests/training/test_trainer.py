"""A whole trainer on tiny models: what it samples, what counts in the loss, what it refuses and what it saves."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from messages import says
from vopd.errors import ConfigurationError, DataError, MismatchError
from vopd.models import last_hidden_states
from vopd.training.saving.card import card_facts

REAL_TOKENS = 300


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# ---- sampling ---------------------------------------------------------------------------------------------------


def test_head_rows_without_a_token_are_never_sampled(make_trainer: Callable[..., Any], tiny_student_dir: Path) -> None:
    student = load(tiny_student_dir)
    with torch.no_grad():  # rows 300 to 303 far more likely than any token
        hidden = student.model.norm.weight
        student.lm_head.weight[REAL_TOKENS:] = 50 * hidden.sign()
        student.lm_head.weight[REAL_TOKENS + 1 :] *= -1
    trainer = make_trainer(model=student, max_completion_length=16)
    assert trainer.vocab_size == REAL_TOKENS
    completions = trainer._generate_single_turn(trainer.tokenize(["a", "b", "c", "d"]), None, {})
    assert max(token for ids in completions for token in ids) < REAL_TOKENS


def test_sampling_defaults_that_come_with_a_model_do_not_truncate(
    make_trainer: Callable[..., Any], tiny_student_dir: Path
) -> None:
    student = load(tiny_student_dir)
    generation = student.generation_config
    generation.do_sample, generation.top_k, generation.temperature, generation.min_p = True, 1, 0.01, 0.99
    generation.typical_p, generation.repetition_penalty, generation.no_repeat_ngram_size = 0.01, 5.0, 1
    trainer = make_trainer(model=student, max_completion_length=1)
    completions = trainer._generate_single_turn(trainer.tokenize(["a"] * 400), None, {})
    counts = torch.bincount(torch.tensor(completions).flatten(), minlength=REAL_TOKENS) / 400
    with torch.no_grad():
        logits = student(input_ids=torch.tensor(trainer.tokenize(["a"]))).logits[0, -1, :REAL_TOKENS]
    # 400 draws from the model's own distribution: total variation below 0.5 with all but no chance of failing,
    # while any of the settings above leaves a handful of tokens.
    assert (counts - logits.softmax(-1)).abs().sum() / 2 < 0.5
    assert (counts > 0).sum() > 100
    assert student.generation_config.top_k == 1  # and comes back for the saved model


def test_positions_are_counted_as_generation_counts_them() -> None:
    """With absolute positions a left-padded prompt must be scored where it was continued."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=304,
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=1,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    torch.nn.init.normal_(model.transformer.wpe.weight)
    ids, padded = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 0, 0, 5, 6, 7, 8]])
    alone = last_hidden_states(model, ids, torch.ones_like(ids), 2)
    together = last_hidden_states(model, padded, (padded > 0).long(), 2)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(alone, model.transformer(input_ids=ids).last_hidden_state[:, 1:3])


# ---- what counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["vopd", "opd", "vopd_optimal", "full_rkl"])
def test_a_teacher_equal_to_the_student_changes_nothing(
    estimator: str, make_trainer: Callable[..., Any], take_step: Callable[..., Any], tiny_student_dir: Path
) -> None:
    twin = {"teacher_model": load(tiny_student_dir)}
    trainer = make_trainer(estimator=estimator, trainer=twin, max_steps=1, max_grad_norm=0)
    gradient = take_step(trainer)
    assert max(value.abs().max() for value in gradient.values()) < 1e-5
    logged = trainer.state.log_history[0]
    assert abs(logged["reverse_kl"]) < 1e-6
    for name in ("reward", "advantage"):
        if f"{name}/mean" in logged:
            assert abs(logged[f"{name}/mean"]) < 1e-6 and logged[f"{name}/std"] < 1e-5


@pytest.mark.parametrize(
    ("completion", "truncated"), [([1], 0.0), ([7], 1.0), ([7, 8, 9, 10], 1.0), ([7, 1], 0.0), ([1, 1], 0.0)]
)
def test_short_and_truncated_completions_train(
    completion: list[int], truncated: float, make_trainer: Callable[..., Any], take_step: Callable[..., Any]
) -> None:
    trainer = make_trainer(max_steps=1, max_grad_norm=0)
    gradient = take_step(trainer, lambda prompt_ids: list(completion))
    assert max(value.abs().max() for value in gradient.values()) > 1e-4
    logged = trainer.state.log_history[0]
    assert logged["completion_length"] == len(completion)
    assert logged["truncated_share"] == truncated


def test_the_end_token_counts_where_it_is_the_padding_token(
    make_trainer: Callable[..., Any], take_step: Callable[..., Any], tiny_student_dir: Path, tiny_tokenizer: Any
) -> None:
    """Told from padding by lengths: the gradient must be that of a run with a padding token of its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_student_dir)
    tokenizer.pad_token = tokenizer.eos_token
    completions = iter([[5, 1], [6, 7, 8, 1]])

    def gradient(**trainer: Any) -> tuple[dict[str, torch.Tensor], float]:
        made = make_trainer(prompts=["a b c", "d"], trainer=trainer, max_steps=1, max_grad_norm=0)
        length = {len(ids): completion for ids, completion in zip(made.tokenize(["a b c", "d"]), expected)}
        return take_step(made, lambda ids: length[len(ids)]), made.state.log_history[0]["completion_length"]

    expected = list(completions)
    own, shared = gradient(), gradient(processing_class=tokenizer)
    assert own[1] == shared[1] == 3.0
    for name, value in own[0].items():
        torch.testing.assert_close(shared[0][name], value, rtol=1e-4, atol=1e-6)


def test_chat_prompts_go_through_the_template(make_trainer: Callable[..., Any], tiny_student_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_student_dir)
    prompts = [[{"role": "user", "content": f"{a} + {a}"}] for a in range(4)]
    with pytest.raises(MismatchError, match="chat messages.*no chat template"):
        make_trainer(prompts=prompts)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    trainer = make_trainer(prompts=prompts, trainer={"processing_class": tokenizer}, max_steps=1)
    trainer.train()
    assert "<user>" in tokenizer.decode(trainer.micro_batches[0].prompt_ids[0])


# ---- refusals ---------------------------------------------------------------------------------------------------


def test_fewer_prompts_than_a_step_takes_is_an_error(make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=says("3 prompts ... 4")):
        make_trainer(prompts=["a", "b", "c"], gradient_accumulation_steps=2)


def test_long_prompts_are_dropped_and_said_so(
    make_trainer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vopd"):
        trainer = make_trainer(prompts=["a", "b", "a long prompt of many tokens"], max_prompt_length=3)
    assert len(trainer.train_dataset) == 2
    assert "dropped 1 of 3 prompts of train_dataset with more than max_prompt_length=3 tokens" in caplog.text


def test_evaluation_prompts_are_checked_too(make_trainer: Callable[..., Any]) -> None:
    from datasets import Dataset

    with pytest.raises(DataError, match=says("eval_dataset['hard'] ... no column prompt")):
        make_trainer(trainer={"eval_dataset": {"hard": Dataset.from_dict({"text": ["a"]})}})


def test_arguments_of_the_wrong_kind(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    from trl import DistillationConfig

    from vopd import VOPDTrainer

    with pytest.raises(ConfigurationError, match=says("teacher_model ... missing")):
        make_trainer(trainer={"teacher_model": None})
    with pytest.raises(MismatchError, match=says(f"model folder ... {tmp_path / 'nowhere'}")):
        make_trainer(model=str(tmp_path / "nowhere"))
    with pytest.raises(MismatchError, match=says(f"model folder ... {tmp_path / 'nowhere'}")):
        make_trainer(trainer={"teacher_model": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigurationError, match=says("VOPDConfig ... DistillationConfig")):
        VOPDTrainer("x", "y", args=DistillationConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True))
    with pytest.raises(ConfigurationError, match=says("loss_top_k=301 ... vocabulary")):
        make_trainer(estimator="vopd_top_k", loss_top_k=301)


def test_another_vocabulary_of_the_teacher_is_refused(
    make_trainer: Callable[..., Any], tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    teacher = shutil.copytree(tiny_teacher_dir, tmp_path / "other")
    text = (teacher / "tokenizer.json").read_text()
    saved = json.loads(text)
    vocabulary = saved["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (teacher / "tokenizer.json").write_text(json.dumps(saved))
    for given in (str(teacher), load(teacher)):
        with pytest.raises(MismatchError, match="different vocabularies"):
            make_trainer(trainer={"teacher_model": given})


def test_a_teacher_without_tokenizer_is_taken_at_its_word(
    make_trainer: Callable[..., Any], tiny_teacher_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = tmp_path / "bare"
    load(tiny_teacher_dir).save_pretrained(teacher)
    with caplog.at_level(logging.WARNING, "vopd"):
        make_trainer(trainer={"teacher_model": str(teacher)})
    assert "vocabulary was not checked" in caplog.text


# ---- outside the run --------------------------------------------------------------------------------------------


def test_telemetry_is_sent_only_if_asked_for(make_trainer: Callable[..., Any], monkeypatch: Any) -> None:
    sent: list[Any] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **facts: sent.append(facts))
    make_trainer()
    assert sent == []
    make_trainer(telemetry=True)
    assert len(sent) == 1


def test_a_saved_model_loads_and_gives_away_nothing(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1, hub_token="hf_secret", save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    student = load(tmp_path / "model")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in student.state_dict().items())
    assert (tmp_path / "model" / "model.safetensors").exists() and not list(tmp_path.rglob("pytorch_model.bin"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "estimator | vopd" in card and "teacher | teacher" in card and str(tmp_path) not in card
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(b"hf_secret" in path.read_bytes() for path in files)


def test_evaluation_measures_without_training(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    from datasets import Dataset

    held_out = Dataset.from_dict({"prompt": ["x", "y"]})
    trainer = make_trainer(trainer={"eval_dataset": held_out}, eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (evaluated,) = (record for record in records if "eval_loss" in record)
    assert evaluated["eval_reverse_kl"] > 0 and evaluated["step"] == 1
    assert "eval_seconds/rollout" not in evaluated


def test_the_backend_of_the_loss_is_told_once_and_can_be_chosen(
    make_trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.train()
    assert capsys.readouterr().err.count("vopd, torch on cpu") == 1
    assert card_facts(trainer, "x")["settings"]["loss backend"] == "torch"
    import vopd.training.objective as objective
    import vopd.training.trainer as module

    used = []
    monkeypatch.setattr(module, "backend_name", lambda asked, device: f"{asked} on {device}")
    monkeypatch.setattr(objective, "linear_distillation_loss", lambda *args, **named: used.append(named["backend"]))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    trainer = make_trainer(loss_backend="triton")
    with pytest.raises(AttributeError):  # of the loss that is not there
        trainer.train()
    assert used == ["triton on cpu"]


def test_triton_without_a_gpu_is_refused_before_anything_is_loaded(make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="triton"):
        make_trainer(loss_backend="triton", model="no such model", trainer={"teacher_model": "no such model"})


def test_the_head_multiplies_all_rows_of_a_rollout_at_once(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(max_steps=1)
    whole, forward = [], trainer.model.lm_head.forward

    def watching(hidden: torch.Tensor) -> torch.Tensor:
        whole.append(hidden.is_contiguous())
        return forward(hidden)

    trainer.model.lm_head.forward = watching
    trainer.train()
    assert whole and all(whole)
