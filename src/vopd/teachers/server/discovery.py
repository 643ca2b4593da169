"""Finds out what the servers at some addresses are: the model, the engine, and whether they give hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vopd.errors import ConfigurationError

from .client import Listed, Servers
from .engines import ENGINES, VLLM, Engine
from .questions import Question, StatesQuestion
from .refusals import Rejected
from .served import ServedModel

# A length of 1, in bfloat16.
_UNIT = 0.01


@dataclass(frozen=True)
class Found:
    """One model on servers.

    Attributes:
        model: the model on its servers.
        length: longest sequence that all servers accept; None if none reports it.
        path: from where the first server has loaded it, or its name again; None if not reported.
    """

    model: ServedModel
    length: int | None
    path: str | None


def find_model(servers: Servers, wanted: str | None) -> Found:
    """The model that is called `wanted` on every server; None for the only one.

    Raises:
        TeacherServerError: a server does not respond.
        ConfigurationError: there is no such model, there are several, the servers differ, or it cannot be asked.
    """
    found = {url: _of_name(servers.models(url), wanted, url) for url in servers.urls}
    names, owners = ({getattr(listed, part) for listed in found.values()} for part in ("name", "owner"))
    if len(names) > 1:
        raise ConfigurationError(
            f"the servers have different names for the teacher ({', '.join(sorted(names))}); start them with the "
            "same --served-model-name"
        )
    if len(owners) > 1:
        raise ConfigurationError(f"the servers run different engines ({', '.join(sorted(owners))}); use one of them")
    first = next(iter(found.values()))
    engine = _engine_of(first)
    length = min((listed.length for listed in found.values() if listed.length is not None), default=None)
    return Found(ServedModel(servers, engine, first.name), length, first.path)


def _engine_of(listed: Listed) -> Engine:
    engine = ENGINES.get(listed.owner, VLLM)()  # others are asked as vLLM's are
    if listed.base is not None and not engine.serves_adapters:
        raise ConfigurationError(
            f"{listed.name!r} is an adapter on {listed.base!r}, which alone would teach: requests to {engine.name} do "
            "not name the adapter; merge it into the model and serve that"
        )
    return engine


def _of_name(models: Sequence[Listed], wanted: str | None, url: str) -> Listed:
    names = [listed.name for listed in models]
    name = wanted or names[0]
    if name not in names or (wanted is None and len(names) > 1):
        what = "several models" if wanted is None else f"no model {wanted!r}"
        raise ConfigurationError(f"{url} serves {what}; set teacher_server_model to one of: {', '.join(names)}")
    return models[names.index(name)]


def pooling_servers(model: ServedModel, text: Question) -> tuple[dict[str, int], str]:
    """Addresses that give the hidden states of a text, with their width, and why the first of the others does not.

    Raises:
        TeacherServerError: a server could give them but does not, or does not respond.
        ConfigurationError: it normalizes them.
    """
    widths, refusal = {}, ""
    for url in model.servers.urls:
        try:
            states = model.states(StatesQuestion(text.ids, text.start), url, retries=1)
        except Rejected as error:
            if not model.engine.lacks_states(error.status, str(error)):
                raise
            why = f"{url} gives no hidden states (status {error.status}); start it with {model.engine.start_states}"
            refusal = refusal or why
        else:
            _check_lengths(states, url)
            widths[url] = states.size(1)
    return widths, refusal


def _check_lengths(states: Tensor, url: str) -> None:
    """Raises ConfigurationError if every state has length 1, which a server that ignores the request makes of them."""
    if bool(((states.float().norm(dim=-1) - 1).abs() < _UNIT).all()):
        raise ConfigurationError(
            f"{url} normalizes hidden states to length 1, although it was asked not to; start it with "
            "--pooler-config.use_activation false, or a newer version of it"
        )
