"""Real tokenizers of four families with their chat templates, fetched by `make test-tokenizers`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FAMILIES = ("qwen3", "llama3_1", "gemma3", "gptoss")


@pytest.fixture(scope="session")
def tokenizer_folder() -> Callable[[str], Path]:
    """Family -> folder of its tokenizer; skips the test where they are not fetched."""
    if not os.environ.get("VOPD_TOKENIZERS"):
        pytest.skip("needs the real tokenizers: make test-tokenizers")
    return Path(os.environ["VOPD_TOKENIZERS"]).joinpath


@pytest.fixture(scope="session")
def load_tokenizer(tokenizer_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    """Family -> its tokenizer, loaded once a process; a test that changes it loads its own."""
    from transformers import AutoTokenizer

    return cache(lambda family: AutoTokenizer.from_pretrained(tokenizer_folder(family)))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each of the four families in turn."""
    return request.param


@pytest.fixture
def tokenizer(family: str, load_tokenizer: Callable[[str], Any]) -> Any:
    """The tokenizer of `family`."""
    return load_tokenizer(family)
