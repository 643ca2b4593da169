"""Vocabularies of one family: what differs in a few added tokens at the end is cut, everything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import AddedToken

from cases import RUN, Case, Place
from messages import says
from teachers.stub_server import StubServer
from vopd import VOPDConfig, VOPDTrainer
from vopd.errors import MismatchError
from vopd.models import load_model, load_tokenizer, sample

Before = Callable[[Place], object]
DRY = "RUN --dry-run"
ON_S = f"{DRY} --model {{work}}/s"
ON_T = f"{DRY} --teacher_model {{work}}/t"
ON_BOTH = f"{ON_S} --teacher_model {{work}}/t"
PAIR = "--model {work}/s --teacher_model {T} --dataset {p} --output_dir {out} --run_name v --device cpu"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}<tool>"


def changed(
    source: Path,
    target: Path,
    *tokens: str,
    special: bool = True,
    rows: int | None = None,
    eos: str | None = None,
    pad: str | None = None,
    template: str | None = None,
) -> Path:
    """A copy of a model whose tokenizer has more tokens, another end token, or whose head has another size."""
    model, tokenizer = load_model(source), load_tokenizer(source)
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    if eos is not None:
        tokenizer.eos_token = eos
    if pad is not None:
        tokenizer.pad_token = pad
    tokenizer.chat_template = template
    if rows is not None:
        model.resize_token_embeddings(rows)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def student(*tokens: str, **changes: Any) -> Before:
    return lambda place: changed(place.student, place.work / "s", *tokens, **changes)


def teacher(*tokens: str, **changes: Any) -> Before:
    return lambda place: changed(place.teacher, place.work / "t", *tokens, **changes)


def all_of(*steps: Before) -> Before:
    return lambda place: [step(place) for step in steps]


def prompts(*rows: dict[str, Any]) -> Before:
    """Prompts instead of those of the place."""
    return lambda place: place.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))


def one_more_ordinary(place: Place) -> None:
    """A teacher with one more token of text at the end."""
    folder = changed(place.teacher, place.work / "t")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzz"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(content))


SIX = [f"<more{number}>" for number in range(6)]
TOOL = [{"prompt": text} for text in ("1+1=", "2+2=<tool>", "3+3=", "4+4=")]
ROUTED = [{"prompt": "1+1=<tool>", "teacher": "large"}, *({"prompt": "2+2=", "teacher": "small"} for _ in range(3))]
TEACHERS = 'RUN --model {work}/s --dry-run --teachers \'{large: "{work}/t", small: "{T}"}\''.replace(
    "--teacher_model {T} ", ""
)
LEFT = "left out of sampling and loss"

CASES = [
    # Added tokens at the end of one, of the other, of both.
    Case(f"{ON_T}", 0, f"note ... {LEFT} ... ids 300 to 301 (<tool>, <think>) ... only in the teacher",
         before=teacher("<tool>", "<think>")),
    Case(f"{ON_T}", 0, "common vocabulary ... 300", before=teacher(*SIX)),
    Case(f"{ON_S}", 0, f"note ... {LEFT} ... id 300 (<tool>) ... only in the student", before=student("<tool>")),
    Case(f"{ON_S}", 0, "ids 300 to 305 (<more0>, <more1>, <more2>, ...) ... only in the student",
         before=student(*SIX, rows=320, special=False)),
    Case(f"{ON_BOTH}", 0, "id 300 ... different in student (<a>) and teacher (<b>)",
         before=all_of(student("<a>"), teacher("<b>"))),
    Case(f"{ON_BOTH}", 0, "common vocabulary ... 301",
         before=all_of(student("<tool>", "<a>"), teacher("<tool>", "<b>", "<c>"))),
    Case(f"{ON_BOTH}", 0, "common vocabulary ... 301", before=all_of(student("<tool>"), teacher("<tool>")),
         lacks=(LEFT,)),
    # More of them than a family differs in, and ordinary ones.
    Case(f"{ON_T}", 4, "different vocabularies ... 7 ids differ ... 300 is None for the student ... '<more0>' ... GOLD",
         before=teacher(*SIX, "<tool>")),
    Case(f"{ON_T}", 4, "different vocabularies ... 300 is None for the student ... 'zzz' for the teacher",
         before=one_more_ordinary),
    Case(f"{ON_T}", 4, "different vocabularies", before=all_of(
        lambda place: changed(place.student, place.work / "s"), one_more_ordinary)),
    # Special tokens that a head has no row for, as Gemma's soft token for images; others are a wrong tokenizer.
    Case(f"{ON_S}", 0, f"{LEFT} ... id 300 (<image>) ... without a row", before=student("<image>", rows=300)),
    Case(f"{ON_BOTH}", 0, "id 300 (<image>) ... only in the teacher",
         before=all_of(student("<image>", rows=300), teacher("<image>"))),
    Case(f"{ON_S}", 4, "student's output head ... 300 rows ... 301 ids ... resize_token_embeddings(301)",
         before=student("<word>", special=False, rows=300)),
    Case(f"{ON_S}", 4, "student's output head ... 300 rows ... 308 ids", before=student(*SIX, "<a>", "<b>", rows=300)),
    # A token that ends completions
    Case(f"{ON_S}", 4, "student ends ... 300 (<|im_end|>) ... never stop ... only in the student ... eos_token_id",
         before=student("<|im_end|>", eos="<|im_end|>")),
    Case(f"{ON_T}", 4, "teacher ends ... 300 (<|im_end|>) ... only in the teacher ... student's tokenizer and resize",
         before=teacher("<|im_end|>", eos="<|im_end|>")),
    Case(f"{ON_S}", 4, "student ends ... 300 (<|im_end|>) ... never stop ... without a row",
         before=student("<|im_end|>", eos="<|im_end|>", rows=300)),
    Case(f"{ON_BOTH}", 0, "common vocabulary ... 301", lacks=(LEFT,),
         before=all_of(student("<|im_end|>", eos="<|im_end|>"), teacher("<|im_end|>"))),
    # Prompts
    Case(f"{ON_S}", 3, "row 1 ... teacher's prompt ... '<tool>' (id 300) ... teacher_prompt_column",
         before=all_of(student("<tool>"), prompts(*TOOL))),
    Case(f"{ON_BOTH}", 3, "row 1 ... teacher's prompt ... '<tool>' (id 300)",
         before=all_of(student("<tool>"), teacher("<other>"), prompts(*TOOL))),
    Case(f"{ON_S} --teacher_prompt_column plain", 0, "common vocabulary ... 300",
         before=all_of(student("<tool>"), prompts(*({**row, "plain": "1+1="} for row in TOOL)))),
    Case(f"{ON_S} --teacher_prompt_column plain", 3, "row 0 ... teacher's prompt ... '<tool>' (id 300)",
         before=all_of(student("<tool>"), prompts(*({"prompt": "1=", "plain": "<tool>"} for _ in range(4))))),
    Case(f"{ON_S}", 3, "row 1 ... student's prompt ... '<tool>' (id 300)",
         before=all_of(student("<tool>", rows=300), prompts(*TOOL))),
    Case(f"{ON_S} --chat_template true", 3, "row 0 ... teacher's prompt ... '<tool>' (id 300) ... chat template",
         before=student("<tool>", template=TEMPLATE)),
    Case(TEACHERS, 0, "common vocabulary ... 300",
         before=all_of(student("<tool>"), teacher("<tool>"), prompts(*ROUTED))),
    Case(TEACHERS, 3, "row 1 ... teacher's prompt ... '<tool>'", before=all_of(student("<tool>"), teacher("<tool>"),
         prompts(ROUTED[0], {"prompt": "<tool>", "teacher": "small"}, *ROUTED[1:]))),
    # k, the other commands
    Case(f"{ON_T} --estimator vopd_top_k --loss_top_k 301", 2, "loss_top_k=301 ... 300", before=teacher("<tool>")),
    Case(f"variance {PAIR} --contexts 2 --resamples 2 --max_completion_length 3 --estimators opd,full_rkl", 0,
         f"{LEFT} ... id 300 (<tool>) ... only in the student", leaves=("v/results.json",), before=student("<tool>")),
    Case(f"variance {PAIR} --contexts 2 --max_completion_length 3", 4, "'<tool>' (id 300) ... share 300 ids",
         before=all_of(student("<tool>"), prompts(*TOOL))),
    Case(f"variance {PAIR}", 4, "student ends ... <|im_end|>", before=student("<|im_end|>", eos="<|im_end|>")),
    Case("RUN --model {work}/s --max_steps 1", 0, f"{LEFT} ... id 300 (<tool>)", leaves=("r/model/",),
         before=student("<tool>")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.says} {case.command}".replace("RUN", "")[:70])
def test_vocabularies(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    case.check(place, capfd.readouterr)
