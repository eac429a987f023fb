"""What the user says of a model, laid over what the model says of itself and what its inputs and outputs tell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import msgspec

from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.engines.meaning import ends_in_sigmoid, read_meaning, refuse_labels
from tilelab.errors import ModelError
from tilelab.geometry import Window
from tilelab.spec import Activation, ClassInfo, ModelSpec, Normalization, NormalizationKind, OutputKind, default_colors
from tilelab.text import size_text

Axes = Literal["yx", "zyx"]
_Number = TypeVar("_Number", int, float)

_IMPOSSIBLE = (ModelError, msgspec.MsgspecError, ValueError)
_USUAL_STRIDE = 32  # five halvings, the depth of the usual encoders


@dataclass(frozen=True, slots=True)
class SpecOverrides:
    """Flags about the model; None leaves what the model says.

    Attributes:
        classes: names, background first, or how many.
        colors: ``#rrggbb`` per class.
        mean, std: of the raw intensities, one for all channels or one per channel.
        intensity_dtype: the dtype whose raw units `mean` and `std` are in.
        normalization: ``constants`` (`mean`, `std`), ``mean-std`` or ``percentile`` (of the image).
        activation: ``softmax`` or ``sigmoid``.
        axes: ``yx`` or ``zyx``.
        channels: of the input.
        neighbours: slices on either side of the segmented one that are channels of the input.
        tile: pixels per axis, or one number for all.
        overlap: pixels per axis, or one number for all, or a fraction of the tile (a float below 1).
        window: blending window.
        stride: total stride of the network.
        pixel_size_nm: of the training images, per axis, or one number for all.
        output: name of the output to use, for a network that has several.
        output_is: what that output holds: ``logits``, ``probabilities``, ``labels`` or a ``map`` of numbers.
    """

    classes: int | tuple[str, ...] | None = None
    colors: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    intensity_dtype: str | None = None
    normalization: NormalizationKind | None = None
    activation: Activation | None = None
    axes: Axes | None = None
    channels: int | None = None
    neighbours: int | None = None
    tile: tuple[int, ...] | None = None
    overlap: tuple[int, ...] | float | None = None
    window: Window | None = None
    stride: int | None = None
    pixel_size_nm: tuple[float, ...] | None = None
    output: str | None = None
    output_is: OutputKind | None = None


def choose_ports(file: ModelFile, output: str | None = None) -> tuple[Port, Port]:
    """The one input and the one output that tilelab uses.

    Raises:
        ModelError: the network has no or several inputs, no output, or several and `output` names none of them.
    """
    if len(file.inputs) != 1:
        names = ", ".join(port.name for port in file.inputs)
        raise ModelError(
            f"{file.path} has {len(file.inputs)} inputs ({names}): tilelab feeds exactly one"
            if file.inputs
            else f"{file.path} has no input: tilelab feeds exactly one"
        )
    source = file.inputs[0].with_channels_second()
    target = _choose_output(file, output)
    return source, target.with_channels_second(source.shape[2:])


def _choose_output(file: ModelFile, output: str | None) -> Port:
    names = ", ".join(port.name for port in file.outputs)
    if not file.outputs:
        raise ModelError(f"{file.path} has no output: export it again with its logits as output")
    if output is not None:
        chosen = [port for port in file.outputs if port.name == output]
        if not chosen:
            raise ModelError(f"{file.path} has no output {output!r}: choose one of {names}")
        return chosen[0]
    if len(file.outputs) > 1:
        raise ModelError(f"{file.path} has {len(file.outputs)} outputs ({names}): choose one with --model-output NAME")
    return file.outputs[0]


def resolve_spec(
    file: ModelFile, overrides: SpecOverrides | None = None, any_tile: tuple[int, ...] | None = None
) -> ModelSpec:
    """The full description of a model: its own, or one made from its inputs and outputs, under the user's flags.

    Args:
        file: the model.
        overrides: the flags.
        any_tile: for a network that takes any tile and says none, where any will do to begin with.

    Raises:
        ModelError: something is missing (the message names the flag) or contradicts the network.
    """
    given = overrides or SpecOverrides()
    source, target = choose_ports(file, given.output)
    refuse_labels(file, target, given.output_is)
    own = file.spec
    try:
        spec = _infer_spec(file, source, target, given, any_tile) if own is None else override_spec(own, given)
    except _IMPOSSIBLE as error:
        raise ModelError(f"{file.path}: {error}") from error
    _check_ports(file, spec, source, target)
    read_meaning(file, target, spec, given.output_is)
    return spec


def override_spec(spec: ModelSpec, overrides: SpecOverrides | None) -> ModelSpec:
    """`spec` with the user's flags laid over it; raises `ModelError` where the result is impossible."""
    try:
        return _override(spec, overrides or SpecOverrides())
    except _IMPOSSIBLE as error:
        raise ModelError(str(error)) from error


def _override(spec: ModelSpec, given: SpecOverrides) -> ModelSpec:
    changes: dict[str, Any] = {}
    axes = given.axes or spec.axes
    rank = len(axes)
    if axes != spec.axes:
        changes["axes"] = axes
        changes |= {name: _to_rank(getattr(spec, name), rank) for name in ("tile", "overlap", "tile_min")}
        changes["pixel_size_nm"] = None
    if given.classes is not None or given.colors is not None:
        changes["classes"] = _classes(given, spec)
    for name in ("activation", "channels", "neighbours", "window", "stride"):
        if getattr(given, name) is not None:
            changes[name] = getattr(given, name)
    changes["normalization"] = _normalization(given, spec.normalization)
    if given.pixel_size_nm is not None:
        changes["pixel_size_nm"] = _per_axis(given.pixel_size_nm, axes, "--model-pixel-size")
    tile = changes.get("tile", spec.tile)
    if given.tile is not None:
        tile = _per_axis(given.tile, axes, "--tile")
        if spec.tile_fixed and tile != spec.tile:
            raise ModelError(f"the model pins its tile to {size_text(spec.tile)}: leave --tile {size_text(tile)} out")
        changes["tile"] = tile
    overlap = changes.get("overlap", spec.overlap)
    if given.overlap is not None:
        overlap = _overlap(given.overlap, tile, axes)
    elif tile != spec.tile:
        # Seams come from the network's border effects, whose width in pixels does not depend on the tile.
        overlap = tuple(min(o, t // 2) for o, t in zip(overlap, tile, strict=True))
    changes["overlap"] = overlap
    return msgspec.convert(msgspec.to_builtins(spec) | msgspec.to_builtins(changes), ModelSpec)


def _infer_spec(
    file: ModelFile, source: Port, target: Port, given: SpecOverrides, any_tile: tuple[int, ...] | None
) -> ModelSpec:
    """A description for a model that has none."""
    axes = given.axes or {4: "yx", 5: "zyx"}.get(len(source.shape))
    if axes is None:
        raise ModelError(f"it takes {source}: tilelab feeds (batch, channels, y, x) or (batch, channels, z, y, x)")
    channels = given.channels or _fixed(source.shape[1:2])
    if channels is None and given.neighbours:
        channels = 2 * given.neighbours + 1
    missing: dict[str, str] = {}
    if channels is None:
        missing["--channels N"] = "how many channels its input has"
    outputs = _fixed(target.shape[1:2])
    sigmoid = given.activation == "sigmoid"
    if given.activation is None:
        sigmoid = outputs == (1,) or ends_in_sigmoid(file, target)
    if given.classes is None and outputs is None:
        missing["--classes background,NAME,..."] = "its classes"
    if source.raw:  # it normalises by itself
        given = replace(given, mean=(0.0,), std=(1.0,), intensity_dtype=source.dtype, normalization=None)
    if given.mean is None and given.std is None and given.normalization in (None, "constants"):
        missing["--mean M --std S (in raw intensities) or --normalization mean-std"] = "how intensities are normalised"
    tile = _fixed(source.shape[2:])
    fixed = tile is not None
    if tile is None and (asked := given.tile or any_tile):
        tile = _per_axis(asked, axes, "--tile")
    if tile is None:
        missing["--tile N (or auto)"] = "a tile size, of which it takes any"
    if channels is None or tile is None or missing:
        raise ModelError(f"the file does not say {_list(missing.values())}: give {_list(missing)}")
    extents = [n for n in tile if n > 1] or [1]
    spec = ModelSpec(
        name=file.path.stem,
        axes=cast("Axes", axes),
        channels=channels[0] if isinstance(channels, tuple) else channels,
        neighbours=given.neighbours or 0,
        classes=_classes(given, None, (outputs or (0,))[0] + sigmoid),
        activation="sigmoid" if sigmoid else "softmax",
        normalization=_normalization(given, None),
        tile=tile,
        tile_fixed=fixed,
        overlap=tuple(n // 4 for n in tile),
        stride=given.stride or math.gcd(_USUAL_STRIDE, *extents),
        precisions=("int8",) if file.precision == "int8" else ("fp32",),
    )
    return override_spec(spec, given)


def _check_ports(file: ModelFile, spec: ModelSpec, source: Port, target: Port) -> None:
    """The network must take and give what its description says."""
    rank = len(spec.axes) + 2
    for port, verb, count, what in (
        (source, "takes", spec.channels, "input channels"),
        (target, "gives", spec.values, "output channels"),
    ):
        if port.dtype not in ("float32", "float16", "float64") and not (port is source and port.raw):
            raise ModelError(f"{file.path} {verb} {port}: tilelab needs float32 (or float16)")
        if port.shape and len(port.shape) != rank:
            raise ModelError(f"{file.path} {verb} {port}: axes {spec.axes!r} need {rank} dimensions")
        if port.shape and isinstance(port.shape[1], int) and port.shape[1] != count:
            flags = "--channels" if port is source else "--classes and --activation"
            raise ModelError(
                f"{file.path} {verb} {port.shape[1]} {what}, but its description, or {flags}, says {count}"
            )
    if source.raw and spec.normalization != Normalization(mean=(0.0,), std=(1.0,), dtype=source.dtype):
        raise ModelError(
            f"{file.path} takes {source}: its intensities as they are, but its description normalises them: export it "
            f"with a normalization of mean 0, std 1, {source.dtype}"
        )
    for extent, tile, axis in zip(source.shape[2:], spec.tile, spec.axes, strict=False):
        if isinstance(extent, int) and extent != tile:
            raise ModelError(f"{file.path} takes {source}, so its tile along {axis} is {extent} px, not {tile}")


def _fixed(shape: tuple[int | str, ...]) -> tuple[int, ...] | None:
    """`shape` when every entry is a number, else None."""
    return cast("tuple[int, ...]", shape) if shape and all(isinstance(n, int) and n > 0 for n in shape) else None


def _list(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _classes(given: SpecOverrides, own: ModelSpec | None, count: int = 0) -> tuple[ClassInfo, ...]:
    """Names and colours: the user's, else the model's, else made up."""
    if isinstance(given.classes, tuple):
        names = given.classes
        if "" in names:
            raise ModelError(f"--classes {','.join(names)} has an empty name: give each class one")
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ModelError(f"--classes {','.join(names)} names {twice[0]!r} twice: give each class a name of its own")
    else:
        count = given.classes or (len(own.classes) if own else count)
        names = ("background", *(f"class {i}" for i in range(1, count)))
        if own is not None and count == len(own.classes):
            names = tuple(c.name for c in own.classes)
    if given.colors is not None:
        colors = given.colors
        if len(colors) != len(names):
            raise ModelError(f"--colors gives {len(colors)} colours for {len(names)} classes: give one for each")
    elif own is not None and len(own.classes) == len(names):
        colors = tuple(c.color for c in own.classes)
    else:
        colors = default_colors(len(names))
    return tuple(ClassInfo(name, color) for name, color in zip(names, colors, strict=True))


def _normalization(given: SpecOverrides, own: Normalization | None) -> Normalization:
    """The user's constants or statistics, laid over the model's own; None where it has none."""
    changes: dict[str, Any] = {}
    kind = given.normalization
    if given.mean is not None or given.std is not None:
        if kind not in (None, "constants"):
            raise ModelError(f"--mean and --std are constants, but --normalization says {kind}: leave one of them out")
        kind = "constants"
        if (own is None or own.kind != "constants") and (given.mean is None or given.std is None):
            raise ModelError("--mean and --std belong together: give both")
        own = own or Normalization()
        _check_constants(given.mean, given.std)
        mean, std = given.mean or own.mean, given.std or own.std
        count = max(len(mean), len(std))
        changes["mean"] = mean * count if len(mean) == 1 else mean
        changes["std"] = std * count if len(std) == 1 else std
    if kind is not None:
        changes["kind"] = kind
    own = own or Normalization()
    if given.intensity_dtype is not None:
        if (kind or own.kind) != "constants":
            raise ModelError(
                f"--intensity-dtype says what --mean and --std are in, but intensities are normalised by the image's "
                f"{kind or own.kind}: leave it out"
            )
        changes["dtype"] = given.intensity_dtype
    return msgspec.convert(msgspec.to_builtins(own) | changes, Normalization)


def _check_constants(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    for flag, values in (("--mean", mean), ("--std", std)):
        if values is not None and not all(map(math.isfinite, values)):
            raise ModelError(f"{flag} {','.join(f'{v:g}' for v in values)} is not a number: give raw intensities")
    if std is not None and not all(value > 0 for value in std):
        raise ModelError(f"--std {','.join(f'{v:g}' for v in std)} is not positive: give the spread of raw intensities")


def _to_rank(value: tuple[int, ...] | None, rank: int) -> tuple[int, ...] | None:
    """Drop or repeat leading entries until there are `rank`."""
    if value is None:
        return None
    return (value[:1] * rank + value)[-rank:]


def _per_axis(value: tuple[_Number, ...], axes: str, flag: str) -> tuple[_Number, ...]:
    """One entry per axis; a single number stands for all."""
    if len(value) not in (1, len(axes)):
        raise ModelError(f"{flag} has {len(value)} entries for axes {axes!r}: give 1 or {len(axes)}")
    return value * len(axes) if len(value) == 1 else value


def _overlap(value: tuple[int, ...] | float, tile: tuple[int, ...], axes: str) -> tuple[int, ...]:
    if isinstance(value, tuple):
        return _per_axis(value, axes, "--overlap")
    if not 0 <= value < 1:
        raise ModelError(f"--overlap {value:g} is not a fraction of the tile: give 0 to 0.99, or pixels as a tuple")
    return tuple(round(n * value) if n > 1 else 0 for n in tile)
