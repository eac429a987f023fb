"""Scalar arithmetic that the kernels share: written once, compiled for the CPU and for CUDA.

Plain functions of float32 numbers, products and sums only, so that every compiler can vectorise them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ZERO, HALF, ONE, TWO, BYTE = (np.float32(v) for v in (0, 0.5, 1, 2, 255))
_LOWEST = np.float32(-24)
_SIXTY_FOURTH = np.float32(1 / 64)
_C2, _C3, _C4, _C5 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24), np.float32(1 / 120)


def exp_negative(x: Any) -> Any:
    """exp(x) for x <= 0 in float32, to 5e-7: the Taylor polynomial of exp(x/64) - 1, squared six times.

    Nothing but products and sums, so it vectorises and gives the same bytes on every CPU, which libm's does not.
    Carrying exp - 1 rather than exp keeps the rounding of the first steps from being doubled by each squaring.
    """
    x = max(x, _LOWEST) * _SIXTY_FOURTH
    e = x * (ONE + x * (_C2 + x * (_C3 + x * (_C4 + x * _C5))))
    e *= TWO + e
    e *= TWO + e
    e *= TWO + e
    e *= TWO + e
    e *= TWO + e
    e *= TWO + e
    return max(e + ONE, ZERO)
