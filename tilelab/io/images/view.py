"""From what is stored to an `Image`: the rules about axes, dtypes and colours, the same for every format.

Axes
    ``y`` and ``x`` are needed, ``z`` and ``c`` stay when they have more than one entry, the rest is chosen: time by
    `timepoint`, a channel by `channel`.  One axis without a known meaning (pages of a plain multi-page file) is ``z``.

Colours
    RGB(A) becomes grey by BT.601 luma, ``(299 R + 587 G + 114 B + 500) // 1000`` for integers, which is R exactly where
    R = G = B.  Alpha and other extra samples are ignored.  `channel` takes one sample as it is instead.

Dtypes
    uint8, uint16 and float32 stay.  bool becomes uint8, 0 and 255.  Everything else becomes float32: float64 is
    rounded, and what float32 cannot hold is an error where it is read: an integer beyond 2**24, a float64 beyond 3.4e38
    (which becomes infinite for those who look for such pixels themselves).  Complex, structured and object arrays are
    refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tilelab.arrays import Array
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.axes import FLAG, guess_axes
from tilelab.io.images.image import Image
from tilelab.io.images.source import Source
from tilelab.text import size_text

AsLabels = Literal["indices", "colors", "integers"]
_KNOWN = "tczyxs"
_KEPT = "czyx"
_COLOURS = (3, 4)  # samples: red, green, blue, and how much they cover
_EXACT = 2**24
_BLOCK = 2**20
_LEAST_NM, _MOST_NM = 0.01, 1e6
_SQUARE = 0.01


class SourceImage(Image):
    """A `Source` seen through the rules above.

    Args:
        source: what is stored; closed with the image.
        level, series: the resolution level and image that `source` is, for the fingerprint.
        channel: entry of the channel (or colour) axis; None keeps channels and makes colours grey.
        timepoint: entry of the time axis; needed when there are several.
        axes: letters that replace those of the source, one per stored axis.
        pixel_size_nm: replaces what the source says, one value for all spatial axes or one each.
        as_labels: keep what is stored: 0 and 1 of bool, the samples of colours as channels, of palettes the ``indices``
            or the ``colors``; ``integers`` are indices, and whole numbers of any type stay as they are.
        infinite: a float64 beyond float32 becomes infinite, and is no error.

    Raises:
        InputError: the image has no y or x, is empty, has axes to choose from, or a dtype without a rule.
    """

    def __init__(
        self,
        source: Source,
        *,
        level: int = 0,
        series: str | int | None = None,
        channel: int | None = None,
        timepoint: int | None = None,
        axes: str | None = None,
        pixel_size_nm: float | Sequence[float] | None = None,
        as_labels: AsLabels | None = None,
        infinite: bool = False,
    ) -> None:
        if as_labels in ("indices", "integers"):
            source.show_indices()
        self.source = source
        self._closed, self._infinite = False, infinite
        self.uri, self.bar, self.bar_said = source.uri, source.bar, source.bar_said
        letters, assumed = _name_axes(source, axes)
        at = letters.index("s") if "s" in letters else None
        rgb = source.rgb or (axes is not None and at is not None and source.shape[at] in _COLOURS)
        self._fixed = _choose(source, letters, channel, timepoint, rgb)
        self._grey = None  # stored axis of the colours that become one
        if at is not None and at not in self._fixed:
            colours = rgb and source.shape[at] >= 3
            if colours and not as_labels:
                self._grey = at
            else:
                letters[at] = "c"
                self.rgb = colours
        free = [i for i in range(len(letters)) if i not in self._fixed and i != self._grey]
        self._kept = sorted(free, key=lambda i: _KEPT.index(letters[i]))
        self.axes = "".join(letters[i] for i in self._kept)
        self._reach = {
            i: source.samples for i in free if letters[i] == "c" and source.axes[i] == "s" and source.samples
        }
        self.shape = tuple(self._reach.get(i) or source.shape[i] for i in self._kept)
        self.chunks = tuple(
            min(chunk, size) for chunk, size in zip((source.chunks[i] for i in self._kept), self.shape, strict=True)
        )
        stored = source.dtype if source.lut is None else source.lut.dtype
        self.dtype = stored if as_labels == "integers" and stored.kind in "iu" else image_dtype(stored, source.uri)
        self._white = 1 if as_labels else 255  # of bool
        plausible, implausible = plausible_sizes(source.uri, source.scale_nm)
        scale, offset = (_by_letter(source.axes, letters, known) for known in (plausible, source.offset_px))
        self.pixel_size_nm, guessed = _pixel_size(source, self.axes, scale, pixel_size_nm)
        if any(offset.values()):
            self.origin_px = tuple(float(offset.get(a, 0.0)) for a in self.axes if a != "c")
        self.warnings = source.warnings + _anisotropy(source.uri, self.axes, self.pixel_size_nm)
        told = {FLAG: axes, "--pixel-size": pixel_size_nm}
        self.assumptions = tuple(
            a for a in (*source.assumptions, *assumed, *implausible, *guessed) if told.get(a.flag) is None
        )
        chosen = {"level": level or None, "series": series, "channel": channel, "timepoint": timepoint, "axes": axes}
        self._selection = " ".join(f"{name}={value}" for name, value in chosen.items() if value is not None)

    def read(self, box: Box) -> Array:
        if self._closed:
            raise InputError(f"{self.uri} cannot be read: it is closed")
        check_region(self, box)
        if not box.size:
            return np.empty(box.shape, self.dtype)
        start, stop = [0] * len(self.source.shape), list(self.source.shape)
        for i, at in self._fixed.items():
            start[i], stop[i] = at, at + 1
        for i, a, b in zip(self._kept, box.start, box.stop, strict=True):
            start[i], stop[i] = a, b
        if self._grey is not None:
            stop[self._grey] = 3
        stored = self.source.read(Box(tuple(start), tuple(stop)))
        order = self._kept if self._grey is None else [*self._kept, self._grey]
        pixels = stored.transpose(*order, *self._fixed).reshape(*(stored.shape[i] for i in order))
        return self._finish(pixels, box)

    def fingerprint(self) -> dict[str, str]:
        return self.source.fingerprint() | {"selection": self._selection}

    @property
    def level_sides(self) -> tuple[int, ...]:
        """The longer side of each level, finest first; empty where the source knows of none."""
        return tuple(max(shape[i] for i in self._kept[-2:]) for shape in self.source.levels)

    def close(self) -> None:
        self._closed = True
        self.source.close()

    def _finish(self, pixels: Array, box: Box) -> Array:
        """Grey values in `dtype` of stored pixels in image axis order, colours last; in blocks, for little memory."""
        lut = self.source.lut
        if lut is None and self._grey is None and pixels.dtype == self.dtype:
            return np.ascontiguousarray(pixels)
        out = np.empty(box.shape, self.dtype)
        rows = max(1, _BLOCK // max(1, math.prod(box.shape[1:])))
        for a in range(0, box.shape[0], rows):
            block = pixels[a : a + rows]
            if lut is not None:
                values = lut.astype(bool) if block.dtype.kind == "b" else lut
                block = values[block.view(np.uint8) if block.dtype.kind == "b" else block]  # bools would be a mask
            if self._grey is not None:
                block = luma(block)
            convert_into(out[a : a + rows], block, f"{self.uri}, region {box}", self._white, self._infinite)
        return out


def image_dtype(stored: np.dtype[Any], uri: str) -> np.dtype[Any]:
    """The dtype of an image whose pixels are `stored`.

    Raises:
        InputError: there is no rule for it.
    """
    if stored in (np.uint8, np.uint16):
        return np.dtype(stored)
    if stored.kind == "b":
        return np.dtype(np.uint8)
    if stored.kind in "iuf":
        return np.dtype(np.float32)
    raise InputError(f"{uri} has pixels of type {stored}: numbers are needed (uint8, uint16 or float32, best)")


def luma(rgb: Array) -> Array:
    """Grey of ``(..., 3)`` red, green, blue, in the same dtype; R exactly where R = G = B."""
    red, green, blue = (rgb[..., i] for i in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    if rgb.dtype in (np.uint8, np.uint16):
        weighted = 299 * red.astype(np.uint32) + 587 * green.astype(np.uint32) + 114 * blue.astype(np.uint32)
        return ((weighted + 500) // 1000).astype(rgb.dtype)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.where((red == green) & (red == blue), red, grey)


def convert_into(out: Array, stored: Array, where: str, white: int = 255, infinite: bool = False) -> None:
    """Fill `out` (uint8, uint16 or float32) with `stored` by the rule for dtypes; what is true becomes `white`.

    Raises:
        InputError: an integer is beyond what float32 holds exactly, or without `infinite` another number beyond all
            that it holds.
    """
    if stored.dtype.kind == "b":
        np.multiply(stored, white, out=out, dtype=np.uint8)
        return
    if stored.dtype.kind in "iu" and stored.dtype.itemsize > 2 and stored.size:
        low, high = int(stored.min()), int(stored.max())
        if max(-low, high) > _EXACT:
            raise InputError(
                f"{where} holds {high if high > _EXACT else low} as {stored.dtype}, "
                f"float32 is exact to {_EXACT}: scale it to uint16 first"
            )
    with np.errstate(over="ignore"):
        out[...] = stored
    if infinite or stored.dtype.kind != "f" or stored.dtype.itemsize <= 4:
        return
    if (beyond := np.isinf(out) & np.isfinite(stored)).any():
        raise InputError(
            f"{where} holds {stored[beyond][0]:.6g} as {stored.dtype}, float32 reaches to 3.4e38: scale it first, or "
            "replace what stands for no value by NaN"
        )


def _name_axes(source: Source, axes: str | None) -> tuple[list[str], tuple[Assumption, ...]]:
    """One letter of ``tczyxs`` per stored axis of more than one entry, and what was guessed of them."""
    uri, shape = source.uri, source.shape
    if not all(shape):
        raise InputError(f"{uri} is empty: its shape is {size_text(shape)}")
    letters, assumed = _stored_axes(source) if axes is None else (_given_axes(source, axes), ())
    wide = [i for i, letter in enumerate(letters) if letter not in _KNOWN and shape[i] > 1]
    if len(wide) == 1 and not any(letter == "z" and n > 1 for letter, n in zip(letters, shape, strict=True)):
        because = f"its {shape[wide[0]]} planes are numbered and nothing says what they are"
        letters = ["_" if letter == "z" else letter for letter in letters]
        letters[wide[0]] = "z"
        what = f"the axes of {uri} ({size_text(shape)})"
        assumed = (Assumption(what=what, taken="".join(letters), because=because, flag=FLAG),)
    elif wide:
        raise InputError(
            f"{uri} has axes {''.join(letters)} {size_text(shape)}: only t, c, z, y, x are understood: "
            f"say what they are with {FLAG}"
        )
    for letter in "yx":
        if letter not in letters:
            raise InputError(
                f"{uri} has axes {''.join(letters)!r} {size_text(shape)}: an image needs y and x, name them with {FLAG}"
            )
    for letter in _KNOWN:
        if letters.count(letter) > 1:
            raise InputError(f"{uri} has axis {letter!r} twice ({''.join(letters)}): name its axes with {FLAG}")
    return letters, assumed


def _stored_axes(source: Source) -> tuple[list[str], tuple[Assumption, ...]]:
    """The source's letters; guessed where they say no more than which axes are y and x, or an x that can be none."""
    shape, letters = source.shape, list(source.axes)
    narrow = len(shape) > 2 and letters[-1:] == ["x"] and shape[-1] <= 2 < min(shape[-3:-1])
    said = {letter for letter, n in zip(letters, shape, strict=True) if n > 1}
    if not narrow and not (said - {*_KNOWN} and said & {*_KNOWN} <= {"y", "x"}):
        return letters, ()
    guessed, assumed = guess_axes(source.uri, shape)
    return list(guessed), assumed


def _given_axes(source: Source, axes: str) -> list[str]:
    """The letters that a user gave: one for each stored axis, or for each that has more than one entry.

    Raises:
        InputError: they are too many, too few, unknown or repeated.
    """
    uri, shape, letters = source.uri, source.shape, list(axes.lower())
    stored = f"{size_text(shape)}, as it is {source.axes}"
    wide = [i for i, n in enumerate(shape) if n > 1]
    if len(letters) not in (len(wide), len(shape)):
        raise InputError(f"axes {axes!r} were given for {uri}, which has {len(shape)} axes: {stored}")
    unknown = sorted({letter for letter in letters if letter not in _KNOWN})
    if unknown:
        raise InputError(
            f"axes {axes!r} were given for {uri}: {', '.join(unknown)} is no axis, they are of t c z y x s ({stored})"
        )
    twice = sorted({letter for letter in letters if letters.count(letter) > 1})
    if twice:
        raise InputError(f"axes {axes!r} were given for {uri}: {', '.join(twice)} is there twice ({stored})")
    if len(letters) < len(shape):  # those of one entry were left out
        given = dict(zip(wide, letters, strict=True))
        return [given.get(i, "_") for i in range(len(shape))]
    return letters


def _by_letter(stored: str, letters: Sequence[str], known: Mapping[str, float]) -> dict[str, float]:
    """What is known by stored axis letter, by the letters that the axes have now; what has no axis stays."""
    moved = {new: known[old] for old, new in zip(stored, letters, strict=True) if old in known}
    return {letter: v for letter, v in known.items() if letter not in stored} | moved


def _choose(
    source: Source, letters: list[str], channel: int | None, timepoint: int | None, rgb: bool
) -> dict[int, int]:
    """The stored axes at which one entry is taken, and which."""
    fixed: dict[int, int] = {}
    uri = source.uri
    channels = 1
    for i, (letter, size) in enumerate(zip(letters, source.shape, strict=True)):
        if letter == "t":
            if timepoint is None and size > 1:
                raise InputError(
                    f"{uri} has {size} time points: choose one with --timepoint (timepoint=...), or name its axes "
                    f"{''.join(letters)!r} otherwise with {FLAG}"
                )
            fixed[i] = _entry(uri, "timepoint", timepoint, size)
        elif letter not in "yx" and size == 1:
            fixed[i] = 0
        elif letter == "c" or (letter == "s" and "c" not in _wide(source, letters)):
            channels = size
            if channel is not None:
                fixed[i] = _entry(uri, "channel", channel, size)
            elif letter == "s" and source.samples == 1:
                fixed[i] = 0
        elif letter == "s" and not rgb:
            if source.samples != 1:
                raise InputError(f"{uri} has channels and {size} samples per pixel: only RGB samples are understood")
            fixed[i] = 0
    if "t" not in letters:
        _entry(uri, "timepoint", timepoint, 1)
    if channels == 1:
        _entry(uri, "channel", channel, 1)
    return fixed


def _wide(source: Source, letters: list[str]) -> str:
    """The axes of more than one entry."""
    return "".join(letter for letter, n in zip(letters, source.shape, strict=True) if n > 1)


def _entry(uri: str, what: str, asked: int | None, size: int) -> int:
    """`asked` as an index of `size` entries."""
    if asked is not None and not 0 <= asked < size:
        have = f"0 to {size - 1}" if size > 1 else "0 only"
        raise InputError(f"{what} {asked} was asked for, {uri} has {have}")
    return asked or 0


def _pixel_size(
    source: Source, axes: str, scale: Mapping[str, float], given: float | Sequence[float] | None
) -> tuple[tuple[float, ...] | None, tuple[Assumption, ...]]:
    """Nanometres per pixel of the spatial axes, or None; and what had to be assumed."""
    spatial = axes.replace("c", "")
    if given is not None:
        return given_pixel_size(given, spatial, source.uri), ()
    if "y" not in scale or "x" not in scale:
        return None, ()
    if "z" in spatial and "z" not in scale:
        return (scale["y"], scale["y"], scale["x"]), (assumed_thickness(source.uri, scale["y"]),)
    return tuple(scale[letter] for letter in spatial), ()


def plausible_sizes(uri: str, scale_nm: Mapping[str, float]) -> tuple[dict[str, float], tuple[Assumption, ...]]:
    """The pixel sizes that a microscope may have, and that others are not believed."""
    kept = {a: size for a, size in scale_nm.items() if _LEAST_NM <= size <= _MOST_NM}
    left = ", ".join(f"{a} {size:g} nm" for a, size in scale_nm.items() if a not in kept)
    if not left:
        return kept, ()
    taken = f"unknown{' along ' + ', '.join(sorted({*scale_nm} - {*kept})) if {'y', 'x'} <= {*kept} else ''}"
    because = f"it states {left}, and no microscope has less than {_LEAST_NM:g} nm or more than 1 mm"
    return kept, (Assumption(what=f"the pixel size of {uri}", taken=taken, because=because, flag="--pixel-size"),)


def _anisotropy(uri: str, axes: str, pixel_size_nm: tuple[float, ...] | None) -> tuple[str, ...]:
    """That pixels are not square."""
    sizes = dict(zip(axes.replace("c", ""), pixel_size_nm or (), strict=bool(pixel_size_nm)))
    if not sizes or abs(sizes["y"] / sizes["x"] - 1) <= _SQUARE:
        return ()
    return (f"the pixels of {uri} are not square: {sizes['y']:g} nm high, {sizes['x']:g} nm wide",)


def assumed_thickness(uri: str, size_nm: float) -> Assumption:
    """That slices are as thick as pixels are wide."""
    return Assumption(
        what=f"how thick the slices of {uri} are",
        taken=f"as its pixels, {size_nm:g} nm",
        because="it does not say",
        flag="--pixel-size",
    )


def given_pixel_size(given: float | Sequence[float], axes: str, uri: str) -> tuple[float, ...]:
    """A pixel size that the user gave, nanometres on each of the spatial `axes`.

    Raises:
        InputError: it is not positive, or neither one value nor one per axis.
    """
    sizes = (float(given),) if isinstance(given, int | float) else tuple(float(v) for v in given)
    if len(sizes) == 1:
        sizes *= len(axes)
    if len(sizes) != len(axes):
        raise InputError(f"{len(sizes)} pixel sizes were given for {uri}, which has {len(axes)} spatial axes, {axes}")
    if not all(math.isfinite(v) and v > 0 for v in sizes):
        raise InputError(f"a pixel size of {size_text(sizes)} nm was given for {uri}: it must be positive")
    return sizes


def check_region(image: Image, box: Box) -> None:
    """Refuse a region that does not lie inside `image`.

    Raises:
        InputError: it has another number of axes, or reaches beyond.
    """
    inside = len(box.start) == len(image.shape) and all(
        a >= 0 and b <= n for a, b, n in zip(box.start, box.stop, image.shape, strict=True)
    )
    if not inside:
        raise InputError(f"region {box} was asked for, {image.uri} has {image.axes} {size_text(image.shape)}")
