"""Agreement of the grader with math-verify's own literal test pairs, read from a checkout of its repository.

    python tests/evaluation/math_verify_pairs.py CHECKOUT

The pairs are read with `ast`: nothing of the checkout is imported, run or copied. A pair counts where both
sides are one answer each: an expression, bare or between delimiters, a text with a single formula or a single
box. Both go into a box and are graded. The others are tests of math-verify's extraction from running prose
and of its merging of several boxes, which the protocol (the last box) leaves out on purpose, or set options
that this grader does not have; they are counted by reason. Every disagreement of a pair that counts must have
its reason in `REASONS`.

Exit status: 0 where at least 99 % agree and every exception has a reason, else 1.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vopd.evaluation import Grade, grade_many
from vopd.evaluation.grading.extract import last_box

GOAL = 0.99
REASONS = {
    (
        r"1 - \frac{1}{\mathrm{e}}",
        r"1 + \frac{1}{\mathrm{e}}",
    ): "1 - 1/e is not 1 + 1/e: the expectation is wrong",
}
DEFAULTS = {"precision": 6, "strict": True, "allow_set_relation_comp": None}
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$((?:\\\$|[^$])+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+(?:[A-Za-z]+|\$|\\\(|\\\[)|\n|<")


class Pair(NamedTuple):
    """One literal pair of math-verify's tests and the outcome that they expect."""

    where: str
    gold: str
    answer: str
    expected: bool
    options: dict[str, Any]


def read_pairs(checkout: Path) -> Iterator[Pair]:
    """The rows of every parametrized test that has a gold and a pred column of literals."""
    for path in sorted((checkout / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for decorator in node.decorator_list:
                    yield from _rows(f"{path.stem}::{node.name}", decorator)


def _rows(where: str, decorator: ast.expr) -> Iterator[Pair]:
    if not (isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("parametrize")):
        return
    names = [name.strip() for name in ast.literal_eval(decorator.args[0]).split(",")]
    if not {"gold", "pred"} <= set(names) or not isinstance(decorator.args[1], ast.List):
        return
    for index, row in enumerate(decorator.args[1].elts):
        try:
            values = dict(zip(names, ast.literal_eval(row)))
        except ValueError:
            continue  # computed, not literal
        expected = bool(values.get("expected", values.get("result")))
        options = {name: values[name] for name in DEFAULTS if name in values}
        yield Pair(f"{where}[{index}]", values["gold"], values["pred"], expected, options)


def single_answer(text: str) -> str | None:
    """A side that is one answer, without its last stop; None where it is prose, or has several boxes."""
    text = text.strip().removesuffix(".").strip()
    if _BOX.search(text):
        single = len(_BOX.findall(text)) == 1 and last_box(text) is not None
        return text if single else None
    formulas = [next(part for part in match.groups() if part) for match in _FORMULA.finditer(text)]
    if len(formulas) == 1 and "\n" not in formulas[0]:
        return text
    return None if formulas or _PROSE.search(text) or "$" in text else text.strip()


def left_out(pair: Pair) -> str | None:
    """Why a pair does not count, or None."""
    if any(value != DEFAULTS[name] for name, value in pair.options.items()):
        return "sets an option of math-verify (precision, strictness, direction of set relations)"
    for side in (pair.gold, pair.answer):
        if single_answer(side) is None:
            return "several boxes, or a broken one" if _BOX.search(side) else "extraction from prose"
    return None


def in_a_box(text: str) -> str:
    """A side as the box that a model would write."""
    answer = single_answer(text) or text
    return answer if _BOX.search(answer) else f"\\boxed{{{answer}}}"


def report(pairs: list[Pair], grades: list[Grade]) -> tuple[float, int]:
    """Print every exception; return the agreement and how many exceptions have no reason."""
    exceptions = [(p, g) for p, g in zip(pairs, grades) if (g.outcome == "right") != p.expected]
    unexplained = 0
    for pair, grade in exceptions:
        reason = REASONS.get((pair.gold.strip("$"), pair.answer.strip("$")))
        unexplained += reason is None
        wanted = "right" if pair.expected else "wrong"
        print(f"{pair.where}: expected {wanted}, graded {grade.outcome}\n  gold   {pair.gold[:200]!r}")
        print(f"  answer {pair.answer[:200]!r}\n  reason {reason or 'NONE GIVEN'}")
    return 1 - len(exceptions) / len(pairs), unexplained


def main(arguments: list[str]) -> int:
    """Read, grade, report."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "tests").is_dir():
        print("usage: math_verify_pairs.py CHECKOUT, a checkout of huggingface/Math-Verify", file=sys.stderr)
        return 2
    every = list(read_pairs(Path(arguments[0])))
    skipped = Counter(reason for pair in every if (reason := left_out(pair)))
    if not every:
        print("no literal pairs found: is this a checkout of huggingface/Math-Verify?", file=sys.stderr)
        return 2
    grades = grade_many([(in_a_box(pair.answer), in_a_box(pair.gold)) for pair in every])
    counted = [index for index, pair in enumerate(every) if left_out(pair) is None]
    pairs = [every[index] for index in counted]
    agreement, unexplained = report(pairs, [grades[index] for index in counted])
    agreeing = sum((grade.outcome == "right") == pair.expected for pair, grade in zip(every, grades))
    print(f"{len(every)} literal pairs, agreement {100 * agreeing / len(every):.2f} % with those left out:")
    for reason, count in skipped.most_common():
        print(f"  {count:3d}  {reason}")
    print(f"{len(pairs)} pairs of answers, agreement {100 * agreement:.2f} %, goal {100 * GOAL:.0f} %")
    return 0 if agreement >= GOAL and not unexplained else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
