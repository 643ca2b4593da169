"""Causal language models: loading, tokenizer and vocabulary checks, batched sampling."""

from .generation import Completion, batch_seed, context_length, plan_batches, read_completion, sample
from .loading import best_device, device_name, load_configuration, load_model, load_skeleton, load_tokenizer
from .output_head import described_head, read_head
from .sampling import RolloutSettings, rollout_settings
from .states import Padded, States, last_hidden_states, layers_of
from .vocabulary import (
    CommonVocabulary,
    compare_vocabularies,
    end_ids,
    end_token_difference,
    set_end_ids,
    vocabulary_size,
)

__all__ = [
    "CommonVocabulary",
    "Completion",
    "Padded",
    "RolloutSettings",
    "States",
    "batch_seed",
    "best_device",
    "compare_vocabularies",
    "context_length",
    "described_head",
    "device_name",
    "end_ids",
    "end_token_difference",
    "last_hidden_states",
    "layers_of",
    "load_configuration",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "plan_batches",
    "read_completion",
    "read_head",
    "rollout_settings",
    "sample",
    "set_end_ids",
    "vocabulary_size",
]
