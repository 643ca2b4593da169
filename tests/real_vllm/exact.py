"""Given completions in float64: what the hidden states of a server do to gradients, without the rounding of a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from trained import PROMPTS, VOCABULARY

# Estimators on the teacher's top k have a bucket of all other tokens, q_rest = 1 - sum q, which float32 gives to about
# 1e-7. Where the teacher is nearly certain, this is a sizable part of it, so that the gradients of any two forward
# passes in float32 differ, also those of one teacher in this process. In float64 they do not.
TOLERANCE = 1e-5
TOP_K = 20
LINE = "{:<28} {:>16} {:>16} {:>24}"


def on_given_completions(check: Callable[[str, bool], None], url: str, name: str) -> None:
    """Errors of the gradients of a float64 student, by parameter, of all estimators and of what gives the states."""
    from vopd import ESTIMATORS

    weights, student, ids, states, head = completions(url, name)
    print(f"{len(ids)} tokens of given completions: largest relative Frobenius error of a parameter's gradient")
    print(LINE.format("", "server, loss in", "local, loss in", "local, loss in float32"))
    print(LINE.format("estimator", "float64", "float64", "(all against float64)"))
    for key, estimator in ESTIMATORS.items():

        def gradient(rows: Tensor, dtype: torch.dtype, key: str = key, chosen: Any = estimator) -> list[Tensor]:
            import vopd

            teacher = rows.to(dtype) @ head.to(dtype).T
            top_k = TOP_K if chosen.needs_top_k else None
            loss = vopd.distillation_loss(
                student.to(dtype), teacher, ids, estimator=key, top_k=top_k, vocab_size=VOCABULARY
            ).loss
            return list(torch.autograd.grad(loss, weights, retain_graph=True))

        exact = gradient(states["float64"], torch.float64)
        found = [
            max(float((one - two).norm() / two.norm()) for one, two in zip(gradient(rows, dtype), exact))
            for rows, dtype in (
                (states["server"], torch.float64),
                (states["local"], torch.float64),
                (states["local"], torch.float32),
            )
        ]
        check(LINE.format(key, *(f"{error:.1e}" for error in found)), found[0] <= TOLERANCE)
    print(f"allowed in the first column: {TOLERANCE:.0e}")


def completions(url: str, name: str) -> tuple[list[Any], Tensor, Tensor, dict[str, Tensor], Tensor]:
    """The weights of a float64 student, its logits at the tokens of completions, these, the teacher's states there
    by what computes them, and its head."""
    from vopd.experiments.pair import embedded_pair, load_embedded_pair
    from vopd.models import load_model
    from vopd.teachers.server.client import Servers
    from vopd.teachers.server.discovery import find_model
    from vopd.teachers.server.questions import StatesQuestion

    pair, paths, servers = load_embedded_pair(), embedded_pair(), Servers(url)
    served = find_model(servers, name).model
    student = load_model(paths.student, dtype="float32").double()
    models = {"local": pair.teacher, "float64": load_model(paths.teacher, dtype="float32").double()}
    torch.manual_seed(0)
    logits, ids = [], []
    states: dict[str, list[Tensor]] = {"server": [], "local": [], "float64": []}
    for text in PROMPTS:
        prompt = pair.tokenizer(text)["input_ids"]
        start = len(prompt)
        whole = pair.student.generate(torch.tensor([prompt]), do_sample=True, max_new_tokens=24)
        states["server"].append(served.states(StatesQuestion(tuple(whole[0].tolist()), start, torch.float32)))
        for key, model in models.items():
            with torch.no_grad():
                states[key].append(model.base_model(input_ids=whole).last_hidden_state[0, start - 1 : -1])
        logits.append(student(input_ids=whole).logits[0, start - 1 : -1])
        ids.append(whole[0, start:])
    servers.close()
    head = pair.teacher.lm_head.weight.detach()
    weights = [part.requires_grad_() for part in student.parameters()]
    return weights, torch.cat(logits), torch.cat(ids), {key: torch.cat(rows) for key, rows in states.items()}, head
