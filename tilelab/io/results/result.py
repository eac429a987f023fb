"""A segmentation on disk, finished or not: what it says of itself, and its levels as lazy images."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from tilelab.errors import InputError
from tilelab.io.images.bar import match_rows
from tilelab.io.images.image import Image
from tilelab.io.images.notebook import page, thumbnail
from tilelab.io.images.region import crop, parse_region
from tilelab.io.images.volume import Volume
from tilelab.io.results.level_image import LevelImage, reduced_level
from tilelab.io.storage.place import Address, Place, as_place
from tilelab.io.zarr import ome as _ome
from tilelab.io.zarr.documents import parse_json
from tilelab.io.zarr.layout import Layout
from tilelab.io.zarr.metadata import ArrayNode, find_node
from tilelab.io.zarr.presence import find_written
from tilelab.io.zarr.sharded_array import ShardedArray
from tilelab.spec import ClassInfo
from tilelab.text import size_text

UNFINISHED = ".tilelab/zarr.json"
"""Where a remote result keeps its root's ``zarr.json`` until it is finished."""
ATTRIBUTE = "tilelab"
"""Key of `ResultInfo` among the attributes of the root group."""

What = str
"""``labels``, ``probabilities``, ``logits``, or ``maps/NAME``."""
WHATS: tuple[What, ...] = ("labels", "probabilities", "logits")


class MapInfo(msgspec.Struct, frozen=True):
    """An output of the network that is kept as numbers.

    Attributes:
        name: of its folder under ``maps``.
        output: of the network's tensor.
        channels: how many numbers a pixel has.
    """

    name: str
    output: str
    channels: int

    @classmethod
    def of(cls, outputs: Iterable[tuple[str, int]]) -> tuple[MapInfo, ...]:
        """Of names and channels of outputs: folders have the letters, digits, ``.``, ``-`` and ``_`` of the names."""
        found: dict[str, MapInfo] = {}
        for output, channels in outputs:
            plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", output).strip("_.") or "map"
            name = plain
            while name in found:
                name = f"{plain}_{len(found)}"
            found[name] = cls(name, output, channels)
        return tuple(found.values())


class ResultInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a result says of itself.

    Attributes:
        name: of the image.
        axes: of the labels.
        pixel_size_nm: nanometres per pixel on `axes`, or None when unknown.
        classes: all classes; labels are indices into them.
        probabilities: indices of the classes that have a probability channel, in channel order.
        labels: whether there are labels.
        logits: number of logit channels, 0 for none.
        layout: levels, shards and chunks.
        metadata: what the caller wanted kept: model, versions, options.
        origin_px: where the first pixel lies in what the image was a part of, in pixels on `axes`; empty means at 0.
        maps: outputs that are kept as numbers; not stated where there are none.
    """

    name: str
    axes: Literal["yx", "zyx"]
    pixel_size_nm: tuple[float, ...] | None
    classes: tuple[ClassInfo, ...]
    probabilities: tuple[int, ...]
    labels: bool
    logits: int
    layout: Layout
    metadata: dict[str, Any]
    origin_px: tuple[float, ...] = ()
    maps: tuple[MapInfo, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def kept_maps(self) -> tuple[MapInfo, ...]:
        """`maps`, where there are any."""
        return () if isinstance(self.maps, msgspec.UnsetType) else self.maps

    @property
    def resampled_by(self) -> tuple[float, ...] | None:
        """Pixels of the image to each of the result, on `axes`; None where they are the same pixels."""
        told: Any = self.metadata
        for key in ("fingerprint", "input", "resampled_by"):
            told = told.get(key) if isinstance(told, dict) else None
        try:
            steps = tuple(float(step) for step in str(told).strip("()").split(","))[-len(self.axes) :]
        except ValueError:
            return None
        return steps if len(steps) == len(self.axes) and all(0 < step < 1e6 for step in steps) else None

    @property
    def region_start(self) -> tuple[int, int, int]:
        """The first pixel (z, y, x) of the region of its image that was segmented, in pixels of that image."""
        region = self.metadata.get("region")
        starts = [first or 0 for first, _ in parse_region(region)] if isinstance(region, str) else []
        z, y, x = (0, 0, 0, *starts)[-3:]
        return (z, y, x)

    @property
    def whats(self) -> tuple[What, ...]:
        """The kinds of pixels that there can be."""
        return (*WHATS, *(f"maps/{known.name}" for known in self.kept_maps))

    def arrays(self, root: Place, what: What) -> tuple[ShardedArray, ...]:
        """The arrays of one kind under `root`, finest level first; none when the result has none of it."""
        layout, skip = self.layout, 3 - len(self.axes)
        folders = {"labels": root / "labels" / _ome.LABEL, "probabilities": root}
        counts = {"labels": int(self.labels), "probabilities": len(self.probabilities), "logits": self.logits}
        counts |= {f"maps/{known.name}": known.channels for known in self.kept_maps}
        folder, channels, numbers = folders.get(what, root / what), counts[what], what not in folders
        lead, one = ((), ()) if what == "labels" else ((channels,), (1,))
        if not channels:
            return ()
        return tuple(
            ShardedArray(
                path=folder / str(level),
                shape=lead + layout.level_shape(level)[skip:],
                dtype=np.dtype(np.float32 if numbers else np.uint8),
                chunk=one + layout.chunk[skip:],
                shard=one + (layout.row_shard if numbers else layout.level_shard(level))[skip:],
                axes="c" * len(lead) + self.axes,
            )
            for level in range(1 if numbers else layout.levels)
        )


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """A segmentation, opened for reading.

    Attributes:
        path: the OME-Zarr folder, local or remote.
        info: what it says of itself: classes, axes, pixel size, metadata.
        labels: uint8 class indices per level, finest first, axes ``info.axes``; empty when there are none.
        probabilities: uint8 ``round(255 p)`` per level, axes ``c`` + ``info.axes``; empty when there are none.
        logits: float32, axes ``c`` + ``info.axes``; None when there are none.
        maps: the outputs that are kept as numbers, by name, float32, axes ``c`` + ``info.axes``.
    """

    path: Place
    info: ResultInfo
    labels: tuple[LevelImage, ...]
    probabilities: tuple[LevelImage, ...]
    logits: LevelImage | None
    maps: dict[str, LevelImage] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Names and colours; labels are indices into them."""
        return self.info.classes

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        shape = self.info.layout.shape[3 - len(self.info.axes) :]
        kinds = [kind for kind in ("labels", "probabilities", "logits", "maps") if getattr(self, kind)]
        names = ", ".join(known.name for known in self.classes)
        return f"<Result {self.path} {self.info.axes} {size_text(shape)}: {', '.join(kinds)} of {names}>"

    def _repr_html_(self) -> str:
        """For notebooks: a thumbnail, and what there is to know."""
        info, levels = self.info, self.labels or self.probabilities
        size = info.pixel_size_nm
        facts = {
            "axes": info.axes,
            "pixels": f"{size_text(info.layout.shape[3 - len(info.axes) :])}, {info.layout.levels} levels",
            "pixel size": "not known" if size is None else f"{size_text(f'{v:g}' for v in size)} nm",
            "classes": ", ".join(f"{n} {known.name}" for n, known in enumerate(info.classes)),
            "labels": "uint8 class indices" if self.labels else "",
            "probabilities": ", ".join(info.classes[n].name for n in info.probabilities) if self.probabilities else "",
            "logits": "float32" if self.logits is not None else "",
            "maps": ", ".join(self.maps),
        }
        return page(str(self.path), facts, *(thumbnail(levels[0], levels[0].shown()) if levels else ("", "")))


def read_result(path: Address) -> Result:
    """Open a result; a local one may be unfinished (what it lacks reads as 0), a remote one must be finished.

    >>> result = tilelab.read_result("sample.ome.zarr")
    >>> [known.name for known in result.classes]
    ['matrix', 'secondary precipitate', 'tertiary precipitate']
    >>> labels = result.labels[0]  # the finest level; nothing is read yet
    >>> labels.shape, labels.dtype, labels[100:110, ::4].shape
    ((300, 400), dtype('uint8'), (10, 100))
    >>> bool((labels == 1).any())
    True

    Args:
        path: the OME-Zarr folder, or the run that made it.

    Raises:
        InputError: it does not exist or was not written by tilelab.
    """
    root = as_place(path)
    info = read_info(root)
    scales = [info.layout.scale(level)[3 - len(info.axes) :] for level in range(info.layout.levels)]

    def images(what: What) -> tuple[LevelImage, ...]:
        size = info.pixel_size_nm
        known = {"labels": info.classes, "probabilities": [info.classes[n] for n in info.probabilities]}.get(what, ())
        levels = tuple(
            LevelImage(
                array,
                None if size is None else tuple(s * n for s, n in zip(size, scale, strict=True)),
                known,
                root / "zarr.json",
            )
            for array, scale in zip(info.arrays(root, what), scales, strict=False)
        )
        for level in levels:
            level.reduced = partial(reduced_level, levels)
        return levels

    logits = images("logits")
    maps = {known.output or known.name: images(f"maps/{known.name}")[0] for known in info.kept_maps}
    return Result(root, info, images("labels"), images("probabilities"), logits[0] if logits else None, maps)


def match_result(image: Image, shape: tuple[int, ...], info: ResultInfo | None) -> Image:
    """What of a micrograph a result of `shape` (z, y, x) is of: all but an info bar, or the region that was taken."""
    region = None if info is None or info.resampled_by is not None else info.metadata.get("region")
    if isinstance(region, str) and Volume(image).shape != shape:
        with contextlib.suppress(InputError):  # it is another image
            return crop(image, region)
    return match_rows(image, shape[1])


_INFO = msgspec.json.Decoder(ResultInfo)
"""Made here, once: two threads that first ask msgspec for one type at a time crash."""


def find_loss(path: Address) -> str | None:
    """What a finished local result lost since, in one phrase; None where nothing is missing, or nobody counted.

    Raises:
        InputError: it is no result, or what it says of itself is damaged.
    """
    root = as_place(path)
    if root.waits:
        return None
    info = read_info(root)
    before, now = [], []
    for level in (array for what in info.whats for array in info.arrays(root, what)):
        node = find_node(level.path)
        if not isinstance(node, ArrayNode):
            return f"lost {level.path.relative_to(root) / 'zarr.json'}"
        if node.written is None:
            continue
        try:
            found = find_written(node)
        except OSError as error:
            raise InputError(f"{level.path} cannot be listed: {error.strerror or error}") from error
        if found is not None:
            before.append(node.written)
            now.append(found)
    if before == now:
        return None
    (files, size), (had, of) = ((sum(w.files for w in some), sum(w.bytes for w in some)) for some in (now, before))
    return f"lost data: {files} files with {size} bytes are left of the {had} with {of} that were written"


def read_info(path: Address, document: str = "zarr.json") -> ResultInfo:
    """What the result at `path` says of itself, in its file `document`.

    Raises:
        InputError: it does not exist or was not written by tilelab.
    """
    root = as_place(path)
    try:
        attributes = parse_json((root / document).read_bytes())["attributes"]
        return msgspec.convert(attributes[ATTRIBUTE], ResultInfo)
    except FileNotFoundError as error:
        if (root / UNFINISHED).is_file():
            raise InputError(f"the result at {root} is not finished: run the command that began it again") from None
        raise InputError(
            f"no tilelab result at {root}: {'it has no zarr.json' if root.is_dir() else 'no such folder'}"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {root}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{root} is not a result that this tilelab can read: {error}") from error


def encode_info(info: ResultInfo) -> bytes:
    """What a result says of itself, as JSON in UTF-8; bytes of a file's name that are no text become question marks."""
    try:
        return msgspec.json.encode(info)
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(info), ensure_ascii=False, separators=(",", ":"))
        return text.encode(errors="replace")


def parse_info(text: str | bytes, path: str | Path) -> ResultInfo:
    """What a result said of itself, from the JSON kept in a file at `path` that was made of it.

    Raises:
        InputError: it is not such a document.
    """
    try:
        return _INFO.decode(text)
    except (ValueError, RecursionError) as error:  # a MsgspecError is a ValueError
        raise InputError(f"{path} does not say which result it was made of: {error}") from error
