"""Tiled inference for electron micrographs of any size."""

__version__ = "0.1.0"
