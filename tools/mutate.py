"""Puts every bug of tools/mutations.toml into a copy of the sources and demands that its test catches it.

    python tools/mutate.py                 all of them
    python tools/mutate.py --only TEXT     those in whose entry TEXT stands
    python tools/mutate.py --new           those that docs/bug-catalogue.md does not have as caught

Results go into docs/bug-catalogue.md, each with its day and commit; the rest of the page stays as it was measured.

Each mutation is a small exact replacement in one file. The named tests pass on the untouched copy; on the mutated copy
the one test of the mutation has to fail, by an assertion or by the error that the entry names: a mutant that cannot be
imported proves nothing. One test run at a time, each in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CATALOGUE = ROOT / "tools" / "mutations.toml"
PAGE = ROOT / "docs" / "bug-catalogue.md"
COPIED = ("src", "tests", "configs", "docs", "pyproject.toml", "README.md", "Makefile", "constraints.txt")
# What pytest calls a failed assertion: by its name, rewritten, or pytest.raises without the error.
ASSERTION = re.compile(r"(AssertionError|assert |Failed: DID NOT RAISE)")
TIMEOUT = 300
# Imported once by a server from which every run of pytest is forked: importing them takes longer than most tests.
PRELOADED = ("pytest", "torch", "peft", "datasets", "transformers.trainer", "trl.trainer.distillation_trainer")
# Before any of them is imported, as tests/conftest.py does.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Mutation:
    """A bug as text: `old`, which is in `file` once, becomes `new`, and `test` fails.

    Attributes:
        what: what is broken, for the table.
        raises: name of the error with which the test may fail besides a failed assertion.
    """

    what: str
    file: str
    old: str
    new: str
    test: str
    raises: str | None = None


@dataclass(frozen=True)
class Bug:
    """A bug that distillation code shipped, with its public numbers; without mutations `absent` says why."""

    title: str
    references: list[str] = field(default_factory=list)
    mutations: list[Mutation] = field(default_factory=list)
    absent: str = ""


@dataclass(frozen=True)
class Input:
    """Bad input: what comes of it, and the tests that say so."""

    title: str
    outcome: str
    tests: list[str]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation."""

    caught: bool
    reason: str
    seconds: float


@dataclass(frozen=True)
class Measured:
    """A result as the page holds it: whether the mutation was caught, on which day and at which commit."""

    caught: bool
    when: str


def catalogue() -> tuple[list[Bug], list[Input]]:
    """The bugs and the bad inputs of tools/mutations.toml."""
    found: dict[str, Any] = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    bugs = [
        Bug(**{**entry, "mutations": [Mutation(**one) for one in entry.get("mutations", [])]}) for entry in found["bug"]
    ]
    return bugs, [Input(**entry) for entry in found["input"]]


def problem(mutation: Mutation, root: Path = ROOT) -> str | None:
    """Why the replacement does not apply; None where it does."""
    path = root / mutation.file
    if not path.is_file():
        return f"there is no file {mutation.file}"
    count = path.read_text(encoding="utf-8").count(mutation.old)
    if count != 1:
        return f"{mutation.file} has the text to replace {count} times, not once:\n{mutation.old}"
    return "the replacement changes nothing" if mutation.old == mutation.new else None


@contextmanager
def copy_of_the_sources() -> Iterator[Path]:
    """A temporary folder with everything that the tests read."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in COPIED:
            source, target = ROOT / name, Path(folder, name)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        yield Path(folder)


@contextmanager
def mutated(root: Path, mutation: Mutation) -> Iterator[None]:
    """The copy with the bug in it; as it was afterwards."""
    path = root / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, dict[str, str]]:
    """Number of tests that ran in the copy, and the message of each one that did not pass."""
    report = root / "report.xml"
    report.unlink(missing_ok=True)
    process = SERVER.Process(target=in_child, args=(root, [f"--junitxml={report}", *tests]))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
        return 0, {"pytest": f"no answer in {TIMEOUT} s"}
    if not report.is_file():
        return 0, {"pytest": (root / "output.txt").read_text(encoding="utf-8", errors="replace")[-2000:]}
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {}
    for case in cases:
        for kind in ("failure", "error", "skipped"):
            for found in case.iter(kind):
                message = found.get("message", "").strip()
                failed[f"{case.get('name')}"] = message if kind == "failure" else f"{kind}: {message}"
    return len(cases), failed


def in_child(root: Path, arguments: list[str]) -> None:
    """Run pytest on the copy, in a process of its own that has imported nothing of the package."""
    import pytest

    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root / "src")  # for tests that start processes
    sys.path.insert(0, str(root / "src"))
    # A mutant of the same size and second as the file before it would be taken for it.
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    with open(root / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        # The server has imported plugins whose assertions nobody needs to see rewritten.
        pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments])


def judge(mutation: Mutation, ran: int, failed: dict[str, str]) -> tuple[bool, str]:
    """Whether the test caught the bug, and how; an error of another kind is not a catch."""
    if not ran:
        return False, f"no test ran: {failed}"
    if not failed:
        return False, "the test passes with the bug in"
    named = re.compile(rf"(\w+\.)*{mutation.raises}\b") if mutation.raises else None
    for message in failed.values():
        if ASSERTION.match(message) or (named and named.match(message)):
            return True, message.splitlines()[0][:120]
    return False, f"failed for another reason: {next(iter(failed.values()))[:500]}"


def try_mutation(root: Path, mutation: Mutation) -> Outcome:
    """Put the bug in, run its test, take the bug out."""
    started = time.perf_counter()
    with mutated(root, mutation):
        caught, reason = judge(mutation, *run_tests(root, [mutation.test]))
    return Outcome(caught, reason, time.perf_counter() - started)


def version() -> str:
    """The commit that is measured."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    changed = [line for line in git("status", "--porcelain").splitlines() if not line.endswith("bug-catalogue.md")]
    return git("rev-parse", "--short=10", "HEAD") + (" with uncommitted changes" if changed else "")


HEAD = """\
# Bug catalogue

<!-- Written by tools/mutate.py from tools/mutations.toml; changes belong there. -->

Distillation bugs are silent: a shifted label or a wrong mask trains on garbage for days. These are bugs that public
distillation and post-training code shipped, each with where it was found. For each one, the bug is put into this
package's own source, and the test named beside it has to fail. `make mutants` does that again; a test of the default
suite holds every replacement and every test name to the sources as they are.

## Bugs that are caught

| bug | found in | put in as | test | caught | measured |
|---|---|---|---|---|---|
"""


def page(bugs: list[Bug], inputs: list[Input], results: dict[tuple[str, str], Measured]) -> str:
    """docs/bug-catalogue.md; `results` by ``key``."""
    lines = []
    for bug in bugs:
        for n, mutation in enumerate(bug.mutations):
            title, found = (bug.title, ", ".join(bug.references)) if n == 0 else ("", "")
            result = results.get(key(mutation), Measured(False, "not measured"))
            caught = "yes" if result.caught else "**no**"
            lines.append(f"| {title} | {found} | {mutation.what} | {key(mutation)[1]} | {caught} | {result.when} |")
    lines += ["", "## Bugs that have no place here", "", "| bug | found in | why |", "|---|---|---|"]
    for bug in bugs:
        if bug.absent:
            lines.append(f"| {bug.title} | {', '.join(bug.references)} | {' '.join(bug.absent.split())} |")
    lines += ["", "## Bad input", "", "Each is a clear error, or a correct result with nothing lost.", ""]
    lines += ["| input | what comes of it | tests |", "|---|---|---|"]
    lines += [f"| {one.title} | {one.outcome} | {'<br>'.join(map(shown, one.tests))} |" for one in inputs]
    return HEAD + "\n".join(lines) + "\n"


def results_of(text: str) -> dict[tuple[str, str], Measured]:
    """The results in a page that ``page`` wrote."""
    row = re.compile(r"^\|[^|]*\|[^|]*\| ([^|]+) \| (`[^|]+`) \| (yes|\*\*no\*\*) \| ([^|]+) \|$", re.MULTILINE)
    return {(what, test): Measured(caught == "yes", when) for what, test, caught, when in row.findall(text)}


def key(mutation: Mutation) -> tuple[str, str]:
    """What tells a mutation from the others on the page."""
    return mutation.what, shown(mutation.test)


def shown(test: str) -> str:
    """A test id as code, its file short."""
    return "`" + test.removeprefix("tests/") + "`"


def main() -> int:
    """Run the mutations; 0 where all are caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run those in whose entry this text stands")
    parser.add_argument("--new", action="store_true", help="run those that the page does not have as caught")
    given = parser.parse_args()
    bugs, inputs = catalogue()
    results = results_of(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() else {}
    done = {name for name, result in results.items() if result.caught} if given.new else set()
    chosen = [
        mutation
        for bug in bugs
        for mutation in bug.mutations
        if given.only in f"{bug.title} {mutation}" and key(mutation) not in done
    ]
    stale = [found for mutation in chosen if (found := problem(mutation))]
    if stale:
        print("\n".join(["replacements that no longer apply:", *stale]), file=sys.stderr)
        return 1
    when = f"{datetime.date.today().isoformat()} {version()}"
    missed = 0
    for mutation, outcome in outcomes_of(chosen):
        told = "caught" if outcome.caught else "MISSED"
        print(f"{told:7}{outcome.seconds:6.1f} s  {mutation.what}\n{'':17}{outcome.reason}", flush=True)
        missed += not outcome.caught
        results[key(mutation)] = Measured(outcome.caught, when)
        PAGE.write_text(page(bugs, inputs, results), encoding="utf-8")
    return 1 if missed or not chosen else 0


def outcomes_of(chosen: list[Mutation]) -> Iterator[tuple[Mutation, Outcome]]:
    """Try each mutation on one copy of the sources, once all of their tests have passed without any."""
    os.environ |= QUIET
    SERVER.set_forkserver_preload(list(PRELOADED))
    with copy_of_the_sources() as root:
        tests = list(dict.fromkeys(mutation.test for mutation in chosen))
        ran, failed = run_tests(root, tests)
        if failed or ran < len(tests):
            raise SystemExit(f"without any bug {ran} tests ran and these failed: {failed}")
        print(f"{ran} tests pass without a bug", flush=True)
        for mutation in chosen:
            yield mutation, try_mutation(root, mutation)


if __name__ == "__main__":
    sys.exit(main())
