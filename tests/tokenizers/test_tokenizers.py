"""The real tokenizers load, have the known sizes and special tokens, and render a chat: `make test-tokenizers`."""

from __future__ import annotations

from typing import Any

SIZES = {"qwen3": 151669, "llama3_1": 128256, "gemma3": 262145, "gptoss": 200019}
ENDS = {"qwen3": "<|im_end|>", "llama3_1": "<|eot_id|>", "gemma3": "<end_of_turn>", "gptoss": "<|return|>"}
OPENINGS = {
    "qwen3": "<|im_start|>assistant\n",
    "llama3_1": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma3": "<start_of_turn>model\n",
    "gptoss": "<|start|>assistant",
}


def test_size_and_end_of_turn(family: str, tokenizer: Any) -> None:
    assert tokenizer.is_fast and len(tokenizer) == SIZES[family]
    assert tokenizer.eos_token == ENDS[family]
    assert tokenizer.encode(ENDS[family], add_special_tokens=False) == [tokenizer.eos_token_id]


def test_a_chat_opens_the_models_turn(family: str, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "What is 12 + 30?" in text and text.endswith(OPENINGS[family])


def test_the_template_knows_tools(family: str, tokenizer: Any) -> None:
    """As those of the four models do but Gemma 3's, which ignores them."""
    add = {"type": "function", "function": {"name": "add", "description": "Sum."}}
    text = tokenizer.apply_chat_template([{"role": "user", "content": "12 + 30?"}], tools=[add], tokenize=False)
    assert ("add" in text) == (family != "gemma3")
