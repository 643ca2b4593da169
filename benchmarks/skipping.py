"""Tokens and tiles with a small gradient: what the backward products could skip, and the error of skipping it.

    python benchmarks/skipping.py

Three questions, on a CPU: What do masked tokens cost (they are removed before any product)? How many sampled tokens
have a gradient of exactly zero, or one so small that it can be skipped? How many tiles of a chunk of tokens by a strip
of the vocabulary do? "Relative error" is the Frobenius error of the gradient with respect to the logits. The trained
models are those of the embedded pair; the large vocabulary is that of benchmarks/loss.py.
"""

from __future__ import annotations

import statistics
import time

import torch
from loss import SHAPES, make_inputs
from torch import Tensor

import vopd
from vopd.kernels import chunk_rows

ESTIMATORS = ("opd", "vopd", "vopd_optimal")
SHARES_OF_NORM = (1e-6, 1e-4, 1e-3, 1e-2)
STRIP = 512
ROUNDS = 5


def masked_seconds() -> dict[float, float]:
    """Process time of one call with a share of the tokens masked; medians over interleaved rounds."""
    inputs = make_inputs(SHAPES["cpu"], "cpu", torch.float32, trainable=True)
    places = torch.rand(len(inputs.ids), generator=torch.Generator().manual_seed(1))
    times: dict[float, list[float]] = {share: [] for share in (0.0, 0.25, 0.5, 0.75)}
    for turn in range(ROUNDS + 1):
        for share, taken in times.items():
            start = time.process_time()
            loss = vopd.linear_distillation_loss(
                inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, inputs.ids, places >= share
            ).loss
            torch.autograd.grad(loss, [inputs.hidden, inputs.head])
            if turn:
                taken.append(time.process_time() - start)
    return {share: statistics.median(taken) for share, taken in times.items()}


def pair_logits() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the embedded student and teacher at the student's samples, (N, V), and the sampled tokens."""
    from vopd.experiments.pair import MAX_COMPLETION_TOKENS, load_embedded_pair, pair_problems, prompt_text
    from vopd.experiments.rollouts import pad, sample_rollouts

    pair = load_embedded_pair()
    prompts = [prompt_text(problem) for problem in pair_problems("held_out", 256, 0)]
    rollouts = sample_rollouts(
        pair.student, pair.tokenizer, prompts, max_new_tokens=MAX_COMPLETION_TOKENS, batch_size=128
    )
    inputs, completion_mask = pad(rollouts, pair.student.device)
    counted = completion_mask[:, 1:].bool()
    found = []
    with torch.no_grad():
        for model in (pair.student, pair.teacher):
            logits = model(**inputs).logits
            found.append(logits[:, :-1, : len(pair.tokenizer)][counted])
    return found[0], found[1], inputs["input_ids"][:, 1:][counted]


def logit_gradient(student: Tensor, teacher: Tensor, ids: Tensor, estimator: str) -> Tensor:
    """Gradient of the summed loss with respect to the student's logits, (N, V)."""
    student = student.detach().requires_grad_()
    loss = vopd.distillation_loss(student, teacher, ids, estimator=estimator, normalizer=1.0).loss
    return torch.autograd.grad(loss, student)[0]


def dropped(norms: Tensor, threshold: float) -> tuple[float, float]:
    """Share of the parts with a norm below `threshold` times the root mean square, and the error without them."""
    small = norms < threshold * norms.square().mean().sqrt()
    return float(small.double().mean()), float(norms[small].norm() / norms.norm())


def tile_norms(gradient: Tensor, rows: int) -> Tensor:
    """Norms of the tiles of `rows` tokens by ``STRIP`` entries of the vocabulary, without partial tiles."""
    whole = gradient[: len(gradient) // rows * rows, : gradient.shape[1] // STRIP * STRIP]
    tiles = whole.unflatten(0, (-1, rows)).unflatten(2, (-1, STRIP))
    return tiles.square().sum((1, 3)).sqrt().flatten()


def show(name: str, norms: Tensor) -> None:
    """Print one line per threshold: the share that would be skipped, and the error."""
    print(f"{name}: {len(norms)} in all, {float((norms == 0).double().mean()):.2%} exactly zero")
    for threshold in SHARES_OF_NORM:
        share, error = dropped(norms, threshold)
        print(f"  below {threshold:g} of the root mean square norm: {share:6.1%}, relative error {error:.1e}")


def main() -> None:
    """Print all three answers."""
    torch.set_num_threads(1)
    times = masked_seconds()
    print("time with a share of the tokens masked, relative to none:")
    print("  " + ", ".join(f"{share:.0%}: {taken / times[0.0]:.2f}" for share, taken in times.items()))
    student, teacher, ids = pair_logits()
    for estimator in ESTIMATORS:
        norms = logit_gradient(student, teacher, ids, estimator).norm(dim=-1)
        show(f"tokens of the embedded pair, {estimator}", norms)
    inputs = make_inputs(SHAPES["cpu"], "cpu", torch.float32, trainable=True)
    rows = chunk_rows(SHAPES["cpu"][3], torch.device("cpu"), trainable_head=True)
    with torch.no_grad():
        logits = [inputs.hidden @ inputs.head.T, inputs.teacher_hidden @ inputs.teacher_head.T]
    gradient = logit_gradient(*logits, inputs.ids, "vopd")
    show(f"tiles of {rows} tokens by {STRIP} entries, vopd at the benchmark's shape", tile_norms(gradient, rows))
    show(f"strips of one token by {STRIP} entries, the same", tile_norms(gradient, 1))


if __name__ == "__main__":
    main()
