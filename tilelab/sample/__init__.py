"""Drawn micrographs with known truth, for demos, tests and benchmarks."""

from tilelab.sample.superalloy import CLASSES, draw_superalloy
from tilelab.sample.write import write_superalloy, write_tiled

__all__ = ["CLASSES", "draw_superalloy", "write_superalloy", "write_tiled"]
