"""A teacher on a server: the client, what is asked of each engine, the preflight checks, the teacher itself."""

from .client import Patience, Servers
from .served import ServedModel
from .teacher import ServerTeacher

__all__ = ["Patience", "ServedModel", "ServerTeacher", "Servers"]
