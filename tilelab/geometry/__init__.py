"""Where tiles lie, how the work is cut: integers in, integers out, no I/O.

Positions and sizes are in pixels; axes are in the image's order, ``(z, y, x)`` for volumes.
"""

from tilelab.geometry.box import Box, boxes
from tilelab.geometry.tiling import WINDOWS, AxisTiling, Lattice, Window, reflect, window_profile
from tilelab.geometry.units import Cuts, Frame, Unit, Units

__all__ = [
    "WINDOWS",
    "AxisTiling",
    "Box",
    "Cuts",
    "Frame",
    "Lattice",
    "Unit",
    "Units",
    "Window",
    "boxes",
    "reflect",
    "window_profile",
]
