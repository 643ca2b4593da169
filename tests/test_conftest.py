from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer


def test_tiny_models_load_and_differ_in_head_rows(tiny_student_dir: Path, tiny_teacher_dir: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(tiny_student_dir)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    assert student.lm_head.weight.shape[0] < teacher.lm_head.weight.shape[0]
    assert student.lm_head.weight.shape[0] > len(AutoTokenizer.from_pretrained(tiny_student_dir))


def test_tiny_tokenizer_loses_no_text(tiny_tokenizer: Any) -> None:
    text = "Zwei Hühner 🐔\x00 and \u202e 3 dogs"
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == text
    assert tiny_tokenizer.pad_token_id != tiny_tokenizer.eos_token_id
