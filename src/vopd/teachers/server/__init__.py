"""A teacher behind a server: the client, vLLM's wire format, what is checked first, the teacher itself."""

from .client import Patience, Refused, Servers, checked_urls
from .preflight import Watch, score_kinds
from .same_ids import check_vocabulary
from .teacher import ServerTeacher

__all__ = [
    "Patience",
    "Refused",
    "ServerTeacher",
    "Servers",
    "Watch",
    "check_vocabulary",
    "checked_urls",
    "score_kinds",
]
