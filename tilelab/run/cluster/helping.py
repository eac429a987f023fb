"""Who helps whom with which part, when nothing is left to hand out: arithmetic on what is known of running attempts.

    outlook    |=== on disk ===>=== inferred ===>...............|--- another's ---|
             start          position            at   parted    end              stop

A helper takes the rows from `parted` to `end`, so that it and the attempt end together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tilelab.run.cluster.attempt import Attempt, Part

SLOW = 2.0  # how much longer than anew a unit must still take before it is begun anew beside it


class Outlook(NamedTuple):
    """How an attempt goes on if nobody helps.

    at: sweep position where it is.
    end: where the rows end that only it is at.
    seconds: until it is there, at its own pace; 0 when somebody is at these rows already.
    """

    attempt: Attempt
    at: float
    end: int
    seconds: float

    @property
    def tiles(self) -> float:
        """Tiles left to infer before `end`."""
        return (self.end - self.at) * self.attempt.tiles / self.attempt.rows


def foresee(attempt: Attempt, begins: Sequence[int], now: float, rate: float) -> Outlook:
    """The outlook of a running attempt.

    Args:
        attempt: that was taken up.
        begins: sweep positions where others began with rows of the same unit that it has not on disk.
        now: the time.
        rate: tiles per second of a worker like others.
    """
    rows = attempt.rows
    at = max(attempt.position, attempt.start + rows * attempt.done / attempt.tiles)
    end = min([attempt.stop, *[begin for begin in begins if begin >= at]])
    if begins and min(begins) <= at:
        return Outlook(attempt, at, end, 0.0)
    elapsed = now - (now if attempt.began is None else attempt.began)
    if at > attempt.start:
        pace = (at - attempt.start) / elapsed if elapsed > 0 else rows * rate / attempt.tiles
    else:  # nothing heard yet: as others, or slower if that time has passed
        pace = rows / max(elapsed, attempt.tiles / rate)
    return Outlook(attempt, at, end, max(0.0, end - at) / pace)


def choose_part(outlooks: Sequence[Outlook], rate: float, workers: int, grain: int) -> Part | None:
    """The rear of the attempt that would take longest: as much as all workers together have too much.

    So that all end at the same time an attempt keeps what it can do until then, and a helper goes from one to the
    next; but no helper takes so much that it would itself be the last.  An attempt that has come to a halt is begun
    anew from its last row on disk.

    Args:
        outlooks: of all running attempts.
        rate: tiles per second of the helper.
        workers: number of all that can be used.
        grain: units may be parted at multiples of it, pixels on the sweep axis.
    """
    last = max(outlooks, key=lambda outlook: outlook.seconds, default=None)
    if last is None or not last.seconds:
        return None
    attempt, rows = last.attempt, last.end - last.at
    own, helpers = rows / last.seconds, rate * attempt.rows / attempt.tiles  # rows per second
    together = rows * helpers / (helpers + own)  # what the helper does if both end at the same time
    surplus = own * (last.seconds - _fair_seconds(outlooks, rate, workers))
    parted = round((last.end - min(together, max(grain, surplus))) / grain) * grain
    parted = max(parted, math.ceil(last.at / grain) * grain)
    if attempt.position < parted < last.end:
        return Part(attempt.unit, parted, last.end)
    if last.end > attempt.position and last.seconds > SLOW * (last.end - attempt.position) / helpers:
        return Part(attempt.unit, attempt.position, last.end)
    return None


def _fair_seconds(outlooks: Sequence[Outlook], rate: float, workers: int) -> float:
    """Seconds until the end, if nobody had to wait."""
    alone = [outlook for outlook in outlooks if outlook.seconds]
    speed = sum(o.tiles / o.seconds for o in alone) + rate * max(1, workers - len(alone))
    return sum(o.tiles for o in alone) / speed


def mean_rate(attempts: Sequence[Attempt], now: float) -> float:
    """Tiles per second of one worker, as far as is known; what one without a past is expected to do."""
    rates = [a.done / (now - a.began) for a in attempts if a.began is not None and a.done and now > a.began]
    return sum(rates) / len(rates) if rates else 0.0
