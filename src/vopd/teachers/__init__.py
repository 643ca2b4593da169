"""What teachers give."""

from .base import EVERYTHING, Gift, Rollouts, Scored, States, Teacher
from .scores import TopKScores

__all__ = ["EVERYTHING", "Gift", "Rollouts", "Scored", "States", "Teacher", "TopKScores"]
