"""Measure the grader: 10,000 easy answers, then the same with one adversarial answer among them.

    python tests/evaluation/grading_speed.py

Easy answers are what models write on MATH-500: two thirds plain numbers and fractions, the rest roots,
polynomials, multiples of pi, tuples, intervals and words, each problem with eight samples of which two are
wrong.
"""

from __future__ import annotations

import time

from vopd.evaluation import Grade, grade_many
from vopd.evaluation.grading.pool import shared_pool

PROBLEMS, SAMPLES, LIMIT_S = 1250, 8, 5
ADVERSARIAL = (r"\boxed{9^{9^{9^{9}}}}", "1")
# Gold, three spellings of it, and a wrong answer.
FORMS = [
    ("{n}", "{n}", "{n}.0", r"\text{{{n}}}", "{m}"),
    ("{n}", "x={n}", "{n}", "+{n}", "-{n}"),
    (r"\frac{{{n}}}{{7}}", "{n}/7", r"\dfrac{{{n}}}{{7}}", r"\frac{{{n2}}}{{14}}", r"\frac{{7}}{{{n}}}"),
    ("{n}.5", r"\frac{{{k}}}{{2}}", "{n}.50", r"{n}\frac{{1}}{{2}}", "{n}.6"),
    (r"{n}\%", "{n}", "{n} percent", r"{n}\%", r"{m}\%"),
    ("({n}, -{n})", r"\left({n},-{n}\right)", "({n}, -{n})", "x={n}, y=-{n}", r"\{{{n}, -{n}\}}"),
    (r"{n}\sqrt{{3}}", r"{n} \sqrt 3", r"\sqrt{{3}} \cdot {n}", r"\frac{{{n3}}}{{\sqrt{{3}}}}", r"{n}\sqrt{{2}}"),
    (r"\frac{{{n}\pi}}{{4}}", r"{n}\pi/4", r"\frac{{{n}}}{{4}}\pi", r"\pi \cdot {n}/4", r"\frac{{{m}\pi}}{{4}}"),
    ("x^2+{n}", "{n}+x^2", "x^{{2}} + {n}", "{n}+x*x", "x^2-{n}"),
    (r"\text{{row {n}}}", "row {n}", r"\text{{Row {n}}}", r"\textbf{{row {n}}}", r"\text{{row {m}}}"),
]  # fmt: skip


def easy_answers(first: int) -> list[tuple[str, str]]:
    """10,000 pairs of completion and gold; the numbers, from `first` on, differ from problem to problem."""
    pairs = []
    for problem in range(PROBLEMS):
        gold, *spellings, wrong = FORMS[problem % len(FORMS)]
        n = problem + first
        numbers = {"n": n, "m": n + 1, "n2": 2 * n, "n3": 3 * n, "k": 2 * n + 1}
        answers = [*spellings, *spellings, wrong, wrong][:SAMPLES]
        for answer in answers:
            text = f"Some reasoning first. The answer is $\\boxed{{{answer.format(**numbers)}}}$."
            pairs.append((text, gold.format(**numbers)))
    return pairs


def timed(name: str, pairs: list[tuple[str, str]]) -> tuple[float, list[Grade]]:
    """Grade and print how long it took and what came out."""
    start = time.monotonic()
    grades = grade_many(pairs, limit_s=LIMIT_S)
    elapsed = time.monotonic() - start
    right = sum(found.outcome == "right" for found in grades)
    late = sum(found.note == "timed out" for found in grades)
    print(f"{name}: {len(pairs)} answers in {elapsed:.1f} s, {right} right, {late} timed out")
    return elapsed, grades


def main() -> None:
    """Measure and print."""
    print(f"{shared_pool().size} workers")
    pairs = easy_answers(2)
    easy, grades = timed("easy", pairs)
    misjudged = sum((found.outcome == "right") != (index % SAMPLES < 6) for index, found in enumerate(grades))
    print(f"misjudged: {misjudged}")
    # Other numbers, so that nothing is remembered.
    again = easy_answers(2 + PROBLEMS)
    half = len(again) // 2
    mixed, _ = timed("with one adversarial", [*again[:half], ADVERSARIAL, *again[half:]])
    print(f"the adversarial answer cost {mixed - easy:+.1f} s; its limit is {LIMIT_S} s")


if __name__ == "__main__":
    main()
