"""Puts every bug of tools/mutations.toml into a copy of the sources and checks that its test catches it.

    python tools/mutate.py                 all bugs
    python tools/mutate.py --only TEXT     the bugs whose entry contains TEXT
    python tools/mutate.py --new           the bugs that docs/contributing/bug-catalogue.md does not list as caught

Results are written to docs/contributing/bug-catalogue.md with date and commit; other results on the page are kept.
Before anything runs, the whole catalogue is compared with the sources, and every mismatch is listed.

Each mutation replaces a piece of one function, found by its tokens, so the function may be moved or reformatted, and
names outside the piece may change. The named tests pass on the unchanged copy. On the mutated copy, the test of the
mutation has to fail with an assertion or with the error that the entry names; a mutant that cannot be imported proves
nothing. One test runs at a time, each in a separate process.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import functools
import io
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tokenize
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CATALOGUE = ROOT / "tools" / "mutations.toml"
PAGE = ROOT / "docs" / "contributing" / "bug-catalogue.md"
# How pytest reports a failed assertion: by its name, rewritten, or pytest.raises without the error.
ASSERTION = "AssertionError|assert |Failed: DID NOT RAISE"
TIMEOUT = 300
# Imported once, by a server process from which every pytest run is forked: importing them takes longer than most tests.
PRELOADED = ("pytest", "torch", "peft", "datasets", "transformers.trainer", "trl.trainer.distillation_trainer")
# Set before any of them is imported, as in tests/conftest.py.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "JAXTYPING_DISABLE": "1",  # the test's assertion has to catch a mutant, not a check of shapes before it
}
DEFINITIONS = ast.FunctionDef | ast.ClassDef
SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Mutation:
    """A bug as code: `old`, whose tokens occur in `within` exactly once, is replaced by `new`, and `test` fails.

    Attributes:
        what: what is broken, for the table.
        within: `package.module:function`, `package.module:Class.method`, or a module with `old` at its top level.
        raises: name of an error with which the test may fail instead of an assertion.
    """

    what: str
    within: str
    old: str
    new: str
    test: str
    raises: str | None = None

    @property
    def file(self) -> str:
        """The file of `within`, below the root."""
        return "src/" + self.within.partition(":")[0].replace(".", "/") + ".py"


@dataclass(frozen=True)
class Bug:
    """A bug that distillation code shipped, with its public numbers; without mutations `absent` says why.

    Attributes:
        own: a bug that this package could have, without a public case.
    """

    title: str
    references: list[str] = field(default_factory=list)
    own: bool = False
    mutations: list[Mutation] = field(default_factory=list)
    absent: str = ""


@dataclass(frozen=True)
class Input:
    """Bad input, its outcome, and the tests that check it."""

    title: str
    outcome: str
    tests: list[str]


# By ``key`` of a mutation: CAUGHT or MISSED, and the date and commit of the measurement.
Results = dict[tuple[str, str], tuple[str, str]]
CAUGHT, MISSED = "yes", "**no**"


def content() -> dict[str, Any]:
    return tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))


def catalogue() -> tuple[list[Bug], list[Input]]:
    """The bugs and the bad inputs of tools/mutations.toml."""
    found = content()
    for entry in found["bug"]:
        entry["mutations"] = [Mutation(**one) for one in entry.get("mutations", [])]
    return [Bug(**entry) for entry in found["bug"]], [Input(**entry) for entry in found["input"]]


def mutations_of(bugs: list[Bug]) -> list[Mutation]:
    return [mutation for bug in bugs for mutation in bug.mutations]


def problems(bugs: list[Bug], inputs: list[Input], root: Path = ROOT) -> list[str]:
    """Every mismatch between the catalogue and the sources below `root`."""
    mutations = mutations_of(bugs)
    found = [f"{mutation.what}: {wrong}" for mutation in mutations if (wrong := problem(mutation, root))]
    if len({mutation.what for mutation in mutations}) < len(mutations):
        found.append("two mutations have the same `what`")
    for test in sorted({mutation.test for mutation in mutations} | {test for one in inputs for test in one.tests}):
        file, *_, name = test.partition("[")[0].split("::")
        if name not in functions(root / file):
            found.append(f"there is no test {test}")
    everywhere = {name for path in (root / "tests").rglob("test_*.py") for name in functions(path)}
    for bug in bugs:
        if bool(bug.references) == bug.own or bool(bug.mutations) == bool(bug.absent):
            found.append(f"{bug.title}: it needs references or `own`, and mutations or the reason why there are none")
        absent = set(re.findall(r"`(test_\w+)`", bug.absent)) - everywhere
        found += [f"{bug.title}: there is no test {name}" for name in sorted(absent)]
    return found


def problem(mutation: Mutation, root: Path = ROOT) -> str | None:
    """Why the replacement does not apply; None if it applies."""
    path = root / mutation.file
    if not path.is_file():
        return f"there is no file {mutation.file}"
    text = path.read_text(encoding="utf-8")
    try:
        changed = ast.dump(ast.parse(mutant(mutation, text))) != ast.dump(ast.parse(text))
    except SyntaxError as error:
        return f"{mutation.file} has a syntax error with it: {error}"
    except (LookupError, tokenize.TokenError) as error:
        return str(error.args[0])
    return None if changed else "the replacement changes nothing"


def mutant(mutation: Mutation, text: str) -> str:
    """The source `text` with the bug.

    Raises:
        LookupError: the place is not in `text`, or does not contain the tokens exactly once.
    """
    first, last = lines_of(mutation.within, text)
    here = [one for one in tokens(text) if first <= one.start[0] <= last]
    old = [one.string for one in tokens(mutation.old)]
    starts = [i for i in range(len(here)) if [one.string for one in here[i : i + len(old)]] == old]
    if len(starts) != 1:
        raise LookupError(f"{mutation.within} contains this {len(starts)} times, not once:\n{mutation.old}")
    begin, end = here[starts[0]].start, here[starts[0] + len(old) - 1].end
    lines = text.split("\n")
    before, after = lines[begin[0] - 1][: begin[1]], lines[end[0] - 1][end[1] :]
    new = mutation.new.strip().replace("\n", "\n" + " " * (len(before) - len(before.lstrip())))
    return "\n".join([*lines[: begin[0] - 1], before + new + after, *lines[end[0] :]])


def tokens(source: str) -> list[tokenize.TokenInfo]:
    """Tokens that formatters keep: no line breaks, indentation, comments, and commas before a closing bracket."""
    moved = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}
    read = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [one for one in read if one.type not in moved]
    following = [*(one.string for one in found[1:]), ""]
    return [one for one, after in zip(found, following) if one.string != "," or after not in list(")]}")]


def lines_of(within: str, text: str) -> tuple[int, int]:
    """First and last line of the function or class that `within` names; for a module, of the whole text."""
    node: ast.AST = ast.parse(text)
    for name in filter(None, within.partition(":")[2].split(".")):
        inner = [one for one in ast.walk(node) if isinstance(one, DEFINITIONS) and one.name == name]
        if len(inner) != 1:
            raise LookupError(f"there are {len(inner)} of {within}, not one")
        node = inner[0]
    return (node.lineno, node.end_lineno or 0) if isinstance(node, DEFINITIONS) else (1, text.count("\n") + 1)


@functools.cache
def functions(path: Path) -> set[str]:
    """Names of the functions in a file; none if there is no file."""
    tree = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@contextmanager
def copy_of_the_sources() -> Iterator[Path]:
    """A temporary folder with every file that git tracks or does not ignore."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
            if (ROOT / name).is_file():
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)
        yield Path(folder)


@contextmanager
def mutated(root: Path, mutation: Mutation) -> Iterator[None]:
    """Context in which the copy has the bug; it is restored afterwards."""
    path = root / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(mutant(mutation, text), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, dict[str, str]]:
    """Number of tests that ran in the copy, and the messages of those that did not pass."""
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
        for found in case:
            if found.tag in {"failure", "error", "skipped"}:
                kind = "" if found.tag == "failure" else f"{found.tag}: "
                failed[f"{case.get('name')}"] = kind + found.get("message", "").strip()
    return len(cases), failed


def in_child(root: Path, arguments: list[str]) -> None:
    """Run pytest on the copy, in a separate process that has not imported the package."""
    import pytest

    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root / "src")  # for tests that start processes
    sys.path.insert(0, str(root / "src"))
    # Bytecode of the original would be used for a mutant of the same size, written in the same second.
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    with open(root / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        # The server has imported plugins; their assertions need not be rewritten.
        pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments])


def judge(mutation: Mutation, ran: int, failed: dict[str, str]) -> tuple[bool, str]:
    """Whether the test caught the bug, and how; another error does not count."""
    if not ran:
        return False, f"no test ran: {failed}"
    if not failed:
        return False, "the test passes with the bug in"
    catch = ASSERTION + (rf"|(\w+\.)*{mutation.raises}\b" if mutation.raises else "")
    for message in failed.values():
        if re.match(catch, message):
            return True, message.splitlines()[0][:120]
    return False, f"failed for another reason: {next(iter(failed.values()))[:500]}"


def git(*arguments: str) -> str:
    """Output of a git command in this checkout."""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout


def version() -> str:
    """The commit under test."""
    changed = [line for line in git("status", "--porcelain").splitlines() if not line.endswith("bug-catalogue.md")]
    return git("rev-parse", "--short=10", "HEAD").strip() + (" with uncommitted changes" if changed else "")


def page(bugs: list[Bug], inputs: list[Input], results: Results) -> str:
    """docs/contributing/bug-catalogue.md; `results` by ``key``."""
    lines = []
    for bug in bugs:
        of_bug = f"| {bug.title} | {', '.join(bug.references) or 'our own'} |"
        for mutation in bug.mutations:
            caught, when = results.get(key(mutation), (MISSED, "not measured"))
            lines.append(f"{of_bug} {mutation.what} | {shown(mutation.test)} | {caught} | {when} |")
            of_bug = "|  |  |"
    lines += ["", "## Bugs that cannot occur here", "", "| bug | found in | why |", "|---|---|---|"]
    for bug in bugs:
        if bug.absent:
            lines.append(f"| {bug.title} | {', '.join(bug.references)} | {' '.join(bug.absent.split())} |")
    lines += ["", "## Bad input", "", "Each is a clear error, or a correct result with nothing lost.", ""]
    lines += ["| input | outcome | tests |", "|---|---|---|"]
    lines += [f"| {one.title} | {one.outcome} | {'<br>'.join(map(shown, one.tests))} |" for one in inputs]
    return str(content()["head"]) + "\n".join(lines) + "\n"


def results_of(text: str) -> Results:
    """The results in a page that ``page`` wrote."""
    row = re.compile(r"^\|[^|]*\|[^|]*\| ([^|]+) \| `[^:|]+::([^|]+)` \| (yes|\*\*no\*\*) \| ([^|]+) \|$", re.MULTILINE)
    return {(what, test): (caught, when) for what, test, caught, when in row.findall(text)}


def key(mutation: Mutation) -> tuple[str, str]:
    """Identifies a mutation on the page, even if its test moves to another file."""
    return mutation.what, mutation.test.partition("::")[2]


def shown(test: str) -> str:
    """A test id as code, with a short file name."""
    return "`" + test.removeprefix("tests/") + "`"


def main() -> int:
    """Run the mutations; return 0 if all are caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run the bugs whose entry contains this text")
    parser.add_argument("--new", action="store_true", help="run the bugs that the page does not list as caught")
    given = parser.parse_args()
    bugs, inputs = catalogue()
    if wrong := problems(bugs, inputs):
        print("\n".join(["the catalogue does not match the sources:", *wrong]), file=sys.stderr)
        return 1
    results = results_of(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() else {}
    caught = {name for name, (caught, _) in results.items() if caught == CAUGHT and given.new}
    named = mutations_of([bug for bug in bugs if given.only in bug.title])
    chosen = [one for one in mutations_of(bugs) if (one in named or given.only in str(one)) and key(one) not in caught]
    if not chosen and not given.new:
        parser.error(f"no entry contains '{given.only}'")
    when = f"{datetime.date.today().isoformat()} {version()}"
    for mutation, found in tried(chosen):
        results[key(mutation)] = (found, when)
        PAGE.write_text(page(bugs, inputs, results), encoding="utf-8")
    PAGE.write_text(page(bugs, inputs, results), encoding="utf-8")  # also if only words have changed
    left = [one.what for one in mutations_of(bugs) if results.get(key(one), (MISSED,))[0] == MISSED]
    if left:
        print("\n".join([f"not caught, or not measured yet, in {PAGE.name}:", *left]), file=sys.stderr)
    return int(bool(left))


def tried(mutations: list[Mutation]) -> Iterator[tuple[Mutation, str]]:
    """Each mutation with CAUGHT or MISSED, on a copy of the sources in which all tests pass without a mutation."""
    if not mutations:
        return
    os.environ |= QUIET
    SERVER.set_forkserver_preload(list(PRELOADED))
    with copy_of_the_sources() as root:
        tests = list(dict.fromkeys(mutation.test for mutation in mutations))
        ran, failed = run_tests(root, tests)
        if failed or ran < len(tests):
            raise SystemExit(f"without any bug {ran} tests ran and these failed: {failed}")
        print(f"{ran} tests pass without a bug", flush=True)
        for mutation in mutations:
            started = time.perf_counter()
            with mutated(root, mutation):
                caught, reason = judge(mutation, *run_tests(root, [mutation.test]))
            told, seconds = "caught" if caught else "MISSED", time.perf_counter() - started
            print(f"{told:7}{seconds:6.1f} s  {mutation.what}\n{'':17}{reason}", flush=True)
            yield mutation, CAUGHT if caught else MISSED


if __name__ == "__main__":
    sys.exit(main())
