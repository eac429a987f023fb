"""A run to be killed: the identity engine with a pause for every batch, so that there is a middle to be killed in.

python slow_infer.py IMAGE OUT [PAUSE_SECONDS]
"""

from __future__ import annotations

import sys
import time

import numpy as np

from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine
from tilelab.run.infer import infer
from tilelab.run.options import Options


class Slow:
    """Waits, then does what the wrapped engine does."""

    def __init__(self, engine, pause):
        self._engine, self._pause = engine, pause

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def run(self, tiles, out):
        """Wait and compute."""
        time.sleep(self._pause)
        self._engine.run(np.cbrt(tiles), out)  # not the identity, so that blending matters


def main():
    """Run to the end, unless killed."""
    image, out = sys.argv[1:3]
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    engine = load_engine("identity:3", tile=(128, 128), spec_overrides=SpecOverrides(overlap=(40, 40)))
    infer(image, Slow(engine, pause), out, options=Options(lanes=2), note=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
