"""From a checkpoint to a verified engine file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tilelab.engines.onnx_file import embed_spec
from tilelab.engines.registry import ENGINES, availability
from tilelab.errors import EngineError, ModelError, OutputError
from tilelab.exporting.onnx_file import write_onnx
from tilelab.exporting.parity import Parity, ParityError, Sample, check_parity
from tilelab.geometry import Window
from tilelab.spec import ModelSpec, Precision
from tilelab.training.checkpoint import load_checkpoint, load_network


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the file, its description, and every comparison that was made."""

    path: Path
    spec: ModelSpec
    checks: tuple[Parity, ...]


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    samples: Sequence[Sample],
    *,
    tile: int | None = None,
    overlap: int | None = None,
    window: Window | None = None,
    free_size: bool = False,
    precisions: Sequence[Precision] = (),
    force: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Export a checkpoint to ONNX and pass it through the parity gate.

    Args:
        checkpoint: written by `tilelab train`.
        output: an .onnx file; appears only when everything has passed.
        samples: images to compare on.
        tile: pixels of the square tile, instead of the recipe's.
        overlap: likewise.
        window: likewise.
        free_size: leave height and width free; it is proved at three sizes.
        precisions: to be proved beside fp32; one that fails is an error.  Empty: every one that this machine has and
            that needs no other file, and those that fail are left out of the description.
        force: replace an existing output.
        report: called with one line per check.

    Raises:
        ModelError: the checkpoint is broken, or its network cannot be exported.
        ParityError: the file does not reproduce the network; nothing is left under the final name.
        OutputError: `output` exists or cannot be written.
        EngineError: no engine is installed, or a precision asked for is not to be had here.
    """
    if output.suffix != ".onnx":
        raise OutputError(f"cannot export to {output}: give a name that ends with .onnx")
    if output.exists() and not force:
        raise OutputError(f"{output} exists: give another name or --force")
    loaded = load_checkpoint(checkpoint)
    network = load_network(loaded)
    spec = _place(loaded.header.spec, tile, overlap, window, free_size)
    scores = loaded.header.scores
    spec = msgspec.structs.replace(
        spec,
        precisions=("fp32",),
        training={
            **spec.training,
            "steps": loaded.header.step,
            "seed": loaded.header.recipe.seed,
            "validation": scores,
        },
    )
    partial = output.with_name(f"{output.stem}.partial.onnx")
    engines = [name for name in ENGINES if not availability(name).reason]
    if not engines:
        raise EngineError("nothing to check the export with: install tilelab[cpu]")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_onnx(network, spec, partial)
        checks: list[Parity] = []

        def check(engine: str, precision: Precision, size: int | None = None) -> Parity:
            parity = check_parity(network, partial, samples, engine=engine, precision=precision, tile=size)
            report(str(parity) + (f" (tile {size})" if size else ""))
            checks.append(parity)
            return parity

        for engine in engines:
            _require(check(engine, "fp32"))
        for size in _other_sizes(spec) if free_size else ():
            _require(check(engines[-1], "fp32", size))
        passed = list(spec.precisions)
        for precision in precisions or _cheap_precisions(engines):
            if precision in passed:
                continue
            parity = check(_engine_for(engines, precision), precision)
            failure = parity.failure()
            if failure is None:
                passed.append(precision)
            elif precisions:
                raise ParityError(failure)
            else:
                report(f"{precision} is not permitted: {failure}")
        spec = msgspec.structs.replace(spec, precisions=tuple(passed))
        embed_spec(partial, spec)
        partial.replace(output)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Exported(output, spec, tuple(checks))


def _place(spec: ModelSpec, tile: int | None, overlap: int | None, window: Window | None, free_size: bool) -> ModelSpec:
    if free_size and spec.receptive_field is None:
        raise ModelError(
            f"{spec.architecture} sees its whole tile, so its output depends on the tile's size: leave --free-size out"
        )
    side = spec.tile[0] if tile is None else tile
    over = min(spec.overlap[0], side // 4) if overlap is None else overlap
    least = max(2 * spec.stride, min(64, side))
    try:
        return msgspec.convert(
            msgspec.to_builtins(spec)
            | {
                "tile": (side, side),
                "overlap": (over, over),
                "window": window or spec.window,
                "tile_fixed": not free_size,
                "tile_min": (least, least) if free_size else None,
            },
            ModelSpec,
        )
    except msgspec.ValidationError as error:
        raise ModelError(f"{spec.architecture} cannot be exported so: {error}") from error


def _require(parity: Parity) -> None:
    failure = parity.failure()
    if failure is not None:
        raise ParityError(failure)


def _other_sizes(spec: ModelSpec) -> list[int]:
    """The smallest size allowed, an odd multiple of the stride below the tile, and one above."""
    least = 0 if spec.tile_min is None else spec.tile_min[0]
    side, stride = spec.tile[0], spec.stride
    return [
        least,
        max(least, (side // stride // 2 | 1) * stride),
        side + (stride if side // stride % 2 == 0 else 2 * stride),
    ]


def _cheap_precisions(engines: Sequence[str]) -> list[Precision]:
    """Precisions beside fp32 that some engine has on this machine for an fp32 file; int8 needs a file of its own."""
    found: list[Precision] = []
    for engine in engines:
        for target in availability(engine).targets:
            if not target.reason and target.precision not in ("fp32", "int8", *found):
                found.append(target.precision)
    return found


def _engine_for(engines: Sequence[str], precision: Precision) -> str:
    for engine in engines:
        if any(t.precision == precision and not t.reason for t in availability(engine).targets):
            return engine
    raise EngineError(f"no engine on this machine computes in {precision}, so it cannot be proved here: leave it out")
