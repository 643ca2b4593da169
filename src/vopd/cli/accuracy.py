"""The accuracy of a run's start model and of its trained model, through the very code of `vopd eval`."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vopd.cli.eval import EvalOptions, Problems, evaluate, find_problems

logger = logging.getLogger(__name__)

Records = Sequence[dict[str, Any]]


class Accuracy:
    """Greedy accuracy before and after a run, on problems that are looked up before anything is trained.

    Args:
        before, after: what `vopd eval` would be told for the start model and for the trained one.
        folder: of the run; gets results.json, and evaluation/start and evaluation/trained with every completion.
    """

    def __init__(self, before: EvalOptions, after: EvalOptions, folder: Path) -> None:
        self._options = {"start": before, "trained": after}
        self._folder = folder
        self._problems: Problems = find_problems(before)
        self._results: dict[str, dict[str, Any]] = {}
        self._records: dict[str, Records] = {}

    def measure(self, which: str, prompts: Iterable[str] = ()) -> None:
        """Sample and grade the "start" or the "trained" model, print its accuracy, and write what is known so far.

        `prompts` are the training prompts: problems that are among them are counted in a warning.
        """
        if which in self._results:
            return
        options = self._options[which]
        found, records = evaluate(options, self._problems, self._folder / "evaluation" / which)
        self._results[which], self._records[which] = found, records
        shared = len({record["prompt"] for record in records} & set(prompts))
        if shared:
            logger.warning("%d of the problems that accuracy is measured on are also training prompts", shared)
        _write(self._folder / "results.json", self.results())
        print(f"accuracy of the {which} model on {self._problems.name}: {_percent(found)}")

    def results(self) -> dict[str, Any]:
        """Return what results.json holds: both scores, their paired difference, and the commands that repeat them."""
        found: dict[str, Any] = {"problems": self._problems.name, **self._results}
        if len(self._records) == len(self._options):
            found["difference"] = dataclasses.asdict(self._difference())
        found["repeat"] = {name: command(self._options[name]) for name in self._results}
        return found

    def summary(self) -> str:
        """Return the lines that end a run: the difference, and how to get the trained model's number again."""
        return f"trained - start: {self._difference()}\nto repeat: {command(self._options['trained'])}"

    def _difference(self) -> Any:
        from vopd.statistics import paired_difference

        after, before = self._records["trained"], self._records["start"]
        # Which gold answers can be read is the same for both: the same problems are left out of each.
        graded = [
            (a, b) for a, b in zip(after, before, strict=True) if "ungradable" not in (a["outcome"], b["outcome"])
        ]
        return paired_difference(*([record["outcome"] == "right" for record in one] for one in zip(*graded)))


def command(options: EvalOptions) -> str:
    """Return the `vopd eval` command that these options are: every setting that is not the default."""
    words = ["vopd", "eval"]
    for entry in dataclasses.fields(options):
        value = getattr(options, entry.name)
        # The number of samples follows from the temperature.
        if value == entry.default or (entry.name == "samples" and options.temperature == 0):
            continue
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        words += [f"--{entry.name}", shlex.quote(text)]
    return " ".join(words)


def _percent(results: dict[str, Any]) -> str:
    from vopd.statistics import Score

    cut = f", {results['truncated']:.0%} cut at the length limit" if results["truncated"] else ""
    return f"{Score(**results['avg_at_k'])} ({results['problems']} problems, greedy{cut})"


def _write(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="ascii")
