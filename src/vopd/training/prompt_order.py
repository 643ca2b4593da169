"""Order of the prompts. It depends only on the seed and the epoch, so that every resume point is exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback


@dataclass(eq=False)
class EpochSampler(Sampler[int]):
    """Shuffled prompts in whole generation batches, each repeated once per micro-batch that it feeds.

    TRL generates for all micro-batches of an optimizer step at once and reads the same batch again for each of them.
    Its own sampler has no ``set_epoch``, so a run that resumes in epoch 2 replays the order of epoch 1. Here the
    order comes from a generator seeded with ``seed + epoch``, the same on every rank.

    Prompts after the last whole generation batch are left out of this epoch; another epoch shuffles them forward.

    Args:
        num_prompts: size of the dataset.
        batch_size: completions per generation batch over all ranks.
        repeats: how often each generation batch is read: the gradient accumulation steps.
        shuffle: False keeps the order of the dataset in every epoch.
        seed: the training seed.
        num_generations: how often each prompt occurs in its generation batch, consecutively. Ranks take equal
            parts of the batch in order, so no group is split if a part is a multiple of this.
    """

    num_prompts: int
    batch_size: int
    repeats: int
    shuffle: bool
    seed: int
    num_generations: int = 1
    epoch: int = field(default=0, init=False)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration use the order of `epoch`."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order, step = self._order(), self.batch_size // self.num_generations
        for start in range(0, self.num_prompts - step + 1, step):
            batch = [prompt for prompt in order[start : start + step] for _ in range(self.num_generations)]
            for _ in range(self.repeats):
                yield from batch

    def __len__(self) -> int:
        step = self.batch_size // self.num_generations
        return self.num_prompts // step * step * self.num_generations * self.repeats

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_prompts))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.num_prompts, generator=generator).tolist()


class PromptOrder(TrainerCallback):
    """Makes the training sampler and sets its epoch: only some of accelerate's wrappers would do so.

    Args:
        args: a VOPDConfig.
    """

    def __init__(self, args: Any) -> None:
        self._args = args
        self._sampler: EpochSampler | None = None

    def sampler(self, num_prompts: int, batch_size: int) -> EpochSampler:
        """A new sampler for a dataset of `num_prompts` and for generation batches of `batch_size` over all ranks."""
        args = self._args
        self._sampler = EpochSampler(
            num_prompts,
            batch_size,
            args.gradient_accumulation_steps,
            shuffle=bool(args.shuffle_dataset),
            seed=args.seed,
            num_generations=args.num_generations,
        )
        return self._sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._sampler is not None:
            self._sampler.set_epoch(int(state.epoch))
