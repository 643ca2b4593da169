"""transformers' ``generate`` with a batch that shrinks as sequences end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# The arguments of a forward pass: those that have a row for each sequence, and how a token is added; and the others.
_BY_ROW: dict[str, Callable[[Tensor], Tensor]] = {
    "attention_mask": torch.ones_like,
    "position_ids": lambda last: last + 1,
}
_COMMON = ("past_key_values", "use_cache", "logits_to_keep")


class _IndivisibleError(Exception):
    """Sequences cannot be removed from the batch. Raised before anything is sampled."""


def generate(plain: Callable[..., Tensor], **arguments: Any) -> Tensor:
    """Call a model's ``generate`` without computing sequences beyond their end.

    transformers keeps every sequence in the batch until the last one has ended. Here each leaves when it ends. The
    tokens have the same distribution, but a seed gives other completions. transformers' own loop runs where sequences
    cannot be removed (static caches, Mamba, image models, a repetition penalty), and for mixtures of experts on a GPU,
    for which it has faster kernels.

    Args:
        plain: ``generate`` of a model or of PEFT's wrapper.
        **arguments: its arguments. The generation configuration, given or the model's own, samples or decodes greedily,
            names a pad_token_id, and has no setting that keeps something of single sequences (guidance_scale,
            watermarking, penalties of an encoder's input).

    Returns:
        Prompts with completions, padded on the right with pad_token_id, like ``generate``: (B, T).
    """
    with suppress(_IndivisibleError):  # left before the next call, for which its traceback would keep a cache alive
        return plain(**arguments, custom_generate=_decode)
    return plain(**arguments)


def _decode(
    model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **inputs: Any
) -> Tensor:
    """The decoding loop, with arguments that ``generate`` has prepared; `inputs` are those of the forward pass."""
    _check_divisible(model, generation_config, inputs)
    by_row = {name: add for name, add in _BY_ROW.items() if inputs.get(name) is not None}  # no mask without padding
    rows, ended_rows = torch.arange(len(input_ids), device=input_ids.device), dict[int, Tensor]()
    new = None  # all tokens in the first pass, then one
    while len(rows):
        step = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=new, is_first_iteration=new is None, **inputs
        )
        outputs, new = model(**step, return_dict=True), 1
        if "past_key_values" not in outputs:  # the model has its states elsewhere
            raise _IndivisibleError
        inputs["past_key_values"] = outputs.past_key_values  # Phi-3 may have replaced it
        scores = logits_processor(input_ids, outputs.logits[:, -1].to(input_ids.device, torch.float32))
        sampled = generation_config.do_sample
        tokens = torch.multinomial(scores.softmax(-1), 1) if sampled else scores.argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, tokens], dim=-1)
        inputs |= {name: torch.cat([inputs[name], add(inputs[name][:, -1:])], dim=-1) for name, add in by_row.items()}
        ended = stopping_criteria(input_ids, None)
        if ended.any():
            ended_rows |= zip(rows[ended].tolist(), input_ids[ended])
            stay = (~ended).nonzero().squeeze(-1)
            rows, input_ids = rows[stay], input_ids[stay]
            inputs |= {name: inputs[name][stay] for name in by_row}
            inputs["past_key_values"].reorder_cache(stay)
    sequences = [ended_rows[row] for row in sorted(ended_rows)]
    return pad_sequence(sequences, batch_first=True, padding_value=generation_config.pad_token_id)


def _check_divisible(model: Any, config: Any, inputs: dict[str, Any]) -> None:
    """Raises _IndivisibleError where `generate` says that transformers' own loop runs."""
    from transformers import DynamicCache

    cache: Any = inputs.get("past_key_values")
    positions = inputs.get("position_ids")
    divisible = (
        type(cache) is DynamicCache
        and all(type(layer).__module__ == DynamicCache.__module__ for layer in cache.layers)  # not a model's own
        and config.cache_implementation in (None, "dynamic")
        and inputs.keys() <= {*_BY_ROW, *_COMMON}
        and (positions is None or positions.dim() == 2)
        and config.repetition_penalty in (None, 1.0)  # it keeps the length of each prompt
        and (model.device.type == "cpu" or "grouped_mm" not in model.get_experts_implementation().values())
    )
    if not divisible:
        raise _IndivisibleError
