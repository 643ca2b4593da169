"""`vopd doctor --teacher URL`: what a teacher server gives, tried out, and which estimators that allows."""

from __future__ import annotations

import time
from typing import Any

# Ids that every tokenizer has text for; the server goes on from them in its own way.
_PROMPT = tuple(range(20, 36))


def report(options: Any) -> list[str]:
    """Return what `vopd doctor` prints about the server at `options.teacher`.

    Raises:
        TeacherServerError: nothing answers there, or not as a server that scores prompts.
        MismatchError: the student's vocabulary is another one.
    """
    from vopd.estimators import ESTIMATORS
    from vopd.estimators.checks import need_of
    from vopd.teachers.server import Patience, Servers, preflight, score_kinds

    patience = Patience(retries=1, deadline=120.0)
    servers = Servers(options.teacher, key_env=options.teacher_server_key_env, patience=patience)
    url = servers.urls[0]
    model, length = preflight.find_model(servers, url, options.teacher_server_model)
    tokenizer = _tokenizer(options.model)
    prompt = _PROMPT if tokenizer is None else tokenizer("1 + 1 =")["input_ids"]
    found = preflight.probe(servers, url, model, prompt, 0, None)
    began = time.perf_counter()
    repeat = preflight.difference(found.answer, preflight.ask(servers, url, model, found.question))
    seconds = time.perf_counter() - began
    top_k = preflight.most_top_k(servers, url, model, found)
    refusal = preflight.scores_chosen(servers, url, model, found)
    gives = score_kinds(top_k, refusal is None)
    lines = [
        f"{url} serves {model}" + ("" if length is None else f", sequences of up to {length} tokens"),
        f"vocabulary: {_vocabulary(servers, url, model, tokenizer)}",
        f"scores repeat to {repeat.largest:.2g} nats a token; one request took {seconds * 1000:.0f} ms",
        f"temperature {options.temperature:g}: {_temperature(servers, url, model, found, options.temperature)}",
        "gives:",
        "  sampled  the score of each sampled token",
        f"  top_k    {_top_k(top_k)}",
        f"  chosen   {'scores of ids of the student' if refusal is None else 'no: ' + refusal}",
        "  full     no: whole rows are for a teacher in this process",
        "estimators:",
    ]
    for name, estimator in ESTIMATORS.items():
        need = need_of(estimator)
        answer = "yes" if need in gives else f"no, needs {need}"
        lines.append(f"  {name:<28}{answer}")
    servers.close()
    return lines


def _tokenizer(model: str | None) -> Any:
    if model is None:
        return None
    from vopd.models import load_tokenizer

    return load_tokenizer(model)


def _vocabulary(servers: Any, url: str, model: str, tokenizer: Any) -> str:
    from vopd.teachers.server import check_vocabulary

    if tokenizer is None:
        return "not compared; name the student with --model"
    count = check_vocabulary(servers, url, model, tokenizer)
    if count is None:
        return "cannot be compared, for lack of /detokenize; in the run set teacher_model, whose tokenizer is compared"
    return f"all {count} ids mean what they mean to the student"


def _top_k(top_k: int) -> str:
    if top_k == 0:
        return "no: prompt_logprobs above 0 is refused; start it with --max-logprobs 20"
    more = " (more with --max-logprobs)" if top_k == 20 else ""
    return f"its own most likely tokens, loss_top_k up to {top_k} tried{more}"


def _temperature(servers: Any, url: str, model: str, found: Any, temperature: float) -> str:
    from vopd.teachers.server import preflight

    if temperature == 1:
        return "what every server scores at; try another with --temperature"
    if preflight.heeds_temperature(servers, url, model, found, temperature):
        return "heeded"
    return "not heeded: it scores at 1 whatever is asked; vopd_sparse alone does not mind"
