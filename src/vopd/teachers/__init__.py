"""What scores the student's completions: models in this process, servers, and the student itself."""

from vopd.estimators.teacher_scores import EVERY_KIND, ScoreKind, TopKScores

from .base import Rollouts, Scored, States, Teacher
from .routed import RoutedTeacher

__all__ = ["EVERY_KIND", "Rollouts", "RoutedTeacher", "ScoreKind", "Scored", "States", "Teacher", "TopKScores"]
