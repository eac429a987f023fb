"""How far to go from the old weights to those that were learned.

The way is gone in small steps, and ended before the first at which it is not sure that what the network knew is kept:
where tests have a fixed order and the first that fails is the last, none needs to be stricter for their number (Maurer,
Hothorn and Lehmacher, 1995).  What is gained is asked of corrections that nothing was learned from: each half is judged
with what the other half taught.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.training.judge import Judge, Judged, Planes, compare

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Of the new weights in the mean with the old ones."""
_ENOUGH = 0.95  # of the gain: no more of the new weights than for this
_LEAST_GAIN = 0.02  # of mean IoU: less is not worth the risk
_HALVES = "corrections that it did not learn from"

Weights = Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """A share of the new weights.

    Attributes:
        share: of them.
        gain: on corrections, where there are two or more on those that it did not learn from.
        home: on each set of what it knew.
    """

    share: float
    gain: Judged
    home: tuple[Judged, ...]


def halves(corrected: Planes) -> list[tuple[Planes, Planes]]:
    """What is learned from and what is held out, every second plane each time; nothing where there is one plane."""
    if len(corrected.planes) < 2:
        return []
    parts = [
        replace(corrected, planes=corrected.planes[i::2], normalizations=corrected.normalizations[i::2]) for i in (0, 1)
    ]
    return [(parts[1], parts[0]), (parts[0], parts[1])]


class Course:
    """The way from a network to one that has learned.

    Args:
        old: the network.
        abroad: judges of the corrections, one for each of the weights that are judged by them.
        home: judges of what it knew.
    """

    def __init__(self, old: nn.Module, abroad: Sequence[Judge], home: Sequence[Judge]) -> None:
        self._first, self._moved = [p.detach().clone() for p in old.parameters()], copy.deepcopy(old)
        self._abroad, self._home = abroad, home
        self._before = [judge.count(old) for judge in (*abroad, *home)]

    def choose(self, end: Weights, ends: Sequence[Weights], name: str) -> Step:
        """As little of the new weights as gives nearly all of what can be gained.

        Args:
            end: the new weights.
            ends: of networks that learned from a part, for each judge of corrections.
            name: of the model, in messages.

        Raises:
            ModelError: nothing can be gained, or not without a loss.
        """
        return best(self.steps(end, ends), name)

    def steps(self, end: Weights, ends: Sequence[Weights]) -> Iterator[Step]:
        """The way, step by step; see `choose`."""
        count, before = len(self._abroad), self._before
        for share in SHARES:
            learned = [judge.count(self.at(w, share)) for judge, w in zip(self._abroad, ends, strict=True)]
            name = _HALVES if count > 1 else self._abroad[0].name
            gain = compare(name, np.concatenate(before[:count]), np.concatenate(learned), None)
            network = self.at(end, share)
            home = [judge.compare(b, judge.count(network)) for judge, b in zip(self._home, before[count:], strict=True)]
            yield Step(share, gain, tuple(home))

    @torch.no_grad()
    def at(self, end: Weights, share: float) -> nn.Module:
        """The network with a share of the new weights, until the next call."""
        for parameter, a, b in zip(self._moved.parameters(), self._first, end, strict=True):
            parameter.copy_(torch.lerp(a, b, share))
        return self._moved


def best(way: Iterator[Step], name: str) -> Step:
    """The step to stay at, of those before the first that loses what was known.

    Raises:
        ModelError: nothing can be gained, or not without a loss.
    """
    allowed: list[Step] = []
    lost: Judged | None = None
    for step in way:
        lost = next((judged for judged in step.home if not judged.kept), None)
        if lost is not None:
            break
        allowed.append(step)
    if not allowed:
        raise ModelError(
            f"{name} would be worse on what it knew with {step.share:.0%} of the new weights ({lost}): name images "
            "that it must keep (--home), or correct more; nothing was written"
        )
    most = max(step.gain.gain for step in allowed)
    if not most >= _LEAST_GAIN:
        worse = f"without being worse on what it knew ({lost}) " if lost else ""
        raise ModelError(
            f"{name} does not get better on the {allowed[0].gain.name} {worse}(mean IoU {allowed[0].gain.before:.4f}): "
            "correct more places, or more of each; nothing was written"
        )
    return next(step for step in allowed if step.gain.gain >= _ENOUGH * most)
