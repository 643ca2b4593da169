"""transformers' ``generate`` with a batch that shrinks as sequences end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# What the model gets at every step: with a row for each sequence, and for all sequences together.
_BY_ROW, _COMMON = ("attention_mask", "position_ids"), ("past_key_values", "use_cache", "logits_to_keep")


class _IndivisibleError(Exception):
    """A sequence cannot be removed from the batch. Raised before anything is computed."""


def generate(plain: Callable[..., Tensor], **arguments: Any) -> Tensor:
    """Call a model's ``generate`` without computing sequences beyond their end.

    transformers keeps every sequence in the batch until the last one has ended. Here each leaves when it ends: all
    tokens have the same distribution, but a seed gives other completions. If sequences cannot be removed from the
    model's cache (recurrent states, static or quantized caches), transformers decodes.

    Args:
        plain: ``generate`` of a model or of PEFT's wrapper.
        **arguments: its arguments. The generation configuration, given or the model's own, has a pad_token_id, samples
            or decodes greedily, and has no setting that refers to single prompts (guidance_scale, watermarking, the
            penalties of encoders).

    Returns:
        Prompts with completions, padded on the right with pad_token_id, like ``generate``: (B, T).
    """
    try:
        return plain(**arguments, custom_generate=_decode)
    except _IndivisibleError:
        return plain(**arguments)


def _decode(
    model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **inputs: Any
) -> Tensor:
    """The decoding loop, with the arguments that ``generate`` prepares; `inputs` are those of the forward pass."""
    _check_divisible(model, generation_config, inputs)
    rows, ended_rows = torch.arange(len(input_ids), device=input_ids.device), dict[int, Tensor]()
    new = None
    while len(rows):
        step = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=new, is_first_iteration=new is None, **inputs
        )
        outputs, new = model(**step, return_dict=True), 1
        scores = logits_processor(input_ids, outputs.logits[:, -1].to(input_ids.device, torch.float32))
        sampled = generation_config.do_sample
        tokens = torch.multinomial(scores.softmax(-1), 1) if sampled else scores.argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, tokens], dim=-1)
        inputs |= _extended(inputs) | {"past_key_values": outputs.past_key_values}
        ended = stopping_criteria(input_ids, None)
        if ended.any():
            ended_rows |= zip(rows[ended].tolist(), input_ids[ended])
            stay = (~ended).nonzero().squeeze(-1)
            rows, input_ids = rows[stay], input_ids[stay]
            inputs |= {name: inputs[name][stay] for name in _present(inputs)}
            inputs["past_key_values"].batch_select_indices(stay)
    sequences = [ended_rows[row] for row in sorted(ended_rows)]
    return pad_sequence(sequences, batch_first=True, padding_value=generation_config.pad_token_id)


def _extended(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Mask and positions with one more token."""
    added = {"attention_mask": torch.ones_like, "position_ids": lambda last: last + 1}
    return {name: torch.cat([inputs[name], added[name](inputs[name][:, -1:])], dim=-1) for name in _present(inputs)}


def _present(inputs: dict[str, Any]) -> list[str]:
    return [name for name in _BY_ROW if inputs.get(name) is not None]  # no mask without padding


def _check_divisible(model: Any, config: Any, inputs: dict[str, Any]) -> None:
    """Raises _IndivisibleError unless everything that a step uses can be divided by rows.

    Also for a mixture of experts on a GPU, for which transformers' own loop has faster kernels.
    """
    from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

    cache, positions = inputs.get("past_key_values"), inputs.get("position_ids")
    if not (
        type(cache) is DynamicCache
        and config.cache_implementation in (None, "dynamic")
        and config.repetition_penalty in (None, 1.0)  # keeps the length of every prompt
        and inputs.keys() <= {*_BY_ROW, *_COMMON}
        and (positions is None or positions.dim() == 2)
        and not model._is_stateful
        and (model.device.type == "cpu" or "grouped_mm" not in model.get_experts_implementation().values())
    ):
        raise _IndivisibleError
    for layer in cache.layers:
        # A layer that a model defines may keep more than keys and values. One with recurrent states inherits a method
        # to select rows that leaves those out.
        if type(layer).__module__ != DynamicCache.__module__ or isinstance(layer, LinearAttentionCacheLayerMixin):
            raise _IndivisibleError
