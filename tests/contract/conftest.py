"""The place of every case."""

from __future__ import annotations

from pathlib import Path

import pytest

from cases import Place


@pytest.fixture
def place(tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path, undrawn: None) -> Place:
    """Two tiny models and four prompts; reports come without PNG files."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{n}+30=", "answer": "{n + 30}"}}\n' for n in range(12, 16)))
    work = tmp_path / "work"
    work.mkdir()
    return Place(tiny_student_dir, tiny_teacher_dir, prompts, tmp_path / "runs", work)
