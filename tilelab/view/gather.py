"""From what the user named to what is shown: images, label images and results, aligned."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from tilelab.errors import InputError
from tilelab.io.images.bar import may_be_bar
from tilelab.io.images.formats import open_stored
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.slices import is_pattern
from tilelab.io.images.view import AsLabels
from tilelab.io.label_source import find_labels, look_like_labels, read_label_texts
from tilelab.io.results.drawing import visible_colors
from tilelab.io.results.level_image import LevelImage
from tilelab.io.results.made_of import read_made_of
from tilelab.io.results.result import Result, ResultInfo, find_loss, read_result
from tilelab.io.results.sink import partial_path
from tilelab.io.results.with_image import IMAGE, holds_image
from tilelab.io.storage.member import split_member
from tilelab.io.storage.place import Place, as_place, remote_place
from tilelab.spec import ClassInfo
from tilelab.view.layers import Kind, Layer, Scene
from tilelab.view.pyramid import ChunkCache, Extent, Level, Pyramid, stored_levels

Note = Callable[[str], None]
Triple = tuple[float, float, float]


class Gathering:
    """Layers as they are found; a context that closes what it opened.

    choices: of `open_image` (level apart), for images that are named.
    """

    def __init__(self, note: Note, choices: Mapping[str, Any] | None = None) -> None:
        self.layers: list[Layer] = []
        self.cache = ChunkCache()
        self._note, self._choices = note, dict(choices or {})
        self._sizes: list[tuple[float, ...] | None] = []
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Gathering:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def scene(self) -> Scene:
        """All that was added.

        Raises:
            InputError: nothing was.
        """
        if not self.layers:
            raise InputError("there is nothing to show")
        known = [size is not None for size in self._sizes]
        if any(known) and not all(known):
            self._note("not all have a pixel size: those without are shown as if the first layer's were theirs")
        order = sorted(self.layers, key=lambda layer: ("image", "probability", "labels").index(layer.kind))
        return Scene(f"{order[0].name} - tilelab", tuple(order), any(known))

    def add(self, name: str, image: str | None = None) -> None:
        """Whatever is at `name`: a result with the micrograph it was made of (or `image`), an image, or labels.

        Raises:
            InputError: it cannot be read.
        """
        result = _result_at(name)
        info = _of_file(name) if result is None else result.info
        if result is not None and (loss := find_loss(result.path)) is not None:
            self._note(f"{name} has {loss}")
        if image is not None:
            self.add_image(image, self._choices)
        elif info is not None:
            source = recorded_image(info, as_place(name).parent, result)
            if source is not None:
                self.add_image(source[0], source[1])
            else:
                self._note(f"{name} does not say where its micrograph is: show it with --image")
        if result is not None:
            self.add_result(result)
        elif info is not None and info.labels:
            self._add_file(name, info)
        else:
            self._add_stored(name)

    def _add_file(self, name: str, info: ResultInfo) -> None:
        """The classes of a result that was written as a file of another kind."""
        tiff = name.lower().endswith((".tif", ".tiff"))
        images = self._open_levels(name, {"channel": 0} if tiff else {}, "integers", 0)
        colors, names = class_colors(info.classes), {i: known.name for i, known in enumerate(info.classes) if i}
        pyramid = Pyramid.of(stored_levels(images), images[0].dtype, self.cache, labels=True)
        self._put(Layer("classes", "labels", pyramid, (1.0,) * 3, colors=colors, names=names), images[0], info)

    def add_image(self, name: str, choices: Mapping[str, Any]) -> None:
        """An image in grey, each of its levels."""
        chosen = dict(choices)
        level = int(chosen.pop("level", 0) or 0)
        images = self._open_levels(name, chosen, None, level)
        first = images[0]
        self._tell(first)
        channels = first.shape[first.axes.index("c")] if "c" in first.axes else 1
        cut = dict(zip(first.axes, first.chunks, strict=True))
        flat = cut.get("z", 1) == 1 < cut["y"]  # chunks of one pixel mean that any region costs just itself
        for channel in range(min(channels, 8)):
            pyramid = Pyramid.of(stored_levels(images, channel), first.dtype, self.cache, flat=flat)
            title = Path(str(name)).name + (f" channel {channel}" if channels > 1 else "")
            self._put(Layer(title, "image", pyramid, (1.0, 1.0, 1.0), shown=channel == 0), first)

    def add_result(self, result: Result, *, lasting: bool = True) -> None:
        """Classes and probabilities of a result; one that is being written is not `lasting` and lacks coarse levels."""
        info = result.info
        if not lasting:
            few = info.layout.aligned
            result = replace(result, labels=result.labels[:few], probabilities=result.probabilities[:few])
        colors = class_colors(info.classes)
        names = {i: known.name for i, known in enumerate(info.classes) if i}
        for at, index in enumerate(info.probabilities if result.probabilities else ()):
            known = info.classes[index]
            pyramid = self._of_levels(result.probabilities, at, labels=False, lasting=lasting)
            layer = Layer(
                f"p({known.name})", "probability", pyramid, (1.0,) * 3, colors={0: colors[index]}, shown=False
            )
            self._put(layer, result.probabilities[0], info)
        if result.labels:
            pyramid = self._of_levels(result.labels, 0, labels=True, lasting=lasting)
            self._put(
                Layer("classes", "labels", pyramid, (1.0,) * 3, colors=colors, names=names), result.labels[0], info
            )

    def add_levels(
        self, levels: Sequence[Level], info: ResultInfo, *, probability: int | None, near: Image, flat: bool
    ) -> None:
        """Labels that are made while they are looked at, or the probability of a class, on the pixels of `near`."""
        colors = class_colors(info.classes)
        kind: Kind = "labels" if probability is None else "probability"
        pyramid = Pyramid.of(
            levels, np.dtype(np.uint8), self.cache, labels=probability is None, flat=flat, lasting=False, few=True
        )
        if probability is None:
            names = {i: known.name for i, known in enumerate(info.classes) if i}
            self._put(Layer("classes", kind, pyramid, (1.0,) * 3, colors=colors, names=names), near, info)
            return
        name = f"p({info.classes[probability].name})"
        layer = Layer(name, kind, pyramid, (1.0,) * 3, colors={0: colors[probability]}, shown=False)
        self._put(layer, near, info)

    def _of_levels(self, images: Sequence[LevelImage], channel: int, *, labels: bool, lasting: bool) -> Pyramid:
        levels = stored_levels(images, channel)
        return Pyramid.of(levels, images[0].dtype, self.cache, labels=labels, lasting=lasting)

    def _add_stored(self, name: str) -> None:
        """An image, or labels, with what names and colours they have; and labels beside an OME-Zarr image."""
        choices = {key: value for key, value in self._choices.items() if key != "level"}
        try:
            found = find_labels(name, choices.get("series"), choices.get("channel"), labels=None)
        except InputError as error:
            if "classes and probabilities" not in str(error):
                raise
            choices["channel"] = 0  # of a result that was written as TIFF
            found = find_labels(name, choices.get("series"), 0, labels=None)
        told = found.label
        if told is None and not found.beside:
            with open_image(name, **choices) as image:
                if (guess := look_like_labels(image)) is not None:
                    self._note(str(structs.replace(guess, flag="")))  # no flag of `view` says otherwise
                    told = {}
        if told is None:
            self.add_image(name, self._choices)
        else:
            self._add_labels(name, Path(str(name)).name, told, choices)
        for beside in found.beside:
            path = f"{name}/labels/{beside}"
            self._add_labels(path, beside, find_labels(path, None, None, labels=True).label or {}, {})

    def _add_labels(self, path: str, name: str, told: Mapping[str, Any], choices: Mapping[str, Any]) -> None:
        images = self._open_levels(path, dict(choices), "integers", 0)
        first = images[0]
        self._tell(first)
        if first.dtype.kind not in "iu":
            raise InputError(f"{path} holds {first.dtype}, which are no labels")
        colors, names = read_label_texts(told)
        names.pop(0, None)
        pyramid = Pyramid.of(stored_levels(images), first.dtype, self.cache, labels=True)
        self._put(Layer(name, "labels", pyramid, (1.0,) * 3, colors=colors, names=names), first)

    def _open_levels(self, name: str, chosen: dict[str, Any], kind: AsLabels | None, level: int) -> list[Image]:
        """The image at `name` from `level` on, every coarser level that it has (a region has one)."""
        count = 1
        if chosen.get("region") is None:
            series = chosen.get("series")
            source = open_stored(name, 0, None if series is None else str(series))
            if source is not None:
                count = len(source.levels) or 1
                source.close()
        return [
            self._closing.enter_context(open_image(name, level=number, as_labels=kind, infinite=True, **chosen))
            for number in range(level, max(count, level + 1))
        ]

    def _tell(self, image: Image) -> None:
        for said in image.assumptions:
            self._note(str(said))

    def _put(self, layer: Layer, image: Image, info: ResultInfo | None = None) -> None:
        """Give a layer its place: by pixel sizes where they are known, else by its extent beside the first layer."""
        nm = image.pixel_size_nm if info is None or info.pixel_size_nm is not None else None
        spatial = image.axes.replace("c", "")
        origin_px, named = (image.origin_px, spatial) if info is None else (info.origin_px, info.axes)
        origin = _three(origin_px, named, 0.0) if origin_px else (0.0, 0.0, 0.0)
        part = any(origin) or (info is not None and "region" in info.metadata)
        if nm is not None:
            size = _three(nm, spatial, nm[-1])
        elif self.layers:
            first, shape = self.layers[0], layer.pyramid.levels[0].shape
            fits = layer.kind != "image" and not part and shape[0] == first.pyramid.levels[0].shape[0]
            steps = _resampled(info, first, layer) or (
                _steps(first.pyramid.levels[0].shape, shape) if fits else (1.0, 1.0, 1.0)
            )
            size = tuple(s * t for s, t in zip(first.size, steps, strict=True))  # type: ignore[assignment]
            if fits:
                origin = _same_corner(first.origin, steps)
        else:
            size = (1.0, 1.0, 1.0)
        if nm is not None and self.layers and all(known is None for known in self._sizes):
            self.layers = [
                _scaled(known, layer, size, _resampled(info, known, layer), part=part) for known in self.layers
            ]
        taken = {known.name for known in self.layers}
        name, number = layer.name, 2
        while name in taken:
            name, number = f"{layer.name} ({number})", number + 1
        self.layers.append(replace(layer, name=name, size=size, origin=origin))
        self._sizes.append(nm)


def _scaled(known: Layer, layer: Layer, size: Triple, resampled: Triple | None, *, part: bool) -> Layer:
    """A layer of unknown pixel size beside one that has one: resampled, of the same extent, or of the same pixels."""
    steps = resampled or (1.0, 1.0, 1.0)
    if resampled is None and not part:
        steps = _steps(known.pyramid.levels[0].shape, layer.pyramid.levels[0].shape)
    z, y, x = (s / t for s, t in zip(size, steps, strict=True))
    if resampled is not None:
        return replace(known, size=(z, y, x))
    back = tuple(1 / t for t in steps)
    return replace(known, size=(z, y, x), origin=_same_corner((0.0, 0.0, 0.0), back))  # type: ignore[arg-type]


def _same_corner(origin: Triple, steps: Triple) -> Triple:
    """Where the first pixel lies, in pixels of its own, of what begins at the corner of another.

    Places are those of centres, and a pixel that is `steps` pixels of the other has its centre further in.

    origin: of the other's first pixel, in its pixels.
    """
    z, y, x = ((o + (t - 1) / 2) / t for o, t in zip(origin, steps, strict=True))
    return z, y, x


def _resampled(info: ResultInfo | None, image: Layer, result: Layer) -> Triple | None:
    """Pixels of an image to one of the result that was made of it resampled; not of the copy beside the result."""
    steps = None if info is None else info.resampled_by
    if info is None or steps is None or image.pyramid.levels[0].shape == result.pyramid.levels[0].shape:
        return None
    return _three(steps, info.axes, 1.0)


def _steps(whole: Extent, part: Extent) -> Triple:
    """Pixels of one image to a pixel of another that shows the same, but perhaps for an info bar below."""
    z, y, x = (w / n for w, n in zip(whole, part, strict=True))
    return (z, x if may_be_bar(round(whole[1] - part[1] * x), whole[1]) else y, x)


def _three(values: Sequence[float], axes: str, missing: float) -> Triple:
    at = dict(zip(axes, values, strict=True))
    return (at.get("z", missing), at["y"], at["x"])


def class_colors(classes: Sequence[ClassInfo]) -> dict[int, str]:
    """The colour of every class but the background, black ones made visible."""
    shown = visible_colors([known.color for known in classes])
    return {i: f"#{r:02x}{g:02x}{b:02x}" for i, (r, g, b) in enumerate(shown)}


def _result_at(name: str) -> Result | None:
    """The result at `name`, finished or (a local one) not; None for anything else."""
    place = as_place(name)
    for path in (place, partial_path(place)):
        with contextlib.suppress(InputError, OSError):
            return read_result(path)
    return None


def _of_file(name: str) -> ResultInfo | None:
    """What a result that was written as a file or volume of another kind says of itself; None of anything else."""
    return None if remote_place(name) is not None else read_made_of(name)


def recorded_image(info: ResultInfo, folder: Place, result: Result | None = None) -> tuple[str, dict[str, Any]] | None:
    """Where the image of a result in `folder` is, and how it was opened; in the folder where it left its path.

    The copy in the result is taken where there is one.
    """
    if result is not None and holds_image(result.path):
        return str(result.path / IMAGE), {}
    told = info.metadata.get("image")
    if not isinstance(told, dict) or not isinstance(told.get("path"), str):
        return None
    path, choices = told["path"], {key: value for key, value in told.items() if key != "path"}
    if remote_place(path) is not None:
        return path, choices
    file, member = split_member(path)
    inside = f"::{member}" if member else ""
    beside = os.path.join(str(folder), os.path.basename(file))  # noqa: PTH118, PTH119 - may be a store's
    if remote_place(str(folder)) is None:
        file = os.path.normpath(os.path.join(str(folder), file))  # noqa: PTH118 - an absolute one stays
    if _is_there(file):
        return file + inside, choices
    if remote_place(beside) is None and _is_there(beside):
        return beside + inside, choices
    return None


def _is_there(path: str) -> bool:
    """Whether there is a file or folder, or where it is a pattern, one that it matches."""
    place = Path(path)
    return place.exists() or (is_pattern(path) and next(place.parent.glob(place.name), None) is not None)
