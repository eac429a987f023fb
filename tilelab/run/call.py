"""`tilelab.infer` and `tilelab.plan`: one image or many, what is to be said by keywords, a bar in notebooks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tilelab.engines.base import Engine
from tilelab.errors import InputError, OutputError
from tilelab.io.storage.place import Address
from tilelab.run import infer as one
from tilelab.run.made import Run
from tilelab.run.notebook import RunBar, in_notebook
from tilelab.run.options import Options, with_words
from tilelab.run.progress import Progress

if TYPE_CHECKING:
    from tilelab.run.batch.many import Outcome
    from tilelab.run.plan.plan import Plan

Model = str | Path | Engine | Callable[[Any], Any]


@overload
def infer(
    image: list[str | Path] | list[str] | list[Path],
    model: Model,
    out: Address | None = None,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    **words: Any,
) -> list[Outcome]: ...
@overload
def infer(
    image: Any,
    model: Model,
    out: Address | None = None,
    *,
    options: Options | None = None,
    overview: str | Path | None = None,
    overview_size: int = one.OVERVIEW_PX,
    page: str | Path | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    **words: Any,
) -> Run: ...
def infer(
    image: Any,
    model: Model,
    out: Address | None = None,
    *,
    options: Options | None = None,
    overview: str | Path | None = None,
    overview_size: int = one.OVERVIEW_PX,
    page: str | Path | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    **words: Any,
) -> Run | list[Outcome]:
    """Segment an image of any size, or a list of images.

    >>> run = tilelab.infer("sample.tif", "superalloy", "cells.ome.zarr", tile=256, overlap=0.25, device="cpu")
    >>> run.labels.shape, run.labels[10:12, ::100].dtype
    ((300, 400), dtype('uint8'))
    >>> bool(np.all(np.asarray(run.labels) < 3))
    True
    >>> pixels = tifffile.imread("sample.tif")
    >>> same = tilelab.infer(pixels, "superalloy", "array.ome.zarr", tile=256, overlap=0.25, device="cpu")
    >>> bool(np.all(same.labels == run.labels))  # an array has the same result as its file
    True
    >>> [one.error for one in tilelab.infer(["sample.tif"], "superalloy", "results")]
    ['']

    Args:
        image: path or URI of anything `open_image` reads, an `Image`, a NumPy, Dask or Zarr array; or a list of paths.
        model: path of a model, name of a bundled one (see `tilelab.models`), a loaded engine (which is then the
            caller's to close), or a torch module or any other function of batches.
        out: result to write: ``.ome.zarr`` (default, named after the image, in the current folder), ``.ome.tif`` or
            ``.png``, or ``.precomputed`` (neuroglancer); or ``s3://.../NAME.ome.zarr``, ``gs://...``.  Of a list, the
            folder.
        options: everything else, in one object.
        progress: told how far the run is; left out, a bar where this is a notebook.
        note: called with one line for each thing the user should know; left out, below that bar.
        overview: of one image, PNG or JPEG to draw, the image with the segmentation over it; `overview_size` pixels at
            most a side.
        page: of one image, HTML file to write: picture, areas, times, what was assumed, all in one.
        words: options by their names, and what there is to say of the model: ``tile=512, mean=128, std=33``; see
            `Options` and `SpecOverrides`.

    Returns:
        A `Run`: ``run.labels`` and ``run.probabilities`` are lazy arrays.  Of a list what became of each image, in its
        order: ``outcome.run``, or where it failed ``outcome.error``; see `infer_many`.

    Raises:
        TilelabError: something does not fit, cannot be read or written; nothing half-written is left under the final
            name, and what was finished is kept for the next try.
        TypeError: an option has no such name; the nearest one is named.
        Interrupted: Ctrl-C; the same call continues.
    """
    bar = RunBar() if in_notebook() else None
    note = note or (_ignore if bar is None else bar.say)
    if not isinstance(image, list | tuple):
        drawn: dict[str, Any] = {"overview": overview, "overview_size": overview_size, "page": page}
        return one.infer(image, model, out, options=options, progress=progress or bar, note=note, **drawn, **words)
    from tilelab.run.batch.many import Batch
    from tilelab.run.batch.names import place_of
    from tilelab.run.progress import Silent

    if out is None:
        raise OutputError("results of several images go into a folder: name it, infer(images, model, 'results')")
    if overview is not None or page is not None:
        raise InputError("overview and page are for one image: of several, pictures and a page are made in the folder")
    batch = Batch.of(_paths(image), model, str(out), with_words(options or Options(), words), note=note)
    order = {place_of(path): n for n, path in enumerate(batch.names)}
    return sorted(batch.run(None, progress or bar or Silent()), key=lambda outcome: order[outcome.image])


def _ignore(line: str) -> None:
    """Say it to nobody."""


def _paths(images: Sequence[Any]) -> list[str | Path]:
    """The paths in a list.

    Raises:
        InputError: something else is in it.
    """
    for image in images:
        if not isinstance(image, str | os.PathLike):
            raise InputError(
                f"a list holds paths of images, not {type(image).__name__}: give arrays one by one, or stacked along z"
            )
    return [str(image) for image in images]


def plan(image: Any, model: str | Path, *, options: Options | None = None, **words: Any) -> Plan:
    """What `infer` would do: tiles, bytes, memory; nothing is computed or written.

    >>> plan = tilelab.plan("sample.tif", "superalloy", tile=256, overlap=64)
    >>> plan.tiles
    4

    No engine is loaded: its memory is that of as many batches at once as there are cores.

    Args:
        image, model, options, words: as for `infer`.

    Raises:
        TilelabError: image and model do not fit, or a limit would be exceeded.
        TypeError: an option has no such name; the nearest one is named.
    """
    return one.plan(image, model, options=with_words(options or Options(), words))
