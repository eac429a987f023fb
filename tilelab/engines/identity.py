"""Engines that compute nothing: what goes in comes out, so that everything around an engine can be checked exactly.

``identity`` gives back its one input channel: as intensities are not scaled either, the stitched logits are the image.
``identity:K`` cuts the grey values 0..255 into K equal bands, its classes: its K input channels are the intensity v
normalised to ``(k + 1) (v - 128 k / K)``, of which the k-th is the greatest where 256 k / K < v <= 256 (k + 1) / K.
"""

from __future__ import annotations

import numpy as np

from tilelab.arrays import Float32
from tilelab.engines.base import BaseEngine
from tilelab.engines.overrides import SpecOverrides, override_spec
from tilelab.errors import ModelError
from tilelab.spec import ClassInfo, ModelSpec, Normalization, default_colors


def identity_spec(outputs: int = 1, overrides: SpecOverrides | None = None) -> ModelSpec:
    """Description of ``identity`` (1 output) or ``identity:K``: any tile, stride 1, unless `overrides` says more."""
    if not 1 <= outputs <= 256:
        raise ModelError(f"identity:{outputs} is not possible: ask for 1 to 256 outputs")
    colors = default_colors(max(2, outputs))
    if outputs == 1:
        names: tuple[str, ...] = ("background", "foreground")
        normalization = Normalization(mean=(0.0,), std=(1.0,))
    else:
        names = tuple(f"band {k}" for k in range(outputs))
        normalization = Normalization(
            mean=tuple(128 * k / outputs for k in range(outputs)), std=tuple(1 / (k + 1) for k in range(outputs))
        )
    spec = ModelSpec(
        name="identity" if outputs == 1 else f"identity:{outputs}",
        architecture="identity",
        channels=outputs,
        classes=tuple(ClassInfo(name, color) for name, color in zip(names, colors, strict=True)),
        activation="sigmoid" if outputs == 1 else "softmax",
        normalization=normalization,
        tile=(256, 256),
        tile_fixed=False,
        tile_min=(1, 1),
        overlap=(64, 64),
        receptive_field=1,
        precisions=("fp32",),
    )
    return override_spec(spec, overrides)


class IdentityEngine(BaseEngine):
    """Copies its input to its output."""

    name = "identity"

    def __init__(self, spec: ModelSpec, tile: tuple[int, ...], batch: int) -> None:
        if spec.channels != spec.values:
            raise ModelError(f"identity gives what it takes, not {spec.values} outputs for {spec.channels} channels")
        super().__init__(spec, tile, batch)

    def run(self, tiles: Float32, out: Float32) -> None:
        """Copy `tiles` to `out`."""
        np.copyto(out, tiles)
