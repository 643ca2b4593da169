"""Causal language models: loading, tokenizer and vocabulary checks, batched sampling."""

from .generation import Completion, context_length, read_completion, sample
from .loading import load_model, load_skeleton, load_tokenizer
from .output_head import read_head
from .states import States, last_hidden_states
from .vocabulary import common_vocabulary, end_ids, end_token_difference, set_end_ids

__all__ = [
    "Completion",
    "States",
    "common_vocabulary",
    "context_length",
    "end_ids",
    "end_token_difference",
    "last_hidden_states",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "read_completion",
    "read_head",
    "sample",
    "set_end_ids",
]
