"""What every unit of a run shares, and where the time of a sweep went."""

from __future__ import annotations

from dataclasses import dataclass

from tilelab.arrays import Float32, Int64
from tilelab.geometry import Frame, Lattice
from tilelab.io.images.volume import Volume


@dataclass(frozen=True)
class Job:
    """What every unit of a run shares.

    mean, gain: float32 ``(spec.channels,)``; the network's input is ``(raw - mean) * gain``.
    channels: the class of each probability channel, int64 ``(P,)``.
    mask: nonzero where the result is wanted; elsewhere labels and probabilities are 0 and blank tiles are not inferred.
    symmetries: 1, or 8 for test-time augmentation over the symmetries of the square.
    """

    image: Volume
    lattice: Lattice
    frame: Frame
    mean: Float32
    gain: Float32
    activation: int
    channels: Int64
    labels: bool = True
    logits: bool = False
    mask: Volume | None = None
    symmetries: int = 1


@dataclass
class Stalls:
    """Where the time of a sweep went, in seconds of the engine's thread; `tiles` counts those inferred."""

    read: float = 0.0
    engine: float = 0.0
    blend: float = 0.0
    write: float = 0.0
    tiles: int = 0
    blank: int = 0

    def add(self, other: Stalls) -> None:
        """Sum with another unit's."""
        for name in ("read", "engine", "blend", "write", "tiles", "blank"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
