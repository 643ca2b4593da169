"""What teachers give."""

from .scores import TopKScores

__all__ = ["TopKScores"]
