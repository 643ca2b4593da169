"""A real SGLang server of the embedded teacher: its answers have the form of the stub server's, and gradients from its
scores and hidden states equal those of the teacher in this process.

    make test-sglang SGLANG=http://127.0.0.1:PORT

The server must run already. No target makes its environment: the kernels of SGLang 0.5.23 are built for CUDA, and its
CPU engine ran with an empty module in their place (docs/how-to/sglang.md). So nothing runs this by itself; run
it when the engine or its stub changes. Start the server in float32 with

    SGLANG_USE_CPU_ENGINE=1 python -m sglang.launch_server --model-path src/vopd/experiments/embedded/teacher \\
        --device cpu --dtype float32 --context-length 256 --max-total-tokens 4096 --mem-fraction-static 0.3 \\
        --enable-return-hidden-states --chunked-prefill-size -1 --host 127.0.0.1 --port PORT

What is printed belongs into docs/how-to/sglang.md.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import torch

from real_vllm.trained import largest, text_ids, traffic, train
from teachers.stub_sglang import StubSGLang
from teachers.stub_states import states_of
from vopd.experiments.pair import embedded_pair, load_embedded_pair
from vopd.teachers.server import ServedModel, Servers
from vopd.teachers.server.discovery import find_model
from vopd.teachers.server.questions import Question, Request, StatesQuestion

TOLERANCE = 1e-4
# Log-probabilities and hidden states; two float32 forward passes.
NEAR = 2e-4
# See tests/real_vllm/check_teacher.py: the bucket of all other tokens.
LOOSE = 1e-2
RUNS = (
    ("opd", None, "scores"),
    ("rao_blackwell_teacher_top_k", 20, "scores"),
    ("vopd", None, "hidden_states"),
    ("full_rkl", None, "hidden_states"),
)


def main() -> int:
    found = find_model(Servers(sys.argv[1], concurrency=16), None)
    print(f"{found.model.engine.name}, version {version(found.model)}: {found.model.name}, {found.length} tokens")
    pair = load_embedded_pair()
    stub = StubSGLang(pair.teacher, pair.tokenizer, names=(found.model.name,))
    unlike = sorted(set(differences(found.model, stub)))
    print(f"parts of answers that the stub server has in another form: {unlike or 'none'}")
    worst = max(compared(found.model, pair.teacher))
    print(f"scores and states: {worst:.1e}, allowed {NEAR:.0e}")
    stub.close()
    for top_k in (0, 1, 5, 20):
        traffic(found.model, f"top_logprobs_num = {top_k}", Question(text_ids(), 20, top_k))
    traffic(found.model, "hidden states, float32", StatesQuestion(text_ids(), 20, torch.float32, 128))
    good = [apart(sys.argv[1], *run) <= (LOOSE if run[1] else TOLERANCE) for run in RUNS]
    return int(bool(unlike) or worst > NEAR or not all(good))


def version(model: ServedModel) -> str:
    return str(model.servers.ask(Request("/server_info"), lambda body: body["version"]))


def differences(model: ServedModel, stub: StubSGLang) -> Iterator[str]:
    """Parts of answers, as paths, that are not in the real answer, or there with another type, length or number.

    The stub's answers leave out what is not read.
    """
    ids, engine = (70, 80, 90, 60, 291, 639, 66), model.engine
    for request in (
        engine.scores(Question(ids, 4, 3), model.name),
        engine.scores(Question(ids, 1), model.name),
        engine.states(StatesQuestion(ids, 4), model.name),
        engine.continuation(ids[:4], 40, model.name),
        engine.decoding((1, *ids), model.name),
        engine.encoding("What is 2 + 3?", model.name),
    ):
        assert request.body is not None
        theirs = model.servers.ask(request, lambda body: body)
        stub.cached = theirs.get("meta_info", {}).get("cached_tokens", 0)
        _, ours = getattr(stub, request.path[1:])(request.body, *([None] if request.path == "/generate" else []))
        for answer in (theirs, ours):  # neither the text nor the token that a prefill must generate is read
            if "return_logprob" in request.body:
                answer["text"], answer["output_ids"] = "", [0]
                answer["meta_info"]["output_token_logprobs"] = []
            answer.get("meta_info", {})["id"] = "0"
        yield from unlike(ours, theirs, request.path)
    theirs, ours = model.servers.ask(Request("/v1/models"), lambda body: body), stub.models()
    for answer in (theirs, ours):
        answer["data"][0]["created"] = 0
    yield from unlike(ours, theirs, "/v1/models")


def unlike(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from unlike(value, theirs.get(key, "missing"), f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for one, other in zip(ours, theirs):
            yield from unlike(one, other, f"{where}[]")
    elif isinstance(ours, float) and isinstance(theirs, float):
        yield from [where] if abs(ours - theirs) > NEAR else []
    elif ours != theirs:
        yield where


def compared(model: ServedModel, teacher: Any) -> Iterator[float]:
    """Largest differences of scores and states from the model's own, for texts that share beginnings, asked at once."""
    draw = random.Random(0)
    shared = [draw.randrange(2, 640) for _ in range(120)]
    for _ in range(3):
        texts = [
            (tuple(shared[:cut] + [draw.randrange(2, 640) for _ in range(draw.randrange(2, 120))]), cut)
            for cut in (draw.randrange(1, 120) for _ in range(16))
        ]
        asked = [
            (
                model.servers.background(lambda ids=ids, start=start: model.score(Question(ids, start, 20))),
                model.servers.background(
                    lambda ids=ids, start=start: model.states(StatesQuestion(ids, start, torch.float32, 128))
                ),
            )
            for ids, start in texts
        ]
        for (ids, start), (scores, states) in zip(texts, asked):
            own = states_of(teacher, list(ids))[start - 1 : -1]
            with torch.no_grad():
                rows = teacher.lm_head(own).log_softmax(-1)
            yield float((states.result() - own).abs().max())
            found, tokens = scores.result(), torch.tensor(ids[start:]).unsqueeze(-1)
            yield float((found.sampled - rows.gather(-1, tokens)[:, 0]).abs().max())
            yield float((found.top_k_logprobs - rows.gather(-1, found.top_k_ids)).abs().max())
            yield float((found.top_k_logprobs - rows.topk(20).values).abs().max())
    print(f"retries: {model.servers.counts['retries']:.0f} of {model.servers.counts['requests']:.0f} requests")


def apart(url: str, estimator: str, top_k: int | None, payload: str) -> float:
    """Largest difference between the gradients of two steps of training, relative to the largest gradient."""
    teacher = embedded_pair().teacher
    served = {"teacher_server_url": url, "teacher_server_payload": payload, "teacher_server_dtype": "float32"}
    found = largest(train(estimator, top_k, teacher), train(estimator, top_k, teacher, **served))
    print(f"{estimator:<28} k = {top_k or '-':<3} from {payload:<14} {found:.1e}")
    return found


if __name__ == "__main__":
    sys.exit(main())
