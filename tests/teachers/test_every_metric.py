"""One run that logs every metric there is: each is described, and nothing is described that no run logs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from teachers.conftest import PROMPTS
from vopd.experiments.pair import embedded_pair
from vopd.training import VOPDConfig, VOPDTrainer
from vopd.training.monitoring.glossary import METRICS, Metric

ROOT = Path(__file__).parents[2]


def length_reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def a_run_with_everything(folder: Path, url: str, questions: Path) -> None:
    """A local teacher and one behind a server, a reward, an engine with log-probabilities, an evaluation."""
    prompts = Dataset.from_dict({"prompt": PROMPTS[:4], "teacher": ["local", "served"] * 2})
    settings = VOPDConfig(
        output_dir=str(folder), per_device_train_batch_size=8, per_device_eval_batch_size=4, num_generations=2,
        max_completion_length=6, max_steps=1, save_strategy="no", use_cpu=True, loss_top_k=5,
        estimator="rao_blackwell_teacher_top_k", eval_strategy="steps", eval_steps=1,
        eval_benchmarks=[str(questions)], eval_benchmark_samples=2, guard_logprobs=None, guard_logprobs_stop=None,
    )  # fmt: skip
    trainer = VOPDTrainer(
        model=str(embedded_pair().student), teachers={"local": str(embedded_pair().teacher), "served": url},
        args=settings, train_dataset=prompts, eval_dataset=prompts, reward_funcs=length_reward,
    )  # fmt: skip
    generate = trainer._generate_single_turn

    def reporting(*given: Any, **named: Any) -> list[list[int]]:
        found = generate(*given, **named)
        trainer._rollout_logprobs = [[-1.0] * len(ids) for ids in found]
        return found

    trainer._generate_single_turn = reporting
    trainer.train()


def logged_names(folder: Path) -> set[str]:
    return {name for line in (folder / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}


def described(name: str) -> Metric | None:
    """The one entry for a logged name; an evaluation's name is that of a training step with a prefix."""
    entries = [metric for group in METRICS.values() for metric in group]
    found = [metric for metric in entries if metric.covers(name) and "METRIC" not in metric.name]
    assert len(found) <= 1, f"{name} is described {len(found)} times"
    return found[0] if found else described(name.removeprefix("eval_")) if name.startswith("eval_") else None


def test_every_metric_is_described_and_nothing_else(serve: Callable[..., Any], tmp_path: Path) -> None:
    questions = tmp_path / "sums.jsonl"
    questions.write_text('{"problem": "What is 3 + 3?", "answer": "6"}\n')
    run = tmp_path / "run"
    a_run_with_everything(run, serve().url, questions)

    names = logged_names(run)
    # Of several teachers each count bears a name.
    plain = {re.sub("^(teacher/[a-z_]+)/served$", r"\1", name) for name in names}
    assert {name for name in plain if described(name) is None} == set()
    known = {metric for group in METRICS.values() for metric in group}
    forms = {metric for metric in known if {"METRIC", "COUNT"} & set(re.findall("[A-Z]+", metric.name))}
    of_tools = {
        metric for metric in known if metric.name.startswith("tools/")
    }  # those are in training/test_evaluate.py
    assert known - {described(name) for name in plain} - forms - of_tools == set()
    assert any(name.startswith("eval_rewards/") for name in names) and "teacher/requests/served" in names

    page = (ROOT / "docs" / "reference" / "run-folder.md").read_text()
    for sample in map(json.loads, (run / "samples.jsonl").read_text().splitlines()):
        assert {f"`{field}`" for field in sample} <= set(re.findall(r"^\| (`\w+`)", page, re.MULTILINE))
