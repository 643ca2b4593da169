"""What a row says: a text, or a conversation in any of the forms that people have, read into one form.

A conversation is a list of turns {"role": ..., "content": ...}, as chat templates take them. It may come as a list of
messages, as ShareGPT's turns with "from" and "value", as one message, as a JSON text of these, and with contents that
are lists of text parts. An assistant's turn may have `tool_calls`; a "tool" turn has a result.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vopd.errors import ConfigurationError, DataError

from .text_rows import RowPlace

Turn = dict[str, Any]
Prompt = str | list[Turn]

TOOLS, OPTIONS, SYSTEM = "tools", "chat_template_kwargs", ("system", "system_prompt")
BESIDE = (TOOLS, OPTIONS, *SYSTEM)
"""Columns that belong to a conversation: the tools that it may call, arguments of its chat template, its first turn."""
DROP, CONTINUE = "drop", "continue"

# Names of roles in ShareGPT and elsewhere. Other roles are left to the chat template.
_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "chatbot", "ai", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "function_response", "tool_response", "ipython"), "tool"),
}
_CALLS = ("function_call", "tool_call")
_TEXT_PARTS = ("text", "input_text", "output_text")
# How a conversation that became a text begins.
_WRITTEN = re.compile(r"""\s*\[?\s*\{\s*['"](role|content|from|value)['"]\s*:""")


class Conversation(list[Turn]):
    """A list of turns that was read already: `read_prompt` does not read it again."""


@dataclass(frozen=True)
class Asked:
    """A prompt with its row's tools, arguments of the chat template and system prompt, all unread."""

    prompt: Any
    tools: Any = None
    options: Any = None
    system: Any = None

    @classmethod
    def of(cls, row: Mapping[str, Any], prompt: Any) -> Asked:
        """The `prompt` of a row that may have the columns `BESIDE` it."""
        system = next(filter(None, map(row.get, SYSTEM)), None)
        return cls(prompt, row.get(TOOLS), row.get(OPTIONS), system)


def read_prompt(value: Any, last_assistant_turn: str = CONTINUE) -> Prompt:
    """Return a text as it is, and a conversation in any form as a list of turns.

    Args:
        value: of the prompt's column.
        last_assistant_turn: "drop" leaves out the assistant's turns at the end, which are what is to be sampled;
            "continue" keeps them.

    Raises:
        DataError: it is neither, or a turn is not as it should be; names the turn.
    """
    if isinstance(value, str) and _WRITTEN.match(value):
        value = _unwritten(value)
    if isinstance(value, str):
        if not value.strip():
            raise DataError("the prompt is empty")
        return value
    if value is None:
        raise DataError("the prompt is missing")
    turns = value if isinstance(value, Conversation) else _turns(value)
    last = len(turns)
    while last and turns[last - 1]["role"] == "assistant":
        last -= 1
    if not any(turn["role"] != "system" for turn in turns[:last]) and last < len(turns):
        raise DataError("the conversation has only the assistant's turns: nothing asks for an answer")
    return Conversation(turns[:last]) if last_assistant_turn == DROP else turns


def ends_with_answer(prompt: Prompt) -> bool:
    """Whether the last turn of a conversation is the assistant's."""
    return not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"


def has_system(prompt: Prompt) -> bool:
    """Whether it is a conversation with a system turn of its own."""
    return not isinstance(prompt, str) and any(turn["role"] in ("system", "developer") for turn in prompt)


def rendered_form(prompt: list[Turn]) -> list[Turn]:
    """The same conversation, with the arguments of tool calls as objects: some templates cannot read a text."""
    return [
        {**turn, "tool_calls": list(map(_with_object, turn["tool_calls"]))} if "tool_calls" in turn else turn
        for turn in prompt
    ]


def without_nones(value: Any) -> Any:
    """`value` without the keys that are None at any depth: Arrow gives every object of a column all keys."""
    if isinstance(value, Mapping):
        return {name: without_nones(entry) for name, entry in value.items() if entry is not None}
    return [without_nones(entry) for entry in value] if isinstance(value, list | tuple) else value


def text_of(prompt: Any) -> str:
    """The words of a prompt, whether it is a text or a conversation."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn["content"] for turn in prompt if isinstance(turn.get("content"), str))


def read_tools(value: Any) -> list[Any] | None:
    """The tools of a row: JSON schemas or a JSON text of them; None without any.

    Raises:
        DataError: they are of another form.
    """
    tools = without_nones(_json(value, f"'{TOOLS}'"))
    if isinstance(tools, Mapping):
        tools = [tools]
    tools = [_json(tool, f"'{TOOLS}'") for tool in tools] if isinstance(tools, list) else tools or []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"'{TOOLS}' must be a list of JSON schemas, not {type(value).__name__}")
    return list(map(_as_function, tools)) or None


def read_options(value: Any) -> dict[str, Any]:
    """The arguments of the chat template that a row has: an object or a JSON text of one.

    Raises:
        DataError: they are of another form.
    """
    options = without_nones(_json(value, f"'{OPTIONS}'") or {})
    if not isinstance(options, Mapping):
        raise DataError(f"'{OPTIONS}' must be an object, not {type(options).__name__}")
    return dict(options)


@contextmanager
def at(place: RowPlace, row: int, column: str = "") -> Iterator[None]:
    """Names the place of a row, and its column, in the errors about it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place(row)}{column and f', column {column!r}'}: {error}") from error


def check_last_turn(value: str) -> None:
    """Raises ConfigurationError unless `value` says what becomes of a last turn by the assistant."""
    if value not in (DROP, CONTINUE):
        raise ConfigurationError(f"last_assistant_turn must be {DROP} or {CONTINUE}, not {value!r}")


def _unwritten(text: str) -> Any:
    """The conversation that a text is the notation of; a text that only begins like one stays a text."""
    for read in (json.loads, ast.literal_eval):  # a list in a CSV file is often in Python's notation
        try:
            value = read(text)
        except (ValueError, SyntaxError):
            continue
        turns = value if isinstance(value, list) else [value]
        said = [turn.keys() if isinstance(turn, dict) else {} for turn in turns]
        whole = all({"role", "from"} & {*keys} and {"content", "value", "tool_calls"} & {*keys} for keys in said)
        return value if whole else text
    if text.rstrip().endswith(("]", "}")):
        raise DataError("the prompt is the text of a conversation that is not valid JSON")
    return text


def _turns(value: Any) -> Conversation:
    if isinstance(value, Mapping):
        names = [name for name, entries in value.items() if isinstance(entries, list | tuple)]
        if value.get("role", value.get("from")) is not None and {"role", "from"} & {*names}:
            # How `datasets` gives a sequence of objects: an object of sequences.
            value = [dict(zip(names, entries)) for entries in zip(*(value[name] for name in names))]
        else:
            value = [value]
    if not isinstance(value, list | tuple):
        raise DataError(f"the prompt must be a text or a list of chat messages, not {type(value).__name__}")
    if not value:
        raise DataError("the prompt is empty")
    turns = Conversation()
    for index, turn in enumerate(value):
        try:
            turns.append(_turn(turn))
        except DataError as error:
            raise DataError(f"turn {index} {error}") from error
    return turns


def _turn(given: Any) -> Turn:
    if not isinstance(given, Mapping):
        raise DataError(f"is {type(given).__name__}: the prompt must be a text or a list of chat messages")
    turn = without_nones(given)
    named = turn.pop("role", turn.pop("from", None))  # both go, whichever is taken
    if not isinstance(named, str) or not named:
        raise DataError("has no role: chat messages have 'role' and 'content', or 'from' and 'value'")
    role = _ROLES.get(named.lower(), named.lower() if named.lower() in ("user", "assistant", "system") else named)
    content = turn.pop("content", turn.pop("value", None))
    calls = _read_calls(turn.pop("tool_calls", None))
    if (call := turn.pop("function_call", None)) is not None:
        calls = _read_calls([call])
    if named in _CALLS and isinstance(content, str) and (found := _call_in(content)):
        calls, content = found, None
    if content is None and (calls or {"reasoning_content", "thinking", "reasoning"} & turn.keys()):
        content = ""
    if content is None:
        raise DataError(f"({named}) has no content")
    text = _text(content, named)
    if role == "user" and not text.strip():
        raise DataError(f"({named}) is empty")
    return {"role": role, "content": text, **turn, **({"tool_calls": calls} if calls else {})}


def _text(content: Any, role: str) -> str:
    """A content as one text; its parts are joined without anything between them, as by templates that take parts."""
    if isinstance(content, int):  # what `datasets` makes of a text such as "42", if other contents are lists
        return json.dumps(content)
    parts = [content] if isinstance(content, str | Mapping) else content
    if not isinstance(parts, list | tuple):
        raise DataError(f"({role}) must have a text as its content, not {type(content).__name__}")
    texts = [part if isinstance(part, str) else _part(part, role) for part in parts]
    return "".join(texts)


def _part(part: Any, role: str) -> str:
    if not isinstance(part, Mapping):
        raise DataError(f"({role}) has a part that is {type(part).__name__}; only text parts can be used")
    kind = part.get("type", "text" if "text" in part else f"{{{', '.join(map(str, part))}}}")
    text = part.get("text", "")
    if kind not in _TEXT_PARTS or not isinstance(text, str) or ("text" not in part and len(part) > 1):
        raise DataError(f"({role}) has a part of type '{kind}'; only text parts can be used")
    return text


def _read_calls(given: Any) -> list[Turn]:
    """Tool calls in OpenAI's form; those without a "function" get one."""
    calls = _json(given, "has tool_calls which")
    if not calls:
        return []
    calls = calls if isinstance(calls, list | tuple) else [calls]
    found = []
    for call in calls:
        call = _json(call, "has a tool call which")
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError("has a tool call without the name of a function")
        outer = {name: call[name] for name in ("id", "type") if name in call}
        inner = {"name": function["name"], "arguments": function.get("arguments", function.get("parameters", {}))}
        found.append({"type": "function", **outer, "function": inner})
    return found


def _as_function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool in the form that chat templates take, if it is a bare function."""
    if "name" not in tool or "function" in tool:
        return tool
    return {"type": "function", "function": {name: entry for name, entry in tool.items() if name != "type"}}


def _call_in(text: str) -> list[Turn]:
    """The calls that a ShareGPT turn of the kind "function_call" holds as JSON; none if it holds something else."""
    try:
        return _read_calls(json.loads(text))
    except (ValueError, DataError):
        return []


def _with_object(call: Turn) -> Turn:
    arguments = call["function"]["arguments"]
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        found = arguments
    return {**call, "function": {**call["function"], "arguments": found}}


def _json(value: Any, what: str) -> Any:
    """A value that may be there as a JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        raise DataError(f"{what} is not valid JSON: {error}") from error
