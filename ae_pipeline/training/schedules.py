"""Learning rates by step."""

import math
from collections.abc import Callable

import torch

from ae_pipeline.config.model import TrainingConfig


class Schedule:
    """The learning rate of each step, from a scheduler of torch whose optimizer has no weights to train.

    The rates are numbers on the host, whatever the device of the weights.

    Args:
        scheduler: Scheduler.
    """

    def __init__(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        self._scheduler = scheduler

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return float(self._scheduler.get_last_lr()[0])

    def advance(self) -> None:
        """Go on to the next step."""
        self._scheduler.step()


def build_scheduler(config: TrainingConfig, steps: int) -> Schedule:
    """Return the configured schedule.

    Args:
        config: Schedule and learning rate.
        steps: Number of all steps.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], config.learning_rate)
    if config.schedule == "one_cycle":
        # The last step asks for one more learning rate.
        scheduler: torch.optim.lr_scheduler.LRScheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=steps + 1, cycle_momentum=False
        )
    else:
        factor = _cosine_with_warmup(steps) if config.schedule == "cosine" else lambda _: 1.0
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    optimizer.step()  # schedulers warn if they step before their optimizer
    return Schedule(scheduler)


def _cosine_with_warmup(steps: int) -> Callable[[int], float]:
    """Return a schedule that rises for 5 % of the steps, then falls to 0 as a cosine (Loshchilov & Hutter 2017)."""
    warmup = max(1, steps // 20)
    return lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
