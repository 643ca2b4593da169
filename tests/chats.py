"""Small tokenizers with chat templates of our own, which have the traits of four families of models."""

from __future__ import annotations

import copy
from typing import Any

# The begin token is in the template, and the tokenizer adds it too; the system turn goes into the user's; roles
# alternate; contents may be lists of parts; no tools.
GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' -%}
  {%- set first = messages[0].content + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for turn in turns -%}
  {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('roles must take turns: user, assistant, user') }}
  {%- endif -%}
  {{ '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\\n' }}
  {{- (first if loop.first else '') }}
  {%- if turn.content is string -%}{{ turn.content | trim }}
  {%- else -%}{%- for part in turn.content -%}{{ part.text | trim }}{%- endfor -%}{%- endif -%}
  {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""
# The begin token likewise; tools in the user's turn; arguments must be objects; results are from "ipython"; a turn
# with "tool_calls" has exactly one.
LLAMA = """{{- bos_token }}
{%- for turn in messages %}
  {%- if turn.role == 'tool' or turn.role == 'ipython' %}
    {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (turn.content | tojson) + '<|eot_id|>' }}
  {%- elif 'tool_calls' in turn %}
    {%- if turn.tool_calls | length != 1 %}{{ raise_exception('one tool call at once') }}{% endif %}
    {%- set call = turn.tool_calls[0].function %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
    {{- (call.arguments | tojson) + '}<|eot_id|>' }}
  {%- else %}
    {{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n' }}
    {%- if tools is not none and turn.role == 'user' and loop.index0 < 2 %}
      {%- for tool in tools %}{{- (tool | tojson) + '\\n\\n' }}{%- endfor %}
    {%- endif %}
    {{- (turn.content | trim) + '<|eot_id|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
# No begin token; a thinking mode; tools as JSON in the system turn; contents must be texts; unknown roles vanish.
QWEN = """{%- if tools %}
  {{- '<|im_start|>system\\n' }}
  {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
  {{- '# Tools' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for turn in messages %}
  {%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}
    {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}
  {%- elif turn.role == 'assistant' %}
    {{- '<|im_start|>assistant\\n' + turn.content }}
    {%- for call in turn.tool_calls or [] %}
      {%- set call = call.function or call %}
      {{- '\\n<tool_call>{"name": "' + call.name + '", "arguments": ' }}
      {{- (call.arguments if call.arguments is string else call.arguments | tojson) + '}</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- elif turn.role == 'tool' %}{{- '<|im_start|>user\\n<result>' + turn.content + '</result><|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{%- endif %}
{%- endif %}"""
# A system message of its own with the effort; system and developer turns become "developer"; channels; contents must be
# texts; a call's name is needed for its result.
GPTOSS = """{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}
{%- if messages[0].role == 'developer' or messages[0].role == 'system' %}
  {%- set said = messages[0].content %}{%- set turns = messages[1:] %}
{%- else %}{%- set said = '' %}{%- set turns = messages %}{%- endif %}
{%- if said or tools %}
  {{- '<|start|>developer<|message|>' + said }}
  {%- for tool in tools or [] %}{{- '\\ntype ' + tool.function.name + ' = any' }}{%- endfor %}{{- '<|end|>' }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for turn in turns %}
  {%- if turn.role == 'assistant' and 'tool_calls' in turn %}
    {%- set last.name = turn.tool_calls[0].function.name %}
    {{- '<|start|>assistant to=functions.' + last.name + '<|channel|>commentary<|message|>' }}
    {{- (turn.tool_calls[0].function.arguments | tojson) + '<|call|>' }}
  {%- elif turn.role == 'assistant' %}
    {{- '<|start|>assistant<|channel|>final<|message|>' + turn.content + '<|end|>' }}
  {%- elif turn.role == 'tool' %}
    {%- if last.name is none %}{{ raise_exception('a result without a call') }}{% endif %}
    {{- '<|start|>functions.' + last.name + ' to=assistant<|message|>' + (turn.content | tojson) + '<|end|>' }}
  {%- else %}{{- '<|start|>' + turn.role + '<|message|>' + turn.content + '<|end|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""

FAMILIES: dict[str, tuple[str, list[str], str | None]] = {
    "gemma": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>"),
    "llama": (
        LLAMA, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|begin_of_text|>"
    ),
    "qwen": (QWEN, ["<|im_start|>", "<|im_end|>"], None),
    "gptoss": (GPTOSS, ["<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|call|>"], None),
}  # fmt: skip
"""Template, special tokens, and the begin token that the tokenizer adds to texts."""


def family(name: str, plain: Any) -> Any:
    """The tokenizer `plain` with the chat template, special tokens and begin token of a family."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(plain)
    template, tokens, begin = FAMILIES[name]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template, tokenizer.model_input_names = template, ["input_ids", "attention_mask"]
    if begin is not None:
        tokenizer.bos_token = begin
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
        )
    return tokenizer
