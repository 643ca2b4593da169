"""Several teachers by a column of the data, prompts for the teacher alone, and the student as its own teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from messages import says
from vopd.errors import ConfigurationError, DataError
from vopd.teachers import EVERY_KIND, RoutedTeacher, Scored, TopKScores

REAL_TOKENS = 300
PROMPTS = ["Hi", "How many legs do two dogs have?", "4 + 5 =", "So the answer is"]

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def other_teacher_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A second teacher, of another width and with other head rows."""
    from conftest import save_tiny_model

    folder = tmp_path_factory.mktemp("models") / "other"
    return save_tiny_model(folder, tiny_tokenizer, rows=310, width=40, seed=5, tied=True)


def logprobs(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Of one sequence without any padding, each row at the position that predicts the completion token."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, :REAL_TOKENS]
    return logits.log_softmax(-1)


def written_out(student: Any, rows: list[tuple[Any, list[int], list[int], list[int]]]) -> torch.Tensor:
    """The loss of "vopd" over rows of (teacher, its prompt, the student's prompt, completion)."""
    total, tokens = torch.zeros(()), 0
    for teacher, its_prompt, prompt, completion in rows:
        log_p = logprobs(student, prompt, completion)
        with torch.no_grad():
            log_q = logprobs(teacher, its_prompt, completion)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        at = torch.tensor(completion).unsqueeze(-1)
        advantage = ((log_q - log_p).gather(-1, at).squeeze(-1) + kl).detach()
        total = total - (advantage * log_p.gather(-1, at).squeeze(-1)).sum()
        tokens += len(completion)
    return total / tokens


def check_gradient(found: dict[str, torch.Tensor], student: Any) -> None:
    expected = {name: weight.grad for name, weight in student.named_parameters()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


# ---- several teachers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_each_row_is_taught_by_the_teacher_it_names(
    accumulation: int,
    make_trainer: Callable[..., Any],
    take_step: Callable[..., Any],
    recorded_completions: Any,
    tiny_student_dir: Path,
    tiny_teacher_dir: Path,
    other_teacher_dir: Path,
) -> None:
    names = ["code", None, "math", "code"]
    trainer = make_trainer(
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0,
        trainer={
            "teachers": {"code": str(other_teacher_dir), "math": str(tiny_teacher_dir)},
            "train_dataset": Dataset.from_dict({"prompt": PROMPTS, "teacher": names}),
        },
    )
    assert len(set(map(id, trainer.teacher._parts))) == 2  # math and the default have the same weights
    gradient = take_step(trainer, recorded_completions)
    student, one, other = load(tiny_student_dir), load(tiny_teacher_dir), load(other_teacher_dir)
    rows = [
        (other if name == "code" else one, ids, ids, recorded_completions(ids))
        for name, ids in zip(names, trainer.tokenize(PROMPTS), strict=True)
    ]
    loss = written_out(student, rows)
    loss.backward()
    check_gradient(gradient, student)
    logged = trainer.state.log_history[0]
    for name in ("code", "math", "default"):
        mine = [row for row, given in zip(rows, names, strict=True) if (given or "default") == name]
        kls = [
            (lp.exp() * (lp - logprobs(teacher, ids, done))).sum(-1)
            for teacher, ids, _, done in mine
            for lp in [logprobs(student, ids, done)]
        ]
        assert logged[f"reverse_kl/{name}"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-4)
        assert f"sampled_reverse_kl/{name}" in logged
    assert "reverse_kl" in logged


def test_a_model_card_names_every_teacher(
    make_trainer: Callable[..., Any], tiny_teacher_dir: Path, other_teacher_dir: Path, tmp_path: Path
) -> None:
    data = Dataset.from_dict({"prompt": PROMPTS, "subject": ["a", "b", "a", "b"]})
    trainer = make_trainer(
        teacher_column="subject",
        trainer={
            "teacher_model": None,
            "teachers": {"a": str(other_teacher_dir), "b": str(tiny_teacher_dir)},
            "train_dataset": data,
        },
    )
    trainer.save_model(str(tmp_path / "model"))
    assert "| teacher | a: other<br>b: teacher |" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("names", "default", "message"),
    [
        (["a", "a", "c", "a"], True, "row 2 of train_dataset ... 'c' ... a, default"),
        (["a", None, "a", "a"], False, "row 1 of train_dataset ... no default ... a, b"),
        (None, True, "train_dataset ... column 'teacher'"),
    ],
)
def test_rows_that_name_no_teacher(
    names: Any, default: bool, message: str, make_trainer: Callable[..., Any], tiny_teacher_dir: Path
) -> None:
    columns = {"prompt": PROMPTS} | ({} if names is None else {"teacher": names})
    teachers = {"a": str(tiny_teacher_dir)} | ({} if default else {"b": str(tiny_teacher_dir)})
    given = {"teachers": teachers, "train_dataset": Dataset.from_dict(columns)}
    with pytest.raises(DataError, match=says(message)):
        make_trainer(trainer=given | ({} if default else {"teacher_model": None}))


def test_what_are_no_teachers(make_trainer: Callable[..., Any], tiny_teacher_dir: Path) -> None:
    path = str(tiny_teacher_dir)
    with pytest.raises(ConfigurationError, match=says("teachers ... mapping")):
        make_trainer(trainer={"teachers": [path]})
    with pytest.raises(ConfigurationError, match="keep one"):
        make_trainer(trainer={"teachers": {"default": path}})
    with pytest.raises(ConfigurationError, match=says("'a'")):
        make_trainer(trainer={"teachers": {"a": None}})


class Recording:
    """A teacher that gives the ids it was shown back as scores, and may leave the first of its rows out."""

    def __init__(self, drops: bool = False) -> None:
        self.gives = frozenset(EVERY_KIND) if not drops else frozenset({"sampled"})
        self.drops = drops
        self.begun: list[list[int]] = []

    def begin(self, rollouts: Any) -> None:
        self.begun.append(rollouts.rows.tolist())

    def settle(self, rollouts: Any) -> Any:
        return torch.arange(len(rollouts.rows)) > 0 if self.drops else None

    def score(self, rollouts: Any, student: Any) -> list[Scored]:
        assert len(student.hidden) == len(rollouts.rows)
        return [Scored(TopKScores(-rollouts.rows.float().unsqueeze(-1).expand(-1, 3)))]

    def metrics(self) -> dict[str, float]:
        return {"dropped": 1.0} if self.drops else {}


def rollouts(teachers: list[int]) -> Any:
    from vopd.teachers import Rollouts

    count = len(teachers)
    ids = torch.zeros(count, 3, dtype=torch.long)
    return Rollouts(ids, ids, ids, ids, ids, rows=torch.arange(10, 10 + count), teachers=torch.tensor(teachers))


def states(count: int) -> Any:
    from vopd.teachers import States

    return States(torch.zeros(count, 3, 4), torch.zeros(7, 4))


def test_routing_row_by_row() -> None:
    plain, dropping = Recording(), Recording(drops=True)
    routed = RoutedTeacher({"a": plain, "b": dropping, "c": plain})
    assert routed.gives == {"sampled"}
    some = rollouts([2, 1, 0, 1])
    routed.begin(some)
    assert plain.begun == [[10, 12]] and dropping.begun == [[11, 13]]
    assert routed.settle(some).tolist() == [True, False, True, True]
    found = routed.score(some, states(4))
    assert [entry.name for entry in found] == ["a", "b", "c"]
    for entry, rows in zip(found, ([2], [1, 3], [0]), strict=True):
        assert entry.mask.squeeze(-1).nonzero().squeeze(-1).tolist() == rows
        assert entry.by.sampled_logprobs[rows, 0].tolist() == [-(10.0 + row) for row in rows]
    assert routed.metrics() == {"dropped/b": 1.0}


def test_whether_rows_can_be_left_out_does_not_depend_on_the_rows() -> None:
    """Processes act on the answer together: one without rows of that teacher must not say that all have scores."""
    routed = RoutedTeacher({"a": Recording(), "b": Recording(drops=True)})
    assert routed.settle(rollouts([0, 0])).tolist() == [True, True]
    assert RoutedTeacher({"a": Recording(), "b": Recording()}).settle(rollouts([0, 1])) is None


def test_a_teacher_in_lockstep_runs_without_rows_and_counts_nowhere() -> None:
    one, other = Recording(), Recording()
    assert [e.name for e in RoutedTeacher({"a": one, "b": other}).score(rollouts([0, 0]), states(2))] == ["a"]
    together = RoutedTeacher({"a": one, "b": other}, frozenset({"b"}))
    together.begin(rollouts([0, 0]))
    assert one.begun == [[10, 11]] and other.begun == [[]]
    found = together.score(rollouts([0, 0]), states(2))
    assert [entry.name for entry in found] == ["a", "b"]
    assert not found[1].mask.any() and found[1].by.sampled_logprobs.shape == (2, 3)


# ---- prompts of the teacher's own -------------------------------------------------------------------------------

HINTS = ["Hi. (Say hello.)", None, "Nine is 4 + 5. So 4 + 5 =", "", "x"]


def test_the_completion_lines_up_whatever_each_prompt_is_long(
    make_trainer: Callable[..., Any],
    take_step: Callable[..., Any],
    recorded_completions: Any,
    tiny_student_dir: Path,
    tiny_teacher_dir: Path,
) -> None:
    prompts = [*PROMPTS, "a prompt that is longer than the teacher's"]
    trainer = make_trainer(
        per_device_train_batch_size=5,
        teacher_prompt_column="hint",
        max_steps=1,
        max_grad_norm=0,
        trainer={"train_dataset": Dataset.from_dict({"prompt": prompts, "hint": HINTS})},
    )
    gradient = take_step(trainer, recorded_completions)
    student, teacher = load(tiny_student_dir), load(tiny_teacher_dir)
    own = trainer.tokenize(prompts)
    its = trainer.tokenize([hint or prompt for hint, prompt in zip(HINTS, prompts, strict=True)])
    assert [len(a) < len(b) for a, b in zip(own, its, strict=True)] == [True, False, True, False, False]
    rows = [(teacher, b, a, recorded_completions(a)) for a, b in zip(own, its, strict=True)]
    written_out(student, rows).backward()
    check_gradient(gradient, student)


def test_teacher_prompts_are_checked(make_trainer: Callable[..., Any]) -> None:
    def make(column: Any) -> Any:
        data = Dataset.from_dict({"prompt": PROMPTS} | ({} if column is None else {"hint": column}))
        return make_trainer(teacher_prompt_column="hint", trainer={"train_dataset": data})

    with pytest.raises(DataError, match=says("'hint' ... teacher_prompt_column ... prompt")):
        make(None)
    with pytest.raises(DataError, match=says("'hint' of train_dataset")):
        make([None, "", None, ""])
    with pytest.raises(DataError, match=says("row 0 of train_dataset ... 'hint' is list ... student's prompt is str")):
        make([[{"role": "user", "content": "x"}]] * 4)
    with pytest.raises(DataError, match=says("1 of 4 prompts ... 'hint' of train_dataset ... 512 positions")):
        make([None, "x" * 600, None, ""])


# ---- the student as its own teacher -----------------------------------------------------------------------------


def hinted(make_trainer: Callable[..., Any], source: str, **settings: Any) -> Any:
    hints = [f"Hint! {prompt}" for prompt in PROMPTS]
    trainer = {"teacher_model": source, "train_dataset": Dataset.from_dict({"prompt": PROMPTS, "hint": hints})}
    return make_trainer(
        teacher_prompt_column="hint",
        trainer=trainer | settings.pop("trainer", {}),
        **({"per_device_train_batch_size": 4, "max_grad_norm": 0} | settings),
    )


def adapters(rank: int = 2) -> dict[str, Any]:
    from peft import LoraConfig

    config = LoraConfig(r=rank, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return {"peft_config": config}


@pytest.mark.parametrize("source", ["self:frozen", "self:average"])
def test_the_first_step_learns_what_the_student_itself_says_to_the_hint(
    source: str,
    make_trainer: Callable[..., Any],
    take_step: Callable[..., Any],
    recorded_completions: Any,
    tiny_student_dir: Path,
) -> None:
    trainer = hinted(make_trainer, source, max_steps=1)
    gradient = take_step(trainer, recorded_completions)
    student, teacher = load(tiny_student_dir), load(tiny_student_dir)
    own, its = trainer.tokenize(PROMPTS), trainer.tokenize([f"Hint! {prompt}" for prompt in PROMPTS])
    rows = [(teacher, b, a, recorded_completions(a)) for a, b in zip(own, its, strict=True)]
    written_out(student, rows).backward()
    check_gradient(gradient, student)


def test_without_its_adapter_the_student_is_what_it_was(
    make_trainer: Callable[..., Any], recorded_completions: Any, tiny_student_dir: Path
) -> None:
    trainer = hinted(make_trainer, "self:base", max_steps=2, trainer=adapters())
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters() if not weight.requires_grad}
    seen: list[Any] = []
    score = trainer.teacher.score

    def watching(rollouts: Any, student: Any) -> Any:
        seen.append((rollouts, score(rollouts, student)))
        return seen[-1][1]

    trainer.teacher.score = watching
    trainer._generate_single_turn = lambda prompts, *rest, **named: [recorded_completions(ids) for ids in prompts]
    trainer.train()
    base = load(tiny_student_dir)
    for given, (entry,) in seen:
        logits = entry.by.head.logits(entry.by.hidden)
        for row in range(4):
            prompt = given.prompt_ids[row][given.prompt_mask[row].bool()].tolist()
            length = int(given.completion_mask[row].sum())
            expected = logprobs(base, prompt, given.completion_ids[row, :length].tolist())
            torch.testing.assert_close(logits[row, :length, :REAL_TOKENS].log_softmax(-1), expected, atol=1e-5, rtol=0)
    assert trainer.model.training and trainer.state.log_history[0]["reverse_kl"] > 1e-4
    assert all(torch.equal(weight, dict(trainer.model.named_parameters())[name]) for name, weight in before.items())


@pytest.mark.parametrize("more", [{}, {"trainer": "adapters"}], ids=["full", "lora"])
def test_the_average_follows_the_student_and_goes_on_after_a_resume(
    more: dict[str, Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    def run(folder: Path, checkpoint: str | None = None) -> Any:
        trainer = hinted(
            make_trainer, "self:average", output_dir=str(folder), teacher_decay=0.5, max_steps=3,
            save_strategy="steps", save_steps=1, trainer=adapters() if more else {},
        )  # fmt: skip
        history = [trained(trainer.model)]
        from transformers import TrainerCallback

        class Watch(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                history.append(trained(trainer.model))

        trainer.add_callback(Watch())
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer, history

    def trained(model: Any) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}

    trainer, history = run(tmp_path / "whole")
    average = dict(trainer.teacher_model.named_parameters())
    for name in history[0]:
        expected = history[0][name]
        for step in history[1:]:
            expected = 0.5 * expected + 0.5 * step[name]
        torch.testing.assert_close(average[name], expected, atol=1e-6, rtol=1e-5)
        assert not torch.equal(history[-1][name], history[0][name])
    if more:  # the frozen weights are there once
        shared = {weight.data_ptr() for weight in trainer.model.parameters() if not weight.requires_grad}
        assert shared <= {weight.data_ptr() for weight in average.values()}

    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    resumed, _ = run(tmp_path / "again", str(tmp_path / "again" / "checkpoint-1"))
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, dict(trainer.model.named_parameters())[name]), name
    for name, weight in resumed.teacher_model.named_parameters():
        assert torch.equal(weight, average[name]), name
    with pytest.raises(DataError, match="teacher_average.safetensors is missing"):
        resumed._load_optimizer_and_scheduler(str(tmp_path / "nowhere"))


def test_an_average_of_a_half_precision_student_is_in_float32(
    make_trainer: Callable[..., Any], tiny_student_dir: Path
) -> None:
    student = load(tiny_student_dir).to(torch.bfloat16)
    trainer = hinted(make_trainer, "self:average", model=student)
    assert {weight.dtype for weight in trainer.teacher_model.parameters()} == {torch.float32}


def test_where_the_student_cannot_be_its_teacher(make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match=says("self:base ... adapter")):
        hinted(make_trainer, "self:base")
    with pytest.raises(ConfigurationError, match=says("'self:past' ... self:frozen, self:base, self:average")):
        hinted(make_trainer, "self:past")
    with pytest.raises(ConfigurationError, match="nothing to learn"):
        make_trainer(trainer={"teacher_model": "self:frozen"})
    with pytest.raises(ConfigurationError, match=says("teacher_decay ... 0 and 1")):
        make_trainer(teacher_decay=1.0)


def test_rewards_beside_the_student_as_it_was(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    """The usual anchor of reinforcement learning: at the first step nothing pulls, later the KL is above 0."""

    def low(completion_ids: list[list[int]]) -> list[float]:
        return [float(sum(token < 150 for token in ids)) for ids in completion_ids]

    trainer = make_trainer(
        num_generations=2,
        per_device_train_batch_size=8,
        max_steps=3,
        trainer={"teacher_model": "self:frozen", "reward_funcs": low},
    )
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert abs(records[0]["reverse_kl"]) < 1e-6 < records[-1]["reverse_kl"]
