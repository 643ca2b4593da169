"""The embedded pair's tokenizer: a byte-level byte-pair tokenizer trained on the text of the tasks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.embedded_pair.worked_steps import worked_completion
from vopd.data.reasoning import Problem, stream_problems
from vopd.errors import ConfigurationError
from vopd.experiments.pair import prompt_text

PAD, END = "<|pad|>", "<|end|>"
# Pieces that merges never cross: answer tags, words, signed numbers, runs of white space, anything else.
_PIECES = r" ?</?answer>| ?[A-Za-z]+| ?-?\d{1,3}| ?[^\sA-Za-z\d]+|\s+"
_TEXTS = 12_000
# Few enough that their merges come last, enough to fill some thousand entries.
_FILLING_TEXTS = 200


def build_tokenizer(problems: list[Problem], vocabulary: int, seed: int) -> Any:
    """Train a tokenizer of exactly `vocabulary` entries, padding on the left, with distinct pad and end tokens.

    The text of the tasks fills about 450 entries. A larger vocabulary also uses the text of `gsm_symbolic` problems:
    entries that the models hardly ever see, as in the vocabulary of a large model.

    Raises:
        ConfigurationError: `vocabulary` is smaller than the number of bytes, or larger than the text can fill.
    """
    return train_tokenizer(_texts(problems, seed), vocabulary)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Train the same kind of tokenizer on any texts.

    Raises:
        ConfigurationError: as `build_tokenizer`.
    """
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ConfigurationError(
            f"a vocabulary of {vocabulary} was requested, but the text fills {tokenizer.get_vocab_size()}"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left", model_max_length=256
    )


def _texts(problems: list[Problem], seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for problem in problems[:_TEXTS]:
        yield prompt_text(problem) + worked_completion(problem, rng)
    for problem in islice(stream_problems("gsm_symbolic", seed), _FILLING_TEXTS):
        yield problem.question
