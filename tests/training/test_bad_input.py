"""A whole trainer on input that is odd: a clear error before the first step, or a correct step with nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from messages import says
from vopd.data.prompt_checks import check_room
from vopd.data.tokenized import add_ids
from vopd.errors import ConfigurationError, DataError
from vopd.models import context_length, load_model
from vopd.training.rollout_logprobs import check_completions

POSITIONS = 512


def lengths(prompts: list[str]) -> list[list[int]]:
    return [[0] * len(prompt) for prompt in prompts]


class TestRoom:
    """Prompt and completion within the positions that both models know."""

    def test_the_smaller_context_of_the_two_models(self, tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
        student, teacher = load_model(tiny_student_dir), load_model(tiny_teacher_dir)
        assert context_length(student, teacher) == POSITIONS
        teacher.config.max_position_embeddings = 100
        assert context_length(student, teacher) == 100
        teacher.config.rope_parameters = {"rope_type": "linear", "factor": 8.0}
        assert context_length(student, teacher) == POSITIONS and context_length(teacher) is None

    def test_exactly_the_room_that_there_is(self) -> None:
        from datasets import Dataset

        data = add_ids(Dataset.from_dict({"prompt": ["abcdef", "abc"]}), lengths)
        check_room(data, "train_dataset", 10, 4)
        check_room(data, "train_dataset", None, 10**9)
        with pytest.raises(DataError, match=says("1 of 2 prompts ... 6 tokens ... max_prompt_length=5")):
            check_room(data, "train_dataset", 10, 5)
        with pytest.raises(ConfigurationError, match="max_completion_length=10 leaves no room"):
            check_room(data, "train_dataset", 10, 10)

    def test_a_prompt_beyond_the_positions_is_refused_and_can_be_left_out(
        self, make_trainer: Callable[..., Any]
    ) -> None:
        prompts = ["x" * 508, "x" * 509, "a", "b"]
        with pytest.raises(DataError, match=says("1 of 4 prompts of train_dataset ... max_prompt_length=508")):
            make_trainer(prompts=prompts)
        trainer = make_trainer(prompts=prompts, max_prompt_length=508, max_steps=1)
        assert len(trainer.train_dataset) == 3
        trainer.train()

    def test_evaluation_prompts_too(self, make_trainer: Callable[..., Any]) -> None:
        from datasets import Dataset

        held_out = {"hard": Dataset.from_dict({"prompt": ["x" * 600]})}
        with pytest.raises(DataError, match=says("eval_dataset['hard']")):
            make_trainer(trainer={"eval_dataset": held_out})


class TestCompletions:
    def test_an_empty_completion_is_a_clear_error(
        self, make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trl import DistillationTrainer

        trainer = make_trainer(max_steps=1)
        monkeypatch.setattr(DistillationTrainer, "_generate_single_turn", lambda *given, **named: [[5, 1], []])
        with pytest.raises(DataError, match=says("no token ... 1 of 2 prompts")):
            trainer.train()

    def test_one_token_is_enough(self) -> None:
        check_completions([[3], [4]], [[1], [7]])
        with pytest.raises(DataError, match="the first of 2 tokens"):
            check_completions([[3], [4, 5]], [[1], []])

    def test_what_was_sampled_is_trained_on_though_its_text_has_other_ids(
        self, make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
    ) -> None:
        """A model may write " legs" letter by letter; encoded again it would be one token."""
        letters = [tiny_tokenizer.convert_tokens_to_ids(letter) for letter in "legs"] + [1]
        assert tiny_tokenizer(tiny_tokenizer.decode(letters))["input_ids"] != letters
        trainer = make_trainer(max_steps=1, max_completion_length=5)

        def generate(input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
            return torch.cat([input_ids, torch.tensor([letters]).expand(len(input_ids), -1)], dim=1)

        monkeypatch.setattr(trainer.model, "generate", generate)
        trainer.train()
        assert trainer.micro_batches[0].completion_ids.tolist() == [letters] * 2

    def test_half_an_emoji_is_trained_on_and_written_down(
        self, make_trainer: Callable[..., Any], take_step: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        first = tiny_tokenizer("\N{GRINNING FACE}")["input_ids"][:2]
        gradient = take_step(make_trainer(max_steps=1, max_grad_norm=0), lambda ids: [*first])
        assert max(value.abs().max() for value in gradient.values()) > 1e-4
        (sample, _) = map(json.loads, (tmp_path / "run" / "samples.jsonl").read_text().splitlines())
        assert sample["completion"] == "\ufffd" and len(sample["rewards"]) == 2


class TestPrompts:
    def test_control_characters_reach_the_model_and_not_the_terminal(
        self, make_trainer: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        prompts = ["a\x00b", "\x1b[31mred\x1b[0m", "\x9b2J", "ab \u202e ba"]
        trainer = make_trainer(
            prompts=prompts, per_device_train_batch_size=4, samples_per_step=4, show_samples=4, max_steps=1
        )
        trainer.train()
        written = (tmp_path / "run" / "samples.jsonl").read_bytes()
        assert all(32 <= byte < 127 or byte == 10 for byte in written)
        assert {json.loads(line)["prompt"] for line in written.splitlines()} == set(prompts)
        shown = "".join(capfd.readouterr())
        assert not {"\x00", "\x1b", "\x9b", "\u202e"} & set(shown)

    def test_duplicates_count_each(self, make_trainer: Callable[..., Any], take_step: Callable[..., Any]) -> None:
        once, twice = (
            take_step(make_trainer(prompts=["same"] * 4, max_grad_norm=0, max_steps=1, **config), lambda ids: [5, 6, 1])
            for config in ({"per_device_train_batch_size": 1}, {"per_device_train_batch_size": 4})
        )
        for name, value in once.items():
            torch.testing.assert_close(twice[name], value, rtol=1e-4, atol=1e-6)

    def test_a_tokenizer_without_padding_token(
        self, make_trainer: Callable[..., Any], take_step: Callable[..., Any], tiny_student_dir: Path,
        recorded_completions: Any,
    ) -> None:  # fmt: skip
        from transformers import AutoTokenizer

        bare = AutoTokenizer.from_pretrained(tiny_student_dir)
        bare.pad_token = None
        plain = take_step(make_trainer(max_steps=1, max_grad_norm=0), recorded_completions)
        trainer = make_trainer(trainer={"processing_class": bare}, max_steps=1, max_grad_norm=0)
        gradient = take_step(trainer, recorded_completions)
        for name, value in plain.items():
            torch.testing.assert_close(gradient[name], value, rtol=1e-4, atol=1e-6)


def test_looking_at_a_model_leaves_its_mode(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer()
    for training in (True, False):
        trainer.model.train(training)
        trainer.placement.check_head(trainer.model, "student")
        assert trainer.model.training is training
