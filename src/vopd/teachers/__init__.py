"""Teachers score the student's completions: local models, models on servers, or the student itself."""

from vopd.estimators.teacher_scores import EVERY_KIND, ScoreKind, TopKScores

from .base import Rollouts, Scored, States, Teacher
from .routed import RoutedTeacher

__all__ = ["EVERY_KIND", "Rollouts", "RoutedTeacher", "ScoreKind", "Scored", "States", "Teacher", "TopKScores"]
