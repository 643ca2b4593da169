"""What teachers give."""

from .base import EVERYTHING, Gift, Rollouts, Scored, States, Teacher
from .routed import RoutedTeacher
from .scores import TopKScores

__all__ = ["EVERYTHING", "Gift", "Rollouts", "RoutedTeacher", "Scored", "States", "Teacher", "TopKScores"]
