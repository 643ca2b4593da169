"""A prompt as its model reads it: the tokenizer's chat template around conversations, and the ids of the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vopd.errors import ConfigurationError, DataError, MismatchError, one_line

from .conversations import (
    DROP,
    OPTIONS,
    Asked,
    Prompt,
    Turn,
    check_last_turn,
    ends_with_answer,
    has_system,
    read_options,
    read_prompt,
    read_tools,
    rendered_form,
    text_of,
)

_THINKING = "enable_thinking"
# Arguments of the rendering itself, which no setting may change.
_RESERVED = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages", "tokenize", "tools",
}  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """A prompt as its model reads it: the text and its token ids."""

    text: str
    ids: list[int]


class PromptError(DataError):
    """What is wrong with the prompt of this `index` among those that were given."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class Chat:
    """How prompts are rendered. Conversations always get the chat template.

    Attributes:
        tokenizer: the student's.
        texts: whether texts get the chat template too, as the user's turn.
        system_prompt: the first turn where a conversation has no system turn of its own.
        last_assistant_turn: "drop" or "continue", see `read_prompt`.
        thinking: turns the template's thinking mode on or off; None leaves it to the template.
        options: further arguments of the chat template; those of a row come before them.
        tools: functions or schemas for every prompt, in place of those in the rows.
        template: in place of the tokenizer's own.

    Raises:
        ConfigurationError: a setting has no effect or is unknown.
    """

    tokenizer: Any
    texts: bool = False
    system_prompt: str | None = None
    last_assistant_turn: str = DROP
    thinking: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Any] = ()
    template: str | None = None

    def __post_init__(self) -> None:
        check_last_turn(self.last_assistant_turn)
        if self.texts and self.tokenizer is None:
            raise ConfigurationError("chat_template needs a tokenizer")
        if self.texts and not self.has_template:
            raise ConfigurationError(
                "this tokenizer has no chat template: leave chat_template off and give prompts as text, or save a "
                "tokenizer with a template into the student's folder"
            )
        if self.thinking is not None and self.has_template and _THINKING not in self._sources:
            raise ConfigurationError(
                f"this tokenizer's chat template has no option {_THINKING}; remove thinking, or pass the options it "
                "has with chat_template_kwargs"
            )
        if self.thinking is not None and _THINKING in self.options:
            raise ConfigurationError(f"thinking and {OPTIONS} both set {_THINKING}; remove one of them")
        if taken := _taken(self.options):
            raise ConfigurationError(f"{OPTIONS} cannot set {taken}, which vopd sets itself; remove it")

    @classmethod
    def of(cls, settings: Any, tokenizer: Any, **more: Any) -> Chat:
        """With the `settings` of that name in a configuration, where there are any."""
        return cls(
            tokenizer,
            texts=settings.chat_template,
            system_prompt=settings.system_prompt,
            last_assistant_turn=getattr(settings, "last_assistant_turn", DROP),
            thinking=settings.thinking,
            options=settings.chat_template_kwargs or {},
            **more,
        )

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer can render conversations."""
        return bool(self._sources)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the chat template is given for every prompt."""
        return {**self.options, **({} if self.thinking is None else {_THINKING: self.thinking})}

    def ids(self, prompts: Sequence[Any]) -> list[list[int]]:
        """The token ids of prompts: texts, conversations in any form, or `Asked`.

        Raises:
            PromptError: a prompt cannot be read or rendered.
            MismatchError: there is a conversation, but no chat template.
        """
        return [found.ids for found in self.render(prompts)]

    def render(self, prompts: Sequence[Any]) -> list[Rendered]:
        """The texts and token ids of prompts.

        Raises:
            PromptError, MismatchError: as `ids`.
        """
        written: list[tuple[str, bool]] = []
        for index, prompt in enumerate(prompts):
            try:
                written.append(self._written(prompt))
            except DataError as error:
                raise PromptError(index, str(error)) from error
        ids: list[list[int]] = [[] for _ in written]
        for special in (False, True):
            places = [index for index, (_, adds) in enumerate(written) if adds == special]
            if not places:
                continue
            # Without the argument where it is the default: not every tokenizer has it.
            given = {} if special else {"add_special_tokens": False}
            found = self.tokenizer(text=[written[index][0] for index in places], **given)["input_ids"]
            for index, tokens in zip(places, found, strict=True):
                ids[index] = list(tokens)
        return [Rendered(text, found) for (text, _), found in zip(written, ids, strict=True)]

    def text(self, prompt: Any) -> str:
        """The text of one prompt.

        Raises:
            DataError, MismatchError: it cannot be read or rendered.
        """
        return self._written(prompt)[0]

    def kind(self, prompt: Any) -> str:
        """What kind of prompt it is, in words: "text", "rendered chat", "conversation, with tools"."""
        asked, turns = self._turns(prompt)
        if isinstance(turns, str):
            return "rendered chat" if self.is_rendered(turns) else "text"
        own, system = has_system(turns), self.system_prompt is not None
        traits = {
            "its own system prompt": own,
            "system_prompt": system and not own,
            "tools": bool(self.tools or read_tools(asked.tools)),
            "tool calls": any("tool_calls" in turn or turn["role"] == "tool" for turn in turns),
            f"its own {OPTIONS}": bool(read_options(asked.options)),
            "its last turn continued": ends_with_answer(turns),
        }
        text = isinstance(asked.prompt, str) and isinstance(read_prompt(asked.prompt), str)
        kind = "text in the chat template" if text else "conversation"
        return ", ".join([kind, *(f"with {name}" for name, there in traits.items() if there)])

    def check_used(self, kinds: Iterable[str]) -> None:
        """Raises ConfigurationError for a setting of the chat template, if no prompt of these kinds gets it."""
        if any(kind not in ("text", "rendered chat") for kind in kinds):
            return
        for name, value in (("thinking", self.thinking), ("system_prompt", self.system_prompt)):
            if value is not None:
                raise ConfigurationError(
                    f"{name} is a setting of the chat template, which texts do not get; set chat_template=true, or "
                    f"remove {name}"
                )

    # ---- one prompt -------------------------------------------------------------------------------------------

    def _turns(self, prompt: Any) -> tuple[Asked, Prompt]:
        """The turns that the chat template gets, but for `system_prompt`; a text where it is not applied."""
        asked = prompt if isinstance(prompt, Asked) else Asked(prompt)
        read = read_prompt(asked.prompt, self.last_assistant_turn)
        if isinstance(read, str) and self.texts and not self.is_rendered(read):
            read = [{"role": "user", "content": read}]
        if (system := _system_of(asked)) and not isinstance(read, str) and not has_system(read):
            read = [{"role": "system", "content": system}, *read]
        return asked, read

    def _written(self, prompt: Any) -> tuple[str, bool]:
        """The text of a prompt, and whether the tokenizer adds its special tokens to it."""
        asked, turns = self._turns(prompt)
        if isinstance(turns, str):
            begin = getattr(self.tokenizer, "bos_token", None)
            return turns, not (begin and turns.startswith(begin))
        tools, own = list(self.tools) or read_tools(asked.tools), read_options(asked.options)
        if taken := _taken(own):
            raise DataError(f"'{OPTIONS}' cannot set {taken}, which vopd sets itself")
        source = self._source(tools)
        if self.system_prompt is not None and not has_system(turns):
            turns = [{"role": "system", "content": self.system_prompt}, *turns]
        # Turns are counted in the row, from 0: a system prompt that it does not have comes before them.
        first = -1 if has_system(turns) and not has_system(read_prompt(asked.prompt)) else 0
        turns = [_known(turn, index, source) for index, turn in enumerate(turns, first)]
        given = rendered_form(turns)
        if self._takes_parts:
            given = [{**turn, "content": _as_parts(turn["content"])} for turn in given]
        text = self._apply(given, tools, {**self.arguments, **own})
        _check_kept(turns, text, first)
        return text, False

    def _apply(self, turns: list[Turn], tools: Any, options: dict[str, Any]) -> str:
        continues = ends_with_answer(turns)
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=not continues,
                continue_final_message=continues,
                **options,
            )
        except Exception as error:  # a template is a program: it may raise anything
            what = "cannot continue the last turn" if continues else "does not take this conversation"
            raise DataError(f"the chat template {what}: {one_line(error)}") from error
        return text

    # ---- the template and the tokenizer ---------------------------------------------------------------------

    def is_rendered(self, text: str) -> bool:
        """Whether a text is a chat that was rendered already: it begins as only the template begins one."""
        return text.lstrip().startswith(self._openings)

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """The special tokens that the chat template writes."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        return tuple(token.content for token in added if token.special and token.content in self._sources)

    @cached_property
    def _openings(self) -> tuple[str, ...]:
        begin = [self.tokenizer.bos_token] if self.has_template and self.tokenizer.bos_token else []
        return (*begin, *self.control_tokens, *filter(None, map(self._before, ("user", "system"))))

    def _before(self, role: str) -> str:
        """What the template writes before a first turn, which may be plain text as in "[INST] "; "" if unknown."""
        if not self.has_template:
            return ""
        try:
            whole = self._apply([{"role": role, "content": "vopd"}], None, self.arguments)
        except DataError:
            return ""
        return whole.partition("vopd")[0].removeprefix(self.tokenizer.bos_token or "").strip()

    @property
    def _sources(self) -> str:
        """The text of all templates that the tokenizer has; empty without any."""
        own = self.template or getattr(self.tokenizer, "chat_template", None) or ""
        return own if isinstance(own, str) else "\n".join(own.values())

    def _source(self, tools: Any) -> str:
        """The text of the template; a tokenizer may have several, one of them for tools."""
        if not self.has_template:
            raise MismatchError(
                "the prompts are chat messages, and the student's tokenizer has no chat template: use an instruct "
                "model with its tokenizer, set the tokenizer's chat_template, or give prompts that are texts"
            )
        own = self.template or self.tokenizer.chat_template
        if isinstance(own, str):
            return own
        try:
            return str(self.tokenizer.get_chat_template(None, tools))
        except ValueError as error:
            raise MismatchError(f"the tokenizer has several chat templates, none of them for this: {error}") from error

    @property
    def dated(self) -> bool:
        """Whether the chat template writes the date: prompts are then others on another day."""
        return "strftime_now" in self._sources

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template leaves out contents that are texts, as those of some models for images do."""
        try:
            return "vopd" not in self._apply([{"role": "user", "content": "vopd"}], None, self.arguments)
        except DataError:
            return False

    def notes(self, prompt: Any) -> list[str]:
        """What of a prompt the settings or the chat template do not touch, or read in another way, in words."""
        asked, turns = self._turns(prompt)
        if isinstance(turns, str) and self.is_rendered(turns):
            return ["rendered chats already, and left as they are"]
        found, words, system = [], text_of(turns), _system_of(asked)
        if any(token in words for token in self.control_tokens):
            found.append("prompts with a special token of the chat template inside, which is read as that token")
        if isinstance(turns, str):
            lost = "texts without the system prompt of their row, which chat_template=true would give them"
            return [*found, lost] if system else found
        if self.dated:
            found.append("prompts of a chat template that may write today's date, which is another one tomorrow")
        if has_system(turns) and (system or self.system_prompt is not None):
            of_row = turns[0]["content"] == system
            found.append(f"prompts with the system prompt of their {'row' if of_row else 'own, which stays'}")
        tools = read_tools(asked.tools)
        source = self._source(tools)
        if tools and self.tools:
            found.append("prompts with tools of their own, in place of which they get those of the trainer")
        unknown = [*(["tools"] if tools else []), *read_options(asked.options)]
        return [
            *found,
            *(f"prompts with {it}, which the chat template does not use" for it in unknown if it not in source),
        ]


def chat_settings(config: Any, used: bool) -> dict[str, Any]:
    """The settings of the chat template in a run's configuration, for an evaluation that does or does not use it."""
    names = ("thinking", "system_prompt", "chat_template_kwargs") if used else ()
    return {"chat_template": used, **{name: getattr(config, name) for name in names}}


def _system_of(asked: Asked) -> str:
    """The system prompt in the row of a prompt; "" if there is none."""
    return asked.system if isinstance(asked.system, str) and asked.system.strip() else ""


def _known(turn: Turn, index: int, source: str) -> Turn:
    """The turn, if the template renders its role: many templates leave out silently what they do not know."""
    role = turn["role"]
    written = f"'{role}'" in source or f'"{role}"' in source
    if role == "developer" and not written:
        return {**turn, "role": "system"}
    if role not in ("system", "user", "assistant", "tool") and not written:
        raise DataError(f"turn {index} has the role {role!r}, which the chat template does not know")
    if "tool_calls" in turn and "tool_calls" not in source:
        raise DataError(f"turn {index} calls a tool, and the chat template does not write tool calls")
    return turn


def _as_parts(text: str) -> list[Turn]:
    return [{"type": "text", "text": text}]


def _check_kept(turns: list[Turn], text: str, first: int) -> None:
    for index, turn in enumerate(turns, first):
        if turn["role"] in ("system", "developer", "user") and turn["content"].strip() not in text:
            lost = "the system prompt" if index < 0 else f"turn {index} ({turn['role']})"
            raise DataError(f"the chat template leaves out {lost}")


def _taken(options: Mapping[str, Any]) -> str:
    """An option that is the rendering's own; "" if there is none."""
    return next(iter(sorted(_RESERVED & options.keys())), "")
