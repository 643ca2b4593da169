"""How models are measured: kinds of answers, graders of one's own, problems in training, the command after a run."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from cases import RUN, Case, Place
from vopd.experiments.pair import embedded_pair, pair_problems

GRADERS = """
def exact(completions, answer, **columns):
    return [float(f"<answer>{right}</answer>" in text) for text, right in zip(completions, answer)]
def graded(completions, level): return [1.0] * len(completions)
def words(completions): return ["good"] * len(completions)
def fails(completions): return [1 / 0 for _ in completions]
def same(completions, **columns): return [1.0] * len(completions)
"""
PAIR = embedded_pair()


def module(place: Place) -> None:
    """The graders, in the folder where the command is typed."""
    (place.work / "graders.py").write_text(GRADERS)


def problems(place: Place) -> None:
    """Twelve held-out problems of the embedded pair, and the graders."""
    module(place)
    rows = [{"problem": one.question, "answer": one.answer} for one in pair_problems("held_out", 12, 0)]
    (place.work / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def task_rows(place: Place) -> None:
    """The same with what the task's verifier needs, as a comparison writes its held-out problems."""
    rows = [vars(one) | {"prompt": one.question} for one in pair_problems("held_out", 12, 0)]
    (place.work / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def quiz(place: Place) -> None:
    """A multiple-choice question."""
    row = {"problem": "Which is even?", "options": ["3", "4", "5"], "answer": "B"}
    (place.work / "problems.jsonl").write_text(json.dumps(row) + "\n")


def mixed(place: Place) -> None:
    """One question with options, one without."""
    quiz(place)
    with (place.work / "problems.jsonl").open("a") as file:
        file.write('{"problem": "1 + 1", "answer": "2"}\n')


def comma(place: Place) -> None:
    """A student in a folder with a comma in its name."""
    problems(place)
    (place.work / "a, b").symlink_to(place.student)


def diverged(place: Place) -> None:
    """A student of which one weight is NaN."""
    problems(place)
    shutil.copytree(place.student, place.work / "diverged")
    path = place.work / "diverged" / "model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})


EVAL = (
    f"eval --model {PAIR.student} --data problems.jsonl --template '{{problem}}' --max_new_tokens 56 --samples 1 "
    "--temperature 0 --device cpu --output_dir {out} --run_name e"
)
TINY = (
    "eval --model {S} --data problems.jsonl --max_new_tokens 4 --samples 1 --temperature 0 --device cpu "
    "--output_dir {out} --run_name e"
)
ANSWERS = (
    f"train --model {PAIR.student} --teacher_model {PAIR.teacher} --dataset problems.jsonl --output_dir {{out}} "
    "--run_name r --use_cpu true --per_device_train_batch_size 4 --max_steps 1 --max_completion_length 56"
)
CHECK = RUN.replace("train", "validate", 1)
REWARDED = "RUN --num_generations 2 --guard_window 2"

CASES = [
    # Kinds of answers
    Case(EVAL, 0, "student ... problems ... 0.0", leaves=("e/results.json",), before=problems),
    Case(f"{EVAL} --kind tags", 0, "student ... problems ... 83.3", leaves=("e/results.json",), before=problems),
    Case(f"{EVAL} --kind graders:exact", 0, "student ... problems ... 83.3", leaves=("e/",), before=problems),
    Case(EVAL, 0, "student ... problems ... 83.3", leaves=("e/results.json",), before=task_rows),
    Case(TINY.replace("{S}", "'a, b'"), 0, "a, b ... problems ... 0.0", leaves=("e/results.json",), before=comma),
    Case(TINY.replace("{S}", ","), 2, "model ... ','", before=problems),
    Case(f"{TINY} --kind essay", 2, "'essay' ... math, choice, tags, module:function", before=problems),
    Case(f"{TINY} --kind graders:exakt", 2, "grader 'graders:exakt' ... exact", before=problems),
    Case(f"{TINY} --kind nowhere:exact", 2, "'nowhere' ... PYTHONPATH", before=problems),
    Case(f"{TINY} --kind graders:graded", 3, "'graded' ... column 'level' ... problem, answer", before=problems),
    Case(f"{TINY} --kind graders:words", 2, "grader 'words' ... 'good' ... number", leaves=("e/",), before=problems),
    Case(f"{TINY} --kind graders:fails", 2, "'fails' ... graders.py, line 6", leaves=("e/",), before=problems),
    Case(TINY, 3, "options ... kind", before=mixed),
    Case(TINY.replace("{S}", "diverged"), 6, "NaN ... learning_rate", before=diverged),
    Case(TINY.replace("problems.jsonl", "math500=problems.jsonl"), 0, "math500 ... 0.0", ("e/",), before=problems),
    Case(f"{TINY} --training_prompts dapo_math=problems.jsonl", 0, "12 problems occur", ("e/",), before=problems),
    # In training
    Case(f"{CHECK} --eval_data problems.jsonl --eval_template {{level}}", 2, "{level} ... answer", before=problems),
    Case(
        f"{CHECK} --eval_benchmarks problems.jsonl --eval_benchmark_template {{level}}", 2, "{level} ... answer",
        before=problems,
    ),
    Case("RUN --eval_data problems.jsonl --eval_kind essay", 2, "'essay' ... tags", before=problems),
    Case("RUN --eval_benchmarks problems.jsonl --eval_benchmark_kind essay", 2, "'essay' ... tags", before=problems),
    Case(f"{CHECK} --eval_kind graders:x", 2, "grader 'graders:x'", before=module),
    Case("RUN --max_steps 1 --eval_data problems.jsonl", 0, "to repeat ... problems.jsonl", ("r/",), before=quiz),
    Case("compare --held_out_kind essay", 2, "'essay' ... module:function"),
    # What a run prints last
    Case("RUN", 0, "vopd eval ... --template ... --max_new_tokens 8 ... problems.jsonl", ("r/",), ("--kind math",)),
    Case(
        "RUN --max_steps 1 --reward_funcs math --num_generations 2 --prompt_template 'Q: {prompt}'", 0,
        "vopd eval ... --kind math ... 'Q: {prompt}' ... --max_new_tokens 8", ("r/",), lacks=("module:function",),
    ),
    # Rewards
    Case(f"{REWARDED} --reward_funcs graders:same", 0, "zero_spread ... same gave", ("r/guards.jsonl",), before=module),
    Case(
        f"{REWARDED} --reward_funcs graders:same,math --max_steps 1", 0, "reward same 1 ... reward math 0", ("r/",),
        before=module,
    ),
    Case(
        f"{REWARDED} --reward_funcs graders:same --guard_stop zero_spread", 7,
        "zero_spread at step 2 ... num_generations", ("r/checkpoint-2/",), before=module,
    ),
    Case(f"{REWARDED} --reward_funcs graders:fails", 2, "'fails' ... graders.py, line 6", before=module),
    Case("RUN --guard_zero_spread 0", 2, "guard_zero_spread ... none"),
]  # fmt: skip


@pytest.fixture
def there(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The command is typed in `work`, and no module of another case is in the way."""
    monkeypatch.chdir(place.work)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "graders", raising=False)
    return place


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command[-60:])
def test_evaluation(case: Case, there: Place, capfd: pytest.CaptureFixture[str]) -> None:
    case.check(there, capfd.readouterr)


def test_the_command_after_a_run_works(there: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a model that answers in tags: as printed, it finds the answers."""
    problems(there)
    assert there.call(ANSWERS) == 0  # on these problems: samples show the form of the answers
    (command,) = (line.strip() for line in capfd.readouterr().out.splitlines() if line.strip().startswith("vopd eval"))
    assert there.call(command.removeprefix("vopd ") + " --samples 1 --temperature 0 --output_dir {out}") == 0
    (results,) = there.out.glob("eval-*/results.json")
    assert json.loads(results.read_text())["results"][0]["avg_at_k"]["value"] == pytest.approx(10 / 12)


def test_the_start_model_is_loaded_once(there: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """It is measured in the trainer, and has the numbers that `vopd eval` finds, to the byte.

    Though the trainer's ends at its teacher's end tokens too, here at the equals sign.
    """
    problems(there)
    teacher = shutil.copytree(PAIR.teacher, there.work / "teacher")
    vocabulary = AutoTokenizer.from_pretrained(teacher).get_vocab()
    ends = [1, *(token for text, token in vocabulary.items() if "=" in text)]
    (teacher / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    train = ANSWERS.replace(str(PAIR.teacher), "teacher")
    assert there.call(f"{train} --eval_data problems.jsonl --eval_kind tags") == 0
    folder = there.out / "r"
    assert "parameters: " + str(PAIR.student) not in capfd.readouterr().err
    command = json.loads((folder / "results.json").read_text())["repeat"]["start"]
    assert there.call(command.removeprefix("vopd ") + " --output_dir {out} --run_name again") == 0
    for name in ("results.json", "samples.jsonl"):
        assert (folder / "evaluation/start" / name).read_bytes() == (there.out / "again" / name).read_bytes()
