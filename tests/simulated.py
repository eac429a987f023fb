"""Numba's simulator without a thread of Python for every thread of the GPU: starting them took most of the time."""

from __future__ import annotations

import threading

import numpy as np
from numba.cuda.simulator.kernelapi import Dim3


class Block:
    """In place of the simulator's `BlockManager`: a block's threads run one after the other.

    One that would wait for the others finds no `syncthreads`, and fails; no kernel here does.
    """

    def __init__(self, function, grid, block, debug):
        self.function, self.block = function, block

    def run(self, place, *arguments):
        thread = threading.current_thread()
        thread.blockIdx = Dim3(*place)
        for point in np.ndindex(*self.block):
            thread.threadIdx = Dim3(*point)
            self.function(*arguments)
        del thread.blockIdx, thread.threadIdx
