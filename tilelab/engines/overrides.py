"""What the user says of a model, laid over what the model says of itself and what its inputs and outputs tell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import msgspec

from tilelab.engines.combined import Uncertainty
from tilelab.engines.files.model_file import ModelFile
from tilelab.engines.intensities import override_normalization
from tilelab.engines.meaning import ends_in_sigmoid, read_meaning
from tilelab.engines.outputs import Ports, choose_ports, place_output
from tilelab.errors import ModelError
from tilelab.geometry import Window
from tilelab.spec import (
    Activation,
    ClassInfo,
    ModelSpec,
    Normalization,
    NormalizationKind,
    Output,
    OutputKind,
    Statistics,
    default_colors,
)
from tilelab.text import size_text

Axes = Literal["yx", "zyx"]
_Number = TypeVar("_Number", int, float)

_FLOATS = ("float32", "float16", "float64")
_WHOLE = ("uint8", "int8", "uint16", "int16", "int32", "int64", "uint32", "bool")  # of labels
_MOST_LABELS = 256
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
        normalization: ``constants`` (`mean`, `std`), ``mean-std``, ``percentile`` or ``min-max`` (of the image).
        percentiles: of the image that become 0 and 1.
        statistics: those of the whole ``stack``, or of each ``slice``.
        clip: normalised intensities below and above are cut off.
        activation: ``softmax`` or ``sigmoid``.
        axes: ``yx`` or ``zyx``.
        channels: of the input.
        neighbours: slices on either side of the segmented one that are channels of the input.
        tile: pixels per axis, or one number for all.
        overlap: pixels per axis, or one number for all, or a fraction of the tile (a float below 1).
        window: blending window.
        stride: total stride of the network.
        pixel_size_nm: of the training images, per axis, or one number for all.
        output: name of the output to use, for a network that has several, or of several with commas between.
        output_is: what that output holds, or each of several: ``logits``, ``probabilities``, ``labels`` or a ``map`` of
            numbers.
        thresholds: probabilities from which on a class with a sigmoid counts.
        uncertainty: add a map of it: ``entropy``, or what ``symmetries`` or several ``models`` disagree about.
    """

    classes: int | tuple[str, ...] | None = None
    colors: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    intensity_dtype: str | None = None
    normalization: NormalizationKind | None = None
    percentiles: tuple[float, float] | None = None
    statistics: Statistics | None = None
    clip: tuple[float, float] | None = None
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
    output_is: OutputKind | tuple[OutputKind, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    uncertainty: Uncertainty | None = None

    @property
    def first_is(self) -> OutputKind | None:
        """What the output of the classes is said to hold."""
        if self.output_is is None or isinstance(self.output_is, str):
            return self.output_is
        return next((kind for kind in self.output_is if kind != "map"), "map")


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
    ports = choose_ports(file, given.output, given.output_is, given.axes)
    own = _as_chosen(file, ports)
    try:
        spec = _infer_spec(file, ports, given, any_tile) if own is None else override_spec(own, given)
    except _IMPOSSIBLE as error:
        raise ModelError(f"{file.path}: {error}") from error
    _check_ports(file, spec, ports)
    read_meaning(file, ports.targets[0], spec, given.first_is)
    return spec


def _as_chosen(file: ModelFile, ports: Ports) -> ModelSpec | None:
    """The model's own description, of those of its outputs that are used."""
    own = file.spec
    if own is None or (not any(output.name for output in own.outputs) and len(ports.targets) == 1):
        return own
    known = {output.name: output for output in own.outputs}
    outputs = tuple(
        known.get(port.name) or Output(name=port.name, kind=kind, channels=(_fixed(port.shape[1:2]) or (1,))[0])
        for port, kind in zip(ports.targets, ports.kinds, strict=True)
    )
    return msgspec.structs.replace(own, outputs=outputs)


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
    changes["outputs"] = _outputs(given, spec, changes.get("activation", spec.activation))
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


def _outputs(given: SpecOverrides, spec: ModelSpec, activation: Activation) -> tuple[Output, ...]:
    """The model's own, with what the user says of them."""
    first, *others = spec.outputs
    if given.thresholds is not None:
        first = msgspec.structs.replace(first, thresholds=given.thresholds)
    if (kind := given.first_is) in ("labels", "map") and first.kind != kind:
        if kind == "map" and others:
            raise ModelError("--output-is map: the model describes an output of classes beside its maps")
        count = spec.values_of(first) + (spec.activation == "sigmoid") - (activation == "sigmoid")
        first = msgspec.structs.replace(first, kind=kind, channels=count if kind == "map" else 1)
    elif kind in ("logits", "probabilities") and first.kind in ("labels", "map"):  # of the classes that --classes names
        first = msgspec.structs.replace(first, kind=kind, channels=1, step=1)
    return (first, *others)


def _infer_spec(file: ModelFile, ports: Ports, given: SpecOverrides, any_tile: tuple[int, ...] | None) -> ModelSpec:
    """A description for a model that has none."""
    source, target, kind = ports.source, ports.targets[0], ports.kinds[0]
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
        sigmoid = kind != "labels" and (outputs == (1,) or ends_in_sigmoid(file, target))
    count = (outputs or (0,))[0] + sigmoid
    if kind == "labels":
        ending = file.endings.get(target.name)
        known = ending is not None and ending.bounded and 1 <= ending.high < _MOST_LABELS
        outputs, count = ((1,), round(ending.high / ending.step) + 1) if ending is not None and known else (None, 0)
    if kind != "map" and given.classes is None and outputs is None:
        missing["--classes background,NAME,..."] = "its classes"
    if source.raw:  # it normalises by itself
        given = replace(given, mean=(0.0,), std=(1.0,), intensity_dtype=source.dtype, normalization=None)
    if (
        given.mean is None
        and given.std is None
        and given.normalization in (None, "constants")
        and given.percentiles is None
    ):
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
        classes=() if kind == "map" else _classes(given, None, count),
        outputs=_found_outputs(file, ports, given, tile),
        activation="sigmoid" if sigmoid and kind != "map" else "softmax",
        normalization=_normalization(given, None),
        tile=tile,
        tile_fixed=fixed,
        overlap=tuple(n // 4 for n in tile),
        stride=given.stride or math.gcd(_USUAL_STRIDE, *extents),
        precisions=("int8",) if file.precision == "int8" else ("fp32",),
    )
    given = replace(given, classes=None, colors=None) if kind == "map" else given
    return override_spec(spec, given)


def _found_outputs(file: ModelFile, ports: Ports, given: SpecOverrides, tile: tuple[int, ...]) -> tuple[Output, ...]:
    """The outputs of a model that has no description; only what is not as usual is put down."""
    found = []
    for port, kind in zip(ports.targets, ports.kinds, strict=True):
        channels, extent = _fixed(port.shape[1:2]), _fixed(port.shape[2:])
        if kind == "map" and channels is None and isinstance(given.classes, int):
            channels = (given.classes,)
        if kind == "map" and channels is None:
            raise ModelError(f"the file does not say how many channels the map {port.name} has: give --classes N")
        output = Output(
            name=port.name if len(file.outputs) > 1 or kind in ("map", "labels") else "",
            kind=kind if kind in ("map", "labels") else None,
            channels=channels[0] if kind == "map" and channels is not None else 1,
            step=round(ending.step) if kind == "labels" and (ending := file.endings.get(port.name)) is not None else 1,
        )
        try:
            found.append(output if extent is None else place_output(output, tile, extent))
        except ModelError as error:
            raise ModelError(f"its output {port} {error}") from error
    return tuple(found)


def _check_ports(file: ModelFile, spec: ModelSpec, ports: Ports) -> None:
    """The network must take and give what its description says."""
    source = ports.source
    rank = len(spec.axes) + 2
    if len(ports.targets) != len(spec.outputs):
        raise ModelError(f"{file.path} describes {len(spec.outputs)} outputs, {len(ports.targets)} are asked for")
    gives = [
        (port, "gives", spec.values_of(o), "output channels")
        for port, o in zip(ports.targets, spec.outputs, strict=True)
    ]
    for port, verb, count, what in ((source, "takes", spec.channels, "input channels"), *gives):
        if port.dtype not in _FLOATS and not (port.raw if port is source else port.dtype in _WHOLE):
            raise ModelError(f"{file.path} {verb} {port}: tilelab needs float32 (or float16)")
        if port.shape and len(port.shape) != rank:
            raise ModelError(f"{file.path} {verb} {port}: axes {spec.axes!r} need {rank} dimensions")
        if port.shape and isinstance(port.shape[1], int) and port.shape[1] != count:
            if port is ports.targets[0] and spec.outputs[0].kind == "labels":
                raise ModelError(
                    f"{file.path} gives {port.shape[1]} channels of whole numbers, labels have one: export it without "
                    "its last operators, so that it gives logits or probabilities, or keep them with --output-is map"
                )
            flags = "--channels" if port is source else "--classes and --activation"
            raise ModelError(
                f"{file.path} {verb} {port.shape[1]} {what}, but its description, or {flags}, says {count}"
            )
    if source.raw and spec.normalization != Normalization(mean=(0.0,), std=(1.0,), dtype=source.dtype):
        raise ModelError(
            f"{file.path} takes {source}: its intensities as they are, but its description normalises them: export it "
            f"with a normalization of mean 0, std 1, {source.dtype}"
        )
    if spec.outputs[0].kind not in ("labels", "map") and ports.targets[0].dtype not in _FLOATS:
        raise ModelError(f"{file.path} gives {ports.targets[0]}: whole numbers are --output-is labels, or map")
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
    """See `override_normalization`."""
    return override_normalization(
        own,
        kind=given.normalization,
        mean=given.mean,
        std=given.std,
        dtype=given.intensity_dtype,
        percentiles=given.percentiles,
        statistics=given.statistics,
        clip=given.clip,
    )


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
