"""A teacher behind a server: the client, vLLM's wire format, what is checked first, the teacher itself."""

from .client import Patience, ServedModel, Servers
from .preflight import Findings, inspect_servers
from .teacher import ServerTeacher

__all__ = ["Findings", "Patience", "ServedModel", "ServerTeacher", "Servers", "inspect_servers"]
