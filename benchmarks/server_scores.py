"""Gradient variance on the embedded pair: baselines from a server's scores against the teacher's full distribution.

    PYTHONPATH=src python benchmarks/server_scores.py

For every token of the student's completions, the variance of the token gradient with respect to the logits has a closed
form: sum_y p_y |g_y|^2 - |sum_y p_y g_y|^2; only the completions are sampled. The table in
docs/how-to/server-teachers.md is the output of this program. In the column "bf16" the teacher computes in bfloat16, as
servers do; the target is then the gradient for the rewards computed from these scores.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import vopd
from vopd.experiments.pair import LoadedPair, load_embedded_pair, pair_problems, prompt_text

PROMPTS, TOKENS = 48, 40
SERVER = ("vopd_teacher_top_k", "vopd_teacher_top_k_optimal", "rao_blackwell_teacher_top_k")


def completions(pair: LoadedPair) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of the student, of the teacher in float32 and in bfloat16, and the sampled ids, over all tokens."""
    vocabulary = max(pair.tokenizer.get_vocab().values()) + 1
    half = type(pair.teacher).from_pretrained(pair.teacher.config.name_or_path, dtype=torch.bfloat16).eval()
    torch.manual_seed(0)
    columns: list[list[Tensor]] = [[], [], [], []]
    for problem in pair_problems("held_out", PROMPTS, 0):
        prompt = pair.tokenizer(prompt_text(problem), return_tensors="pt")["input_ids"]
        whole = pair.student.generate(prompt, do_sample=True, top_k=0, max_new_tokens=TOKENS)
        place = slice(prompt.shape[1] - 1, -1)
        for column, model in zip(columns, (pair.student, pair.teacher, half)):
            column.append(model(input_ids=whole).logits[0, place, :vocabulary].float())
        columns[3].append(whole[0, prompt.shape[1] :])
    return tuple(torch.cat(column) for column in columns)  # type: ignore[return-value]


def scores(teacher: Tensor, ids: Tensor, k: int) -> vopd.TopKScores:
    """The scores that a server returns."""
    logprobs = teacher.log_softmax(-1)
    top = logprobs.topk(k)
    return vopd.TopKScores(logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), top.indices, top.values)


def variance(student: Tensor, teacher: Tensor, baseline: Tensor, support: Tensor | None = None) -> float:
    """Mean variance of g_y = (r_y - b) (p - e_y) for y outside the support; None is an empty support."""
    logprobs = student.double().log_softmax(-1)
    probs = logprobs.exp()
    weights = 1 - 2 * probs + probs.square().sum(-1, keepdim=True)
    advantages = teacher.double().log_softmax(-1) - logprobs - baseline.double().unsqueeze(-1)
    if support is not None:
        advantages = advantages.scatter(-1, support, 0.0)
    drawn = probs * advantages
    mean = drawn.sum(-1, keepdim=True) * probs - drawn
    return float(((drawn * advantages * weights).sum(-1) - mean.square().sum(-1)).mean())


@torch.no_grad()
def main() -> None:
    student, exact, half, ids = completions(load_embedded_pair())
    print(f"{len(ids)} tokens, torch {torch.__version__}; variance, no baseline = 1", file=sys.stderr)
    print("| baseline | teacher | float32 | bf16 |\n|---|---|---|---|")
    plain = {teacher: variance(student, teacher, torch.zeros(len(ids))) for teacher in (exact, half)}

    def line(name: str, where: str, k: int | None = None) -> None:
        found = []
        for teacher, none in plain.items():
            held = None if k is None else scores(teacher, ids, k)
            given = {"teacher_logits": None if k else teacher, "teacher_scores": held}
            output = vopd.distillation_loss(student, completion_ids=ids, estimator=name, **given)
            support = held.top_k_ids if held is not None and name.startswith("rao") else None
            found.append(variance(student, teacher, output.baseline, support) / none)
        print(f"| `{name}`{'' if k is None else f', k = {k}'} | {where} | {found[0]:.3f} | {found[1]:.3f} |")

    for name in ("vopd", "vopd_optimal"):
        line(name, "full distribution")
    for name in SERVER:
        for k in (1, 5, 20):
            line(name, "server", k)


if __name__ == "__main__":
    main()
