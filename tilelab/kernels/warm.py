"""Make the compiled kernels ready before they are needed."""

from __future__ import annotations

import numpy as np

from tilelab.kernels import cpu
from tilelab.kernels.pyramid import cut_chunks, halve_mean, halve_mode


def warm_up() -> None:
    """Call every kernel once on next to nothing: reads them from Numba's cache, or compiles them (once per machine)."""
    zero, one = np.zeros(1, np.int64), np.ones(1, np.float32)
    band = np.zeros((1, 1, 1, 1), np.uint8)
    logits = np.zeros((1, 1, 1, 1), np.float32)
    cpu.is_constant(band, zero, zero, zero)
    cpu.cut(band, zero, zero, zero, one, one, logits)
    reach = (0, 0, 1, 1, 0)
    cpu.blend(logits, logits.copy(), (one, one, one), (logits, logits, logits), (0, 1), reach, reach, reach)
    cpu.finish(
        logits,
        0,
        cpu.SOFTMAX,
        np.zeros((1, 1, 1), np.uint8),
        np.zeros((1, 1, 1, 1), np.uint8),
        zero,
        np.empty((0, 0, 0, 0), np.float32),
    )
    halve_mean(np.zeros((1, 2, 2, 2), np.uint8), 1)
    halve_mode(np.zeros((1, 2, 2, 2), np.uint8), 1)
    cut_chunks(np.zeros((1, 1, 1, 1), np.uint8), 0, 0, (1, 1, 1))
