"""What a user may ask of a run; everything has a default, and the model's own word stands where nothing is said."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tilelab.engines.base import Engine
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine, members_of, model_files
from tilelab.io.images.region import Region
from tilelab.io.storage.place import Place
from tilelab.text import nearest_word


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `tilelab.infer` and `tilelab.plan`.

    Attributes:
        engine, device, precision, batch, threads: see `tilelab.load_engine`.
        model: what the user says of the model.
        auto_tile: measure how fast the engine is with tiles of several sizes, even where that gains less than it takes.
        exact: overlap tiles by all that an output pixel sees, so that they equal the whole image at once.
        level, channel, timepoint: of an image that has several.
        series: which of several images in one file or folder, by number from 0 or by name.
        stack: whether the images of a folder are slices of one stack; None looks at their names, and says what it took.
        axes: of the image as it is stored, one letter each of ``t c z y x s``, where that is not stated or wrong.
        region: the part of the image that is segmented as if it were the image, in pixels of that level:
            ``z0:z1,y0:y1,x0:x1`` (``y0:y1,x0:x1`` for a plane), an end may be left out; or pairs of numbers and None.
        bar: rows of the info bar at the bottom of a micrograph, which is left out: None finds it by the file's metadata
            or its look and says so, 0 keeps it.
        pixel_size_nm: of the image, when its file does not say or is wrong.
        ignore_pixel_size: run although the image's pixel size is not the model's.
        rescale: resample the image to the model's pixel size; the result has that pixel size too.
        scale: factor of the image's height and width, by which it is resampled before; the result has that size.
        invert: dark becomes bright.
        fit: find the scale, polarity and contrast at which the image is most like what the model was trained on.
        intensity_range: raw intensities that are black and white for a model trained on another dtype.
        mask: image that is nonzero where the result is wanted.
        mask_axes, mask_series: `axes` and `series` of the mask.
        skip_empty: leave out what a look at the image finds empty (resin, black borders); labels there are 0.
        nan: value of pixels that are NaN or infinite; None where the result is wanted is an error.
        symmetries: average over the 8 symmetries of the square (8 times the work).
        labels: write class labels.
        probabilities: classes that get a probability channel: names, or ``("all",)``, ``("none",)``; None means all but
            the background.
        logits: write the float32 logits too.
        with_image: copy the image into the result, an OME-Zarr on a disk, so that labels open over it.
        memory_bytes: limit for everything but the engine; None means half of what is free, at most 2 GiB.
        lanes, spans: cut x and the swept axis into so many ranges, as far as the result's shards allow.
        strict: refuse what would have to be assumed.
        allow_outside: read what image and mask name outside of their own folder.
        restart: throw away what an earlier run left.
        workers: processes that share the work, or with `scheduler` how many workers to wait for.
        scheduler: address of a Dask scheduler whose workers do the work, ``tcp://...``.
        patience_seconds: time without a word from a worker after which it counts as hung.
    """

    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    batch: int | None = None
    threads: int | None = None
    model: SpecOverrides = field(default_factory=SpecOverrides)
    auto_tile: bool = False
    exact: bool = False
    level: int = 0
    series: str | None = None
    stack: bool | None = None
    channel: int | None = None
    timepoint: int | None = None
    axes: str | None = None
    region: Region | None = None
    bar: int | None = None
    pixel_size_nm: tuple[float, ...] | None = None
    ignore_pixel_size: bool = False
    rescale: bool = False
    scale: float | None = None
    invert: bool = False
    fit: bool = False
    intensity_range: tuple[float, float] | None = None
    mask: str | Path | None = None
    mask_axes: str | None = None
    mask_series: str | None = None
    skip_empty: bool = False
    nan: float | None = None
    symmetries: bool = False
    labels: bool = True
    probabilities: tuple[str, ...] | None = None
    logits: bool = False
    with_image: bool = False
    memory_bytes: int | None = None
    lanes: int | None = None
    spans: int | None = None
    strict: bool = False
    allow_outside: bool = False
    restart: bool = False
    workers: int | None = None
    scheduler: str | None = None
    patience_seconds: float = 300.0

    def again(self, target: Place | None = None) -> str:
        """What continues a run that was stopped: with `restart` the same would throw away what it left.

        An earlier result that still has the name `target` would be taken for it, or refused as another's.
        """
        if not self.restart:
            return "the same command"
        earlier = False
        with contextlib.suppress(OSError):
            earlier = target is not None and target.renames and target.exists()
        return "the same command without --restart" + f", once {target} is moved away," * earlier


_OF_MODEL = {"model_axes": "axes", "model_pixel_size_nm": "pixel_size_nm"}  # which `Options` has of the image
_PER_AXIS = ("colors", "mean", "std", "tile", "overlap", "pixel_size_nm", "probabilities", "thresholds")
_NAMES = ("classes", "colors", "probabilities")  # of which a text holds one, or several with commas between


def with_words(options: Options, said: dict[str, Any]) -> Options:
    """`options` with what was said of the run or of the model by name.

    The names are those of `Options` and `SpecOverrides`; `axes` and `pixel_size_nm` are the image's, ``model_axes`` and
    ``model_pixel_size_nm`` the model's.  A list is as good as a tuple, a text of names with commas between, too; one
    number stands for all.

    Raises:
        TypeError: nothing has such a name.
    """
    ours = {one.name for one in fields(Options)} - {"model"}
    of_model = {one.name for one in fields(SpecOverrides)}
    run: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for word, value in said.items():
        name = _OF_MODEL.get(word, word)
        if word not in ours and name not in of_model:
            known = sorted(ours | of_model | set(_OF_MODEL))
            raise TypeError(f"there is no option {word!r}: {nearest_word(word, known)}")
        if isinstance(value, list):
            value = tuple(value)
        elif name in _NAMES and isinstance(value, str):
            several = tuple(part.strip() for part in value.split(","))
            value = int(value) if name == "classes" and value.strip().isdecimal() else several
        elif name in _PER_AXIS and isinstance(value, int | float) and not (name == "overlap" and 0 < value < 1):
            value = (value,)
        (run if word in ours else model)[name] = value
    return replace(options, **run, model=replace(options.model, **model))


def model_words(said: dict[str, Any]) -> SpecOverrides:
    """What was said of a model by name, where there is no image that ``axes`` and ``pixel_size_nm`` could be of.

    Raises:
        TypeError: nothing has such a name.
    """
    known = [one.name for one in fields(SpecOverrides)]
    for word in said:
        if word not in known:
            raise TypeError(f"there is nothing to say of a model by {word!r}: {nearest_word(word, known)}")
    of_image = {of_model: word for word, of_model in _OF_MODEL.items()}
    return with_words(Options(), {of_image.get(word, word): value for word, value in said.items()}).model


def load(model: str | Path | Callable[[Any], Any], options: Options) -> Engine:
    """The engine that `options` ask for; see `tilelab.load_engine`."""
    return load_engine(
        model,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        batch=options.batch,
        threads=options.threads,
        spec_overrides=options.model,
    )


def model_state(model: object) -> tuple[tuple[str, int, int, int], ...]:
    """What tells the files of a model from others that have taken their place: whoever keeps an engine looks at it.

    Nothing of what is named by no path, or is missing: whoever loads it says so.
    """
    paths = [Path(one).expanduser() for one in members_of(model) if isinstance(one, str | Path)]
    files = [*model_files(model), *(file for path in paths if path.is_dir() for file in sorted(path.iterdir()))]
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            now = file.stat()
            found.append((str(file), now.st_ino, now.st_size, now.st_mtime_ns))
    return tuple(found)
