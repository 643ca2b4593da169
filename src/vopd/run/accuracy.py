"""Accuracy of the model before and after training, measured by the same code as `vopd eval`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vopd.errors import counted
from vopd.evaluation.benchmarks import warn_of_overlaps
from vopd.evaluation.journal import OtherEvaluation

from .evaluation import EvalOptions, Loaded, command, evaluate, find_problems


class Accuracy:
    """Greedy accuracy before and after training, on problems that are loaded before training starts.

    Args:
        before, after: the options of `vopd eval` for the start model and for the trained model.
        folder: the run's folder; results.json is written there, and every completion to evaluation/start and
            evaluation/trained.
    """

    def __init__(self, before: EvalOptions, after: EvalOptions, folder: Path) -> None:
        self._options = {"start": before, "trained": after}
        self._folder = folder
        (self._benchmark,) = find_problems(before)
        self.problems = len(self._benchmark.questions)
        self.name = self._benchmark.short_name
        self._found: dict[str, dict[str, Any]] = {}

    def measure(self, which: str, prompts: Sequence[str] = (), loaded: Loaded | None = None) -> None:
        """Sample and grade the "start" or the "trained" model, print its accuracy, and write the results so far.

        `prompts` are the training prompts: a warning counts the problems that occur among them. `loaded` is the model,
        if it has been loaded already.
        """
        if which in self._found:
            return
        warn_of_overlaps([self._benchmark], prompts)
        folder = self._folder / "evaluation" / which
        if which != "start":
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was resumed: the weights have changed
        self._found[which] = self._evaluate(which, folder, loaded)
        text = json.dumps(self.results(), indent=2) + "\n"
        (self._folder / "results.json").write_text(text, encoding="ascii")
        print(f"accuracy of the {which} model on {self.name}: {self._score(which)}")

    def _evaluate(self, which: str, folder: Path, loaded: Loaded | None) -> dict[str, Any]:
        """The evaluation; what a resumed run has sampled before is graded again, not sampled."""
        try:
            return evaluate(self._options[which], [self._benchmark], folder, loaded)
        except OtherEvaluation:
            shutil.rmtree(folder)
            return evaluate(self._options[which], [self._benchmark], folder, loaded)

    def results(self) -> dict[str, Any]:
        """Return the content of results.json: both scores, their paired difference, and commands to repeat them."""
        found: dict[str, Any] = {"problems": self.name}
        for which, evaluation in self._found.items():
            found[which] = {**evaluation["results"][0], "settings": evaluation["benchmarks"][0]["protocol"]}
        if len(self._found) == len(self._options):
            found["difference"] = dataclasses.asdict(self._difference())
        found["repeat"] = {which: command(self._options[which]) for which in self._found}
        return found

    def table(self) -> list[str]:
        """Return the lines of the model card: both accuracies and their difference."""
        scores = [f"- {self.name}, {which} model: {self._score(which)}" for which in self._found]
        return [*scores, f"- trained - start: {self._difference()}"]

    def summary(self) -> str:
        """Return the last lines of the output: the difference, and the command that repeats the trained score."""
        return f"trained - start: {self._difference()}\nto repeat: {command(self._options['trained'])}"

    def _difference(self) -> Any:
        from vopd.evaluation import compare_results

        return compare_results(self._found["start"], self._found["trained"])[self._benchmark.name]

    def _score(self, which: str) -> str:
        from vopd.statistics import Score

        (entry,) = self._found[which]["results"]
        cut = f", {entry['truncation_rate']:.0%} cut off at the length limit" if entry["truncation_rate"] else ""
        return f"{Score(**entry['avg_at_k'])} ({counted(entry['problems'], 'problem')}, greedy{cut})"
