"""What tiles say of their pixels: blended where that means something, the nearest tile's word where not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tilelab.arrays import Float32
from tilelab.run.sweep.finishing import channel_ranges
from tilelab.run.sweep.unit import UnitSweep
from tilelab.spec import ModelSpec


@dataclass(frozen=True)
class Shares:
    """Of some `channels` of the logits: the share of a tile along each axis, by its number there."""

    channels: slice
    sweep: Callable[[int], Float32]
    cross: dict[int, Float32]
    cols: dict[int, Float32]


def make_shares(unit: UnitSweep, spec: ModelSpec) -> list[Shares]:
    """For all channels of a unit: labels belong to the tile whose centre is nearest, all else is blended."""
    axes = unit.sweep, unit.cross, unit.cols
    parts = [(slice(0, spec.values), axes)]
    if spec.outputs[0].kind == "labels":
        labels = channel_ranges(spec)[0]
        sweep, cross, cols = (replace(axis, window="crop") for axis in axes)
        parts = [(labels, (sweep, cross, cols)), (slice(labels.stop, spec.values), axes)]
    return [
        Shares(
            channels,
            sweep.shares,
            {c: cross.shares(c) for c in unit.cross_tiles},
            {x: cols.shares(x) for x in unit.col_tiles},
        )
        for channels, (sweep, cross, cols) in parts
        if channels.start < channels.stop
    ]
