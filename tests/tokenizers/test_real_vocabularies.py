"""Vocabularies of the real tokenizers whose folder VOPD_TOKENIZERS names: qwen3, llama3_1, gemma3 and gptoss in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from messages import says
from vopd.data.tokenized import add_ids
from vopd.errors import DataError, MismatchError
from vopd.models import compare_vocabularies, rollout_settings
from vopd.teachers.columns import Routes, check_readers

FOLDER = os.environ.get("VOPD_TOKENIZERS") or None
pytestmark = pytest.mark.skipif(FOLDER is None, reason="VOPD_TOKENIZERS names no folder of tokenizers")
NAMES = ("qwen3", "llama3_1", "gemma3", "gptoss")


@cache
def real(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(str(FOLDER), name))


def edited(name: str, target: Path, edit: Callable[[dict[str, Any]], None]) -> Any:
    """The tokenizer with another list of added tokens."""
    from transformers import AutoTokenizer

    shutil.copytree(Path(str(FOLDER), name), target)
    content = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    edit(content)
    (target / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)
    settings.pop("additional_special_tokens", None)
    (target / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return AutoTokenizer.from_pretrained(target)


@pytest.fixture(scope="module")
def qwen_2_5(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Qwen2.5's vocabulary: that of Qwen3 without the last four added tokens."""

    def shorten(content: dict[str, Any]) -> None:
        content["added_tokens"] = content["added_tokens"][:-4]

    return edited("qwen3", tmp_path_factory.mktemp("qwen") / "shorter", shorten)


def test_qwen_3_and_2_5_share_all_but_the_last_four_ids(qwen_2_5: Any) -> None:
    qwen3, ends = real("qwen3"), (151643, 151645)
    assert len(qwen_2_5) == len(qwen3) - 4 == 151665
    rows, given = {"student_rows": 151936, "teacher_rows": 152064}, {"student_ends": ends, "teacher_ends": ends}
    for student, teacher, owner in ((qwen3, qwen_2_5, "student"), (qwen_2_5, qwen3, "teacher")):
        found = compare_vocabularies(student, teacher, **rows, **given)
        assert found.size == 151665 and found.cut is not None
        assert "ids 151665 to 151668 (<tool_response>, </tool_response>, <think>, ...)" in found.cut
        assert f"only in the {owner}" in found.cut
    assert compare_vocabularies(qwen3, qwen3, **rows, **given).cut is None


def test_a_prompt_of_qwen_3_with_thinking_switched_off_has_a_token_that_2_5_lacks(qwen_2_5: Any) -> None:
    qwen3 = real("qwen3")

    def check(**options: Any) -> None:
        chats = [[{"role": "user", "content": "1+1="}]]
        text = qwen3.apply_chat_template(chats, tokenize=False, add_generation_prompt=True, **options)
        dataset = add_ids(Dataset.from_dict({"prompt": text}), lambda texts: qwen3(texts)["input_ids"])
        check_readers(dataset, "'p.jsonl'", qwen3, 151936, {"default": 151665}, Routes(["default"], "teacher"))

    check()
    with pytest.raises(DataError, match=says("row 0 ... p.jsonl ... teacher's prompt ... '</think>' (id 151668)")):
        check(enable_thinking=False)


def test_gemma_3_1b_has_no_row_for_the_soft_token_of_images() -> None:
    gemma, ends = real("gemma3"), (1, 106)
    for teacher_rows, why in ((262144, "without a row in an output head"), (262208, "only in the teacher")):
        found = compare_vocabularies(
            gemma, gemma, student_rows=262144, teacher_rows=teacher_rows, student_ends=ends, teacher_ends=ends
        )
        assert found.size == 262144 and f"id 262144 (<image_soft_token>), {why}" in str(found.cut)
    with pytest.raises(MismatchError, match=says("student's output head ... 262000 rows ... 262145 ids")):
        compare_vocabularies(gemma, gemma, student_rows=262000)


def test_renamed_end_tokens_are_refused(tmp_path: Path) -> None:
    """Some models distilled into Llama have other special tokens at its ids."""

    def rename(content: dict[str, Any]) -> None:
        for token in content["added_tokens"][:2]:
            token["content"] = token["content"].replace("text", "sentence")
        text = json.dumps(content["post_processor"])
        content["post_processor"] = json.loads(text.replace("<|begin_of_text|>", "<|begin_of_sentence|>"))

    llama, other = real("llama3_1"), edited("llama3_1", tmp_path / "other", rename)
    with pytest.raises(MismatchError, match=says("student ends ... 128009 (<|eot_id|>) ... ids 128000")):
        compare_vocabularies(llama, other, student_ends=(128001, 128008, 128009))


@pytest.mark.parametrize(("student", "teacher"), list(permutations(NAMES, 2)))
def test_every_pair_of_families_is_refused_with_its_first_ids(student: str, teacher: str) -> None:
    own, theirs = real(student), real(teacher)
    pairs = ((own.convert_ids_to_tokens(token), theirs.convert_ids_to_tokens(token)) for token in range(1000))
    first, (ours, others) = next((token, pair) for token, pair in enumerate(pairs) if pair[0] != pair[1])
    with pytest.raises(MismatchError, match="different vocabularies") as caught:
        compare_vocabularies(own, theirs)
    assert f"{first} is {ours!r} for the student and {others!r} for the teacher" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_rollout_needs_of_each(name: str) -> None:
    """On a model without weights, of the family's own configuration and rows."""
    from transformers import AutoConfig, GenerationConfig

    kind, rows, ends = {
        "qwen3": ("qwen3", 151936, (151643, 151645)),
        "llama3_1": ("llama", 128256, (128001, 128008, 128009)),
        "gemma3": ("gemma3_text", 262144, (1, 106)),
        "gptoss": ("gpt_oss", 201088, (199999, 200002, 200012)),
    }[name]

    class Model:
        config = AutoConfig.for_model(kind, vocab_size=rows)
        generation_config = GenerationConfig(eos_token_id=list(ends))

    found = rollout_settings(Model, real(name))
    assert found.end_ids == ends and found.rows == rows
    assert found.vocab_size == min(rows, max(real(name).get_vocab().values()) + 1)
    assert found.pad_id == (ends[0] if real(name).pad_token_id is None else real(name).pad_token_id)
