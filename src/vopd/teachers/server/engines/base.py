"""What differs between the engines that serve a teacher: their endpoints, and the form of their responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from ..questions import Answer, Continuation, Question, Request, StatesQuestion

# Statuses that mean: not let through by a gateway, no such endpoint, not allowed there, not implemented.
ABSENT = frozenset({403, 404, 405, 501})


class Engine(ABC):
    """One kind of server. Every method is a pure function.

    A ``read`` method gets the parsed JSON, or a ``Binary`` if its request has room for one. It raises BadAnswer if the
    response does not answer the request: it comes from another model, is about other ids, or has numbers that are
    missing, not finite, or above 0 where they are log-probabilities. AttributeError, KeyError, TypeError, IndexError or
    ValueError mean that it has another form. ``model`` is the teacher's name on the server.
    """

    name: ClassVar[str]
    start_states: ClassVar[str]
    """The command that starts a server of hidden states."""
    serves_adapters: ClassVar[bool]
    """Whether the model's name in a request chooses an adapter on the model."""
    states_with_scores: ClassVar[bool]
    """Whether a server of hidden states gives scores as well, with which they can be compared."""
    spare_of_scores: ClassVar[int]
    spare_of_states: ClassVar[int]
    """How many tokens shorter than the reported limit a sequence must be for its scores, or its states."""

    @abstractmethod
    def lacks_states(self, status: int, message: str) -> bool:
        """Whether a refused request of states means that the server gives none to anybody; the message names its
        reason."""

    @abstractmethod
    def scores(self, question: Question, model: str) -> Request:
        """Asks for log-probabilities of one completion's tokens."""

    @abstractmethod
    def read_scores(self, question: Question, model: str, body: Any, vocab_size: int | None) -> Answer:
        """The scores; ids from `vocab_size` on, padding rows of the head, are removed from the support."""

    @abstractmethod
    def states(self, question: StatesQuestion, model: str) -> Request:
        """Asks for the last hidden states of one completion."""

    @abstractmethod
    def read_states(self, question: StatesQuestion, model: str, body: Any) -> Tensor:
        """The states that predict the completion's tokens, (T, width), in the question's dtype: from the last token of
        the prompt to the last but one of the completion, after the final norm and before the output head."""

    @abstractmethod
    def continuation(self, prompt: Sequence[int], tokens: int, model: str) -> Request:
        """Asks for the most likely continuation of a prompt, of at most so many tokens."""

    @abstractmethod
    def read_continuation(self, body: Any) -> Continuation:
        """The continuation."""

    @abstractmethod
    def decoding(self, ids: Sequence[int], model: str) -> Request:
        """Asks for the text of ids."""

    @abstractmethod
    def read_decoding(self, body: Any) -> str:
        """The text."""

    def encoding(self, text: str, model: str) -> Request:
        """Asks for the ids of a text, without special tokens around it; of all engines alike."""
        return Request("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})

    def read_encoding(self, body: Any) -> list[int]:
        """The ids."""
        return list(body["tokens"])
