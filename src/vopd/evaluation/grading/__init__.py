"""Grading of completions against reference answers: mathematics, multiple choice, text in answer tags.

This package could stand alone: from vopd it uses only the errors. Nothing here imports torch, because its worker
processes start often.
"""

from .grader import KINDS, Grade, compare_many, grade, grade_many, ungradable

__all__ = ["KINDS", "Grade", "compare_many", "grade", "grade_many", "ungradable"]
