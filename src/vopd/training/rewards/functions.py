"""Verifiable rewards in addition to the teacher: functions that score whole completions, with TRL's signature.

Each prompt is completed `num_generations` times; a completion's advantage within its group is added to the advantage
of each of its tokens. The teacher scores every token; the reward scores the whole completion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from vopd.data.tokenized import PROMPT_IDS, TEACHER_PROMPT_IDS
from vopd.errors import ConfigurationError, DataError, counted
from vopd.functional import groups_without_spread, leave_one_out_advantages
from vopd.scoring import GIVEN, Scorer

from ..batch import Batch
from ..inherited.sampling_rules import check_sampling
from ..monitoring.metrics import ZERO_SPREAD_SHARE, Averages
from .named import GRADED, named_reward

if TYPE_CHECKING:
    from ..config import VOPDConfig

_KIND = "reward function"
# Columns that are not passed on: the arguments above replace them, or the trainer added them.
_HIDDEN = ("prompt", "completion", "completion_ids", PROMPT_IDS, TEACHER_PROMPT_IDS)


@dataclass(frozen=True)
class Reward:
    """One reward function.

    Attributes:
        scorer: the function.
        columns: columns of the dataset that it requires.
        gold: the column with reference answers, if it grades against one.
    """

    scorer: Scorer
    columns: tuple[str, ...]
    gold: str | None = None

    @property
    def name(self) -> str:
        """Its name in metrics and errors."""
        return self.scorer.name


class Rewards:
    """The reward functions used in training, possibly none, with their weights.

    Args:
        given: one function or several, each a name known to `named.named_reward` or a callable.
        weights: one per function, in nats per unit of reward; None is 1 each.
        num_generations: completions per prompt.
        column: the column with reference answers.

    Raises:
        ConfigurationError: an unknown name, a wrong number of weights, or one completion per prompt.
    """

    def __init__(self, given: Any, weights: Sequence[float] | None, num_generations: int, column: str) -> None:
        functions = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        self.rewards = [_reward(function, column) for function in functions]
        self.names = [reward.name for reward in self.rewards]
        self.num_generations = num_generations
        self.weights = [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.rewards):
            raise ConfigurationError(
                f"reward_weights has {counted(len(self.weights), 'value')} for "
                f"{counted(len(self.rewards), 'reward function')}; give one weight per function"
            )
        if not all(map(math.isfinite, self.weights)):
            raise ConfigurationError(f"reward_weights must be finite, got {self.weights}")
        if len(set(self.names)) < len(self.names):
            raise ConfigurationError(f"reward functions have the same name: {', '.join(self.names)}; rename one")
        if self.rewards and self.num_generations < 2:
            raise ConfigurationError(
                "rewards need num_generations of 2 or more, because the completions of a prompt are compared with each "
                "other; set num_generations, for example 8, or remove reward_funcs"
            )

    @classmethod
    def of(cls, args: VOPDConfig, given: Any) -> Rewards:
        """The rewards `given`, with these settings."""
        rewards = cls(given, args.reward_weights, args.num_generations, args.reward_column)
        if rewards.names:
            check_sampling(args, rewarded=True)
        return rewards

    @property
    def summary(self) -> str:
        """The functions with their weights and the size of a group, for the model card; empty without rewards."""
        if not self.rewards:
            return ""
        weighted = [f"{name} (weight {weight:g})" for name, weight in zip(self.names, self.weights, strict=True)]
        return f"{', '.join(weighted)}, over {self.num_generations} completions per prompt"

    def check(self, dataset: Any, name: str = "train_dataset") -> None:
        """Raises DataError if a function needs a column that `dataset` does not have."""
        columns = list(dataset.column_names)
        for reward in self.rewards:
            for column in reward.columns:
                if column not in columns:
                    hint = "; set reward_column to the right one" if column == reward.gold else "; add it"
                    raise DataError(
                        f"reward function '{reward.name}' needs a column '{column}', but {name} has "
                        f"{', '.join(columns)}{hint}"
                    )
            if reward.gold is not None and not any(gold is not None and gold != "" for gold in dataset[reward.gold]):
                raise DataError(
                    f"column '{reward.gold}' of {name} has no reference answer; set reward_column to the column with "
                    "reference answers"
                )

    def scored(self, rows: list[dict[str, Any]], batch: Batch, tokenizer: Any, averages: Averages, state: Any) -> Batch:
        """Return a generated batch with scores, (N, F), and, in training, advantages, (N,). Adds metrics.

        Args:
            rows: rows of the dataset, one per completion, in order of the groups.
            batch: the batch as generated, before it is shuffled and split.
            tokenizer: decodes the completions.
            averages: receives the metrics.
            state: the trainer's state in training; None in evaluation, where each prompt has one completion.
        """
        given = _arguments(rows, batch, tokenizer, state)
        scores = torch.tensor([reward.scorer(given) for reward in self.rewards], dtype=torch.float32).T
        scores = scores.to(batch.completion_ids.device)
        known = (~scores.isnan() & batch.counted_rows.unsqueeze(-1)).long()
        for place, name in enumerate(self.names):
            averages.add(f"rewards/{name}", scores[:, place].nan_to_num(), known[:, place], spread=True)
        if state is None:
            return replace(batch, scores=scores)
        advantages = leave_one_out_advantages(scores, torch.tensor(self.weights), self.num_generations)
        averages.add("group_advantage", advantages, spread=True)
        averages.add("zero_spread_share", groups_without_spread(scores, self.num_generations).float())
        for place, name in enumerate(self.names):
            equal = groups_without_spread(scores[:, [place]], self.num_generations).float()
            averages.add(f"rewards/{name}{ZERO_SPREAD_SHARE}", equal)
        return replace(batch, scores=scores, group_advantages=advantages)


def _reward(given: Any, column: str) -> Reward:
    if isinstance(given, str) and ":" not in given:
        function, columns = named_reward(given, column)
        return Reward(Scorer(_KIND, given, function), columns, column if given in GRADED else None)
    scorer = Scorer.of(given, _KIND)
    return Reward(scorer, tuple(name for name in scorer.needed if name not in GIVEN))


def _arguments(rows: list[dict[str, Any]], batch: Batch, tokenizer: Any, state: Any) -> dict[str, Any]:
    ids = [completion for _, completion in batch.unpadded()]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    prompts = [row["prompt"] for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in _HIDDEN}
    return {
        **columns,
        "prompts": prompts,
        "completions": [
            [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
            for prompt, text in zip(prompts, texts, strict=True)
        ],
        "completion_ids": ids,
        "trainer_state": state,
    }
