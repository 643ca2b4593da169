"""Learning rates of a resumed run: those of its own settings, from the step it resumes at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

# A checkpoint has these of the optimizer too; the moments are all that has to come from there.
_SET = ("initial_lr", "weight_decay", "betas", "eps")


@contextmanager
def asked_rates(optimizer: Any, scheduler: Any) -> Iterator[None]:
    """Context in which a checkpoint is loaded into both; afterwards they have the settings that they had before it.

    Unchanged settings give the checkpoint's learning rate, to the last bit. With others (a longer run, another rate) it
    is that of an uninterrupted run with them.
    """
    asked = [{name: group[name] for name in _SET if name in group} for group in optimizer.param_groups]
    rates = list(getattr(scheduler, "base_lrs", ()))
    yield
    for group, options in zip(optimizer.param_groups, asked, strict=True):
        group.update(options)
    if isinstance(scheduler, LambdaLR):  # every schedule of transformers but that which follows a metric
        factors = [rule(scheduler.last_epoch) for rule in scheduler.lr_lambdas]
        now = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, now, strict=True):
            group["lr"] = rate
        scheduler.load_state_dict({**scheduler.state_dict(), "base_lrs": rates, "_last_lr": now})
