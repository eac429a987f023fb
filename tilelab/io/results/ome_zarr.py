"""A segmentation written as OME-Zarr (OME-NGFF 0.5), every level of it while the rows finish.

    OUT.ome.zarr.partial/          renamed to OUT.ome.zarr when finished; valid, and opens in a viewer, at any time
      0, 1, 2, ...                 probabilities (c, [z,] y, x), uint8, mean-downsampled: the image
      labels/classes/0, 1, ...     labels ([z,] y, x), uint8, mode-downsampled
      logits/0                     logits (c, [z,] y, x), float32, if asked for
      maps/NAME/0                  other outputs of the network (c, [z,] y, x), float32
      .tilelab/writing/            files that are not whole yet; never part of the result

An OME-Zarr root has to be an image.  When no probabilities are wanted, the root's ``multiscales`` names the arrays of
the label image (or else of the logits, or of the first map): the same pixels under two names, nothing is stored twice.

Unfinished rows live in memory, one row of chunks per level as pixels, everything else compressed, and in a file without
a name where that is much.  A file of the result appears whole, by renaming, so the death of the process at any moment
loses nothing that `write` has reported.  A power failure can: all is flushed to the disk once, before the result gets
its name.

In a remote store everything is at its final place at once, under ``OUT``; only the root's ``zarr.json``, without which
there is no result, is kept in ``OUT/.tilelab/zarr.json`` until the rest is complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from tilelab.arrays import Array
from tilelab.errors import OutputError
from tilelab.geometry import Box
from tilelab.io.results.result import ATTRIBUTE, UNFINISHED, MapInfo, ResultInfo, What, read_info
from tilelab.io.results.sink import Finished, Stored, partial_path
from tilelab.io.storage.place import Address, Place, as_place
from tilelab.io.zarr import ome as _ome
from tilelab.io.zarr.census import Census
from tilelab.io.zarr.layout import Extent, Layout
from tilelab.io.zarr.levels import Cascade, Halve, finish_levels, make_level, push_all
from tilelab.io.zarr.parking import Parking
from tilelab.io.zarr.sharded_array import encode_document, output_error, replace_file
from tilelab.kernels.pyramid import halve_mean, halve_mode
from tilelab.machine.disk import flush_tree, replace_folder
from tilelab.spec import ClassInfo

_SCRATCH = ".tilelab/writing"
_HALVE: dict[What, Halve] = {"labels": halve_mode, "probabilities": halve_mean}


class OmeZarrSink:
    """A result being written; implements `tilelab.io.results.sink.Sink`.  Cheap to open and to pickle.

    Attributes:
        path: of the finished result.
        partial: of the unfinished one.
        info: what the result says of itself.
    """

    def __init__(self, path: Address, info: ResultInfo) -> None:
        self.path = as_place(path)
        self.partial = partial_path(path)
        self.info = info

    @classmethod
    def create(
        cls,
        path: Address,
        layout: Layout,
        *,
        classes: Sequence[ClassInfo],
        probabilities: Sequence[int] = (),
        labels: bool = True,
        logits: int = 0,
        maps: Iterable[tuple[str, int]] = (),
        axes: Literal["yx", "zyx"] = "yx",
        pixel_size_nm: Sequence[float] | None = None,
        origin_px: Sequence[float] = (),
        name: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> OmeZarrSink:
        """Begin a result in ``path.partial``, which may exist as long as it holds no result (a journal, say).

        Args:
            path: of the finished result, ``NAME.ome.zarr``.
            layout: levels, shards and chunks.
            classes: all classes, background first.
            probabilities: classes that get a probability channel, in channel order; may be empty.
            labels: whether labels are written.
            logits: number of logit channels to write, 0 for none.
            maps: names and channels of what is kept as numbers.
            axes: of the labels.
            pixel_size_nm: nanometres per pixel on `axes`; None when unknown.
            origin_px: where the first pixel lies, in pixels on `axes`; empty means at 0.
            name: of the image, for viewers.
            metadata: kept in the root's attributes: model, versions, options.

        Raises:
            OutputError: there is an unfinished result, or the folder is unwritable.
        """
        kept = MapInfo.of(maps)
        if not (labels or probabilities or logits or kept):
            raise ValueError("a result needs labels, probabilities, logits or maps")
        if axes == "yx" and not layout.shape[0] == layout.chunk[0] == 1:
            raise ValueError(f"axes 'yx' do not fit {layout}")
        info = ResultInfo(
            name=name or as_place(path).name.removesuffix(".zarr").removesuffix(".ome"),
            axes=axes,
            pixel_size_nm=None if pixel_size_nm is None else tuple(float(p) for p in pixel_size_nm),
            classes=tuple(classes),
            probabilities=tuple(probabilities),
            labels=labels,
            logits=logits,
            layout=layout,
            metadata=metadata or {},
            origin_px=tuple(float(o) for o in origin_px),
            maps=kept or msgspec.UNSET,
        )
        sink = cls(path, info)
        if cls.begun(path):
            raise OutputError(f"{sink.partial} holds an unfinished result: continue it, or begin anew with --restart")
        sink._make_scratch()
        sink.write_documents()
        return sink

    def write_documents(self) -> None:
        """Write every ``zarr.json`` that is not there as it should be, the root's last: with it, all are there."""
        for relative, content in self._documents():
            text = encode_document(content)
            target = self.description if relative == "zarr.json" else self.partial / relative
            with contextlib.suppress(OSError):
                if target.read_bytes() == text:
                    continue
            replace_file(target, [text], self._scratch)

    @classmethod
    def begun(cls, path: Address) -> bool:
        """Whether there is an unfinished result of `path`.

        Raises:
            OutputError: a store does not say.
        """
        unfinished = partial_path(path)
        try:
            return (unfinished / _description(unfinished)).is_file()
        except OSError as error:
            raise output_error(unfinished, error) from error

    @classmethod
    def open(cls, path: Address) -> OmeZarrSink:
        """Take up the unfinished result of `path`, after a kill or in another process.

        Raises:
            InputError: there is none.
        """
        unfinished = partial_path(path)
        return cls(path, read_info(unfinished, _description(unfinished)))

    @property
    def description(self) -> Place:
        """The root's ``zarr.json`` of the unfinished result."""
        return self.partial / _description(self.partial)

    @property
    def waits(self) -> bool:
        """Whether looking at a file is a request to a store."""
        return self.partial.waits

    @property
    def grain(self) -> Extent:
        """Units are cut at multiples of it (z, y, x)."""
        return self.info.layout.grain

    def writer(self, box: Box, start: int, sweep_axis: int) -> ZarrUnitWriter:
        """A writer for the unit `box`, whose first rows will be those at `start` on `sweep_axis` (0 = z, 1 = y)."""
        return ZarrUnitWriter(self, box, start, sweep_axis)

    def census(self, box: Box, *, contents: bool) -> Census:
        """What is on disk of `box` (z, y, x), which begins at the grain; see `Sink.census`."""
        layout = self.info.layout
        return sum(
            (
                array.census(layout.level_box(box, level), contents=contents)
                for what in self.info.whats
                for level, array in enumerate(self.info.arrays(self.partial, what)[: layout.aligned])
            ),
            Census(),
        )

    def finalize(self, *, replace: bool = False) -> dict[str, Any]:
        """Make the coarse levels, have all of it on the disk, and give the result its final name.

        May be called again after a kill.

        Args:
            replace: a folder of that name, which goes when the new one has taken its place.

        Returns:
            ``path`` and ``levels``; of a local result also ``files`` and ``bytes`` on disk.

        Raises:
            OutputError: the disk is full, or something exists at the final name.
        """
        try:
            return self._finalize(replace)
        except OSError as error:
            raise output_error(self.path, error) from error

    def _finalize(self, replace: bool) -> dict[str, Any]:
        layout = self.info.layout
        if not type(self).begun(self.path):
            raise OutputError(f"{self.partial} is gone or has lost its root: it was moved while it was written")
        self._make_scratch()
        for what, halve in _HALVE.items():
            arrays = self.info.arrays(self.partial, what)
            for finer, coarser in list(pairwise(arrays))[layout.aligned - 1 :]:
                make_level(finer, coarser, layout, halve, self._scratch)
        # what is there is counted: of rows that two workers did, both would tell
        finish_levels((a for what in self.info.whats for a in self.info.arrays(self.partial, what)), self._scratch)
        if not self.path.renames:
            (self.partial / "zarr.json").write_bytes(self.description.read_bytes())
            return {"path": str(self.path), "levels": layout.levels}
        self._scratch.remove_tree()
        ours = self._scratch.parent
        if ours.is_dir() and not any(ours.iterdir()):  # a journal may be there
            ours.remove_tree()
        sizes = self.partial.file_sizes() or []
        whole, path = Path(str(self.partial)), Path(str(self.path))
        if path.exists() and not replace:
            raise OutputError(f"{path} exists: remove it, or choose another output")
        flush_tree(whole)
        replace_folder(whole, path)
        return {"path": str(self.path), "levels": layout.levels, "files": len(sizes), "bytes": sum(sizes)}

    def _make_scratch(self) -> None:
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self.description, error) from error

    @property
    def _scratch(self) -> Place:
        """Where files are until they are whole."""
        return self.partial / _SCRATCH

    def _documents(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """Every ``zarr.json`` with its path, the root's last."""
        info, layout = self.info, self.info.layout
        for what in info.whats:
            for array in info.arrays(self.partial, what):
                folder = str(array.path)[len(str(self.partial)) + 1 :].replace("\\", "/")
                yield f"{folder}/zarr.json", array.metadata()

        def scales(axes: str, method: str, prefix: str = "", levels: int = layout.levels) -> dict[str, Any]:
            return _ome.multiscale(
                layout,
                axes,
                info.pixel_size_nm,
                name=info.name,
                method=method,
                levels=levels,
                prefix=prefix,
                origin_px=info.origin_px,
            )

        classes = info.classes
        raw = [_ome.channel(f"logit {i}", "#000000", -10.0, 10.0) for i in range(info.logits)]
        if info.logits:
            yield "logits/zarr.json", _ome.group({"ome": _ome.image(scales("c" + info.axes, "none", levels=1), raw)})
        for known in info.kept_maps:
            ome = _ome.image(scales("c" + info.axes, "none", levels=1), _shown(known))
            yield f"maps/{known.name}/zarr.json", _ome.group({"ome": ome})
        if info.labels:
            yield "labels/zarr.json", _ome.group({"ome": {"version": _ome.VERSION, "labels": [_ome.LABEL]}})
            label = _ome.label_image(scales(info.axes, "mode"), classes)
            yield f"labels/{_ome.LABEL}/zarr.json", _ome.group({"ome": label})
        if info.probabilities:
            channels = [_ome.channel(classes[i].name, classes[i].color, 0, 255) for i in info.probabilities]
            ome = _ome.image(scales("c" + info.axes, "mean"), channels)
        elif info.labels:
            shown = [_ome.channel("classes", "#ffffff", 0, max(1, len(classes) - 1))]
            ome = _ome.image(scales(info.axes, "mode", f"labels/{_ome.LABEL}/"), shown)
        elif info.logits:
            ome = _ome.image(scales("c" + info.axes, "none", "logits/", levels=1), raw)
        else:
            first = info.kept_maps[0]
            ome = _ome.image(scales("c" + info.axes, "none", f"maps/{first.name}/", levels=1), _shown(first))
        yield "zarr.json", _ome.group({"ome": ome, ATTRIBUTE: msgspec.to_builtins(info)})


def _shown(known: MapInfo) -> list[dict[str, Any]]:
    """How a viewer begins with a map, whose range nobody knows before it is there."""
    return [_ome.channel(f"{known.output} {i}", "#ffffff", 0.0, 1.0) for i in range(known.channels)]


def _description(unfinished: Place) -> str:
    """Where the root's ``zarr.json`` is under an unfinished result."""
    return "zarr.json" if unfinished.renames else UNFINISHED


class ZarrUnitWriter:
    """Takes the rows of one unit in sweep order; implements `tilelab.io.results.sink.UnitWriter`."""

    def __init__(self, sink: OmeZarrSink, box: Box, start: int, sweep_axis: int) -> None:
        layout = sink.info.layout
        for a, (begin, end, grain, size) in enumerate(
            zip(box.start, box.stop, layout.grain, layout.shape, strict=True)
        ):
            if begin % grain or (end % grain and end != size) or not 0 <= begin < end <= size:
                raise ValueError(f"unit {box} is not cut at multiples of {layout.grain} on axis {'zyx'[a]}")
        first, last = box.start[sweep_axis], box.stop[sweep_axis]
        if not first <= start <= last or (start % layout.grain[sweep_axis] and start != last):
            raise ValueError(f"a unit cannot begin at {start}: it is not a multiple of {layout.grain[sweep_axis]}")
        self._pool: ThreadPoolExecutor | None = None
        self._start = self._position = start
        self._stop = box.stop[sweep_axis]
        self._grain = layout.grain[sweep_axis]
        self._axis = sweep_axis
        self._cross = tuple(n for a, n in enumerate(box.shape) if a != sweep_axis)
        rest = Box(tuple(start if a == sweep_axis else b for a, b in enumerate(box.start)), box.stop)
        self._outputs = {f"maps/{known.name}": known.output for known in sink.info.kept_maps}
        self._parking = Parking(sink._scratch)
        self._cascades = {
            what: Cascade(
                arrays[: layout.aligned], layout, rest, sweep_axis, _HALVE.get(what), sink._scratch, self._parking
            )
            for what in sink.info.whats
            if (arrays := sink.info.arrays(sink.partial, what))
        }

    def write(self, rows: Finished, threads: int = 1) -> int:
        """Append `rows`; returns the position up to which all levels are on disk.  See `UnitWriter.write`."""
        count, blocks = 0, []
        for what, cascade in self._cascades.items():
            output = self._outputs.get(what)
            given: Array | None = getattr(rows, what) if output is None else (rows.maps or {}).get(output)
            if given is None:
                raise ValueError(f"the result has {what}, the finished rows have none")
            block = given[np.newaxis] if what == "labels" else given
            count = block.shape[1 + self._axis]
            cross = tuple(n for a, n in enumerate(block.shape[1:]) if a != self._axis)
            if block.shape[0] != cascade.channels or cross != self._cross or self._position + count > self._stop:
                raise ValueError(f"{what} of shape {given.shape} do not continue the unit at {self._position}")
            blocks.append((cascade, block))
        if threads > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(threads, "tilelab-shards")
        push_all(blocks, map if threads == 1 or self._pool is None else self._pool.map)
        self._position += count
        return self._durable

    @property
    def stored(self) -> Stored:
        """See `StoringWriter.stored`."""
        return Stored(self._start, self._durable, sum((c.stored for c in self._cascades.values()), Census()))

    @property
    def _durable(self) -> int:
        """The position up to which all levels are on disk."""
        done = self._position == self._stop
        return self._stop if done else self._position // self._grain * self._grain

    def close(self) -> None:
        """Forget unfinished rows and stop threads."""
        self._cascades = {}
        self._parking.close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
