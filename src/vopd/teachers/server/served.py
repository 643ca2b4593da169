"""A model on teacher servers, with the questions that can be put to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .client import Servers
from .engines import Engine
from .questions import Answer, Continuation, Question, StatesQuestion


@dataclass(frozen=True)
class ServedModel:
    """A model on one or several servers.

    Attributes:
        servers: the servers.
        engine: what they run.
        name: its name there.
        vocab_size: size of the vocabulary; larger ids are padding rows of the output head.
    """

    servers: Servers
    engine: Engine
    name: str
    vocab_size: int | None = None

    def score(self, question: Question, url: str | None = None, retries: int | None = None) -> Answer:
        """The scores of one completion; arguments and errors as those of ``Servers.ask``."""
        reads = partial(self.engine.read_scores, question, self.name, vocab_size=self.vocab_size)
        return self.servers.ask(self.engine.scores(question, self.name), reads, url, retries)

    def states(self, question: StatesQuestion, url: str | None = None, retries: int | None = None) -> Tensor:
        """The states that predict the tokens of one completion, (T, width); errors as those of ``Servers.ask``."""
        reads = partial(self.engine.read_states, question, self.name)
        return self.servers.ask(self.engine.states(question, self.name), reads, url, retries)

    def continuation(self, prompt: Sequence[int], tokens: int, url: str) -> Continuation:
        """What a server writes after a prompt; errors as those of ``Servers.ask``."""
        request = self.engine.continuation(prompt, tokens, self.name)
        return self.servers.ask(request, self.engine.read_continuation, url, retries=1)  # another server stays one

    def decoded(self, ids: Sequence[int], url: str) -> str:
        """The text of ids, by one server."""
        return self.servers.ask(self.engine.decoding(ids, self.name), self.engine.read_decoding, url)

    def encoded(self, text: str, url: str) -> list[int]:
        """The ids of a text, by one server."""
        return self.servers.ask(self.engine.encoding(text, self.name), self.engine.read_encoding, url)
