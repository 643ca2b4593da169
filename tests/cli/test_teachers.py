"""Several teachers, teacher prompts and the student as its own teacher from the command line."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from messages import told
from vopd import cli

Train = Callable[..., int]


@pytest.fixture
def routed(tmp_path: Path) -> Path:
    """Sixteen problems, every other one for the teacher "sums", the rest with a hint."""
    path = tmp_path / "routed.jsonl"
    rows = [
        {"problem": f"What is {n} + 3?", "teacher": "sums" if n % 2 else None, "hint": None if n % 2 else str(n + 3)}
        for n in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_teachers_by_a_column_with_hints(
    train: Train, run: Path, routed: Path, tiny_teacher_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        "--dataset", str(routed), "--teachers", f"{{sums: {tiny_teacher_dir}}}", "--prompt_template", "{problem}",
        "--teacher_prompt_template", "{problem} (It is {hint}.)",
    )  # fmt: skip
    assert train(*given, command="validate") == 0
    assert train(*given, "--dry-run") == 0
    assert train(*given, "--per_device_train_batch_size", "8") == 0
    first = records(run)[0]
    assert {"reverse_kl", "reverse_kl/sums", "reverse_kl/default"} <= set(first)
    resolved = yaml.safe_load((run / "resolved_config.yaml").read_text())
    assert resolved["teachers"] == {"sums": str(tiny_teacher_dir)}
    again = ["train", "--config", str(run / "resolved_config.yaml"), "--run_name", "again"]
    assert cli.main(again) == 0
    assert records(run.parent / "again")[0]["reverse_kl"] == first["reverse_kl"]


@pytest.mark.parametrize("chat", [False, True])
def test_each_prompt_is_tokenised_once_from_file_to_last_step(
    chat: bool, train: Train, run: Path, routed: Path, tiny_student_dir: Path, tmp_path: Path, tokenized: Counter[str]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_student_dir)
    tokenizer.chat_template = "{% for m in messages %}<user>{{ m.content }}{% endfor %}<assistant>"
    model = shutil.copytree(tiny_student_dir, tmp_path / "student")
    tokenizer.save_pretrained(model)
    given = (
        "--model", str(model), "--dataset", str(routed), "--teacher_prompt_column", "hint",
        "--chat_template", str(chat).lower(), "--max_prompt_length", "60",
    )  # fmt: skip
    before, after = ("<user>", "<assistant>") if chat else ("", "")
    texts = [f"What is {n} + 3?" for n in range(16)] + [str(n + 3) for n in range(0, 16, 2)]
    once = [before + text + after for text in texts]
    tried = {once[0], once[16]}  # the first row's, again wherever a dataset comes with ids: whether they still hold
    others = dict.fromkeys((text for text in once if text not in tried), 1)
    for more in (("--dry-run",), ()):
        tokenized.clear()
        assert train(*given, *more) == 0
        assert {text: tokenized[text] for text in others} == others
        assert all(1 <= tokenized[text] <= 4 for text in tried)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {sample["prompt"] for sample in samples} <= set(once)


def test_the_student_teaches_itself_with_a_hint(train: Train, run: Path, routed: Path) -> None:
    hint = ("--dataset", str(routed), "--teacher_prompt_column", "hint")
    assert train(*hint, "--teacher_model", "self:base", "--lora_rank", "2", "--dry-run") == 0
    assert train(*hint, "--teacher_model", "self:base", "--lora_rank", "2") == 0
    assert records(run)[0]["reverse_kl"] > 0
    assert "| teacher | self:base |" in (run / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--teachers", "{sums: ./missing}"), 4, "no model folder ... missing"),
        (("--teachers", "{mult: TEACHER}"), 3, "'sums' ... mult, default"),
        (("--teacher_model", "self:frozen"), 2, "nothing to learn"),
        (("--teacher_prompt_template", "{solution}"), 2, "{solution} ... column"),
        (("--teacher_prompt_column", "solution"), 3, "column 'solution'"),
        (
            ("--teacher_prompt_column", "hint", "--teacher_prompt_template", "{hint}"),
            2,
            "teacher_prompt_column ... teacher_prompt_template",
        ),
    ],
)
def test_mistakes(
    more: tuple[str, ...],
    code: int,
    message: str,
    train: Train,
    routed: Path,
    tiny_teacher_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = tuple(text.replace("TEACHER", str(tiny_teacher_dir)) for text in more)
    assert train("--dataset", str(routed), *more, command="validate") == code
    assert told(message, capsys.readouterr().err)
