"""VOPDTrainer renders conversations as the command line does, and as TRL does where tools are called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset

from contract.test_chats import ANSWER, FOUR, SYSTEM, USER, qwen, written
from messages import says
from vopd.data.prompts import read_prompts
from vopd.data.tokenized import TEACHER_PROMPT_IDS, prompt_ids
from vopd.errors import ConfigurationError, DataError

Make = Callable[..., Any]


@pytest.fixture
def make(make_trainer: Make, chat_student: Path) -> Make:
    def made(rows: list[dict[str, Any]], trainer: dict[str, Any] | None = None, **settings: Any) -> Any:
        given = {"train_dataset": Dataset.from_list(rows), "teacher_model": str(chat_student), **(trainer or {})}
        return make_trainer(model=str(chat_student), trainer=given, **settings)

    return made


@pytest.mark.parametrize("column", ["messages", "prompt", "conversations"])
def test_columns_and_settings(make: Make, column: str, tmp_path: Path) -> None:
    rows = [{column: row["messages"]} for row in FOUR]
    trainer = make(rows, system_prompt="brief", thinking=False)
    again = read_prompts(written(tmp_path / "rows.jsonl", *rows), chat=trainer.chat).dataset
    assert prompt_ids(trainer.train_dataset) == prompt_ids(again)
    text = qwen("system: brief", "user: 2+2") + "<think></think>"
    assert trainer.tokenizer.decode(prompt_ids(trainer.train_dataset)[0]) == text
    assert trainer.train_dataset[0]["prompt"] == [USER]


def test_rewards_get_conversations(make: Make) -> None:
    seen: list[Any] = []

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        seen.append((prompts[0], completions[0]))
        return [0.0] * len(prompts)

    make(FOUR, {"reward_funcs": reward}, num_generations=2, max_steps=1).train()
    prompt, completion = seen[0]
    assert prompt in ([USER], [SYSTEM, USER]) and completion[0]["role"] == "assistant"


def test_evaluation_data_and_the_teachers_prompts(make: Make) -> None:
    held = Dataset.from_list([{"conversations": [{"from": "human", "value": "held"}], "hint": [USER, ANSWER]}])
    rows = [{"prompt": [USER], "hint": [SYSTEM, USER, ANSWER]}] * 4
    trainer = make(rows, {"eval_dataset": held}, teacher_prompt_column="hint")
    read = trainer.tokenizer.decode
    assert read(prompt_ids(trainer.eval_dataset)[0]) == qwen("user: held")
    assert read(prompt_ids(trainer.train_dataset, TEACHER_PROMPT_IDS)[0]) == qwen("system: be brief", "user: 2+2")
    assert trainer.evaluate(Dataset.from_list([{"messages": [USER], "hint": [USER]}]))["eval_loss"] >= 0


def test_what_is_not_trained_on_is_said_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make([{"prompt": [USER], "completion": [ANSWER]}] * 4)
    assert caplog.text.count("'completion' of train_dataset is not trained on") == 1
    make([], {"train_dataset": trainer.train_dataset})
    assert caplog.text.count("is not trained on") == 1


def test_a_setting_without_effect_is_refused(make: Make) -> None:
    with pytest.raises(ConfigurationError, match=says("thinking ... chat_template=true")):
        make([{"prompt": "2+2"}] * 4, thinking=True)
    with pytest.raises(DataError, match=says("row 1 of train_dataset ... turn 0 ... 'image'")):
        make(
            [{"prompt": [{"role": "user", "content": [{"type": kind, "text": "a"}]}]} for kind in ("text", "image")] * 2
        )


def double(number: int) -> int:
    """Double a number.

    Args:
        number: any.

    Returns:
        Twice the number.
    """
    return 2 * number


def test_prompts_of_tools_are_tokenized_as_by_trl(
    make_trainer: Make, tiny_tokenizer: Any, tiny_student_dir: Path, tiny_teacher_dir: Path
) -> None:
    """With its training template, which stands in for that of Qwen3."""
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(path) for path in (tiny_student_dir, tiny_teacher_dir)]
    for model in models:
        model.config.max_position_embeddings = 2048
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = Path(trl.__file__).with_name("chat_templates").joinpath("qwen3.jinja").read_text()
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"}
    prompts = [[USER, thought, USER], [SYSTEM, USER]] * 2
    given = {"teacher_model": models[1], "tools": [double], "processing_class": tokenizer}
    trainer = make_trainer(
        model=models[0], trainer={**given, "train_dataset": Dataset.from_dict({"prompt": prompts})}, thinking=False
    )
    assert trainer.chat_template is not None and trainer.chat_template_kwargs == {"enable_thinking": False}
    assert prompt_ids(trainer.train_dataset) == trl.DistillationTrainer._tokenize_prompts(trainer, prompts)[0]
    assert trainer.train_dataset[1]["prompt"] == [SYSTEM, USER]
    assert "hm" in tokenizer.decode(prompt_ids(trainer.train_dataset)[0])
