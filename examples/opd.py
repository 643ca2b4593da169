r"""On-policy distillation in one file: plain torch and transformers, and the loss from vopd.

The student writes completions, the teacher scores every token of them, and the student moves towards the teacher on
the states that it reaches itself. Read `train` first, then `complete` and `loss_of_step`; `written_out` has the
equations.

Left out on purpose, because each would hide the algorithm; `vopd train` has all of it:
  resuming, checkpoints and metrics files; LoRA; bf16 and gradient checkpointing; several GPUs; rollouts by vLLM;
  teachers behind a server; rewards; chat templates.

Run it (the small pair of models inside the package; CPU, no download):
    python examples/opd.py
    python examples/opd.py --estimator vopd      # the paper's method; any name of vopd.ESTIMATORS
What to expect: held-out reverse KL from 0.305 to 0.183 nats/token and greedy accuracy from 70.0 % to 78.0 % of 300
problems, with full_rkl (65 processor seconds on 2 CPU cores, torch 2.13, 2026-11-27).
With vopd on the same problems: 0.233 nats/token and 70.7 %.
vopd_sparse and top_k_rkl do not read log q(y), so the sampled reverse KL of their steps is nan.
Which estimator should I use? docs/concepts/estimators.md

Real models (one GPU of 80 GB; NOT run on that hardware yet, so no numbers):
    python examples/opd.py --student Qwen/Qwen3-1.7B-Base --teacher Qwen/Qwen3-1.7B --data problems.jsonl \
        --batch_size 8 --learning_rate 1e-6 --max_new_tokens 512
problems.jsonl has one object per line with "prompt" and "answer"; the first 300 (--held_out) are not trained on. The
prompt must ask for the answer in \boxed{} or in <answer> tags. Watch the sampled reverse KL: it is noisy, and should
fall over tens of steps.
"""

import argparse
import itertools
import json
import math
import re
import time

import torch

import vopd
from vopd.experiments.pair import embedded_pair, pair_problems
from vopd.models import last_hidden_states, load_model, load_tokenizer, read_head, rollout_settings

ANSWER = re.compile(r"<answer>(.*?)</answer>|\\boxed{([^{}]*)}")


def written_out(student_logits, teacher_logits, sampled, estimator):
    """Documentation, which a test compares with vopd; the training does not call it. Token losses of two estimators.

    `loss_of_step` computes the same without logits of all tokens. p and q are the next-token probabilities of student
    and teacher, r_v = log q_v - log p_v is the reward of token v.
    """
    log_p, log_q = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    if estimator == "full_rkl":  # KL(p || q), summed over the vocabulary: no noise from the sampled token
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    # "vopd": only the sampled token y, -(r_y - V) log p_y, with r_y - V constant for autograd. V = E_p[r] = -KL(p || q)
    # does not depend on y: subtracting it changes the noise of the gradient, not its mean, the gradient of KL(p || q).
    rewards = (log_q - log_p).detach()
    value = (log_p.detach().exp() * rewards).sum(-1, keepdim=True)
    return -((rewards - value) * log_p).gather(-1, sampled[..., None])[..., 0]


class Pair:
    """Student, teacher, their output heads, and what a rollout needs to know of them."""

    def __init__(self, student: str, teacher: str, device: str):
        self.tokenizer = load_tokenizer(student)  # pads on the left
        # float32: with bf16 weights an optimizer step of 1e-6 is lost in rounding. In evaluation mode: no dropout.
        self.student = load_model(student, dtype="float32", device=device)
        self.teacher = load_model(teacher, device=device).requires_grad_(False)
        self.heads = read_head(self.student, "student"), read_head(self.teacher, "teacher")
        # Every end token of both models, and the token ids that both have; compares the tokenizers id by id.
        self.settings = rollout_settings(self.student, self.tokenizer, self.teacher, load_tokenizer(teacher))

    @torch.no_grad()
    def complete(self, prompts: list[str], max_new_tokens: int, greedy: bool = False):
        """Returns token ids (B, P + T), attention mask (B, P + T), completion mask (B, T); prompts are padded left."""
        prompt = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.student.device)
        # The whole distribution: top_k, min_p or penalties, often set in a model's generation_config, would bias the
        # gradient. Ids that are no token of both models are never sampled and have no probability in the loss.
        temperature = 0.0 if greedy else 1.0
        self.student.generation_config = self.settings.generation_config(max_new_tokens, temperature=temperature)
        ids = self.student.generate(prompt.input_ids, attention_mask=prompt.attention_mask)
        mask = self.settings.completion_mask(ids[:, prompt.input_ids.shape[1] :])  # up to the first end token, included
        return ids, torch.cat([prompt.attention_mask, mask], 1), mask.bool()

    def loss_of_step(self, ids, attention, mask, estimator: str):
        """Mean token loss over the completions, with per-token statistics; only the student gets gradient."""
        # The states before the head that predict the completion's tokens, and the heads with bias, scale and soft cap.
        states = [last_hidden_states(model, ids, attention, mask.shape[1]) for model in (self.student, self.teacher)]
        student, teacher = self.heads
        return vopd.linear_distillation_loss(
            states[0], student.weight, states[1], teacher.weight, ids[:, -mask.shape[1] :], mask,
            estimator=estimator, top_k=20 if vopd.ESTIMATORS[estimator].needs_top_k else None,
            vocab_size=self.settings.vocab_size, **student.options("student"), **teacher.options("teacher"),
        )  # fmt: skip

    @torch.no_grad()
    def measure(self, problems: list[tuple[str, str]], max_new_tokens: int, batch: int = 64):
        """Exact reverse KL in nats/token on sampled completions, and accuracy of greedy ones."""
        divergence, tokens, right = 0.0, 0, 0
        for some in (problems[start : start + batch] for start in range(0, len(problems), batch)):
            prompts = [prompt for prompt, _ in some]
            ids, attention, mask = self.complete(prompts, max_new_tokens)
            divergence += float((self.loss_of_step(ids, attention, mask, "full_rkl").reverse_kl * mask).sum())
            tokens += int(mask.sum())
            ids, _, mask = self.complete(prompts, max_new_tokens, greedy=True)
            texts = self.tokenizer.batch_decode(ids[:, -mask.shape[1] :], skip_special_tokens=True)
            right += sum(last_answer(text) == answer for text, (_, answer) in zip(texts, some))
        return divergence / tokens, right / len(problems)


def last_answer(text: str) -> str | None:
    found = ANSWER.findall(text)
    return "".join(found[-1]).strip() if found else None


def train(pair: Pair, problems: list[tuple[str, str]], args: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(pair.student.parameters(), lr=args.learning_rate, weight_decay=0.0)
    warmup = max(1, args.steps // 15)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (args.steps - step) / max(1, args.steps - warmup))
    )
    prompts = itertools.cycle(prompt for prompt, _ in problems)  # answers are for evaluation alone
    estimates, every = [], max(1, args.steps // 8)
    for step in range(args.steps):
        ids, attention, mask = pair.complete(list(itertools.islice(prompts, args.batch_size)), args.max_new_tokens)
        output = pair.loss_of_step(ids, attention, mask, args.estimator)
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(pair.student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        # The mean of log p(y) - log q(y) over the samples: an unbiased estimate of the reverse KL, but a noisy one.
        estimates.append(math.nan if output.rewards is None else -float(output.rewards[mask].mean()))
        if (step + 1) % every == 0:
            mean = sum(estimates[-every:]) / every
            print(f"step {step + 1:4d}  sampled reverse KL {mean:.3f}  gradient norm {norm:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default=str(embedded_pair().student))
    parser.add_argument("--teacher", default=str(embedded_pair().teacher))
    parser.add_argument("--data", help="JSON lines with prompt and answer; default: the embedded pair's arithmetic")
    parser.add_argument("--estimator", default="full_rkl", choices=list(vopd.ESTIMATORS))
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--max_new_tokens", type=int, default=56)
    parser.add_argument("--held_out", type=int, default=300, help="problems that are measured and not trained on")
    args = parser.parse_args()

    torch.manual_seed(0)
    pair = Pair(args.student, args.teacher, "cuda" if torch.cuda.is_available() else "cpu")
    if args.data:
        with open(args.data) as lines:
            rows = [(row["prompt"], str(row["answer"])) for row in map(json.loads, lines)]
        held_out, problems = rows[: args.held_out], rows[args.held_out :]
        if not problems:
            parser.error(f"{args.data}: --held_out {args.held_out} leaves no row to train on, of {len(rows)}")
    else:
        held_out, problems = (
            [(problem.question, problem.answer) for problem in pair_problems(split, count, seed=0)]
            for split, count in (("held_out", args.held_out), ("train", args.steps * args.batch_size))
        )

    def report(when: str) -> None:
        if held_out:
            divergence, accuracy = pair.measure(held_out, args.max_new_tokens)
            print(f"{when:<7} held-out reverse KL {divergence:.3f} nats/token, accuracy {accuracy:.1%}", flush=True)

    began = time.monotonic()
    report("before")
    train(pair, problems, args)
    report("after")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
