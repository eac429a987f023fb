"""What every unit of a run shares, and where the time of a sweep went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Float32, Int64
from tilelab.engines.base import Engine, GpuRoom
from tilelab.geometry import Frame, Lattice
from tilelab.io.images.finite import FiniteVolume
from tilelab.io.images.volume import Volume, network_input
from tilelab.kernels.reference import ACTIVATIONS
from tilelab.run.plan.request import ImageFacts, Request, Written, written_maps
from tilelab.spec import ModelSpec


@dataclass(frozen=True)
class Job:
    """What every unit of a run shares.

    mean, gain: float32 ``(spec.channels,)``, or ``(slices, spec.channels)`` where each slice has its own; the network's
        input is ``(raw - mean) * gain``.
    clip: what it is cut off at, or None.
    sharpness: what logits are multiplied by before they become probabilities.
    channels: the class of each probability channel, int64 ``(P,)``.
    mask: nonzero where the result is wanted; elsewhere labels and probabilities are 0 and blank tiles are not inferred.
    symmetries: 1, or 8 for test-time augmentation over the symmetries of the square.
    finite: a logit that is NaN or infinite is an error; without, whoever takes the logits looks at them.
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
    finite: bool = True
    clip: tuple[float, float] | None = None
    sharpness: float = 1.0

    @classmethod
    def of(
        cls,
        volume: Volume,
        request: Request,
        mean: Float32,
        gain: Float32,
        mask: Volume | None = None,
        nan: float | None = None,
    ) -> Job:
        """The job that was planned, on the image that is opened; pixels that are not finite are taken as `nan`.

        Raises:
            InputError: the mask does not fit the image.
            ModelError: the image has channels where the network takes neighbouring slices.
        """
        return cls(
            image=network_input(
                FiniteVolume(volume, np.atleast_2d(mean).mean(axis=0).tolist(), mask, nan), request.spec
            ),
            lattice=request.lattice,
            frame=request.frame,
            mean=mean,
            gain=gain,
            activation=ACTIVATIONS[request.spec.activation],
            channels=np.array(request.written.probabilities, np.int64),
            labels=request.written.labels,
            logits=request.written.logits > 0,
            mask=mask,
            symmetries=request.symmetries,
            clip=request.spec.normalization.clip,
            sharpness=request.spec.sharpness,
        )

    def request(self, engine: Engine, gpu: GpuRoom | None = None) -> Request:
        """What a plan is asked for this job on `engine`, and its GPU: it decides what a unit holds."""
        spec = engine.spec
        logits = spec.class_values if self.logits else 0
        written = Written(self.labels, tuple(self.channels.tolist()), logits, written_maps(spec))
        return Request(
            ImageFacts.of(self.image),
            engine.spec,
            written,
            self.lattice,
            self.frame,
            engine.batch,
            engine.streams,
            self.symmetries,
            self.mask is not None,
            gpu,
        )

    def suits_device(self, spec: ModelSpec) -> bool:
        """Whether the sweep on a GPU does all that is asked."""
        return spec.plain and not spec.outputs[0].thresholds and self.mean.ndim == 1 and self.clip is None

    def close(self) -> None:
        """Close the mask, which was opened for it; the image is its opener's."""
        if self.mask is not None:
            self.mask.image.close()


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
