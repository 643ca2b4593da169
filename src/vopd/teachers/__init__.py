"""What teachers give, and the teacher behind a server."""

from .base import EVERYTHING, Gift, Rollouts, Scored, States, Teacher
from .client import Patience, Refused, Servers, checked_urls
from .preflight import Watch, gifts
from .routed import RoutedTeacher
from .scores import TopKScores
from .server import ServerTeacher
from .vocabulary import check_vocabulary

__all__ = [
    "EVERYTHING",
    "Gift",
    "Patience",
    "Refused",
    "Rollouts",
    "RoutedTeacher",
    "Scored",
    "ServerTeacher",
    "Servers",
    "States",
    "Teacher",
    "TopKScores",
    "Watch",
    "check_vocabulary",
    "checked_urls",
    "gifts",
]
