"""Training under a launcher is training: the same cases in one process and in several, compared weight by weight."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import STUDENT_ROWS, save_tiny_model
from launchers import ranks
from launchers.ranks import Case
from launchers.starting import HERE, start
from messages import told

Found = dict[str, Any]


def save_models(folder: Path, tokenizer: Any) -> dict[str, str]:
    """Folders of students whose head is tied and is not, of one of another family, with a bias, and of a teacher."""
    from transformers import PhiConfig, PhiForCausalLM

    for name, rows, width, tied in (
        ("tied", STUDENT_ROWS, 32, True),
        ("untied", STUDENT_ROWS, 32, False),
        ("teacher", STUDENT_ROWS + 16, 48, False),
    ):
        save_tiny_model(folder / name, tokenizer, rows=rows, width=width, seed=width + tied, tied=tied)
    torch.manual_seed(4)
    config = PhiConfig(
        vocab_size=STUDENT_ROWS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    phi = PhiForCausalLM(config)
    torch.nn.init.normal_(phi.lm_head.bias)
    phi.save_pretrained(folder / "phi")
    tokenizer.save_pretrained(folder / "phi")
    return {name: str(folder / name) for name in ("tied", "untied", "phi", "teacher")}


def cases(models: dict[str, str], server: str | None = None) -> dict[str, Case]:
    """All of them, by name; with that of a teacher whose hidden states come from `server`, if it is given."""
    teacher, untied = models["teacher"], models["untied"]
    hinted, ahead = {"teacher_prompt_column": "hint"}, {"teacher_scoring": "step"}
    listed = [
        Case("tied head", models["tied"], [teacher]),
        Case("own head", untied, [teacher]),
        Case("other family", models["phi"], [teacher]),
        Case("lora", models["tied"], [teacher], "lora", rate=0.02),
        Case("lora with head", untied, [teacher], "with head", options={"eval_on_start": True}),
        Case("token budget", untied, [teacher], options={"max_tokens_per_micro_batch": 24}),
        Case("two teachers", untied, [teacher, models["tied"]]),
        Case("two teachers ahead", models["tied"], [teacher, "self:base"], "lora", options=hinted | ahead),
        Case("full resumed", untied, [teacher], rate=1e-3, resumes=True),
        Case("lora resumed", untied, [teacher], "with head", rate=1e-3, resumes=True),
        Case("frozen self", untied, ["self:frozen"], options=hinted),
        Case("frozen self of an adapter", models["tied"], ["self:frozen"], "lora", rate=0.02, options=hinted),
        Case("average self", untied, ["self:average"], options={**hinted, "teacher_decay": 0.5}),
        Case("base self", models["tied"], ["self:base"], "lora", options=hinted),
        Case("poisoned", untied, [teacher], poisoned=True),
    ]
    if server is not None:
        served = {"teacher_server_url": server, "teacher_server_dtype": "float32", "teacher_offload": True}
        listed.append(Case("served states", untied, [teacher], options=served))
    named = {case.name: case for case in listed}
    for name in ("tied head", "own head", "lora", "lora with head"):
        named[f"{name} bf16"] = replace(named[name], name=f"{name} bf16", bf16=True)
    return named


def alone(chosen: Sequence[Case], out: Path) -> dict[str, Found]:
    """The cases run in this process."""
    for case in chosen:
        ranks.run(case, out)
    return {case.name: torch.load(out / f"{case.name}.pt") for case in chosen}


def launched(config: str, chosen: Sequence[Case], out: Path, *options: str) -> dict[str, Found]:
    """The cases run by two processes; `options` are accelerate's."""
    precision = "bf16" if chosen[0].bf16 else "no"
    program = str(HERE / "ranks.py")
    said = start(config, "--mixed_precision", precision, *options, program, str(ranks.write_cases(list(chosen), out)))
    assert "were not compared" not in said  # of a served teacher, whose files one process reads by itself
    divided = config in ("fsdp2", "deepspeed_zero3")
    assert ("sharded over the processes" in said, "full copy on every process" in said) == (divided, not divided)
    # What the optimizer has, and what a moving average is kept in; not copies for a forward pass.
    assert config != "fsdp2" or "bfloat16" not in said
    return {case.name: torch.load(out / f"{case.name}.pt") for case in chosen}


def check(case: Case, one: Found, several: Found, bf16: float = 1e-2) -> None:
    """The gradient of every weight, to 1e-5 of its norm, and two steps that go to the same weights, to 1e-3 of the way
    there; where each sum is rounded to bf16, `bf16`, and 2e-2 of the way of all weights together."""
    close, near = (bf16, 2e-2) if case.bf16 else (1e-5, 1e-3)
    assert len(one["gradients"]) == len(several["gradients"]) == 2
    for name, error in errors(one["gradients"][0], several["gradients"][0]).items():
        assert error <= close, (case.name, name, error)
    way = {name: after - one["before"][name] for name, after in one["after"].items()}
    apart = {name: several["after"][name] - after for name, after in one["after"].items()}
    if not case.resumes:
        assert norm(way) >= 0.01 * norm(one["before"]), case.name
    assert norm(apart) <= near * norm(way), case.name
    for name, step in way.items():
        assert step.norm() > 0 and (case.bf16 or apart[name].norm() <= near * step.norm()), (case.name, name)
    assert several["losses"][0] == pytest.approx(one["losses"][0], rel=1e-5), case.name  # in float32, also in bf16
    assert several["losses"][1:] == pytest.approx(one["losses"][1:], rel=3 * near), case.name
    if case.resumes:
        assert all(torch.equal(several["resumed"][name], after) for name, after in several["after"].items()), case.name


def check_spoilt(found: Found, config: str) -> None:
    """The step with the NaN was not taken, and every process ended. Before it there was an evaluation: transformers
    cannot do one under FSDP2 and ZeRO-2, and cannot train after one under ZeRO-3."""
    early = "none" if config == "ddp" else "when training starts ... eval_on_start=true ... vopd eval"
    assert told(early, found["early"]), found["early"]
    assert told("loss of step 1 ... not finite ... not taken", found["error"]), found["error"]
    assert all(torch.equal(found["after"][name], before) for name, before in found["before"].items())


def check_saved(case: Case, one: Path, several: Path) -> None:
    """What was saved is what was trained, under the names that one process gives; a tied head may be there twice."""
    ours, theirs = (load_file(next((out / case.name).glob("*model.safetensors"))) for out in (several, one))
    for name, error in errors(theirs, {name: ours[name] for name in theirs}).items():
        assert error <= 1e-4, (case.name, name, error)


def check_metrics(case: Case, one: Path, several: Path) -> None:
    """Every number of every step but for the clock's; with several teachers those of one that had rows in the step."""
    ours, theirs = (
        [json.loads(line) for line in (out / case.name / "metrics.jsonl").read_text().splitlines()]
        for out in (several, one)
    )
    for now, before in zip(ours, theirs, strict=True):
        assert now.keys() == before.keys()
        for name in before:
            if not any(part in name for part in ("second", "runtime", "step_time", "teacher/")):  # clocks and requests
                assert now[name] == pytest.approx(before[name], rel=1e-3, abs=1e-5), (case.name, name)
    if len(case.teachers) > 1:
        assert ["reverse_kl/1" in record for record in ours[:2]] == [True, False]


def errors(expected: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    """||found - expected|| / ||expected|| of each."""
    assert expected.keys() == found.keys() and expected
    return {name: float((found[name] - value).norm() / value.norm()) for name, value in expected.items()}


def norm(values: dict[str, Tensor]) -> float:
    return float(torch.stack([value.norm() for value in values.values()]).norm())
