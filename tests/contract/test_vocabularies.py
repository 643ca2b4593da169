"""Vocabularies of one family: what differs in a few added tokens at the end is cut, everything else is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import AddedToken

from cases import Case, Place
from messages import says, told
from teachers.stub_server import StubServer
from vopd import VOPDConfig, VOPDTrainer
from vopd.errors import DataError, MismatchError
from vopd.evaluation.benchmarks import Protocol
from vopd.models import load_model, load_tokenizer, sample
from vopd.teachers.server import Servers
from vopd.teachers.server.discovery import find_model
from vopd.teachers.server.preflight import compare_ids

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
    shutil.copytree(source, target)
    tokenizer = load_tokenizer(source)
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    if eos is not None:
        tokenizer.eos_token = eos
    if pad is not None:
        tokenizer.pad_token = pad
    tokenizer.chat_template = template
    if rows is not None:
        model = load_model(source)
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
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.says} {case.command}".replace("RUN", "")[:70])
def test_vocabularies(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    case.check(place, capfd.readouterr)


# ---- the loss and the rollout ---------------------------------------------------------------------------------------


def trained(place: Place, model: Path, teacher_model: Any, monkeypatch: pytest.MonkeyPatch, **named: Any) -> Any:
    """A trainer after one step; its `gradient`, its `loss`, and the ids of its `completions`."""
    settings = {"estimator": "vopd_optimal", **named.pop("settings", {})}
    folder = place.out / str(len(list(place.out.glob("*"))))
    args = VOPDConfig(
        output_dir=str(folder), per_device_train_batch_size=4, max_completion_length=12,
        max_steps=1, save_strategy="no", report_to="none", use_cpu=True, learning_rate=1e-3, **settings,
    )  # fmt: skip
    rows = named.pop("rows", {"prompt": ["1+1=", "12+30=", "2=", "So the answer is"]})
    trainer = VOPDTrainer(
        model=str(model), teacher_model=teacher_model, args=args, train_dataset=Dataset.from_dict(rows), **named
    )
    trainer.gradient, trainer.completions = {}, []
    norm, drawn = VOPDTrainer._get_grad_norm, VOPDTrainer.rows_drawn

    def keep(self: Any, model: Any, grad_norm: Any = None) -> Any:
        self.gradient = {name: weight.grad.clone() for name, weight in self.model.named_parameters()}
        return norm(self, model, grad_norm)

    def seen(self: Any, rows: Any, batch: Any) -> Any:
        self.completions += batch.completion_ids[batch.completion_mask.bool()].tolist()
        padding = torch.cat(
            [batch.prompt_ids[batch.prompt_mask == 0], batch.completion_ids[batch.completion_mask == 0]]
        )
        assert len(padding) and padding.max() < self.vocab_size
        return drawn(self, rows, batch)

    monkeypatch.setattr(VOPDTrainer, "_get_grad_norm", keep)
    monkeypatch.setattr(VOPDTrainer, "rows_drawn", seen)
    trainer.train()
    monkeypatch.undo()
    trainer.loss = trainer.state.log_history[0]["loss"]
    return trainer


@pytest.mark.parametrize("kind", ["student", "both", "past the head"])
def test_surplus_ids_leave_every_bit_of_a_step_as_it_is(
    kind: str, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own, head = ("<a>", "<b>"), 300 if kind == "past the head" else None
    plain = trained(place, changed(place.student, place.work / "p", rows=head), str(place.teacher), monkeypatch)
    folder = changed(place.student, place.work / "s", *own, rows=head)
    theirs = changed(place.teacher, place.work / "t", *(("<c>",) if kind == "both" else ()))
    assert LEFT not in caplog.text
    found = trained(place, folder, str(theirs), monkeypatch)
    assert told(f"{LEFT} ... ids 300 to 301", caplog.text)
    assert found.vocab_size == 300 and found.completions == plain.completions and found.loss == plain.loss
    for name, gradient in plain.gradient.items():
        rows = 300 if "embed" in name else len(gradient)  # the other ones are 0, or not there
        assert torch.equal(gradient[:rows], found.gradient[name][:rows]) and not gradient[rows:].any(), name


def likely(folder: Path, first: int) -> None:
    """Make the head rows from `first` on the likeliest."""
    model = load_model(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[first:] *= 40
    model.save_pretrained(folder)


def test_a_cut_id_is_never_sampled_however_likely(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(place.student, place.work / "s", "<a>", "<b>")
    likely(folder, 300)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    free = {token for each in sample(model, tokenizer, ["1+1="] * 8, max_new_tokens=12) for token in each.ids}
    assert free & {300, 301}, "it would be sampled"
    cut = sample(model, tokenizer, ["1+1="] * 8, max_new_tokens=12, vocab_size=300)
    assert max(token for each in cut for token in each.ids) < 300
    trainer = trained(place, folder, str(place.teacher), monkeypatch)
    assert trainer.completions and max(trainer.completions) < 300
    assert max(max(ids) for ids in trainer.draw([[5, 6], [7]], Protocol(temperature=1.0, max_new_tokens=12), 0)) < 300


def test_several_teachers_share_the_smallest_vocabulary(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(place.student, place.work / "s", "<a>", "<b>")
    likely(folder, 300)
    large = changed(place.teacher, place.work / "t", "<a>", "<b>")
    rows = {"prompt": ["1+1=<a>", "2=", "3=", "4="], "teacher": ["large", "small", "large", "small"]}
    for names in (("large", "small"), ("small", "large")):
        teachers = {name: str(large if name == "large" else place.teacher) for name in names}
        found = trained(place, folder, None, monkeypatch, teachers=teachers, rows=rows)
        assert found.vocab_size == 300 and max(found.completions) < 300
        assert found.teachers.vocab_sizes == {"large": 302, "small": 300}


def test_a_padding_token_that_the_teacher_lacks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many students got one of their own; the teacher has no embedding of it."""
    folder = changed(place.student, place.work / "s", "[PAD]", pad="[PAD]")
    short = changed(place.teacher, place.work / "t", rows=300)
    found = trained(place, folder, str(short), monkeypatch)
    plain = trained(place, place.student, str(short), monkeypatch)
    assert found.completions == plain.completions and found.loss == plain.loss
    assert found.tokenizer.pad_token == "[PAD]"


def test_the_trainer_looks_at_the_prompts_of_every_dataset(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(place.student, place.work / "s", "<tool>")
    with_it = {"prompt": ["1+1=", "<tool>2=", "3=", "4="]}
    known = says("row 1 ... train_dataset ... teacher's prompt ... '<tool>' (id 300) ... teacher_prompt_column")
    with pytest.raises(DataError, match=known):
        trained(place, folder, str(place.teacher), monkeypatch, rows=with_it)
    with pytest.raises(DataError, match=says("row 1 ... eval_dataset ... '<tool>' (id 300)")):
        trained(place, folder, str(place.teacher), monkeypatch, eval_dataset=Dataset.from_dict(with_it))
    served = {**with_it, "own": ["1+1=", "2=", "3=", "4="]}
    found = trained(
        place, folder, str(place.teacher), monkeypatch, rows=served, settings={"teacher_prompt_column": "own"}
    )
    assert found.vocab_size == 300


# ---- servers --------------------------------------------------------------------------------------------------------


class Refusing(StubServer):
    """Refuses ids beyond its vocabulary, where others decode them to nothing."""

    def detokenize(self, body: dict[str, Any]) -> tuple[int, Any]:
        if max(body["tokens"]) >= len(self.tokenizer):
            return 400, {"error": {"message": "Token id is out of vocabulary", "type": "BadRequestError", "code": 400}}
        return super().detokenize(body)


@pytest.fixture
def serve(place: Place) -> Iterator[Callable[..., StubServer]]:
    """serve(*tokens, kind=StubServer): a server of the teacher, whose tokenizer has these tokens too."""
    servers: list[StubServer] = []

    def start(*tokens: str, kind: type[StubServer] = StubServer) -> StubServer:
        folder = changed(place.teacher, place.work / f"served{len(servers)}", *tokens)
        servers.append(kind(load_model(folder), load_tokenizer(folder)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def compared(tokenizer: Any, *urls: str, ends: Sequence[int] = ()) -> tuple[Any, dict[str, Any]]:
    return compare_ids(find_model(Servers(urls), None).model, tokenizer, end_ids=ends)


@pytest.mark.parametrize(
    ("own", "served", "kind", "size"),
    [
        ((), (), StubServer, 300),
        ((), ("<a>", "<b>"), StubServer, 300),
        (("<a>", "<b>"), (), StubServer, 300),
        (("<a>", "<b>"), (), Refusing, 300),
        (("<a>", "<b>", "<c>"), ("<a>", "<d>"), StubServer, 301),
    ],
)
def test_ids_that_a_server_lacks_are_cut(
    own: tuple[str, ...], served: tuple[str, ...], kind: type[StubServer], size: int, place: Place, serve: Any
) -> None:
    server, plain = serve(*served, kind=kind), serve(*own)
    tokenizer = load_tokenizer(changed(place.student, place.work / "s", *own))
    found, same_ids = compared(tokenizer, plain.url, server.url)
    first, second = (same_ids[url] for url in (plain.url, server.url))
    assert (first.size, first.cut) == (300 + len(own), None)
    assert (second.size, found.vocab_size) == (size, size)
    assert (second.cut is None) == (size == 300 + len(own))
    assert second.cut is None or f"({', '.join(own[size - 300 :])}), not the same on the server" in second.cut


def test_a_server_without_the_student_s_end_token_is_refused(place: Place, serve: Any) -> None:
    tokenizer = load_tokenizer(changed(place.student, place.work / "s", "<|im_end|>", eos="<|im_end|>"))
    with pytest.raises(MismatchError, match=says("student ends ... 300 (<|im_end|>) ... not the same on the server")):
        compared(tokenizer, serve().url)
    tokenizer.eos_token = "<eos>"
    assert compared(tokenizer, serve().url)[0].vocab_size == 300
    with pytest.raises(MismatchError, match=says("student ends ... 300 (<|im_end|>)")):
        compared(tokenizer, serve().url, ends=[300])


@pytest.mark.parametrize("status", [403, 404, 413])
def test_a_gateway_that_lets_no_comparison_through_is_no_other_vocabulary(
    status: int, place: Place, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StubServer, "detokenize", lambda self, body: (status, {"error": "not this path"}))
    server = serve()
    assert compared(load_tokenizer(place.student), server.url)[1] == {server.url: None}


def test_doctor_says_what_a_server_lacks(place: Place, serve: Any, capfd: pytest.CaptureFixture[str]) -> None:
    changed(place.student, place.work / "s", "<a>")
    command = f"doctor --teacher {serve().url} --model {{work}}/s"
    Case(command, 0, f"300 ids are the same ... {LEFT} ... id 300 (<a>), not the same on the server").check(
        place, capfd.readouterr
    )


@pytest.mark.parametrize("estimator", ["rao_blackwell_teacher_top_k", "vopd_sparse"])
def test_a_step_with_a_server_that_has_other_ids(
    estimator: str, place: Place, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside a local teacher with fewer ids than the server."""
    server = serve("<a>", "<b>")
    # Its padding rows are unlikely, as those of trained models are.
    with torch.no_grad():
        server.model.get_output_embeddings().weight[300:] = server.model.get_output_embeddings().weight[:20] * 0 - 1
    folder = changed(place.student, place.work / "s", "<a>", "<c>")
    likely(folder, 300)
    settings = {"estimator": estimator, "loss_top_k": 5}
    found = trained(place, folder, None, monkeypatch, settings={**settings, "teacher_server_url": server.url})
    assert found.vocab_size == 301 and max(found.completions) <= 300
    rows = {"prompt": ["1+1=", "2=", "3=", "4="], "teacher": ["local", "served"] * 2}
    teachers = {"served": server.url, "local": str(place.teacher)}
    found = trained(place, folder, None, monkeypatch, settings=settings, teachers=teachers, rows=rows)
    assert found.vocab_size == 300 and max(found.completions) < 300
    assert found.teachers.placed["served"].teacher.model.vocab_size == 300
