"""A teacher on a server: the client, vLLM's request and response format, the preflight checks, the teacher itself."""

from .client import Patience, ServedModel, Servers
from .preflight import Findings, inspect_servers
from .teacher import ServerTeacher

__all__ = ["Findings", "Patience", "ServedModel", "ServerTeacher", "Servers", "inspect_servers"]
