"""Steps and epochs as the trainer's own parts need to hear of them."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class StepEvents(TrainerCallback):
    """Tells the trainer's clock when steps begin and end, and its sampler which epoch begins."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # accelerate passes set_epoch on to the sampler through some of its wrappers only.
        self.trainer._order.set_epoch(int(state.epoch))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._clock.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._clock.end()
