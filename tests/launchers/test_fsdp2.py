"""accelerate's FSDP2, all of its own code, on two gloo processes that have different prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launchers.agreement import alone, cases, check, check_metrics, check_saved, check_spoilt, launched, save_models

CASES = (
    "tied head",
    "other family",
    "lora with head",
    "two teachers",
    "two teachers ahead",
    "full resumed",
    "average self",
    "base self",
)
BF16 = ("own head bf16", "lora with head bf16")


@pytest.mark.slow
def test_fsdp2_trains_what_one_process_trains(tiny_tokenizer: Any, tmp_path: Path) -> None:
    known = cases(save_models(tmp_path, tiny_tokenizer))
    chosen = [known[name] for name in CASES]
    one = alone(chosen, tmp_path / "one")
    two = launched("fsdp2", [*chosen, known["poisoned"]], tmp_path / "two")
    check_spoilt(two["poisoned"], "fsdp2")
    for case in chosen:
        check(case, one[case.name], two[case.name])
        check_saved(case, tmp_path / "one", tmp_path / "two")
        check_metrics(case, tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_fsdp2_in_bf16_trains_what_one_process_trains(tiny_tokenizer: Any, tmp_path: Path) -> None:
    known = cases(save_models(tmp_path, tiny_tokenizer))
    chosen = [known[name] for name in BF16]
    one, two = alone(chosen, tmp_path / "one"), launched("fsdp2", chosen, tmp_path / "two")
    for case in chosen:
        check(case, one[case.name], two[case.name])


@pytest.mark.slow
def test_a_model_is_saved_whole_where_checkpoints_are_in_parts(tiny_tokenizer: Any, tmp_path: Path) -> None:
    case = cases(save_models(tmp_path, tiny_tokenizer))["full resumed"]
    one = alone([case], tmp_path / "one")
    two = launched("fsdp2", [case], tmp_path / "two", "--fsdp_state_dict_type", "SHARDED_STATE_DICT")
    check(case, one[case.name], two[case.name])
    check_saved(case, tmp_path / "one", tmp_path / "two")
