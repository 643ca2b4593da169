from __future__ import annotations

from typing import Any

import pytest

from vopd.run.facts import only_on_hub


@pytest.mark.parametrize(
    ("source", "far"),
    [
        ("Qwen/Qwen3-1.7B", True),
        ("gpt2", True),
        ("./a/b", False),
        ("a/b/c", False),
        ("p.jsonl", False),
        ("reasoning_gym:chain_sum", False),
        (["p.jsonl", {"source": "me/set"}], True),
        (["p.jsonl", "reasoning_gym:chain_sum"], False),
    ],
)
def test_only_on_hub(source: Any, far: bool) -> None:
    assert only_on_hub(source) is far
