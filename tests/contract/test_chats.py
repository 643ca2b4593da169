"""Rows as people have them, and what the model reads of each: one table for every form, role, setting and fault."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cases import RUN, Case, Place
from chats import family
from messages import says, told
from vopd.data.chat import Chat
from vopd.data.conversations import Asked
from vopd.data.prompts import read_prompts
from vopd.data.tokenized import add_ids, prompt_ids, without_ids
from vopd.errors import ConfigurationError, DataError, MismatchError, VOPDError

USER = {"role": "user", "content": "2+2"}
ANSWER = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "be brief"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
RESULT = {"role": "tool", "name": "add", "content": "4"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
TOOL_JSON = '{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}'
START = "<|start_header_id|>"


def calls(**changes: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [CALL], **changes}


def qwen(*turns: str, end: str = "<|im_start|>assistant\n") -> str:
    """ "user: 2+2" and more in the markup of the small Qwen."""
    said = (turn.partition(": ") for turn in turns)
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, _, text in said) + end


def gemma(text: str) -> str:
    return f"<bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"


def llama(*turns: str) -> str:
    said = (turn.partition(": ") for turn in (*turns, "assistant: "))
    text = "".join(f"{START}{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, _, text in said)
    return f"<|begin_of_text|>{text.removesuffix('<|eot_id|>')}"


@dataclass(frozen=True)
class Row:
    """`row` of a file on the tokenizer `on`, with these settings of `Chat`: its text, or the error that names it."""

    row: dict[str, Any]
    text: str
    on: str = "qwen"
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str = ""
    said: str = ""
    error: type[VOPDError] | None = None
    template: str | None = None


ONE = qwen("user: 2+2")
CONTINUE = {"last_assistant_turn": "continue"}
TEXTS = {"texts": True}
# Nothing in it is a token of its own.
PLAIN = "{% for turn in messages %}{{ '[INST] ' + turn.content + ' [/INST]' }}{% endfor %}"
ROWS = [
    # columns and forms
    Row({"prompt": "2+2"}, "2+2", kind="text"),
    Row({"prompt": [USER]}, ONE, kind="conversation"),
    Row({"messages": [USER]}, ONE),
    Row({"conversations": [{"from": "human", "value": "2+2"}]}, ONE),
    Row({"conversation": [{"from": "user", "value": "2+2", "weight": None}]}, ONE),
    Row({"prompt": json.dumps([USER])}, ONE),
    Row({"prompt": str([USER])}, ONE),
    Row({"messages": USER}, ONE),
    Row({"conversations": {"from": ["human", "gpt"], "value": ["2+2", "4"]}}, ONE),
    Row({"prompt": '[{"role": "user", "content": "2+2"]'}, "not valid JSON", error=DataError),
    Row({"prompt": '{"role": "user", "id": 3} is what?'}, '{"role": "user", "id": 3} is what?', kind="text"),
    Row({"prompt": '[{"role": "user", "id": 3}]'}, '[{"role": "user", "id": 3}]', kind="text"),
    Row({"prompt": "2+2", "messages": [USER]}, "2+2", said="column 'prompt' ... 'messages'"),
    Row({"prompt": "2+2", "messages": [USER]}, ONE, template="{messages}"),
    Row({"prompt": [USER], "completion": [ANSWER]}, ONE, said="'completion' ... not trained on"),
    Row({"dialogue": [USER]}, "no column prompt, messages ... it has: dialogue", error=DataError),
    Row({"prompt": 3}, "line 1 ... int", error=DataError),
    Row({"prompt": []}, "every prompt ... empty", error=DataError),
    Row({"prompt": None, "messages": [USER]}, "line 1 ... no 'prompt' ... it has 'messages'", error=DataError),
    Row({"messages": [USER]}, "'messages' must be text", template="Q: {messages}", error=DataError),
    # roles
    Row({"conversations": [{"from": "system", "value": "be brief"}, {"from": "human", "value": "2+2"},
                           {"from": "chatgpt", "value": "4"}, {"from": "prompter", "value": "2+2"}]},
        qwen("system: be brief", "user: 2+2", "assistant: 4", "user: 2+2")),
    Row({"conversations": [{"from": "narrator", "value": "2+2"}]}, "line 1 ... turn 0 ... 'narrator'", error=DataError),
    Row({"prompt": [{"role": "developer", "content": "be brief"}, USER]}, qwen("system: be brief", "user: 2+2")),
    Row({"prompt": [{"role": "developer", "content": "be brief"}, USER]}, "developer<|message|>be brief", "gptoss"),
    Row({"prompt": [SYSTEM, USER]}, gemma("be brief\n\n2+2"), "gemma"),
    Row({"prompt": [SYSTEM]}, "line 1 ... leaves out turn 0 (system)", "gemma", error=DataError),
    Row({"prompt": [{"content": "2+2"}]}, "line 1 ... turn 0 ... no role", error=DataError),
    # contents
    Row({"prompt": [{**USER, "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2"}]}]}, ONE),
    Row({"prompt": [{"role": "user", "content": ["2+", "2"]}]}, gemma("2+2"), "gemma"),
    Row({"prompt": [{"role": "user", "content": [{"type": "input_text", "text": "2+2", "image_url": None}]}]}, ONE),
    Row({"prompt": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]},
        "line 1 ... turn 0 (user) ... 'image'", error=DataError),
    Row({"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}, "text": None}]}]},
        "line 1 ... turn 0 ... 'image_url'", error=DataError),
    Row({"prompt": [{"role": "user", "content": " "}]}, "line 1 ... turn 0 (user) is empty", error=DataError),
    Row({"prompt": [USER, {"role": "assistant"}, USER]}, "turn 1 (assistant) has no content", error=DataError),
    Row({"prompt": [{"role": "user", "content": 0.5}]}, "turn 0 (user) ... text ... float", error=DataError),
    Row({"prompt": [{"role": "user", "content": 4}]}, qwen("user: 4")),
    Row({"prompt": [USER, calls(), {**RESULT, "content": {"sum": 4}}]}, "turn 2 (tool) ... '{sum}'", error=DataError),
    # tools
    Row({"prompt": [USER, calls(), RESULT], "tools": [TOOL]},
        "{TOOL}\n\n2+2<|eot_id|>".replace("{TOOL}", TOOL_JSON), "llama",
        kind="conversation, with tools, with tool calls"),
    Row({"prompt": [USER, calls(tool_calls=[{"name": "add", "arguments": '{"a": 2}'}]), RESULT]},
        '{"name": "add", "parameters": {"a": 2}}<|eot_id|>', "llama"),
    Row({"prompt": [USER, calls(), RESULT]}, '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>'),
    Row({"prompt": [USER, calls(), RESULT]}, '{"a": 2}<|call|><|start|>functions.add to=assistant', "gptoss"),
    Row({"prompt": [USER, calls(tool_calls=None, function_call={"name": "add", "arguments": '{"a": 2}'}),
                    {**RESULT, "role": "function"}]}, '"arguments": {"a": 2}}</tool_call>'),
    Row({"conversations": [{"from": "human", "value": "2+2"},
                           {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
                           {"from": "observation", "value": "4"}]}, "<result>4</result>"),
    Row({"prompt": [USER, {**ANSWER, "tool_calls": []}, USER]}, llama("user: 2+2", "assistant: 4", "user: 2+2"),
        "llama"),
    Row({"prompt": [USER], "tools": json.dumps([TOOL])}, "# Tools\n" + TOOL_JSON),
    Row({"prompt": [USER], "tools": []}, ONE),
    Row({"prompt": [USER], "tools": [TOOL["function"]]}, "# Tools\n" + TOOL_JSON),
    Row({"prompt": [USER], "tools": [{"type": "function", **TOOL["function"]}]}, "# Tools\n" + TOOL_JSON),
    Row({"question": "2+2", "tools": "a hammer"}, qwen("user: 2+2 a hammer"), settings=TEXTS,
        template="{question} {tools}"),
    Row({"prompt": [USER], "tools": [TOOL]}, "# Tools\n" + TOOL_JSON, settings={"tools": [TOOL]},
        said="1 of 1 ... those of the trainer"),
    Row({"prompt": [USER, calls(tool_calls=[{"name": "add", "arguments": {"a": 2, "text": None}}]), RESULT]},
        '"parameters": {"a": 2}}', "llama"),
    Row({"prompt": [USER], "tools": "hammer"}, "line 1 ... 'tools' is not valid JSON", error=DataError),
    Row({"prompt": "2+2", "tools": "hammer"}, "2+2"),
    Row({"prompt": [USER], "tools": [TOOL]}, gemma("2+2"), "gemma", said="1 of 1 ... tools ... not use ... line 1"),
    Row({"prompt": [USER, calls(), RESULT]}, "line 1 ... turn 1 calls a tool", "gemma", error=DataError),
    Row({"prompt": [USER, calls(), RESULT]}, "line 1 ... turn 1 calls a tool", "gemma", error=DataError,
        settings={"system_prompt": "be brief"}),
    Row({"prompt": [USER, RESULT]}, "line 1 ... a result without a call", "gptoss", error=DataError),
    # the last turn
    Row({"messages": [SYSTEM, USER, ANSWER]}, qwen("system: be brief", "user: 2+2"),
        said="1 conversation ... dropped ... last_assistant_turn=continue"),
    Row({"messages": [USER, ANSWER, USER, calls()]}, qwen("user: 2+2", "assistant: 4", "user: 2+2")),
    Row({"prompt": [USER, ANSWER]}, qwen("user: 2+2", end="<|im_start|>assistant\n4"), settings=CONTINUE,
        kind="conversation, with its last turn continued", said="1 conversation ... continued"),
    Row({"prompt": [SYSTEM, ANSWER]}, "line 1 ... only the assistant's turns", error=DataError),
    Row({"prompt": [USER, calls()]}, "line 1 ... cannot continue the last turn", "llama", CONTINUE, error=DataError),
    # rendered already
    Row({"prompt": ONE}, ONE, settings=TEXTS, kind="rendered chat", said="1 of 1 ... rendered chats ... line 1"),
    Row({"prompt": gemma("2+2")}, gemma("2+2"), "gemma", kind="rendered chat", said="rendered chats already"),
    Row({"prompt": llama("user: 2+2")}, llama("user: 2+2"), "llama", TEXTS, said="rendered chats already"),
    Row({"prompt": "[INST] 2+2 [/INST]"}, "[INST] 2+2 [/INST]", settings={**TEXTS, "template": PLAIN},
        kind="rendered chat", said="rendered chats already"),
    Row({"problem": "2+2"}, ONE, template=ONE.replace("2+2", "{problem}"),
        said="rendered chats already"),
    Row({"prompt": "What is <|im_end|>?"}, qwen("user: What is <|im_end|>?"), settings=TEXTS,
        said="1 of 1 ... special token ... line 1"),
    # settings
    Row({"prompt": "2+2"}, ONE, settings=TEXTS, kind="text in the chat template"),
    Row({"prompt": "2+2"}, qwen("system: be brief", "user: 2+2"), settings={**TEXTS, "system_prompt": "be brief"}),
    Row({"prompt": [USER]}, qwen("system: be brief", "user: 2+2"), settings={"system_prompt": "be brief"},
        kind="conversation, with system_prompt"),
    Row({"prompt": [SYSTEM, USER]}, qwen("system: be brief", "user: 2+2"), settings={"system_prompt": "no"},
        said="1 of 1 ... system prompt of their own"),
    Row({"prompt": "2+2"}, "system_prompt ... chat_template=true", settings={"system_prompt": "x"},
        error=ConfigurationError),
    Row({"prompt": [USER]}, ONE + "<think></think>", settings={"thinking": False}),
    Row({"prompt": [USER]}, ONE, settings={"thinking": True}),
    Row({"prompt": "2+2"}, "thinking ... chat_template=true", settings={"thinking": True}, error=ConfigurationError),
    Row({"prompt": [USER]}, "no option enable_thinking", "llama", {"thinking": True}, error=ConfigurationError),
    Row({"prompt": [USER]}, "thinking and chat_template_kwargs both set enable_thinking",
        settings={"thinking": True, "options": {"enable_thinking": False}}, error=ConfigurationError),
    Row({"prompt": [USER]}, "Reasoning: low", "gptoss", {"options": {"reasoning_effort": "low"}}),
    Row({"prompt": [USER], "chat_template_kwargs": {"enable_thinking": False}}, ONE + "<think></think>",
        settings={"thinking": True}, kind="conversation, with its own chat_template_kwargs"),
    Row({"prompt": [USER], "chat_template_kwargs": '{"enable_thinking": false}'}, ONE + "<think></think>"),
    Row({"prompt": [USER], "chat_template_kwargs": {"mood": "good"}}, ONE, said="mood ... does not use"),
    Row({"prompt": [USER], "chat_template_kwargs": {"tokenize": True}}, "line 1 ... cannot set tokenize",
        error=DataError),
    Row({"prompt": [USER]}, "chat_template_kwargs cannot set tools", settings={"options": {"tools": []}},
        error=ConfigurationError),
    Row({"prompt": [USER]}, "last_assistant_turn ... drop or continue ... 'keep'",
        settings={"last_assistant_turn": "keep"}, error=ConfigurationError),
    # the system prompt of a row
    Row({"system": "be brief", "conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]},
        qwen("system: be brief", "user: 2+2"), settings={"system_prompt": "no"},
        kind="conversation, with its own system prompt", said="1 of 1 ... system prompt of their row ... line 1"),
    Row({"system_prompt": "be brief", "question": "2+2"}, qwen("system: be brief", "user: 2+2"), settings=TEXTS,
        kind="text in the chat template, with its own system prompt", said="system prompt of their row"),
    Row({"system_prompt": "be brief", "question": "2+2"}, "2+2", said="texts without the system prompt ... line 1"),
    Row({"system_prompt": "be brief", "question": "2+2"}, qwen("user: be brief: 2+2"), settings=TEXTS,
        template="{system_prompt}: {question}", kind="text in the chat template"),
    Row({"system": "no", "prompt": [SYSTEM, USER]}, qwen("system: be brief", "user: 2+2"), said="their own ... stays"),
    Row({"system": " ", "prompt": [USER]}, ONE),
    Row({"system": 3, "prompt": [USER]}, ONE),
    # templates
    Row({"prompt": [USER, USER]}, "line 1 ... roles must take turns", "gemma", error=DataError),
    Row({"prompt": [USER]}, "chat messages ... no chat template", "plain", error=MismatchError),
    Row({"prompt": "2+2"}, "no chat template", "plain", TEXTS, error=ConfigurationError),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizer: Any) -> dict[str, Any]:
    found = {name: family(name, tiny_tokenizer) for name in ("gemma", "llama", "qwen", "gptoss")}
    return {"plain": tiny_tokenizer, **found}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case.on} {json.dumps(case.row)[:60]} {case.settings}")
def test_a_row_as_its_model_reads_it(
    case: Row, tokenizers: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, tokenizer = written(tmp_path / "rows.jsonl", case.row), tokenizers[case.on]

    def read() -> Any:
        return read_prompts(path, chat=Chat(tokenizer, **case.settings), template=case.template)

    if case.error is not None:
        with pytest.raises(case.error, match=says(case.text)) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert "line 1" not in case.text or "rows.jsonl" in str(caught.value)
        return
    found = read()
    (example,), (ids,) = found.examples, prompt_ids(found.dataset)
    whole = tokenizer.decode(ids)
    assert example.text in whole and case.text in whole and whole.count(tokenizer.bos_token or "<none>") <= 1
    if case.text.startswith(("<bos>", "<|begin", "<|im_start|>")) or example.kind == "text":
        assert example.text == case.text
    assert example.kind == case.kind or not case.kind
    assert told(case.said, caplog.text) if case.said else not caplog.text or "dropped" in caplog.text


def test_ids_are_those_of_apply_chat_template(tokenizers: dict[str, Any]) -> None:
    for name in ("gemma", "llama", "qwen", "gptoss"):
        tokenizer, turns = tokenizers[name], [SYSTEM, USER, ANSWER, USER]
        own = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert Chat(tokenizer).ids([turns]) == [own]


def test_templates_with_names(tokenizers: dict[str, Any]) -> None:
    tokenizer = copy.deepcopy(tokenizers["qwen"])
    said = "{{ messages[0].content }}"
    tokenizer.chat_template = {"default": said, "tool_use": f"T{said}{{{{ tools }}}}"}
    chat = Chat(tokenizer)
    assert chat.text([USER]) == "2+2" and chat.text(Asked([USER], [TOOL])).startswith("T2+2")
    tokenizer.chat_template = {"rag": said}
    assert Chat(tokenizer).kind("2+2") == "text" and not Chat(tokenizer).dated
    with pytest.raises(MismatchError, match=says("several chat templates")):
        Chat(tokenizer).ids([[USER]])


def test_a_template_for_images_gets_parts(tokenizers: dict[str, Any]) -> None:
    tokenizer = copy.deepcopy(tokenizers["qwen"])
    tokenizer.chat_template = (
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}[{{ p.text }}]{% endif %}{% endfor %}"
        "{% endfor %}"
    )
    assert Chat(tokenizer).text([SYSTEM, USER]) == "[be brief][2+2]"


def test_rows_with_other_keys_and_types_stand_together(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    other = {**CALL, "function": {"name": "say", "arguments": '{"text": "x"}'}}
    rows = [
        {"prompt": [USER, calls(), RESULT], "tools": [TOOL]},
        {"prompt": [USER, calls(tool_calls=[other]), RESULT]},
        {"prompt": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    ]
    chat = Chat(tokenizers["qwen"])
    alone = [read_prompts(written(tmp_path / f"{n}.jsonl", row), chat=chat) for n, row in enumerate(rows)]
    texts = [found.examples[0].text for found in alone]
    assert not [text for text in texts if "None" in text or "null" in text]
    paths = [str(tmp_path / f"{n}.jsonl") for n in range(3)]
    mixed = read_prompts(paths, chat=chat).dataset
    assert sorted(map(tokenizers["qwen"].decode, prompt_ids(mixed))) == sorted(texts)
    assert prompt_ids(add_ids(without_ids(mixed), chat.ids)) == prompt_ids(mixed)


def test_texts_and_conversations_do_not_mix_without_the_template(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    paths = [
        str(written(tmp_path / "t.jsonl", {"prompt": "1+1"})),
        str(written(tmp_path / "c.jsonl", {"prompt": [USER]})),
    ]
    with pytest.raises(DataError, match=says("t.jsonl ... c.jsonl ... chat_template=true")):
        read_prompts(paths, chat=Chat(tokenizers["qwen"]))
    mixed = read_prompts(paths, chat=Chat(tokenizers["qwen"], texts=True))
    assert mixed.conversations and [one.kind for one in mixed.examples] == ["text in the chat template", "conversation"]


# ---- on the command line and in Python ------------------------------------------------------------------------------


CHAT = RUN.replace("{S}", "{work}/student").replace("{T}", "{work}/student").replace("{p}", "{work}/rows.jsonl")
DRY = f"{CHAT} --dry-run"
FOUR = [{"messages": [USER, ANSWER]}, {"messages": [SYSTEM, USER]}, {"messages": [USER]}, {"messages": [USER]}]


def prepared(chat_student: Path, *rows: dict[str, Any]) -> Callable[[Place], object]:
    def prepare(place: Place) -> None:
        (place.work / "student").symlink_to(chat_student)
        written(place.work / "rows.jsonl", *rows)

    return prepare


COMMANDS = [
    (DRY, FOUR, 0, "conversation, with its own system prompt ... rows.jsonl ... line 2"),
    (DRY, FOUR, 0, "1 conversation ... rows.jsonl ... dropped"),
    (f"{DRY} --system_prompt brief --thinking false", FOUR, 0, "system ... brief ... think"),
    (f"{DRY} --teacher_prompt_template '{{messages}}'", FOUR, 0, "the teacher's ... assistant"),
    (f"{DRY} --system_prompt brief", [{"prompt": "2+2"}] * 4, 2, "system_prompt ... chat_template=true"),
    (f"{DRY} --chat_template true --system_prompt brief", [{"prompt": "2+2"}] * 4, 0,
     "text in the chat template, with system_prompt ... line 1"),
    (DRY, [*FOUR[1:], {"messages": [{"role": "critic", "content": "x"}]}], 3, "rows.jsonl ... line 4 ... 'critic'"),
    (f"{DRY} --last_assistant_turn keep", FOUR, 2, "last_assistant_turn ... drop or continue"),
    ("variance --model {work}/student --teacher_model {work}/student --dataset {work}/rows.jsonl --output_dir {out} "
     "--device cpu --system_prompt x", [{"prompt": "2+2"}] * 4, 2, "system_prompt ... chat_template=true"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "rows", "code", "line"), COMMANDS)
def test_commands(
    command: str, rows: list[Any], code: int, line: str, chat_student: Path, place: Place,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Case(command, code, line, before=prepared(chat_student, *rows)).check(place, capfd.readouterr)


def test_a_run_on_conversations_and_what_it_says_next(
    chat_student: Path, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared(chat_student, *FOUR)(place)
    assert place.call(f"{CHAT} --max_steps 1 --system_prompt 'be kind'") == 0
    assert told("vopd eval ... --chat_template True --system_prompt 'be kind'", "\n".join(capfd.readouterr()))
    samples = (place.out / "r" / "samples.jsonl").read_text().splitlines()
    prompts = {json.loads(line)["prompt"] for line in samples}
    assert prompts <= {qwen("system: be kind", "user: 2+2"), qwen("system: be brief", "user: 2+2")}


def test_a_resumed_run_has_the_same_prompts_on_another_day(
    chat_student: Path, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    student = shutil.copytree(chat_student, place.work / "student")
    template = student / "chat_template.jinja"
    template.write_text("{{ strftime_now('%f') }}" + template.read_text())
    written(place.work / "rows.jsonl", *FOUR)
    assert place.call(f"{CHAT} --save_steps 1 --max_steps 1") == 0
    assert told("4 of 4 prompts ... today's date ... line 1", "\n".join(capfd.readouterr()))
    more = f"{CHAT} --save_steps 1 --max_steps 2 --resume"
    Case(f"{more} --system_prompt x", 2, "system_prompt null -> x ... new run").check(place, capfd.readouterr)
    assert place.call(more) == 0
    written(place.work / "rows.jsonl", *FOUR[:3], {"messages": [{**USER, "content": "3"}]})
    Case(f"{CHAT} --save_steps 1 --max_steps 3 --resume", 2, "dataset ... new run").check(place, capfd.readouterr)
