"""The plug-in for napari: a result opens on its micrograph, and is segmented, corrected and kept from there.

Named in ``tilelab/napari.yaml``; napari itself comes with the extra ``napari``.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.engines.bundled import bundled_models
from tilelab.errors import InputError
from tilelab.io.images.bar import match_rows
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.results.result import Result, ResultInfo, read_result
from tilelab.view.corrections import keep_corrections
from tilelab.view.further import Progress, train_further
from tilelab.view.gather import class_colors, recorded_image

LayerData = tuple[Any, dict[str, Any], str]
_PAINTABLE = 2**28
"""Pixels up to which labels are held in memory, where they can be painted."""
_WIDTH = 420
"""Of a widget, in points: a folder can be read beside its button."""
_MODELS = "a bundled model ({}), or the path of a file"


def get_reader(path: str | list[str]) -> Callable[[str], list[LayerData]] | None:
    """The reader of a result; None of anything else, which others read."""
    if not isinstance(path, str):
        return None
    try:
        read_result(path)
    except (InputError, OSError):
        return None
    return read_layers


def read_layers(path: str) -> list[LayerData]:
    """A result as layers: its micrograph, probabilities (hidden), labels, each with its place in nanometres.

    Raises:
        InputError: it cannot be read.
    """
    result = read_result(path)
    info = result.info
    layers: list[LayerData] = []
    steps = info.resampled_by
    if (source := recorded_image(info, result.path.parent, result)) is not None:
        with contextlib.suppress(InputError):  # it is gone or changed: the labels can be seen all the same
            image = open_image(source[0], **source[1], infinite=True)
            image = match_rows(image, info.layout.shape[1]) if steps is None else image
            layers.append(_image_layer(image, result))
            steps = None if layers[0][0].shape == result.info.layout.shape[-len(info.axes) :] else steps
    place = _place(info.axes, info.pixel_size_nm, info.origin_px, steps)
    for channel, index in enumerate(info.probabilities if result.probabilities else ()):
        known = info.classes[index]
        data = [_Lazy(level, channel) for level in result.probabilities]
        look = {"colormap": _fade(class_colors(info.classes)[index]), "blending": "additive", "visible": False}
        limits = {"contrast_limits": (0, 255), "multiscale": len(data) > 1}
        layers.append((_one(data), {"name": f"p({known.name})", **look, **limits, **place}, "image"))
    if result.labels:
        layers.append(_labels_layer(result, place))
    return layers


def _labels_layer(result: Result, place: dict[str, Any]) -> LayerData:
    levels = result.labels
    paintable = int(np.prod(levels[0].shape)) <= _PAINTABLE
    data: Any = levels[0][...] if paintable else [_Lazy(level) for level in levels]
    info = result.info
    told = {"before": data.copy(), "image": info.name} if paintable else {}
    look = label_look(info)
    return data, {"name": "classes", "metadata": {"tilelab": told}, "opacity": 0.5, **look, **place}, "labels"


def label_look(info: ResultInfo) -> dict[str, Any]:
    """Colours and names of the classes, as napari takes them."""
    colors: dict[int | None, Any] = {i: color for i, color in class_colors(info.classes).items() if i}
    names = [known.name for known in info.classes]
    features = {"index": list(range(len(names))), "class": names}
    try:
        from napari.utils import DirectLabelColormap
    except ImportError:  # the reader without its viewer
        return {"features": features}
    table: dict[int | None, Any] = {None: "transparent", 0: "transparent"} | colors
    return {"features": features, "colormap": DirectLabelColormap(color_dict=table)}


def _image_layer(image: Image, result: Result) -> LayerData:
    """The micrograph where the result lies; one of unknown pixel size has that of the result over the same extent."""
    info = result.info
    place = _place(image.axes.replace("c", ""), image.pixel_size_nm, image.origin_px)
    if image.pixel_size_nm is None and "region" not in info.metadata and info.pixel_size_nm is not None:
        extent = dict(zip(image.axes, image.shape, strict=True))
        of_result = dict(zip("zyx", info.layout.shape, strict=True))
        times = [extent[a] / of_result[a] for a in info.axes]
        size = [nm / t for nm, t in zip(info.pixel_size_nm, times, strict=True)]
        place = _place(info.axes, size, [(1 - t) / 2 for t in times])  # places are those of centres
    data = _Lazy(image, 0 if "c" in image.axes else None)
    seen = data.middle()
    seen = seen[np.isfinite(seen)]
    low, high = np.percentile(seen, (0.3, 99.7)) if seen.size else (0.0, 1.0)
    limits = (float(low), float(max(high, low + 1)))
    return data, {"name": Path(image.uri).name, "contrast_limits": limits, "multiscale": False, **place}, "image"


def _place(
    axes: str, size: Sequence[float] | None, origin: Sequence[float], steps: Sequence[float] | None = None
) -> dict[str, Any]:
    """Scale and place in one unit for all layers; `steps` are pixels of the image where no size is known."""
    scale = tuple(size or steps or (1.0,) * len(axes))
    moved = tuple(s * o for s, o in zip(scale, origin or (0.0,) * len(axes), strict=True))
    return {"scale": scale, "translate": moved, "units": ("nm" if size is not None else "pixel",) * len(axes)}


def _fade(color: str) -> Any:
    """From nothing to a colour."""
    r, g, b = (v / 255 for v in bytes.fromhex(color[1:]))
    return {"colors": np.array([[0, 0, 0, 0], [r, g, b, 1]]), "name": color}


def _one(levels: list[_Lazy]) -> Any:
    return levels if len(levels) > 1 else levels[0]


class _Lazy:
    """One channel of an image as the arrays that napari takes: pixels are read when they are asked for."""

    def __init__(self, image: Image, channel: int | None = None) -> None:
        self._image = image
        self._channel = channel if "c" in image.axes else None
        self.shape = tuple(n for n, a in zip(image.shape, image.axes, strict=True) if a != "c")
        self.dtype, self.ndim = image.dtype, len(self.shape)
        self.size = int(np.prod(self.shape))

    def __getitem__(self, index: Any) -> Array:
        items = index if isinstance(index, tuple) else (index,)
        return self._image[items if self._channel is None else (self._channel, *items)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[...], dtype)

    def middle(self) -> Array:
        """Some of the pixels."""
        return self[tuple(n // 2 if i < self.ndim - 2 else _middle(n) for i, n in enumerate(self.shape))]


def _middle(size: int, most: int = 1024) -> slice:
    first = max(0, (size - most) // 2)
    return slice(first, min(size, first + most))


def segment_widget() -> Any:
    """A widget: choose a layer and a model, get its classes as a layer to paint on."""
    from magicgui import magicgui
    from napari import current_viewer
    from napari.layers import Image as ImageLayer
    from napari.layers import Layer
    from napari.qt.threading import create_worker

    def segment(image: Any, model: str = "superalloy", ignore_pixel_size: bool = False) -> None:
        viewer = current_viewer()
        asked = {"ignore_pixel_size": ignore_pixel_size, "_start_thread": False, "_progress": True}
        work = create_worker(segment_layer, image, model, **asked)
        work.started.connect(lambda: setattr(form.call_button, "enabled", False))
        # not returned to magicgui, which replaces a layer of the same name and what was painted on it
        work.returned.connect(lambda made: viewer.add_layer(Layer.create(*made)))
        work.finished.connect(lambda: setattr(form.call_button, "enabled", True))
        work.start()

    # what magicgui makes the form of: texts would be looked up among the names of this module
    segment.__annotations__ |= {"image": ImageLayer, "model": str, "ignore_pixel_size": bool, "return": None}
    form = magicgui(segment, call_button="segment", model={"tooltip": _MODELS.format(", ".join(bundled_models()))})
    form.min_width = _WIDTH
    return form


def segment_layer(layer: Any, model: str, *, ignore_pixel_size: bool = False) -> LayerData:
    """Infer on a layer of an image; gives the classes as a layer in the same place.

    Where the model was trained on another type of pixels, black and white are those of the screen.
    """
    from tilelab.engines.registry import read_spec
    from tilelab.run.infer import infer
    from tilelab.run.options import Options

    data = np.asarray(layer.data[0] if layer.multiscale else layer.data)
    nm = all(str(unit) == "nanometer" for unit in layer.units)
    spec = read_spec(model)
    other = spec is not None and spec.normalization.kind == "constants" and spec.normalization.dtype != str(data.dtype)
    low, high = (float(v) for v in layer.contrast_limits)
    options = Options(
        intensity_range=(low, high) if other else None,
        pixel_size_nm=tuple(float(s) for s in layer.scale) if nm else None,
        ignore_pixel_size=ignore_pixel_size,
        probabilities=("none",),
    )
    with tempfile.TemporaryDirectory() as folder:
        result = read_result(infer(data, model, os.path.join(folder, "r.ome.zarr"), options=options).path)  # noqa: PTH118
        labels = result.labels[0][...]
    told = {"before": labels.copy(), "image": layer.name}
    place = {"scale": tuple(layer.scale), "translate": tuple(layer.translate), "units": tuple(layer.units)}
    look = label_look(result.info)
    name = f"classes by {Path(model).stem}"
    return labels, {"name": name, "metadata": {"tilelab": told}, "opacity": 0.5, **look, **place}, "labels"


def corrections_widget() -> Any:
    """A widget: what was painted is kept as crops of image and labels."""
    from magicgui import magicgui
    from napari.layers import Image as ImageLayer
    from napari.layers import Labels
    from napari.utils.notifications import show_info

    def keep(image: Any, labels: Any, folder: Any = Path("corrections")) -> None:
        count = len(keep_layers(image, labels, folder))
        show_info(f"kept in {folder}: {count} crop{'s' * (count > 1)}" if count else "nothing has been painted yet")

    keep.__annotations__ |= {"image": ImageLayer, "labels": Labels, "folder": Path, "return": None}
    form = magicgui(keep, call_button="keep corrections", folder={"mode": "d"})
    form.min_width = _WIDTH
    return form


def keep_layers(image: Any, labels: Any, folder: str | Path) -> list[Path]:
    """Keep what was painted on a layer of classes.

    Raises:
        InputError: the labels are no layer of ours, or too large to be painted.
    """
    told = labels.metadata.get("tilelab") or {}
    if "before" not in told:
        raise InputError(f"the layer {labels.name} is not one that tilelab opened to be painted on")
    pixels = np.asarray(image.data[0] if image.multiscale else image.data)
    return keep_corrections(folder, Path(told["image"]).stem, pixels, told["before"], np.asarray(labels.data))


def further_widget() -> Any:
    """A widget: a model learns from the kept corrections, in a process of its own, and is offered when it is better."""
    from magicgui.widgets import Container, FileEdit, FloatSpinBox, Label, LineEdit, ProgressBar, PushButton

    model = LineEdit(value="superalloy", name="model", label="model")
    folder = FileEdit(value="corrections", mode="d", label="corrections")
    new = LineEdit(value="improved.onnx", name="new_model", label="new model")
    minutes = FloatSpinBox(value=10, min=0.1, max=600, label="minutes")
    button, bar, said = (
        PushButton(text="train further", name="train_further"),
        ProgressBar(value=0, max=100),
        Label(value=""),
    )
    form = Container(widgets=[model, folder, new, minutes, button, bar, said], labels=True)
    form.min_width = _WIDTH
    said.native.setWordWrap(True)

    def show(progress: Progress) -> None:
        said.value = progress.line[-120:]
        if progress.share is not None:
            bar.value = round(100 * progress.share)

    def end(line: str) -> None:
        button.enabled, said.value = True, line[-240:]

    def finish() -> None:
        if button.enabled:  # it failed, and said so
            return
        bar.value, model.value = 100, new.value  # the next segmentation, or the next round, begins with it
        end(f"{new.value} is better: segment with it")

    def start() -> None:
        from napari.qt.threading import create_worker

        button.enabled, bar.value = False, 0
        work = create_worker(train_further, model.value, Path(folder.value), Path(new.value), minutes.value)
        work.yielded.connect(show)
        work.errored.connect(lambda error: end(str(error)))
        work.finished.connect(finish)
        work.start()

    button.clicked.connect(start)
    return form
