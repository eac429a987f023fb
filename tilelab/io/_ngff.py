"""What OME-NGFF (OME-Zarr 0.1 to 0.5) says of a group: axes, levels, scales, labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilelab.errors import InputError
from tilelab.io._units import length_nm
from tilelab.io._zarr_meta import GroupNode

_OLD_AXES = "tczyx"


@dataclass(frozen=True)
class Multiscale:
    """One multiscale image.

    Attributes:
        version: of the specification, as written; ``?`` where it is not.
        axes: one letter per axis.
        units: unit by axis letter, where given.
        paths: array of every level within the group, finest first.
        scales: size of a pixel per axis, in units, for every level; None where none is given.
        name: of the image; may be empty.
    """

    version: str
    axes: str
    units: Mapping[str, str]
    paths: tuple[str, ...]
    scales: tuple[tuple[float, ...] | None, ...]
    name: str

    def scale_nm(self, level: int) -> dict[str, float]:
        """Nanometres per pixel by axis letter, where scale and unit are given."""
        scale = self.scales[level]
        if scale is None:
            return {}
        sizes = {a: length_nm(s, self.units[a]) for a, s in zip(self.axes, scale, strict=True) if a in self.units}
        return {letter: size for letter, size in sizes.items() if size is not None and letter in "zyx"}


def ome_attributes(group: GroupNode) -> Mapping[str, Any]:
    """The attributes that NGFF defines: under ``ome`` in Zarr 3, at the top in Zarr 2."""
    found = group.attributes.get("ome")
    return found if isinstance(found, dict) else group.attributes


def find_multiscale(group: GroupNode) -> Multiscale | None:
    """The (first) multiscale image of a group; None when it has none.

    Raises:
        InputError: there is one, but it is not understood.
    """
    attributes = ome_attributes(group)
    listed = attributes.get("multiscales")
    if not listed:
        return None
    try:
        return _parse(listed[0], str(attributes.get("version", "")))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{group.path} has OME-Zarr metadata that are not understood: {reason}") from error


def _parse(image: dict[str, Any], version: str) -> Multiscale:
    datasets = image["datasets"]
    paths = tuple(str(dataset["path"]) for dataset in datasets)
    if not paths:
        raise ValueError("no levels are listed")
    axes = image.get("axes", list(_OLD_AXES))
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    letters = "".join(_letter(axis) for axis in named)
    units = {a: str(axis["unit"]) for a, axis in zip(letters, named, strict=True) if axis.get("unit")}
    common = _scale(image.get("coordinateTransformations"), len(letters))
    scales = []
    for dataset in datasets:
        own = _scale(dataset.get("coordinateTransformations"), len(letters))
        if own is not None and common is not None:
            own = tuple(a * b for a, b in zip(own, common, strict=True))
        scales.append(own or common)
    return Multiscale(
        version or str(image.get("version", "?")), letters, units, paths, tuple(scales), str(image.get("name", ""))
    )


def _letter(axis: Mapping[str, Any]) -> str:
    """One letter for an axis: its name where that is one, else by its type."""
    name = str(axis["name"]).lower()
    if len(name) == 1:
        return name
    return {"time": "t", "channel": "c"}.get(str(axis.get("type")), "?")


def _scale(transformations: Any, axes: int) -> tuple[float, ...] | None:
    """The scale among coordinate transformations."""
    for step in transformations or []:
        if step["type"] == "scale" and "scale" in step:
            scale = tuple(float(v) for v in step["scale"])
            if len(scale) != axes:
                raise ValueError(f"a scale has {len(scale)} entries for {axes} axes")
            return scale
    return None
