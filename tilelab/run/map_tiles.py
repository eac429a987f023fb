"""For people who live in Dask: a lazy array in, a lazy array of labels or probabilities out.

The bytes are those of `infer` with the same tile and overlap.

Blocks may be cut anywhere: each is computed from the pixels it needs (its own and a halo), by tiles that lie where the
size of the whole array puts them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.assumptions import check_strict
from tilelab.engines.base import Engine
from tilelab.engines.registry import read_spec
from tilelab.errors import InputError, ModelError
from tilelab.geometry import Box, Cuts, Lattice, reflect
from tilelab.io.images.volume import Volume, network_input
from tilelab.io.results.sink import Finished
from tilelab.run.elsewhere import absolute, absolute_model
from tilelab.run.normalize import normalization_constants, sample_boxes
from tilelab.run.opening import open_its_mask, open_source
from tilelab.run.options import Options, model_state, with_words
from tilelab.run.plan.buffers import seen_range
from tilelab.run.plan.request import ImageFacts, Request, Written
from tilelab.run.prepare import probability_classes
from tilelab.run.stand_in_arrays import Pixelless, Slices, StoredAxes, Window, stored_axes
from tilelab.run.sweep.job import Job
from tilelab.run.sweep.start import make_sweep
from tilelab.spec import ModelSpec

if TYPE_CHECKING:
    import dask.array

BLOCK_PX = {"2d": (1, 8192, 8192), "3d": (256, 512, 512)}  # default extent of a block, at most


def map_tiles(
    array: dask.array.Array,
    model: str | Path,
    *,
    output: Literal["labels", "probabilities"] = "labels",
    options: Options | None = None,
    chunks: Sequence[int] | None = None,
    **words: Any,
) -> dask.array.Array:
    """Segment a Dask array lazily.

    Where neither the call nor the model pins tile and overlap, `infer` chooses them for image and machine; here they
    are the model's own, for nothing of a lazy array is read before it is computed.  The bytes are those of `infer` with
    the same tile and overlap.  Where intensities are normalised by the array's own statistics, those of more than 16
    megapixels are of blocks that are spread over it; `infer` looks at all of it.

    >>> array = dask.array.asarray(tilelab.open_image("sample.tif"))
    >>> labels = tilelab.map_tiles(array, "superalloy", tile=256, overlap=64, device="cpu")
    >>> labels.shape, labels[:8, :8].compute().dtype
    ((300, 400), dtype('uint8'))

    Args:
        array: ``(y, x)``, ``(z, y, x)`` or with a channel axis, as `infer` takes it.
        model: path of a model or name of a bundled one; each process that computes blocks loads it once.
        output: ``labels``, or ``probabilities`` of the classes that `options` name.
        options: of `infer`; what concerns files, memory and workers has no meaning here.  With `strict` a block whose
            model has to be guessed at is an error.
        chunks: of the result, on its spatial axes.  Every block computes the tiles at its border anew, so large ones
            are better; by default at most 8192 x 8192 pixels, or 256 x 512 x 512 for a 3-D model.
        words: as for `infer`.

    Returns:
        uint8 ``(y, x)`` or ``(z, y, x)``, for probabilities with a leading channel axis: ``round(255 p)``.

    Raises:
        TilelabError: array, model and options do not fit.
    """
    options = with_words(options or Options(), words)
    _check(array, output, options)
    model = absolute_model(model)  # blocks are computed later, maybe elsewhere
    if options.mask is not None:
        options = replace(options, mask=absolute(options.mask))
    spec = read_spec(model, options.model)
    assert spec is not None  # noqa: S101 - it is only None without overrides
    if spec.normalization.per == "slice":
        raise ModelError("map_tiles normalises by the stack's statistics, not slice by slice: use infer")
    if not spec.classified:
        raise ModelError("map_tiles gives labels or probabilities, the model has maps alone: use infer")
    pixelless = Pixelless(array.shape, array.dtype)
    opened = open_source(pixelless, options, spec)
    check_strict(opened.assumptions, options.strict)
    image = opened.image
    volume = Volume(image)
    task = _Task(array.shape, array.dtype, model, spec, options, output)
    if output == "probabilities" and not task.classes:
        raise ModelError("no class has a probability channel: name some, or ask for labels")
    where = stored_axes(pixelless, volume)
    lattice = task.request(volume).lattice
    kept = [a for a, letter in enumerate("zyx") if letter in image.axes]
    cuts = _cuts(volume.shape, kept, chunks, BLOCK_PX["2d" if spec.axes == "yx" else "3d"])
    return _Blocks(array, task, where, lattice, kept, cuts, _constants(array, task, volume, where)).join()


def _check(array: Any, output: str, options: Options) -> None:
    """Refuse what cannot be done lazily."""
    import dask.array as da

    if not isinstance(array, da.Array):
        raise InputError(
            f"map_tiles takes a Dask array, not {type(array).__name__}: use dask.array.from_array, or infer"
        )
    if options.rescale or options.scale is not None or options.fit or options.invert:
        raise ModelError("map_tiles neither resamples nor inverts: change the array first, or use infer")
    if options.exact or options.auto_tile or options.skip_empty:
        raise ModelError("map_tiles neither chooses tiles nor finds what is empty: give tile and overlap, or use infer")
    if options.region is not None:
        raise ModelError("map_tiles takes no region: slice the array first, array[z0:z1, y0:y1, x0:x1]")
    if output not in ("labels", "probabilities"):
        raise ModelError(f"map_tiles gives labels or probabilities, not {output!r}")


def _constants(array: dask.array.Array, task: _Task, volume: Volume, where: StoredAxes) -> Any:
    """Mean and gain; to be computed from samples of the array, if the model wants its statistics."""
    import dask

    normalization = task.spec.normalization
    if normalization.kind == "constants":
        return normalization_constants(volume, normalization, task.spec.channels, task.options.intensity_range)[:2]
    regions = [where.slices(box) for box in sample_boxes(volume)]
    return dask.delayed(task.constants)(regions, [array[region] for region in regions])


@dataclass(frozen=True)
class _Blocks:
    """The blocks of the result, each with the region of the array that its tiles see.

    kept: axes of (z, y, x) that the result has.
    cuts: how it is cut on (z, y, x).
    constants: mean and gain, or what computes them.
    """

    array: dask.array.Array
    task: _Task
    where: StoredAxes
    lattice: Lattice
    kept: list[int]
    cuts: list[Cuts]
    constants: Any

    def join(self) -> dask.array.Array:
        """All of them as one array."""
        import dask
        import dask.array as da

        compute = dask.delayed(self.task.compute, pure=True)

        def blocks(ranges: list[tuple[int, int]]) -> Any:
            at = len(ranges)
            if at == 3:
                return self._block(compute, Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges)))
            found = [blocks([*ranges, self.cuts[at][i]]) for i in range(len(self.cuts[at]))]
            return found if at in self.kept else found[0]

        return da.block(blocks([]))

    def _block(self, compute: Any, box: Box) -> dask.array.Array:
        import dask.array as da

        region = self.where.slices(self._seen(box))
        channels = () if self.task.output == "labels" else (len(self.task.classes),)
        shape = (*channels, *(box.shape[a] for a in self.kept))
        return da.from_delayed(compute(box, region, self.array[region], self.constants), shape, np.uint8)

    def _seen(self, box: Box) -> Box:
        """The pixels (z, y, x) that the tiles of a block see, neighbouring slices included."""
        axes = self.lattice.axes
        seen = [seen_range(axis, axis.covering(a, b)) for axis, a, b in zip(axes, box.start, box.stop, strict=True)]
        if n := self.task.spec.neighbours:
            slices = reflect(np.arange(seen[0][0] - n, seen[0][1] + n), axes[0].size)
            seen[0] = (int(slices.min()), int(slices.max()) + 1)
        return Box(tuple(a for a, _ in seen), tuple(b for _, b in seen))


class _Task:
    """What the blocks of one array share; sent to whoever computes them."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        model: str,
        spec: ModelSpec,
        options: Options,
        output: Literal["labels", "probabilities"],
    ) -> None:
        self.shape, self.dtype, self.model, self.spec = shape, dtype, model, spec
        self.options, self.output = options, output
        self.files = model_state(model)
        named = probability_classes(spec, options.probabilities)
        self.classes = named if output == "probabilities" else ()

    def request(self, volume: Volume) -> Request:
        """What a plan would be asked for: it says where the tiles lie."""
        return Request.of(
            ImageFacts.of(network_input(volume, self.spec)),
            self.spec,
            Written(self.output == "labels", self.classes),
            symmetries=8 if self.options.symmetries else 1,
        )

    def constants(self, regions: list[Slices], pieces: list[Array]) -> tuple[Float32, Float32]:
        """Mean and gain of an image that is normalised by its own statistics, from samples of it."""
        volume = self._volume(regions, pieces)
        spec = self.spec
        limits = self.options.intensity_range
        return normalization_constants(volume, spec.normalization, spec.channels, limits, sampled=True)[:2]

    def compute(self, box: Box, region: Slices, pixels: Array, constants: tuple[Float32, Float32]) -> Array:
        """One block, from the pixels of `region`."""
        volume = self._volume([region], [pixels])
        shared = _engine(self.model, self.options, self.files)
        check_strict(shared.engine.assumptions, self.options.strict)
        if shared.engine.spec.outputs != self.spec.outputs:
            raise ModelError(
                f"{self.model} gives outputs of another size than its tiles and does not say so before it is run: "
                "map_tiles needs a description that does"
            )
        job = Job.of(volume, self.request(volume), *constants, open_its_mask(volume, self.options), self.options.nan)
        rows = KeptRows(job.frame.sweep_axis)
        try:
            with shared.whole_units:
                make_sweep(job, shared.engine, box).run(rows)
        finally:
            job.close()
        block = rows.joined(self.output)
        return block if "z" in volume.image.axes else block[..., 0, :, :]

    def _volume(self, regions: Sequence[Slices], pieces: Sequence[Array]) -> Volume:
        return Volume(open_source(Window(self.shape, regions, pieces), self.options, self.spec).image)


class KeptRows:
    """A unit's writer that keeps everything."""

    def __init__(self, sweep_axis: int) -> None:
        self._axis = sweep_axis
        self._rows: list[Finished] = []

    def write(self, rows: Finished, threads: int = 1) -> int:  # noqa: ARG002
        """Keep a copy of `rows`: the arrays go round."""
        self._rows.append(
            rows._replace(**{what: part.copy() for what, part in rows._asdict().items() if part is not None})
        )
        return 0

    def close(self) -> None:
        """Nothing is held that is not wanted."""

    def joined(self, what: str) -> Array:
        """All rows of one kind, ``([P,] z, y, x)``."""
        parts = [np.asarray(getattr(rows, what)) for rows in self._rows]
        return np.concatenate(parts, axis=parts[0].ndim - 3 + self._axis)


class _SharedEngine:
    """An engine that several threads share; those beyond its streams wait in its `run`.

    whole_units: held while a unit is swept by an engine that has one stream for all of it; others are swept side by
        side.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        alone = engine.on_device is not None
        self.whole_units: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if alone else contextlib.nullcontext()
        )


_loading = threading.Lock()


def _engine(model: str, options: Options, files: object) -> _SharedEngine:
    """The engine of this process, loaded once for each state of its files; see `model_state`."""
    with _loading:
        return _load(model, f"{options} {files}", _Hidden(options))


class _Hidden:
    """Options that do not count as a key: they need not be hashable, and their text stands for them."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=2)
def _load(model: str, key: str, options: _Hidden) -> _SharedEngine:  # noqa: ARG001
    from tilelab.run.options import load

    return _SharedEngine(load(model, options.options))


def _cuts(
    shape: tuple[int, ...], kept: list[int], chunks: Sequence[int] | None, most: tuple[int, int, int]
) -> list[Cuts]:
    """How the result is cut: as asked, or evenly."""
    if chunks is None:
        return [Cuts.at_most(n, m, 1) for n, m in zip(shape, most, strict=True)]
    if len(chunks) != len(kept) or any(c < 1 for c in chunks):
        axes = "".join("zyx"[a] for a in kept)
        raise InputError(f"chunks {tuple(chunks)} do not fit axes {axes}: give one positive extent for each")
    asked = dict(zip(kept, chunks, strict=True))
    return [Cuts(n, asked.get(a, n)) for a, n in enumerate(shape)]
