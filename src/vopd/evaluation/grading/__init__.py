"""Grading of completions against reference answers: mathematics and multiple choice.

A package that could stand alone: of vopd it knows the errors. Nothing here loads torch, since its worker processes
start often.
"""

from .grader import KINDS, Grade, compare_many, grade, grade_many, ungradable

__all__ = ["KINDS", "Grade", "compare_many", "grade", "grade_many", "ungradable"]
