"""What the user says of how intensities are normalised, laid over what the model says."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from tilelab.errors import ModelError
from tilelab.spec import Normalization, NormalizationKind, Statistics


def override_normalization(
    own: Normalization | None,
    *,
    kind: NormalizationKind | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    dtype: str | None = None,
    percentiles: tuple[float, float] | None = None,
    statistics: Statistics | None = None,
    clip: tuple[float, float] | None = None,
) -> Normalization:
    """The user's constants or statistics, laid over the model's own; None where it has none.

    Raises:
        ModelError: they contradict each other or the model; the message names the flags.
    """
    changes: dict[str, Any] = {}
    if percentiles is not None:
        if kind not in (None, "percentile"):
            raise ModelError(f"--percentiles are not for --normalization {kind}: leave one of them out")
        kind = "percentile"
        changes |= {"low": percentiles[0], "high": percentiles[1]}
    if mean is not None or std is not None:
        if kind not in (None, "constants"):
            raise ModelError(f"--mean and --std are constants, but --normalization says {kind}: leave one of them out")
        kind = "constants"
        if (own is None or own.kind != "constants") and (mean is None or std is None):
            raise ModelError("--mean and --std belong together: give both")
        own = own or Normalization()
        _check_constants(mean, std)
        mean, std = mean or own.mean, std or own.std
        count = max(len(mean), len(std))
        changes["mean"] = mean * count if len(mean) == 1 else mean
        changes["std"] = std * count if len(std) == 1 else std
    if kind is not None:
        changes["kind"] = kind
    own = own or Normalization()
    if statistics is not None:
        if (kind or own.kind) == "constants":
            raise ModelError(
                "--statistics says whose statistics normalise intensities, but constants do: give --normalization "
                "mean-std, percentile or min-max"
            )
        changes["per"] = statistics
    elif kind == "constants":
        changes["per"] = "stack"
    if clip is not None:
        changes["clip"] = clip
    if dtype is not None:
        if (kind or own.kind) != "constants":
            raise ModelError(
                f"--intensity-dtype says what --mean and --std are in, but intensities are normalised by the image's "
                f"{kind or own.kind}: leave it out"
            )
        changes["dtype"] = dtype
    return msgspec.convert(msgspec.to_builtins(own) | changes, Normalization)


def _check_constants(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    for flag, values in (("--mean", mean), ("--std", std)):
        if values is not None and not all(map(math.isfinite, values)):
            raise ModelError(f"{flag} {','.join(f'{v:g}' for v in values)} is not a number: give raw intensities")
    if std is not None and not all(value > 0 for value in std):
        raise ModelError(f"--std {','.join(f'{v:g}' for v in std)} is not positive: give the spread of raw intensities")
