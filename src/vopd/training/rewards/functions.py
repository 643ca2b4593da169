"""A verifiable reward beside the teacher: functions that score whole completions, by TRL's names and signature.

Each prompt is completed `num_generations` times; a completion's advantage within its group is added to the advantage
of each of its tokens. The teacher says how to put every token; the reward says whether the whole was right.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vopd.data.tokenized import PROMPT_IDS, TEACHER_PROMPT_IDS
from vopd.errors import ConfigurationError, DataError, NonFiniteError
from vopd.functional import groups_without_spread, leave_one_out_advantages
from vopd.user_code import imported

from ..batch import Batch
from ..monitoring.metrics import Averages
from ..sampling_rules import check_sampling
from .named import GRADED, RewardFunction, named_reward

if TYPE_CHECKING:
    from ..config import VOPDConfig

_GIVEN = ("prompts", "completions", "completion_ids", "trainer_state")
# Columns that TRL does not pass on, for the arguments above stand for them, and those that the trainer adds.
_HIDDEN = ("prompt", "completion", "completion_ids", PROMPT_IDS, TEACHER_PROMPT_IDS)


@dataclass(frozen=True)
class Reward:
    """One reward function.

    Attributes:
        name: in metrics and errors.
        function: (prompts, completions, completion_ids, **columns) -> a number or None for each completion.
        columns: of the data set, without which it cannot be called.
        gold: the column with reference answers where it grades against one.
    """

    name: str
    function: RewardFunction
    columns: tuple[str, ...]
    gold: str | None = None

    def __call__(self, given: Mapping[str, Any]) -> list[float]:
        """Its rewards, NaN for None.

        Raises:
            ConfigurationError: another number of rewards than completions, or one that is no number.
            NonFiniteError: a NaN or an infinity.
        """
        found = self.function(**_accepted(self.function, given))
        wanted = len(given["completions"])
        if not isinstance(found, Sequence | Tensor) or len(found) != wanted:
            got = len(found) if isinstance(found, Sequence | Tensor) else type(found).__name__
            raise ConfigurationError(f"reward function '{self.name}' returned {got} for {wanted} completions")
        return [self._number(value) for value in found]

    def _number(self, value: Any) -> float:
        if value is None:
            return math.nan
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"reward function '{self.name}' returned {value!r}, which is no number") from error
        if not math.isfinite(number):
            raise NonFiniteError(f"reward function '{self.name}' returned {number}; return None for no reward")
        return number


class Rewards:
    """The reward functions of a run, with their weights; there may be none.

    Args:
        given: one function or several: a name of `named.named_reward`, or a callable.
        weights: one a function, in nats a unit of reward; None is 1 each.
        num_generations: completions of each prompt.
        column: with reference answers.

    Raises:
        ConfigurationError: an unknown name, weights that do not fit, one completion a prompt.
    """

    def __init__(self, given: Any, weights: Sequence[float] | None, num_generations: int, column: str) -> None:
        functions = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        self.rewards = [_reward(function, column) for function in functions]
        self.names = [reward.name for reward in self.rewards]
        self.num_generations = num_generations
        self.weights = [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.rewards):
            raise ConfigurationError(
                f"reward_weights has {len(self.weights)} values for {len(self.rewards)} reward functions; give one each"
            )
        if not all(map(math.isfinite, self.weights)):
            raise ConfigurationError(f"reward_weights must be finite, got {self.weights}")
        if len(set(self.names)) < len(self.names):
            raise ConfigurationError(f"reward functions share a name: {', '.join(self.names)}; rename one")
        if self.rewards and self.num_generations < 2:
            raise ConfigurationError(
                "a reward needs num_generations of 2 or more: with one completion a prompt there is nothing to compare "
                "it with; set num_generations, for example 8, or remove reward_funcs"
            )

    @classmethod
    def of(cls, args: VOPDConfig, given: Any) -> Rewards:
        """The rewards of a run with these settings."""
        rewards = cls(given, args.reward_weights, args.num_generations, args.reward_column)
        if rewards.names:
            check_sampling(args, rewarded=True)
            if args.remove_unused_columns:
                raise ConfigurationError("remove_unused_columns would take the columns that rewards need; remove it")
        return rewards

    @property
    def summary(self) -> str:
        """For people: the functions with their weights and the size of a group; empty without any."""
        if not self.rewards:
            return ""
        weighed = [f"{name} (weight {weight:g})" for name, weight in zip(self.names, self.weights, strict=True)]
        return f"{', '.join(weighed)}, over {self.num_generations} completions a prompt"

    def check(self, dataset: Any, name: str = "train_dataset") -> None:
        """Raises DataError if a function needs a column that `dataset` does not have."""
        columns = list(dataset.column_names)
        for reward in self.rewards:
            for column in reward.columns:
                if column not in columns:
                    hint = "; set reward_column" if column == reward.gold else ""
                    raise DataError(
                        f"reward function '{reward.name}' needs a column '{column}', and {name} has "
                        f"{', '.join(columns)}{hint}"
                    )
            if reward.gold is not None and not any(gold is not None and gold != "" for gold in dataset[reward.gold]):
                raise DataError(
                    f"column '{reward.gold}' of {name} has no reference answer; set reward_column to the one that has"
                )

    def scored(self, rows: list[dict[str, Any]], batch: Batch, tokenizer: Any, averages: Averages, state: Any) -> Batch:
        """A generated batch with scores, (N, F), and in training with advantages, (N,); adds metrics.

        Args:
            rows: of the data set, one a completion; groups in order.
            batch: as generated, before it is shuffled and split.
            tokenizer: decodes the completions.
            averages: where metrics go.
            state: of the trainer while it trains; None while it evaluates, where a prompt has one completion.
        """
        given = _arguments(rows, batch, tokenizer, state)
        scores = torch.tensor([reward(given) for reward in self.rewards], dtype=torch.float32).T
        scores = scores.to(batch.completion_ids.device)
        known = (~scores.isnan()).long()
        for place, name in enumerate(self.names):
            averages.add(f"rewards/{name}", scores[:, place].nan_to_num(), known[:, place], spread=True)
        if state is None:
            return replace(batch, scores=scores)
        advantages = leave_one_out_advantages(scores, torch.tensor(self.weights), self.num_generations)
        averages.add("group_advantage", advantages, spread=True)
        averages.add("zero_spread_share", groups_without_spread(scores, self.num_generations).float())
        return replace(batch, scores=scores, group_advantages=advantages)


def _reward(given: Any, column: str) -> Reward:
    name = given
    if isinstance(given, str) and ":" in given:
        given = imported(given, "reward function")
    elif isinstance(given, str):
        function, columns = named_reward(given, column)
        return Reward(given, function, columns, column if given in GRADED else None)
    if not callable(given):
        what = f"'{name}' is a {type(given).__name__}"
        raise ConfigurationError(f"a reward function must be a name or a callable, and {what}")
    if inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(getattr(given, "__call__", None)):  # noqa: B004
        raise ConfigurationError(f"reward function '{_name(given)}' is asynchronous, which is not supported")
    return Reward(_name(given), given, _needed(given))


def _name(function: Any) -> str:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _needed(function: Any) -> tuple[str, ...]:
    """The arguments of `function` that only a column of the data set can give."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return tuple(name for name in named if name not in _GIVEN)


def _accepted(function: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of `given` the function takes: all of it with **kwargs, as TRL asks for, else what it names."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}


def _arguments(rows: list[dict[str, Any]], batch: Batch, tokenizer: Any, state: Any) -> dict[str, Any]:
    ids = [completion for _, completion in batch.unpadded()]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    prompts = [row["prompt"] for row in rows]
    conversations = isinstance(prompts[0], list)
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in _HIDDEN}
    return {
        **columns,
        "prompts": prompts,
        "completions": [[{"role": "assistant", "content": text}] for text in texts] if conversations else texts,
        "completion_ids": ids,
        "trainer_state": state,
    }
