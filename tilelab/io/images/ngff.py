"""What OME-NGFF (OME-Zarr 0.1 to 0.6) says of a group: axes, levels, scales, labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilelab.errors import InputError
from tilelab.io.images.axes import letter_of
from tilelab.io.images.units import length_nm
from tilelab.io.zarr.metadata import GroupNode

_OLD_AXES = "tczyx"
_MOVES = ("identity", "scale", "translation")
_DEEPEST = 8  # sequences in sequences


@dataclass(frozen=True)
class Multiscale:
    """One multiscale image.

    Attributes:
        version: of the specification, as written; ``?`` where it is not.
        axes: one letter per axis.
        units: unit by axis letter, where given.
        paths: array of every level within the group, finest first.
        scales: size of a pixel per axis, in units, for every level; None where none is given.
        translations: where the first pixel lies, in units, for every level; None where no scale is given.
        name: of the image; may be empty.
        named: it says what its axes are; version 0.1 and 0.2 do not, and have five.
    """

    version: str
    axes: str
    units: Mapping[str, str]
    paths: tuple[str, ...]
    scales: tuple[tuple[float, ...] | None, ...]
    translations: tuple[tuple[float, ...] | None, ...]
    name: str
    named: bool

    def scale_nm(self, level: int) -> dict[str, float]:
        """Nanometres per pixel by axis letter, where scale and unit are given."""
        scale = self.scales[level]
        if scale is None:
            return {}
        sizes = {a: length_nm(s, self.units[a]) for a, s in zip(self.axes, scale, strict=True) if a in self.units}
        return {letter: size for letter, size in sizes.items() if size is not None and letter in "zyx"}

    def odd_scale(self, level: int) -> str:
        """Pixel sizes of 0 and less, which are none, as text; empty without."""
        named = zip(self.axes, self.scales[level] or (), strict=False)
        return ", ".join(f"{s:g} along {a}" for a, s in named if a in "zyx" and not s > 0)

    def offset_px(self, level: int) -> dict[str, float]:
        """Where the first pixel lies, in pixels of that level by axis letter."""
        scale, shift = self.scales[level], self.translations[level]
        if scale is None or shift is None:
            return {}
        return {a: t / s for a, t, s in zip(self.axes, shift, scale, strict=True) if a in "zyx" and t and s > 0}


def ome_attributes(group: GroupNode) -> Mapping[str, Any]:
    """The attributes that NGFF defines: under ``ome`` in Zarr 3, at the top in Zarr 2."""
    found = group.attributes.get("ome")
    return found if isinstance(found, dict) else group.attributes


def count_multiscales(group: GroupNode) -> int:
    """How many multiscale images a group has."""
    listed = ome_attributes(group).get("multiscales")
    return len(listed) if isinstance(listed, list) else 0


def find_multiscale(group: GroupNode, number: int = 0) -> Multiscale | None:
    """A multiscale image of a group, by default the first; None when it has none.

    Raises:
        InputError: there is one, but it is not understood.
    """
    attributes = ome_attributes(group)
    listed = attributes.get("multiscales")
    if not listed:
        return None
    try:
        return _parse(listed[number], str(attributes.get("version", "")))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{group.path} has OME-Zarr metadata that are not understood: {reason}") from error


def _parse(image: dict[str, Any], version: str) -> Multiscale:
    datasets = image["datasets"]
    paths = tuple(str(dataset["path"]) for dataset in datasets)
    if not paths:
        raise ValueError("no levels are listed")
    systems, told = image.get("coordinateSystems"), image.get("coordinateTransformations")
    if systems and "axes" not in image:  # 0.6: the levels lead to one system, the image's own steps on to others
        axes, told = _own_system(systems, datasets[0])["axes"], None
    else:
        axes = image.get("axes", list(_OLD_AXES))
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    letters = "".join(_letter(axis) for axis in named)
    units = {a: str(axis["unit"]) for a, axis in zip(letters, named, strict=True) if axis.get("unit")}
    count = len(letters)
    common, shifted = _transformation(told, count)
    scales: list[tuple[float, ...] | None] = []
    translations: list[tuple[float, ...] | None] = []
    for dataset in datasets:
        own, shift = _transformation(dataset.get("coordinateTransformations"), count)
        if own is None and common is None:
            scales.append(None)
            translations.append(None)
            continue
        outer = common or (1.0,) * count
        scales.append(tuple(a * b for a, b in zip(own or (1.0,) * count, outer, strict=True)))
        translations.append(tuple(t * b + u for t, b, u in zip(shift, outer, shifted, strict=True)))
    return Multiscale(
        version=version or str(image.get("version", "?")),
        axes=letters,
        units=units,
        paths=paths,
        scales=tuple(scales),
        translations=tuple(translations),
        name=str(image.get("name", "")),
        named="axes" in image or bool(systems),
    )


def _own_system(systems: list[dict[str, Any]], dataset: dict[str, Any]) -> dict[str, Any]:
    """The coordinate system in which the levels of an image are."""
    steps = dataset.get("coordinateTransformations") or [{}]
    output = steps[-1].get("output")
    name = output.get("name") if isinstance(output, dict) else output
    return next((system for system in systems if system.get("name") == name), systems[0])


def _letter(axis: Mapping[str, Any]) -> str:
    """One letter for an axis: its name where that is one, else by its type."""
    name = letter_of(axis["name"])
    if len(name) == 1:
        return name
    return {"time": "t", "channel": "c"}.get(str(axis.get("type")), "?")


def _transformation(steps: Any, axes: int) -> tuple[tuple[float, ...] | None, tuple[float, ...]]:
    """What coordinate transformations do one after the other: a scale, then a translation.

    The scale is None without one, and where they do something else too (turn, shear, exchange axes).
    """
    scale: tuple[float, ...] | None = None
    shift = (0.0,) * axes
    for step in _in_turn(steps or []):
        kind = step["type"]
        if kind not in _MOVES:
            return None, (0.0,) * axes
        if kind not in step:
            continue  # an identity, or numbers that lie in an array of their own
        values = tuple(float(v) for v in step[kind])
        if len(values) != axes:
            raise ValueError(f"a {kind} has {len(values)} entries for {axes} axes")
        if kind == "scale":
            scale = tuple(a * b for a, b in zip(scale or (1.0,) * axes, values, strict=True))
            shift = tuple(a * b for a, b in zip(shift, values, strict=True))
        else:
            shift = tuple(a + b for a, b in zip(shift, values, strict=True))
    return scale, shift


def _in_turn(steps: Sequence[dict[str, Any]], depth: int = 0) -> Iterator[dict[str, Any]]:
    """Transformations without the sequences around them."""
    for step in steps:
        if depth < _DEEPEST and step["type"] == "sequence":
            yield from _in_turn(step.get("transformations", ()), depth + 1)
        else:
            yield step
