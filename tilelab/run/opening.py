"""The image that is to be segmented, and its mask: opened, with a pixel size that suits the model, and closed again."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tilelab.assumptions import Assumption
from tilelab.errors import InputError, ModelError
from tilelab.io.images.bar import leave_out_bar
from tilelab.io.images.image import Image
from tilelab.io.images.mask import open_mask
from tilelab.io.images.region import crop
from tilelab.io.images.view import given_pixel_size
from tilelab.io.images.volume import Volume
from tilelab.run.options import Options
from tilelab.spec import ModelSpec, same_pixel_size
from tilelab.text import size_text

SMALLEST_SCALE = 1 / 64


@dataclass(frozen=True)
class OpenedImage:
    """An image as a run reads it; a context that closes what was opened for it, and leaves what the caller gave open.

    notes: one line each, for the user.
    assumptions: what had to be guessed of it.
    """

    image: Image
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    _close: Callable[[], None] = field(repr=False)

    def close(self) -> None:
        """Close the image if it was opened here."""
        self._close()

    def __enter__(self) -> OpenedImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(image: Any, options: Options, spec: ModelSpec) -> OpenedImage:
    """Open `image` (anything `open_image` reads) with a pixel size that suits the model, and say what was decided.

    An `Image` stays as it is: a pixel size that is stated is that of a copy.

    Raises:
        InputError: it cannot be read.
        ModelError: its pixel size differs from the model's by more than 10 %, or it is to be resampled and one of the
            two is not known.
    """
    if options.rescale and options.ignore_pixel_size:
        raise ModelError("--rescale and --ignore-pixel-size contradict each other: give one of them")
    with contextlib.ExitStack() as failing:
        opened = _open(image, options)
        if not isinstance(image, Image):
            failing.callback(opened.close)
        suited, notes, assumptions = _suit_size(opened, options, spec)
        return OpenedImage(
            suited, (*opened.warnings, *notes), opened.assumptions + assumptions, failing.pop_all().close
        )


def _open(image: Any, options: Options) -> Image:
    """Open `image` as `options` say; one that is open already is what it is, but for region and pixel size."""
    if not isinstance(image, Image):
        from tilelab.io.images.folders import assume_stack, holds_images
        from tilelab.io.images.open import open_image

        named = isinstance(image, str | os.PathLike)
        if named and options.stack is False and holds_images(image):
            raise InputError(f"{image} is a folder, and --no-stack says that its images are their own: give each")
        guess = assume_stack(image) if named and options.stack is None and not options.axes else ()
        opened = open_image(
            image,
            level=options.level,
            series=options.series,
            channel=options.channel,
            timepoint=options.timepoint,
            axes=options.axes,
            pixel_size_nm=options.pixel_size_nm,
            region=options.region,
            bar=options.bar,
            allow_outside=options.allow_outside,
            infinite=True,
        )
        opened.assumptions += guess
        if named and options.region is None:
            opened.coarser = partial(_open_coarser, opened, image, options)
        return opened
    if options.level or any(v is not None for v in (options.series, options.channel, options.timepoint, options.axes)):
        raise InputError(f"{image.uri} is open already: level, channel and the like are chosen when it is opened")
    if options.pixel_size_nm is not None:
        image = copy.copy(image)
        image.pixel_size_nm = given_pixel_size(options.pixel_size_nm, image.axes.replace("c", ""), image.uri)
        image.assumptions = tuple(a for a in image.assumptions if a.flag != "--pixel-size")
    if options.bar:
        image = leave_out_bar(image, options.bar)
    return image if options.region is None else crop(image, options.region)


def _suit_size(
    opened: Image, options: Options, spec: ModelSpec
) -> tuple[Image, tuple[str, ...], tuple[Assumption, ...]]:
    """`opened` at the size that was asked for or suits the model, what to note, and what was assumed."""
    if options.scale is None:
        return _suit_pixel_size(opened, options, spec)
    if options.rescale:
        raise ModelError("--scale and --rescale contradict each other: give one of them")
    if not SMALLEST_SCALE <= options.scale <= 1 / SMALLEST_SCALE:
        raise ModelError(f"--scale {options.scale:g} is not between {SMALLEST_SCALE:g} and {1 / SMALLEST_SCALE:g}")
    from tilelab.io.images.resample import ResampledImage

    scaled = ResampledImage(opened, {"y": 1 / options.scale, "x": 1 / options.scale})
    return scaled, (f"resampled to {options.scale:g} of its height and width",), ()


def _open_coarser(opened: Image, named: Any, options: Options, factor: int) -> Image | None:
    """The level of an image that is reduced `factor` times on y and x alone; None where there is none."""
    from tilelab.io.images.open import open_image

    wanted = tuple(n / factor if a in "yx" else n for a, n in zip(opened.axes, opened.shape, strict=True))
    for level in range(options.level + 1, options.level + 1 + factor):
        try:
            found = open_image(
                named,
                level=level,
                series=options.series,
                channel=options.channel,
                timepoint=options.timepoint,
                axes=options.axes,
                allow_outside=options.allow_outside,
                infinite=True,
            )
        except InputError:
            return None
        alike = found.axes == opened.axes and found.dtype == opened.dtype
        if alike and all(abs(n - w) < 1 for n, w in zip(found.shape, wanted, strict=True)):
            return found
        found.close()
    return None


def _suit_pixel_size(
    opened: Image, options: Options, spec: ModelSpec
) -> tuple[Image, tuple[str, ...], tuple[Assumption, ...]]:
    """`opened` with a pixel size that suits the model, what to note, and what was assumed; see `open_source`."""
    want, have = spec.pixel_size_nm, opened.pixel_size_nm
    if want is None or have is None:
        return (opened, *_without_pixel_size(opened, options, want))
    shared = min(len(have), len(want))
    seen, trained = have[-shared:], want[-shared:]
    if same_pixel_size(seen, trained):
        same = f"{_sizes(seen)} nm of the image and {_sizes(trained)} nm of the model are within 10 %"
        flags = (("--rescale", options.rescale), ("--ignore-pixel-size", options.ignore_pixel_size))
        return opened, tuple(f"{flag} does nothing: {same}" for flag, asked in flags if asked), ()
    if options.ignore_pixel_size:
        return opened, (), ()
    if options.rescale:
        from tilelab.io.images.resample import ResampledImage

        resampled = f"resampled from {_sizes(seen)} to {_sizes(trained)} nm per pixel"
        named = [a for a in opened.axes if a != "c"][-shared:]
        steps = {a: t / s for a, t, s in zip(named, trained, seen, strict=True)}
        return ResampledImage(opened, steps, (*have[: len(have) - shared], *trained)), (resampled,), ()
    raise ModelError(
        f"{opened.uri} has {_sizes(seen)} nm per pixel, the model was trained on {_sizes(trained)}: "
        "resample with --rescale, or run as it is with --ignore-pixel-size"
    )


def _without_pixel_size(
    opened: Image, options: Options, want: tuple[float, ...] | None
) -> tuple[tuple[str, ...], tuple[Assumption, ...]]:
    """What to note and what was assumed where the image or the model states no pixel size."""
    if options.rescale:
        what, flag = ("the model", "--model-pixel-size") if want is None else (opened.uri, "--pixel-size")
        raise ModelError(f"--rescale needs the pixel size of {what}, which is not stated: give it with {flag}")
    if options.ignore_pixel_size:
        what = "the model states no pixel size" if want is None else "the image's pixel size is not known"
        return (f"--ignore-pixel-size does nothing: {what}",), ()
    if want is None:
        return (), ()
    assumed = Assumption(
        what=f"the pixel size of {opened.uri}",
        taken=f"the model's, {size_text(f'{s:g}' for s in want)} nm",
        because="nothing states it",
        flag="--pixel-size",
    )
    return (), (assumed,)


def _sizes(nm: Sequence[float]) -> str:
    """Pixel sizes for people: one number where they are equal."""
    return f"{nm[0]:g}" if len(set(nm)) == 1 else " x ".join(f"{size:g}" for size in nm)


def open_its_mask(volume: Volume, options: Options) -> Volume | None:
    """The mask that `options` name for an image, and where that is not empty, as they ask; see `open_mask`.

    Raises:
        InputError: it cannot be read or has another size, or the image is too large to be looked at.
    """
    mask = None
    if options.mask is not None:
        mask = open_mask(options.mask, volume, options.mask_axes, options.allow_outside, options.mask_series)
    if not options.skip_empty:
        return mask
    from tilelab.io.images.foreground import Both, find_foreground

    try:
        foreground = Volume(find_foreground(volume))
    except InputError:
        if mask is not None:
            mask.image.close()
        raise
    return foreground if mask is None else Volume(Both(mask, foreground))
