"""Flags that were given and cannot act here: each is said in one line, or refused where it would change the result."""

from __future__ import annotations

from tilelab.engines.base import Engine
from tilelab.errors import ModelError
from tilelab.io.images.volume import Volume
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan
from tilelab.spec import ModelSpec

_PATIENCE = Options().patience_seconds


def refuse_idle(options: Options, spec: ModelSpec) -> None:
    """Raise `ModelError` for what would be believed to act on the numbers."""
    kind = spec.normalization.kind
    if options.intensity_range is not None and kind != "constants":
        raise ModelError(
            f"--range says what a model's constants are for, but intensities are normalised by the image's {kind}: "
            "leave it out"
        )


def idle_flags(options: Options, engine: Engine, volume: Volume, plan: Plan) -> tuple[str, ...]:
    """One line for each flag that does nothing."""
    spec, found = engine.spec, []
    if options.threads is not None and engine.device.startswith("cuda"):
        found.append(f"--threads does nothing: the network runs on {engine.device}")
    if spec.neighbours and volume.shape[0] == 1:
        found.append(
            f"the image is a single plane: the {spec.neighbours} neighbours on either side are that plane again"
        )
    if options.model.window is not None and not any(spec.overlap):
        found.append("--window does nothing: tiles do not overlap")
    if options.mask is None:
        for flag, given in (("--mask-axes", options.mask_axes), ("--mask-series", options.mask_series)):
            if given is not None:
                found.append(f"{flag} does nothing: there is no --mask")
    if options.scale is not None and options.ignore_pixel_size:
        found.append("--ignore-pixel-size does nothing: --scale is taken whatever the pixel sizes are")
    for flag, asked, axis in (("--lanes", options.lanes, 2), ("--spans", options.spans, plan.frame.sweep_axis)):
        if asked is not None and (have := len(plan.units.cuts[axis])) < asked:
            found.append(f"{flag} {asked}: {have} of them here, shards are not cut")
    alone = options.workers is None and options.scheduler is None and "," not in options.device
    if options.patience_seconds != _PATIENCE and alone and "*" not in options.device and options.device != "all":
        found.append("--patience does nothing: no workers share this run")
    return tuple(found)
