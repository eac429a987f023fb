"""What is shown over each other: layers, each a pyramid with its place, its colours and its names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import TilelabError
from tilelab.geometry import Box
from tilelab.view.pyramid import Pyramid

Kind = Literal["image", "labels", "probability"]
_CONTRAST = (0.3, 99.7)
_LOOK = 512


@dataclass(frozen=True)
class Layer:
    """One layer.

    name: as it is shown; no two of a scene have the same.
    size: of a pixel of the finest level on (z, y, x), in nanometres or, in a scene without, in pixels.
    origin: where the first pixel lies, in pixels of its own.
    colors: of labels, or under 0 of a probability.
    names: of labels.
    shown: from the start.
    """

    name: str
    kind: Kind
    pyramid: Pyramid
    size: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    colors: Mapping[int, str] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    shown: bool = True

    def contrast(self) -> tuple[float, float]:
        """Intensities that are black and white: percentiles of the middle, and of places all over the coarsest level.

        That is the coarsest that is stored: one that is made would be of all pixels.
        """
        found = []
        for number, across, places in ((0, _LOOK, 1), (self.pyramid.stored - 1, _LOOK // 4, 4)):
            seen = self._look(number, across, places)
            found += [] if not seen.size else [float(v) for v in np.percentile(seen, _CONTRAST)]
        low, high = (min(found), max(found)) if found else (0.0, 1.0)
        return (low, high) if high > low else (low, low + 1.0)

    def _look(self, number: int, side: int, places: int) -> Array:
        """Pixels of so many places along y and x of a level's middle slice, those that can be read and are finite."""
        level = self.pyramid.levels[number]
        z, *extent = level.shape
        parts = [np.empty(0, self.pyramid.dtype)]
        for at in np.ndindex(*(places if n > side else 1 for n in extent)):
            start = [round((n - side) * (a + 0.5) / places) if n > side else 0 for n, a in zip(extent, at, strict=True)]
            stop = [min(n, a + side) for n, a in zip(extent, start, strict=True)]
            with contextlib.suppress(TilelabError, OSError):  # the page says it where it asks for these pixels
                parts.append(level.read(Box((z // 2, *start), (z // 2 + 1, *stop))).ravel())
        seen = np.concatenate(parts)
        return seen[np.isfinite(seen)] if seen.dtype.kind == "f" else seen

    def zarr_attributes(self, units: bool) -> dict[str, Any]:
        """OME-NGFF 0.4: a pixel's place is that of its centre."""
        unit = {"unit": "nanometer"} if units else {}
        datasets = [
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [s * t for s, t in zip(self.size, level.step, strict=True)]},
                    {
                        "type": "translation",
                        "translation": [
                            s * (o + (t - 1) / 2) for s, o, t in zip(self.size, self.origin, level.step, strict=True)
                        ],
                    },
                ],
            }
            for number, level in enumerate(self.pyramid.levels)
        ]
        axes = [{"name": a, "type": "space", **unit} for a in "zyx"]
        return {"multiscales": [{"version": "0.4", "name": self.name, "axes": axes, "datasets": datasets}]}

    def zarr_array(self, level: int) -> dict[str, Any]:
        """The ``.zarray`` of a level."""
        dtype = self.pyramid.dtype
        return {
            "zarr_format": 2,
            "shape": list(self.pyramid.levels[level].shape),
            "chunks": list(self.pyramid.chunk),
            "dtype": f"{'|' if dtype.itemsize == 1 else '<'}{dtype.kind}{dtype.itemsize}",
            "compressor": None,
            "filters": None,
            "order": "C",
            "fill_value": 0,
            "dimension_separator": "/",
        }

    def segment_properties(self) -> dict[str, Any]:
        """Names of the labels, as neuroglancer takes them."""
        values = {"id": "label", "type": "label", "values": list(self.names.values())}
        return {
            "@type": "neuroglancer_segment_properties",
            "inline": {"ids": [str(i) for i in self.names], "properties": [values]},
        }


@dataclass(frozen=True)
class Scene:
    """Layers from the bottom to the top.

    title: of the page.
    units: sizes are nanometres.
    """

    title: str
    layers: tuple[Layer, ...]
    units: bool

    @property
    def size(self) -> tuple[float, float, float]:
        """Of the pixel that a step of the position is, on (z, y, x): the finest of any layer."""
        z, y, x = (min(layer.size[a] for layer in self.layers) for a in range(3))
        return z, y, x

    @property
    def bounds(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Begin and end of all layers on (z, y, x), in steps of `size`."""
        low, high = [], []
        for a, size in enumerate(self.size):
            ends = [
                (la.origin[a] * la.size[a] / size, (la.origin[a] + la.pyramid.levels[0].shape[a]) * la.size[a] / size)
                for la in self.layers
            ]
            low.append(min(begin for begin, _ in ends))
            high.append(max(end for _, end in ends))
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def viewer_state(scene: Scene, base: str, *, version: int = 0, full_size: bool = False) -> dict[str, Any]:
    """What neuroglancer is to show.

    Args:
        scene: what there is.
        base: address under which the server gives the layers' data.
        version: of layers that change; the page keeps what it has under an address.
        full_size: begin with a pixel of the image on each of the screen, in the middle, instead of the whole.
    """
    low, high = scene.bounds
    z, y, x = ((a + b) / 2 for a, b in zip(low, high, strict=True))
    deep = high[0] - low[0] > 1
    steps = [size / min(scene.size) for size in scene.size]  # to the unit of the page's scales
    extent = [(b - a) * step for a, b, step in zip(low, high, steps, strict=True)]
    four = deep and all(layer.pyramid.chunk[0] > 1 for layer in scene.layers)
    whole = max(extent[2] / 1100, extent[1] / 800) * (2 if four else 1)
    dimensions = {a: [s * 1e-9, "m"] if scene.units else [s, ""] for a, s in zip("xyz", scene.size[::-1], strict=True)}
    layers = [
        _layer_state(layer, f"{base}.{version}/{n}" if version and not layer.pyramid.lasting else f"{base}/{n}")
        for n, layer in enumerate(scene.layers)
    ]
    chosen = next((la.name for la in scene.layers if la.kind == "labels"), scene.layers[0].name)
    return {
        "title": scene.title,
        "dimensions": dimensions,
        "position": [x, y, z if not deep else float(int(z)) + 0.5],
        "crossSectionScale": steps[2] if full_size else max(whole * 1.05, 0.05),
        "projectionScale": max(extent) * 1.2,
        "layers": layers,
        "showSlices": False,
        "showAxisLines": deep,
        "prefetch": all(layer.pyramid.lasting for layer in scene.layers),
        "selectedLayer": {"layer": chosen, "visible": True, "size": 320},
        "layout": "4panel" if four else "xy",
    }


def _layer_state(layer: Layer, address: str) -> dict[str, Any]:
    source: list[dict[str, Any]] = [{"url": f"{address}/|zarr2:"}]
    state: dict[str, Any] = {"name": layer.name, "visible": layer.shown}
    if layer.kind == "labels":
        if layer.names:
            source.append({"url": f"{address}/names/|neuroglancer-precomputed:"})
        return state | {
            "type": "segmentation",
            "source": source,
            "tab": "segments" if layer.names else "rendering",
            "segments": [str(i) for i in layer.names],
            "segmentColors": {str(i): color for i, color in layer.colors.items() if i},
            "selectedAlpha": 0.45,
            "notSelectedAlpha": 0,
        }
    if layer.kind == "probability":
        shader = (
            f'#uicontrol vec3 color color(default="{layer.colors.get(0, "#ffffff")}")\n'
            "#uicontrol float least slider(min=0, max=1, default=0.05)\n"
            "void main() {\n  float p = toNormalized(getDataValue());\n"
            "  emitRGBA(vec4(color, p < least ? 0.0 : p));\n}\n"
        )
        return state | {"type": "image", "source": source, "shader": shader, "opacity": 0.7, "tab": "rendering"}
    low, high = layer.contrast()
    room = (high - low) / 2
    shader = "#uicontrol invlerp contrast\nvoid main() {\n  emitGrayscale(contrast());\n}\n"
    window = [max(low - room, 0.0) if layer.pyramid.dtype.kind == "u" else low - room, high + room]
    return state | {
        "type": "image",
        "source": source,
        "shader": shader,
        "shaderControls": {"contrast": {"range": [low, high], "window": window}},
        "opacity": 1,
        "tab": "rendering",
    }


def is_state(told: object) -> TypeGuard[dict[str, Any]]:
    """Whether that may be a state of the page."""
    layers = told.get("layers", []) if isinstance(told, dict) else None
    return isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers)


def keep_view(fresh: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """A state that was kept, with the sources of a `fresh` one; layers that are not there any more go."""
    before = {la["name"]: la for la in kept.get("layers", ()) if isinstance(la.get("name"), str)}
    layers = [la | before.get(la["name"], {}) | {"source": la["source"]} for la in fresh["layers"]]
    return {**fresh, **kept, "layers": layers, "title": fresh["title"]}
