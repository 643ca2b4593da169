"""What every test may use: quiet, offline, one thread; and two tiny models saved to disk."""

from __future__ import annotations

import os

# Before torch and transformers are imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import gc
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

# A machine that was lent for its GPU may have neither; tests/test_shapes.py fails without them.
if find_spec("jaxtyping") and find_spec("beartype"):
    from shapes import check_shapes

    check_shapes()


def pytest_collection_finish() -> None:
    """Every training begins with a garbage collection, which would go through all that has been imported."""
    gc.collect()
    gc.freeze()


SENTENCES = [
    "How many legs do two dogs and three hens have in total?",
    "Two dogs have 2 * 4 = 8 legs and three hens have 3 * 2 = 6 legs.",
    "State the final answer to the following arithmetic problem: 4 + 5 - 7 =",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "So the answer is <answer>14</answer>.",
]
TOKENIZER_ENTRIES = 300
STUDENT_ROWS = 304
TEACHER_ROWS = 320


@pytest.fixture(scope="module")
def without_checks_of_shapes() -> Iterator[None]:
    """For modules of tests that shapes.check_shapes would be in the way of."""
    import jaxtyping

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 300 entries: <pad> 0, <eos> 1, all bytes, a few merges. Loses no text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_ENTRIES,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    assert len(fast) == TOKENIZER_ENTRIES
    return fast


def save_tiny_model(folder: Path, tokenizer: Any, *, rows: int, width: int, seed: int, tied: bool) -> Path:
    """Save a random two-layer Qwen3 with a head of `rows` rows, and its tokenizer, in one folder."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.2,  # far from uniform, so that losses and their gradients are not near 0
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_student_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """Folder of a tiny Qwen3 student: width 32, 304 head rows, head tied to the embedding."""
    folder = tmp_path_factory.mktemp("models") / "student"
    return save_tiny_model(folder, tiny_tokenizer, rows=STUDENT_ROWS, width=32, seed=1, tied=True)


@pytest.fixture(scope="session")
def tiny_teacher_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """Folder of a tiny Qwen3 teacher: width 48, 320 head rows, a head of its own, the student's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    return save_tiny_model(folder, tiny_tokenizer, rows=TEACHER_ROWS, width=48, seed=2, tied=False)


@pytest.fixture(scope="session")
def chat_student(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """Folder of a tiny Qwen3 whose tokenizer has the chat template and special tokens of the small Qwen of chats.py."""
    from chats import family

    folder = tmp_path_factory.mktemp("models") / "student"
    return save_tiny_model(folder, family("qwen", tiny_tokenizer), rows=STUDENT_ROWS, width=32, seed=1, tied=True)


@pytest.fixture
def drawn() -> None:
    """For a test that wants the PNG files which `undrawn` leaves out."""


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No PNG files beside a report: a dozen of them take longer than a tiny run."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("vopd.reporting.report.write_png", lambda figures, path: None)


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each text was given to a tokenizer since the test began."""
    from transformers import PreTrainedTokenizerBase

    counts: Counter[str] = Counter()
    call = PreTrainedTokenizerBase.__call__

    def counted(self: Any, text: Any = None, *given: Any, **named: Any) -> Any:
        counts.update([text] if isinstance(text, str) else text)
        return call(self, text, *given, **named)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    return counts


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps the precision of the first trainer of a process; forget it before and after."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
