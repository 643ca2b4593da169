"""Conversations on the real tokenizers of four families: our ids are those of their own `apply_chat_template`.

VOPD_TOKENIZERS names a folder with qwen3, llama3_1, gemma3 and gptoss, each with tokenizer.json and
tokenizer_config.json; without it nothing is tested. Where such a folder has no template, or one without tools, that of
TRL for this family is taken.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset

from vopd.data.chat import Chat
from vopd.data.conversations import Asked, rendered_form
from vopd.data.prompts import settled
from vopd.errors import DataError

FOLDER = Path(os.environ.get("VOPD_TOKENIZERS", "")).resolve()
TEMPLATES = Path(trl.__file__).with_name("chat_templates")
NAMES = ("qwen3", "llama3_1", "gemma3", "gptoss")

pytestmark = pytest.mark.skipif(not os.environ.get("VOPD_TOKENIZERS"), reason="VOPD_TOKENIZERS names no folder")

USER = {"role": "user", "content": "What is 12 + 30?"}
ANSWER = {"role": "assistant", "content": "It is 42."}
SYSTEM = {"role": "system", "content": "Think step by step."}
PARTS = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "12 + 30?"}]}
FUNCTION = {
    "name": "add",
    "description": "Adds numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "one"}}, "required": ["a"]},
}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 12}}}
CALLS = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "42"},
]
CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, USER],
    "unicode": [{"role": "user", "content": "12 加 30 \N{GRINNING FACE} cafe\u0301 <b>\n\n  x  \t."}],
}


def tokenizer_of(name: str, *, tools: bool = False) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    if tokenizer.chat_template is None or (tools and "tools" not in tokenizer.chat_template):
        tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def ids_of(tokenizer: Any, turns: list[Any], **options: Any) -> list[int]:
    """What transformers itself makes of a conversation."""
    found = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=False, **{"add_generation_prompt": True, **options}
    )
    return list(found)


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer_of(request.param)


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_ids_are_those_of_transformers(tokenizer: Any, kind: str) -> None:
    turns = CONVERSATIONS[kind]
    (ids,) = Chat(tokenizer).ids([turns])
    assert ids == ids_of(tokenizer, turns)
    assert tokenizer.bos_token_id is None or ids.count(tokenizer.bos_token_id) <= 1


def test_every_form_of_a_conversation_is_the_same(tokenizer: Any) -> None:
    want = ids_of(tokenizer, [SYSTEM, USER])
    chat = Chat(tokenizer, system_prompt=SYSTEM["content"])
    shared = [{"from": "system", "value": SYSTEM["content"]}, {"from": "human", "value": USER["content"]}]
    forms = [[USER], [PARTS], USER, [SYSTEM, USER, ANSWER], shared, [*shared, {"from": "gpt", "value": "42"}]]
    assert [ids == want for ids in chat.ids(forms)] == [True] * len(forms)
    assert Chat(tokenizer, texts=True, system_prompt=SYSTEM["content"]).ids([USER["content"]]) == [want]


def test_a_rendered_chat_is_left_as_it_is(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([SYSTEM, USER], tokenize=False, add_generation_prompt=True)
    for texts in (False, True):
        chat = Chat(tokenizer, texts=texts)
        assert chat.kind(text) == "rendered chat" and chat.ids([text]) == [ids_of(tokenizer, [SYSTEM, USER])]
    plain = Chat(tokenizer)
    assert plain.kind("Is <b> a tag?") == "text" and plain.ids(["Is <b> a tag?"]) == [
        tokenizer("Is <b> a tag?")["input_ids"]
    ]


def test_a_last_turn_is_continued(tokenizer: Any) -> None:
    turns = [USER, ANSWER]
    want = ids_of(tokenizer, turns, add_generation_prompt=False, continue_final_message=True)
    assert Chat(tokenizer, last_assistant_turn="continue").ids([turns]) == [want]
    assert tokenizer.decode(want).endswith(ANSWER["content"])


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gptoss"])
def test_tools_and_their_results(name: str) -> None:
    tokenizer = tokenizer_of(name, tools=True)
    chat, want = Chat(tokenizer), ids_of(tokenizer, CALLS, tools=[TOOL])
    written = [dict(turn) for turn in CALLS]
    written[1] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**CALL, "function": {"name": "add", "arguments": '{"a": 12}'}}],
    }
    rows = Dataset.from_list([{"prompt": written, "tools": [TOOL]}, {"prompt": [USER], "tools": None}])
    data = settled(rows, "data")
    for prompt in (CALLS, written, data[0]["prompt"]):
        assert chat.ids([Asked(prompt, [TOOL])]) == [want]
    assert chat.ids([Asked(data[1]["prompt"], data[1]["tools"])]) == [ids_of(tokenizer, [USER])]
    text = chat.text(Asked(written, [TOOL]))
    assert "Adds numbers." in text and '{"a": 12}' in text and "None" not in text


def test_thinking_and_effort() -> None:
    qwen, oss = tokenizer_of("qwen3"), tokenizer_of("gptoss")
    for thinking in (True, False):
        assert Chat(qwen, thinking=thinking).ids([[USER]]) == [ids_of(qwen, [USER], enable_thinking=thinking)]
    own = Asked([USER], None, '{"enable_thinking": false}')
    assert Chat(qwen, thinking=True).ids([own]) == [ids_of(qwen, [USER], enable_thinking=False)]
    low = Chat(oss, options={"reasoning_effort": "low"})
    assert low.ids([[USER]]) == [ids_of(oss, [USER], reasoning_effort="low")] and "Reasoning: low" in low.text([USER])


def test_gemma_says_what_it_does_not_take() -> None:
    chat = Chat(tokenizer_of("gemma3"))
    with pytest.raises(DataError, match="roles must alternate"):
        chat.ids([[USER, USER]])
    with pytest.raises(DataError, match="turn 1 calls a tool"):
        chat.ids([CALLS])
    with pytest.raises(DataError, match="leaves out turn 0"):
        chat.ids([[SYSTEM]])


def test_a_role_that_qwen_would_leave_out_is_read_or_refused() -> None:
    tokenizer = tokenizer_of("qwen3")
    chat, developer = Chat(tokenizer), {"role": "developer", "content": SYSTEM["content"]}
    assert chat.ids([[developer, USER]]) == [ids_of(tokenizer, [SYSTEM, USER])]
    with pytest.raises(DataError, match="turn 0 has the role 'critic'"):
        chat.ids([[{"role": "critic", "content": "x"}, USER]])
    oss = tokenizer_of("gptoss")
    assert Chat(oss).ids([[developer, USER]]) == [ids_of(oss, rendered_form([developer, USER]))]
