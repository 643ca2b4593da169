"""`vopd doctor --teacher URL`: what a teacher server gives, tried out, and which estimators that allows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vopd.estimators import ESTIMATORS
from vopd.models import load_tokenizer
from vopd.teachers.server import Findings, Patience, Servers, inspect_servers

if TYPE_CHECKING:
    from ..doctor import DoctorOptions

# Ids that every tokenizer has text for; the server goes on from them in its own way.
_PROMPT = tuple(range(20, 36))
_TOP_K = (20, 5, 1)


def report(options: DoctorOptions) -> list[str]:
    """Return what `vopd doctor` prints about the server at `options.teacher`.

    Raises:
        TeacherServerError: nothing answers there, or not as a server that scores prompts.
        MismatchError: the student's vocabulary is another one.
    """
    patience = Patience(retries=1, deadline=120.0)
    servers = Servers(options.teacher or (), key_env=options.teacher_server_key_env, patience=patience)
    tokenizer = None if options.model is None else load_tokenizer(options.model)
    prompt = _PROMPT if tokenizer is None else tokenizer("1 + 1 =")["input_ids"]
    found = inspect_servers(servers, options.teacher_server_model, tokenizer, prompt)
    began = time.perf_counter()
    found.model.score(found.text)
    seconds = time.perf_counter() - began
    top_k, _ = found.most_top_k(_TOP_K)
    refusal = found.refusal_of_chosen()
    gives = {"sampled": True, "top_k": top_k > 0, "chosen": not refusal, "full": False}
    ((url, repeat),) = found.repeats.items()
    lines = [
        f"{url} serves {found.model.name}" + (f", sequences of up to {found.length} tokens" if found.length else ""),
        f"vocabulary: {_vocabulary(found.same_ids.get(url), tokenizer is not None)}",
        f"scores repeat to {repeat.max():.2g} nats a token; one request took {seconds * 1000:.0f} ms",
        f"temperature {options.temperature:g}: {_temperature(found, options.temperature)}",
        "gives:",
        "  sampled  the score of each sampled token",
        f"  top_k    {_top_k(top_k)}",
        f"  chosen   {'no: ' + refusal if refusal else 'scores of ids of the student'}",
        "  full     no: whole rows are for a teacher in this process",
        "estimators:",
    ]
    for name, estimator in ESTIMATORS.items():
        need = estimator.need
        lines.append(f"  {name:<28}" + ("yes" if gives[need] else f"no, needs {need}"))
    servers.close()
    return lines


def _vocabulary(same_ids: int | None, compared: bool) -> str:
    if not compared:
        return "not compared; name the student with --model"
    if same_ids is None:
        return "cannot be compared, for lack of /detokenize; in the run set teacher_model, whose tokenizer is compared"
    return f"all {same_ids} ids mean what they mean to the student"


def _temperature(found: Findings, temperature: float) -> str:
    if temperature == 1:
        return "what every server scores at; try another with --temperature"
    if found.untempered(temperature):
        return "not heeded: it scores at 1 whatever is asked; vopd_sparse alone does not mind"
    return "heeded"


def _top_k(top_k: int) -> str:
    if top_k == 0:
        return f"no: prompt_logprobs above 0 is refused; start it with --max-logprobs {_TOP_K[0]}"
    more = " (more with --max-logprobs)" if top_k == _TOP_K[0] else ""
    return f"its own most likely tokens, loss_top_k up to {top_k} tried{more}"
