"""Every metric that a run logs: its unit, what it means, and what to do about it.

docs/reference/metrics.md is made from this table, and a test holds it to what a run logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..rollout_logprobs import MAX_DIFFERENCE, MEAN_DIFFERENCE


@dataclass(frozen=True)
class Metric:
    """One metric, or several of one form.

    Attributes:
        name: as in metrics.jsonl; words in capitals, such as TEACHER, stand for a name, K for a number.
        unit: of its values; empty where it has none.
        meaning: what is measured.
        reading: which way is good, and what to do where it goes the other way.
    """

    name: str
    unit: str
    meaning: str
    reading: str

    def covers(self, name: str) -> bool:
        """Whether a logged name is this metric."""
        form = re.sub("[A-Z]{2,}", "[^/]+", re.escape(self.name)).replace("@K", "@[0-9]+")
        return re.fullmatch(form, name) is not None


_LOSS = Metric(
    "loss", "nats/token", "Sum of the token losses over the number of sampled tokens, or over `loss_normalizer`.",
    "Not a measure of progress with a policy-gradient estimator, whose loss has no meaning beyond its gradient: "
    "watch `reverse_kl` or `sampled_reverse_kl`.",
)  # fmt: skip
_TRAINING = (
    Metric("step", "optimizer steps", "The step that this line ends.", "Lines of a resumed run continue the count."),
    Metric("epoch", "epochs", "Passes over the prompts so far.", ""),
    _LOSS,
    Metric(
        "grad_norm", "", "Norm of the gradient before clipping.",
        "Falls slowly. Far above `max_grad_norm` at every step: each step is clipped, try a lower `learning_rate` or "
        "an estimator of less variance. 0: nothing is trained (guard `guard_no_signal`). -1: DeepSpeed skipped a step "
        "that overflowed.",
    ),
    Metric("learning_rate", "", "Step size of this step, from the schedule.", ""),
)  # fmt: skip
_DIVERGENCE = (
    Metric(
        "reverse_kl", "nats/token", "Exact KL(student || teacher), mean over the sampled tokens. Needs the teacher's "
        "full distribution; measured every `metrics_every` steps.",
        "Lower is better: the distance that training reduces. A rise to a multiple of its lowest value is a diverging "
        "run (guard `guard_reverse_kl`).",
    ),
    Metric(
        "sampled_reverse_kl", "nats/token", "Mean of log p(y) - log q(y) at the sampled tokens: the same quantity from "
        "one sample, so noisy; a step's value can be negative. Absent, like `reverse_kl`, with a sparse estimator and "
        "a local teacher or a server of hidden states: only a few rows of the head are read.",
        "Lower is better, over many steps.",
    ),
    Metric(
        "reverse_kl/TEACHER", "nats/token", "`reverse_kl` at the tokens of one of several teachers.",
        "Lower is better; shows which teacher the student still differs from.",
    ),
    Metric(
        "sampled_reverse_kl/TEACHER", "nats/token", "`sampled_reverse_kl` at the tokens of one of several teachers.",
        "As above, noisy.",
    ),
    Metric(
        "entropy", "nats/token", "Entropy of the student's next-token distribution; measured every `metrics_every` "
        "steps.",
        "Should approach the teacher's, which is often lower. Near 0 with a high `reverse_kl`: the student collapsed; "
        "go back to an earlier checkpoint and lower `learning_rate`.",
    ),
    Metric(
        "teacher_reward/mean", "nats/token", "Mean of the token reward r = log q(y) - log p(y): minus "
        "`sampled_reverse_kl`.",
        "Rises towards 0.",
    ),
    Metric(
        "teacher_reward/std", "nats", "Spread of the token reward over the step's tokens.",
        "Falls as the models agree. 0 from the start: teacher and student are the same (guard `guard_same_teacher`).",
    ),
    Metric(
        "reward/mean", "nats/token", "Deprecated: the older name of `teacher_reward/mean`, logged for one more "
        "release.",
        "Read `teacher_reward/mean`; the reward of a reward function is `rewards/NAME/mean`.",
    ),
    Metric("reward/std", "nats", "Deprecated: the older name of `teacher_reward/std`.", "Read `teacher_reward/std`."),
)  # fmt: skip
_NOISE = (
    Metric(
        "advantage/mean", "nats/token", "Mean of the advantage A = r - b of the sampled tokens, without importance "
        "weights and rewards of the completion.",
        "Near 0 with the value baseline. Not 0 with the optimal one, whose advantages are not centered: do not whiten "
        "them.",
    ),
    Metric(
        "advantage/std", "nats", "Spread of the advantage: what scales the noise of the gradient.",
        "Lower is better. Compare it with `teacher_reward/std`, the spread without a baseline.",
    ),
    Metric(
        "variance/none", "nats^2", "Exact variance of the one-sample token gradient in logit space without a baseline, "
        "mean over tokens. Needs the teacher's full distribution; measured every `metrics_every` steps.",
        "The reference for the next two.",
    ),
    Metric(
        "variance/value", "nats^2", "The same with the value baseline V = -KL(p || q).",
        "Its ratio to `variance/none` is the share of the noise that the value baseline leaves.",
    ),
    Metric(
        "variance/optimal", "nats^2", "The same with the baseline of least variance.",
        "Never above the other two. Far below `variance/value`: the optimal baseline is worth using.",
    ),
    Metric(
        "value_hurts_share", "share of tokens", "Tokens at which the value baseline has more variance than no baseline "
        "at all. It does where the student is nearly certain.",
        "Lower is better. Large: the value baseline does not suit these models; take the estimator that "
        "[the table](../concepts/estimators.md#which-estimator-should-i-use) names for your teacher.",
    ),
)  # fmt: skip
_COMPLETIONS = (
    Metric(
        "completion_length", "tokens/completion", "Mean number of sampled tokens that count in the loss.",
        "Steady growth into the length limit is usually repetition: read samples.jsonl (guard `guard_length`).",
    ),
    Metric(
        "truncated_share", "share of completions", "Completions cut off at `max_completion_length` before an EOS "
        "token.",
        "Lower is better. High: raise `max_completion_length`, and check with `vopd train --dry-run` that student and "
        "teacher have the same EOS tokens (guard `guard_truncation`).",
    ),
    Metric(
        "tokens_per_second", "tokens/s", "Sampled tokens of all processes per second of a whole step.",
        "Higher is better.",
    ),
    Metric("num_tokens", "tokens", "Tokens of all prompts and completions so far, as TRL counts them.", ""),
    Metric(
        "step_time", "seconds/step", "Wall time of a step without the optimizer's: up to the norm of its gradient.",
        "The parts below are a whole step's.",
    ),
    Metric(
        "tools/call_frequency", "calls/completion", "Tool calls, as TRL counts them. Only with `tools` (Python API).",
        "0: the student does not call its tools.",
    ),
    Metric(
        "tools/failure_frequency", "share of calls", "Tool calls that raised an error, as TRL counts them.",
        "Lower is better.",
    ),
    Metric(
        "seconds/rollout", "seconds/step", "Sampling the completions.",
        "If this is the largest part: use vLLM, or shorter completions.",
    ),
    Metric(
        "seconds/scoring", "seconds/step", "Computing or waiting for the teacher's scores.",
        "If a server makes this the largest part: raise `teacher_server_concurrency` or add servers.",
    ),
    Metric("seconds/reward", "seconds/step", "Calling the reward functions.", "Only with `reward_funcs`."),
    Metric(
        "seconds/update", "seconds/step", "The rest: forward and backward pass of the student, loss, optimizer.", "",
    ),
    Metric(
        "seconds/processor", "seconds/step", "Processor time of this process, all threads.",
        "Unlike wall time it does not grow when other programs share the cores.",
    ),
    Metric(
        "seconds/benchmarks", "seconds", "One evaluation on `eval_benchmarks`; not part of a step.",
        "Too long: raise `eval_benchmark_steps`, lower `eval_benchmark_limit`.",
    ),
)  # fmt: skip
_REWARDS = (
    Metric(
        "rewards/NAME/mean", "reward", "Mean of the reward function NAME over the completions that it scored.",
        "Higher is better.",
    ),
    Metric(
        "rewards/NAME/std", "reward", "Spread of that reward over the completions.",
        "0: every completion gets the same reward, and it teaches nothing.",
    ),
    Metric(
        "rewards/NAME/zero_spread_share", "share of prompts", "Prompts whose completions all got the same reward of "
        "NAME, or none.",
        "Near 1 for long: this reward gives no signal (guard `guard_zero_spread`).",
    ),
    Metric(
        "group_advantage/mean", "nats", "Mean of the completions' group advantages: reward less the mean of the "
        "prompt's other completions, times its weight.",
        "0 up to rounding, unless a reward function scored only some of a prompt's completions.",
    ),
    Metric(
        "group_advantage/std", "nats", "Spread of the group advantages.",
        "Compare it with `advantage/std`: much larger, and rewards outweigh the teacher; set `reward_weights`.",
    ),
    Metric(
        "zero_spread_share", "share of prompts", "Prompts whose completions all got the same rewards: no reward signal "
        "from them.",
        "Lower is better. Near 1: prompts are too easy or too hard, or `num_generations` is too small.",
    ),
)  # fmt: skip
_ROLLOUT = (
    Metric(
        MEAN_DIFFERENCE, "nats/token", "Mean of |log p of the trainer - log p of the rollout engine| at the sampled "
        "tokens. Only with an engine that reports log-probabilities (vLLM).",
        "Lower is better, and never 0 between two precisions. High: stale weights, or another temperature or precision "
        "(guards `guard_logprobs`, `guard_logprobs_stop`).",
    ),
    Metric(MAX_DIFFERENCE, "nats", "Largest such difference of the step.", "A single outlier is harmless."),
)  # fmt: skip
_SERVER = (
    Metric("teacher/requests", "requests", "Requests to the teacher server since the last line, retries included.", ""),
    Metric(
        "teacher/retries", "requests", "Repeated requests among them.",
        "0 is good. Rising: the server is overloaded, lower `teacher_server_concurrency`.",
    ),
    Metric(
        "teacher/dropped_rows", "completions", "Completions that got no scores and were left out "
        "(`teacher_failure=drop`).",
        "0 is good. Past `teacher_drop_limit` the run saves a checkpoint and ends.",
    ),
    Metric("teacher/bytes_sent", "bytes", "Size of the requests.", ""),
    Metric(
        "teacher/bytes_received", "bytes", "Size of the responses.",
        "Grows with `loss_top_k`. Hidden states: the width times 2 bytes (`teacher_server_dtype`) for every token of "
        "prompt and completion.",
    ),
    Metric(
        "teacher/seconds", "seconds", "Durations of the requests, retries included, summed: they run at the same "
        "time, while the student computes.",
        "Divided by `teacher/requests`: how long one takes. What training waits for is `seconds/scoring`.",
    ),
    Metric(
        "teacher/COUNT/TEACHER", "", "Each of these counts for one of several teachers, in place of the sum.", "",
    ),
)  # fmt: skip
_EVALUATION = (
    Metric(
        "eval_METRIC", "", "Any metric above, on `eval_dataset` (Python API), at every `eval_steps`. Several datasets "
        "put their name after `eval_`.",
        "As the metric.",
    ),
    Metric("eval_loss", "nats/token", "The loss on `eval_dataset`.", "As `loss`."),
    Metric("eval_runtime", "seconds", "Duration of the evaluation on `eval_dataset`.", ""),
    Metric("eval_samples_per_second", "prompts/s", "Its speed.", ""),
    Metric("eval_steps_per_second", "batches/s", "Its speed in batches.", ""),
    Metric(
        "eval_BENCHMARK_avg@K", "share correct", "Accuracy on one of `eval_benchmarks`: mean over K completions per "
        "question.",
        "Higher is better. Differences smaller than its interval mean nothing.",
    ),
    Metric("eval_BENCHMARK_avg@K_low", "share correct", "Lower end of its 95 % interval over questions.", ""),
    Metric("eval_BENCHMARK_avg@K_high", "share correct", "Upper end.", ""),
    Metric(
        "eval_BENCHMARK_format_rate", "share of completions", "Completions with an answer that can be read.",
        "Higher is better. Low: ask for the form with `eval_benchmark_template`.",
    ),
    Metric(
        "eval_BENCHMARK_truncation_rate", "share of completions", "Completions cut off at the length limit.",
        "Lower is better. High: raise `eval_benchmark_max_new_tokens`.",
    ),
    Metric("eval_BENCHMARK_mean_length", "tokens/completion", "Mean length of the benchmark's completions.", ""),
)  # fmt: skip

METRICS: dict[str, tuple[Metric, ...]] = {
    "Training": _TRAINING,
    "Distance from the teacher": _DIVERGENCE,
    "Gradient noise": _NOISE,
    "Completions and speed": _COMPLETIONS,
    "Rewards": _REWARDS,
    "Rollout engine": _ROLLOUT,
    "Teacher server": _SERVER,
    "Evaluation": _EVALUATION,
}
"""By subject, in the order of the documents."""


def of_evaluation(name: str) -> Metric | None:
    """The metric that an evaluation on prompts logs as `name`: eval_METRIC, with several datasets eval_DATASET_METRIC.

    The prefix may be left out. None if it logs no such metric.
    """
    words = name.split("_")
    endings = ["_".join(words[place:]) for place in range(len(words))]
    measured = (*_DIVERGENCE, *_NOISE, *_COMPLETIONS, *_REWARDS, *_ROLLOUT, _LOSS)
    return next((metric for ending in endings for metric in measured if metric.covers(ending)), None)


def falls(name: str) -> bool:
    """Whether less of the metric that an evaluation logs as `name` is better."""
    metric = of_evaluation(name)
    return metric is not None and (metric is _LOSS or metric.reading.startswith("Lower is better"))
