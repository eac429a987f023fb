"""Learning rates as functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from tilelab.training.sections import Schedule


def rate_at(step: int, steps: int, rate: float, schedule: Schedule, stage: int = 0) -> float:
    """The learning rate of `step`, counted from 0, of `steps` in all.

    `rate` is the highest; `stage` is how often plateau has gone on to its next rate.
    """
    if step < schedule.warmup:
        return rate * (step + 1) / (schedule.warmup + 1)
    done = (step - schedule.warmup) / max(1, steps - schedule.warmup)
    if schedule.kind == "poly":
        return max(schedule.least, rate * math.pow(1 - done, schedule.power))
    if schedule.kind == "cosine":
        return schedule.least + (rate - schedule.least) * (1 + math.cos(math.pi * done)) / 2
    if schedule.kind == "step":
        return rate * math.pow(schedule.factor, (step - schedule.warmup) // schedule.every)
    if schedule.kind == "plateau":
        return (rate, *schedule.rates)[stage]
    return rate
