"""Logits that are no numbers: found before they become bytes, and said with their place."""

from __future__ import annotations

import numpy as np

from tilelab.arrays import Bool
from tilelab.engines.base import Engine
from tilelab.errors import EngineError
from tilelab.geometry import Box


def not_finite(engine: Engine, box: Box, bad: Bool | None = None) -> EngineError:
    """The error for logits in `box` that are no numbers.

    Args:
        engine: that gave them.
        box: of the image, in its own order of axes.
        bad: which of its pixels, in that order; None where that is not known.
    """
    count = ""
    if bad is not None:
        where = [np.flatnonzero(bad.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
        count = f" for {int(bad.sum())} pixels"
        low, high = ([int(found[end]) for found in where] for end in (0, -1))
        box = Box(
            tuple(a + n for a, n in zip(box.start, low, strict=True)),
            tuple(a + n + 1 for a, n in zip(box.start, high, strict=True)),
        )
    return EngineError(
        f"{engine.name} {engine.precision} gave NaN or infinite logits{count} in {box}: try another --precision or "
        "--engine, or leave such places out with --mask (a network that divides by the spread of its tile does so "
        "where that is blank)"
    )
