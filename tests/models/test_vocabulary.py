from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken

from messages import says
from vopd.errors import MismatchError
from vopd.models import (
    compare_vocabularies,
    end_ids,
    end_token_difference,
    load_model,
    load_tokenizer,
    set_end_ids,
)


class Vocabulary:
    """The methods of a tokenizer that these checks use. The last `added` tokens were added to it."""

    def __init__(self, *tokens: str, eos_token_id: int | None = None, added: int = 0) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self.added = added

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        first = len(self.tokens) - self.added
        return {first + place: AddedToken(text, special=True) for place, text in enumerate(self.tokens[first:])}

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.tokens[token]


def model_ending_with(eos: int | list[int] | None) -> Any:
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos), config=SimpleNamespace())


class TestCommonVocabulary:
    def test_is_the_real_size_whatever_the_heads(self, tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
        student, teacher = load_model(tiny_student_dir), load_model(tiny_teacher_dir)
        common = compare_vocabularies(
            load_tokenizer(tiny_student_dir),
            load_tokenizer(tiny_teacher_dir),
            student_rows=student.lm_head.weight.shape[0],
            teacher_rows=teacher.lm_head.weight.shape[0],
        )
        assert common.size == 300

    def test_swapped_ids_are_named_with_the_way_out(self) -> None:
        with pytest.raises(MismatchError, match=says("2 ids ... 1 is 'b' ... 'c' ... GOLD")):
            compare_vocabularies(Vocabulary("a", "b", "c"), Vocabulary("a", "c", "b"))

    def test_one_token_more_is_a_difference(self) -> None:
        with pytest.raises(MismatchError, match=says("2 is None for the student ... '<think>' for the teacher")):
            compare_vocabularies(Vocabulary("a", "b"), Vocabulary("a", "b", "<think>"))

    @pytest.mark.parametrize("name", ["student", "teacher"])
    def test_a_head_smaller_than_the_vocabulary(self, name: str) -> None:
        tokens = Vocabulary("a", "b", "c")
        with pytest.raises(MismatchError, match=says(f"{name}'s ... 2 rows ... 3 ids")):
            compare_vocabularies(tokens, tokens, **{f"{name}_rows": 2})


class TestEndIds:
    @pytest.mark.parametrize(("eos", "expected"), [(3, (2, 3)), ([5, 3], (2, 3, 5)), (None, (2,)), (0, (0, 2))])
    def test_model_and_tokenizer_together(self, eos, expected) -> None:
        assert end_ids(model_ending_with(eos), Vocabulary(eos_token_id=2)) == expected

    def test_student_that_does_not_stop_on_the_teachers_end_is_reported_with_the_fix(self) -> None:
        tokens = Vocabulary("<|endoftext|>", "<|im_end|>")
        message = end_token_difference(model_ending_with(0), model_ending_with([1, 0]), tokens, tokens)
        assert message is not None
        assert "1 (<|im_end|>)" in message and "eos_token_id = [0, 1]" in message

    def test_student_that_knows_more_ends_is_fine(self) -> None:
        tokens = Vocabulary("<|endoftext|>", "<|im_end|>")
        assert end_token_difference(model_ending_with([0, 1]), model_ending_with(0), tokens, tokens) is None

    def test_the_fix_removes_the_difference(self) -> None:
        tokens = Vocabulary("<|endoftext|>", "<|im_end|>")
        student, teacher = model_ending_with(0), model_ending_with(1)
        set_end_ids(student, {*end_ids(student), *end_ids(teacher)})
        assert end_token_difference(student, teacher, tokens, tokens) is None
