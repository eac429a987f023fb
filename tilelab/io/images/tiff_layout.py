"""From a TIFF file to the plain facts that reading its pixels needs.

tifffile finds the pages and knows how to decode; everything about them is taken from it at once and the file is closed
again.  This is also the one place that knows tifffile's API (2025.5 to 2026.11).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tilelab.arrays import Array, Int64
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.io.images.axes import FLAG
from tilelab.io.images.ome_set import member_files, open_set
from tilelab.io.images.source import check_level, whole_piece_warning
from tilelab.io.images.tiff_log import collect_notes, plain
from tilelab.io.images.tiff_series import choose_image, significant
from tilelab.io.images.tiff_size import stated_pixels
from tilelab.io.images.view import luma
from tilelab.io.storage.decode import LARGE_BYTES
from tilelab.io.storage.local_file import LocalFile
from tilelab.io.storage.place import Address, Place, as_place
from tilelab.io.storage.stored_file import StoredFile
from tilelab.io.zarr.presence import Presence, check_presence

_JPEG = (6, 7, 34892, 33007)
_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # of bytes, whatever they mean: none, LZW, deflate, LZMA, zstd
_RGB, _YCBCR, _PALETTE, _MIN_IS_WHITE, _MIN_IS_BLACK = 2, 6, 3, 0, 1
_NO_RGB = {5: "CMYK", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB"}
_BITS_TAG, _PHOTOMETRIC_TAG = 258, 262
_FAX = (2, 3, 4, 32771)  # compressions of one bit
_LETTER_AXIS = {"z": 1, "y": 2, "x": 3}


@dataclass(frozen=True)
class Page:
    """Where the pixels of one page are.

    Attributes:
        number: of the page in its file, from 1.
        file: the file that holds them.
        offsets: int64, first byte of every strip or tile.
        counts: int64, their bytes; 0 for an absent one.
        bare: the pixels lie there as one C-ordered array, beginning at ``offsets[0]``.
        decode: tifffile's decoder of strips and tiles.
        tables: what the page's JPEG pieces share.
    """

    number: int
    file: StoredFile
    offsets: Int64
    counts: Int64
    bare: bool
    decode: Callable[..., Any]
    tables: dict[str, bytes | None]


@dataclass
class TiffLayout:
    """One image of a TIFF file at one resolution level.

    A page has five axes, as tifffile normalises them: (planar sample, depth, row, column, interleaved sample).

    Attributes:
        place: where the file is.
        path: its name, for messages.
        format, axes, shape, dtype, chunks, levels, scale_nm, rgb, samples, lut, series, bar, bar_said,
        warnings, assumptions, details: as in `Source`.
        description: OME-XML of the file or of its set; empty without.
        palette: `lut` is the grey of a colour table.
        swap: the file's byte order is not the machine's.
        page_shape: extent of a page.
        tile: depth, rows and columns of a tile or strip.
        grid: tiles or strips per page (planar sample, depth, row, column).
        lead: extent of the image's axes that count pages.
        inner: the axis of a page behind each other axis of the image.
        pages: in order of `lead`; only the first where `stack_offset` is known.
        stack_offset: first byte of all pages, when they lie bare one after the other.
        files: every file that holds pixels, by path.
    """

    place: Place
    path: str
    format: str = ""
    axes: str = ""
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    chunks: tuple[int, ...] = ()
    levels: tuple[tuple[int, ...], ...] = ()
    scale_nm: dict[str, float] = field(default_factory=dict)
    rgb: bool = False
    samples: int | None = None
    lut: Array | None = None
    palette: bool = False
    series: tuple[str, ...] = ()
    bar: int = 0
    bar_said: str = ""
    description: str = ""
    warnings: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    swap: bool = False
    page_shape: tuple[int, ...] = ()
    tile: tuple[int, int, int] = (1, 1, 1)
    grid: tuple[int, ...] = ()
    lead: tuple[int, ...] = ()
    inner: tuple[int, ...] = ()
    pages: tuple[Page, ...] = ()
    stack_offset: int | None = None
    files: dict[str, StoredFile] = field(default_factory=dict)

    @property
    def page_bytes(self) -> int:
        """Bytes of a decoded page."""
        return math.prod(self.page_shape) * self.dtype.itemsize

    @property
    def piece_bytes(self) -> int:
        """Bytes of a decoded tile or strip."""
        return math.prod(self.tile) * self.page_shape[4] * self.dtype.itemsize

    def say_once(self, warning: str) -> None:
        """Add a warning that may concern many pages."""
        if warning not in self.warnings:
            self.warnings += (warning,)

    def name_piece(self, index: int) -> str:
        """Where a tile or strip lies in its page, for messages."""
        _, _, i, j = (int(v) for v in np.unravel_index(index, self.grid))
        (_, height, width), (_, _, rows, columns, _) = self.tile, self.page_shape
        y, x = i * height, j * width
        return f"the piece at rows {y}:{min(y + height, rows)}, columns {x}:{min(x + width, columns)}"


def read_layout(address: Address, level: int, series: str | None = None) -> TiffLayout:
    """The layout of an image in a TIFF file: of the one that `series` names, else of the first that is no preview.

    Raises:
        InputError: the file is missing, damaged, truncated, has no such level, or pixels of a kind without a rule.
    """
    path = str(address)
    layout = TiffLayout(as_place(address), path)
    with collect_notes() as notes:
        try:
            with _open_tiff(layout) as tiff:
                _fill(layout, tiff, level, series)
            if notes.damage:
                raise InputError(f"{path} is a damaged TIFF file: {notes.damage[0]}")
        except OSError as error:
            _close(layout)
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        except InputError:
            _close(layout)
            raise
        except Exception as error:  # tifffile raises what its parsers raise
            _close(layout)
            reason = notes.damage[0] if notes.damage else plain(str(error)) or type(error).__name__
            raise InputError(f"{path} is a damaged TIFF file: {reason}") from error
    if notes.oddities:
        layout.warnings += (f"{path} describes itself wrongly ({notes.oddities[0]}): check axes and shape",)
    return layout


def _open_tiff(layout: TiffLayout) -> tifffile.TiffFile:
    """The file in tifffile's hands; a remote one is in `layout` already, and has no companions."""
    if not layout.place.waits:
        tiff, layout.description = open_set(Path(layout.path))
        return tiff
    file = layout.files[layout.path] = layout.place.open_file()
    if file.size == 0:
        raise InputError(f"{layout.path} is empty (0 bytes)")
    return tifffile.TiffFile(file.stream(), name=layout.path, _multifile=False)


def _close(layout: TiffLayout) -> None:
    for file in layout.files.values():
        file.close()


def _fill(layout: TiffLayout, tiff: tifffile.TiffFile, level: int, series_name: str | None) -> None:
    """Take everything from tifffile."""
    images = list(tiff.series)
    if not images:
        raise ValueError("it holds no image")
    chosen, layout.series, guess = choose_image(layout.path, images, series_name)
    layout.assumptions += guess
    check_level(layout.path, level, len(images[chosen].levels))
    extents = [significant(s.axes, s.shape) for s in images[chosen].levels]
    series = images[chosen].levels[level]
    page = series.keyframe
    if page.dtype is None or 0 in page.shaped:
        bits = f"{page.bitspersample}-bit samples of format {int(page.sampleformat)}"
        raise InputError(f"{layout.path} has no pixels that can be read: {bits}, shape {page.shape}")
    _check_bits(layout, page)
    kind = "BigTIFF" if tiff.is_bigtiff else "TIFF"
    layout.format = {"ome": f"OME-{kind}", "imagej": f"ImageJ {kind}"}.get(series.kind, kind)
    layout.levels = tuple(shape for _, shape in extents)
    layout.axes, layout.shape = extents[level]
    layout.dtype = np.dtype(page.dtype).newbyteorder("=")
    layout.swap = tiff.byteorder != ("<" if sys.byteorder == "little" else ">")
    compression = tifffile.COMPRESSION(page.compression).name.lower()
    layout.details = {
        "compression": None if page.compression == 1 else compression,
        "layout": "tiles" if page.is_tiled else "strips",
        "images": len(images),
    }
    if series.kind == "imagej" and layout.axes in ("cyx", "cyxs"):
        layout.assumptions += (
            Assumption(
                what=f"the axes of {layout.path}",
                taken=layout.axes,
                because="ImageJ's description says channels, which Python writes for slices too",
                flag=FLAG,
            ),
        )
    _set_geometry(layout, page)
    _set_colours(layout, page)
    _set_pages(layout, series)
    first = images[chosen].levels[0].keyframe
    stated = stated_pixels(tiff, first, layout.path, beside=not layout.place.waits, number=chosen)
    layout.scale_nm = dict(stated.scale_nm)
    layout.assumptions += stated.of_image(layout.path, int(first.imagewidth))
    layout.bar, layout.bar_said = stated.bar_rows(int(first.imagewidth), int(first.imagelength)), stated.bar_said
    if level:
        ratio = {a: _ratio(n, m) for a, n, m in zip(layout.axes, layout.levels[0], layout.shape, strict=True)}
        layout.scale_nm = {a: size * ratio.get(a, 1.0) for a, size in layout.scale_nm.items()}
        layout.bar = math.ceil(layout.bar / ratio.get("y", 1.0))


def _ratio(fine: int, coarse: int) -> float:
    """Fine pixels per coarse one: a whole number where that gives this extent, its last pixel cut off or filled up."""
    whole = max(1, round(fine / coarse))
    return whole if coarse in (fine // whole, -(-fine // whole)) else fine / coarse


def _set_geometry(layout: TiffLayout, page: tifffile.TiffPage) -> None:
    """Shapes of page, tile or strip, and which axes lie within a page."""
    layout.page_shape = tuple(int(n) for n in page.shaped)
    if page.is_tiled:
        layout.tile = (int(page.tiledepth), int(page.tilelength), int(page.tilewidth))
    else:
        layout.tile = (1, int(page.rowsperstrip), int(page.imagewidth))
    if min(layout.tile) < 1:
        raise InputError(f"{layout.path} is a damaged TIFF file: its tiles or strips measure {layout.tile}")
    planar, *extent, _ = layout.page_shape
    layout.grid = (planar, *(-(-n // t) for n, t in zip(extent, layout.tile, strict=True)))
    inner_axes, inner_shape = significant(page.axes, page.shape)
    count = len(inner_shape)
    if layout.shape[-count:] != inner_shape:
        raise InputError(f"{layout.path} stores planes of {inner_shape} for an image of {layout.shape}: not understood")
    layout.lead = layout.shape[:-count]
    sample = 4 if page.planarconfig == 1 else 0
    layout.inner = tuple(_LETTER_AXIS.get(letter, sample) for letter in inner_axes)


def _set_colours(layout: TiffLayout, page: tifffile.TiffPage) -> None:
    """What the samples of a pixel mean."""
    photometric = _photometric(layout, page)
    if photometric in _NO_RGB:
        raise InputError(f"{layout.path} has {_NO_RGB[photometric]} colours: convert it to RGB or grey first")
    # only codecs of pictures make red, green, blue of it
    undone = photometric == _YCBCR and page.compression in _LOSSLESS
    layout.rgb = photometric in (_RGB, _YCBCR) and page.samplesperpixel >= 3 and not undone
    if undone:
        layout.samples = 1
        layout.warnings += (f"{layout.path} has brightness and differences of colour (YCbCr): its brightness is read",)
    elif not layout.rgb and page.extrasamples:
        alpha = sum(int(extra) in (1, 2) for extra in page.extrasamples)
        layout.samples = int(page.samplesperpixel) - alpha
    values = 2 ** (8 * layout.dtype.itemsize) if layout.dtype.kind == "u" and layout.dtype.itemsize <= 2 else 0
    if photometric == _PALETTE and page.colormap is not None and values:
        colours = np.asarray(page.colormap)
        colours = (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)
        layout.lut = np.zeros(values, np.uint8)
        layout.lut[: colours.shape[1]] = luma(colours.T)
        layout.palette = True
    elif photometric == _MIN_IS_WHITE and layout.dtype.kind == "b":
        layout.lut = np.array([255, 0], np.uint8)
    elif photometric == _MIN_IS_WHITE and values:
        white = 2**page.bitspersample - 1 if isinstance(page.bitspersample, int) else values - 1
        layout.lut = np.maximum(white - np.arange(values), 0).astype(layout.dtype)
    elif photometric == _MIN_IS_WHITE:
        layout.warnings += (f"{layout.path} says that its smallest value is white: its values are read as they are",)


def _photometric(layout: TiffLayout, page: tifffile.TiffPage) -> int:
    """What samples mean; guessed where the file lacks the tag."""
    if page.tags.get(_PHOTOMETRIC_TAG) is not None:
        return int(page.photometric)
    colours = int(page.samplesperpixel) >= 3
    what, taken = f"what the samples of {layout.path} mean", "red, green, blue" if colours else "0 is black"
    because = "it lacks the tag that says so (PhotometricInterpretation)"
    layout.assumptions += (Assumption(what=what, taken=taken, because=because),)
    return _RGB if colours else _MIN_IS_BLACK


def _check_bits(layout: TiffLayout, page: tifffile.TiffPage) -> None:
    """Refuse a page without the tag for bits per sample, unless its bytes are those of one bit.

    Raises:
        InputError: how many bits its pixels have cannot be known.
    """
    if page.tags.get(_BITS_TAG) is not None or page.compression in _FAX:
        return
    one_bit = math.prod(page.shaped[:-2]) * -(-page.shaped[-2] * page.shaped[-1] // 8)
    if page.compression != 1 or sum(page.databytecounts) != one_bit:
        raise InputError(f"{layout.path} is a damaged TIFF file: it does not say how many bits its pixels have")


def _set_pages(layout: TiffLayout, series: tifffile.TiffPageSeries) -> None:
    """Where the pixels of every page are; refuses what ends beyond its file."""
    if getattr(series, "transform", None) is not None:
        raise InputError(f"{layout.path} is of a kind of TIFF that is not supported: save it as a plain TIFF")
    layout.stack_offset = series.dataoffset
    count = math.prod(layout.lead)
    pages = []
    # A stack in one piece may have a single page entry; the first says everything about it.
    for i in range(count if layout.stack_offset is None else 1):
        page = series[i]
        if page is None:
            raise InputError(
                f"{layout.path} is incomplete: plane {i} of {count} is neither in it nor beside it" + _missing(layout)
            )
        pages.append(_locate(layout, page))
    layout.pages = tuple(pages)
    _count_pieces(layout)
    if layout.stack_offset is not None:
        end, size = layout.stack_offset + count * layout.page_bytes, pages[0].file.size
        if end > size:
            raise InputError(f"{layout.path} is truncated: its pixels end at byte {end}, the file has {size}")
    if layout.stack_offset is not None or all(page.bare for page in pages):
        layout.chunks = (1,) * len(layout.shape)
        return
    piece = (1, *layout.tile, layout.page_shape[4])
    layout.chunks = (1,) * len(layout.lead) + tuple(min(piece[i], layout.page_shape[i]) for i in layout.inner)
    if layout.piece_bytes > LARGE_BYTES:
        layout.warnings += (whole_piece_warning(layout.path, layout.piece_bytes),)


def _count_pieces(layout: TiffLayout) -> None:
    """Say how many strips and tiles are absent, which TIFF allows; refuses an image without any."""
    stored = [page for page in layout.pages if not page.bare]
    expected = sum(len(page.counts) for page in stored)
    found = sum(int((page.counts > 0).sum()) for page in stored)
    if layout.stack_offset is None and found < expected:
        layout.warnings += check_presence(layout.path, Presence(expected, found, complete=True), "strips or tiles", "0")


def _missing(layout: TiffLayout) -> str:
    """Names of the files that are missing of a set."""
    if layout.place.waits or not layout.description:
        return ""
    folder = Path(layout.path).parent
    names = [name for name in member_files(layout.description, Path(layout.path)) if not (folder / name).is_file()]
    return f": {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}" if names else ""


def _locate(layout: TiffLayout, page: tifffile.TiffPage | tifffile.TiffFrame) -> Page:
    """Where the pixels of `page` are."""
    path = layout.path if layout.place.waits else str(page.parent.filehandle.path)
    if path not in layout.files:
        layout.files[path] = LocalFile(path)
    file = layout.files[path]
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    counts = np.where(offsets[: len(counts)] > 0, counts[: len(offsets)], 0) if len(offsets) == len(counts) else counts
    number, needed, found = int(page.index) + 1, math.prod(layout.grid), min(len(offsets), len(counts))
    ends = offsets[:found] + counts[:found]
    bare = bool(page.keyframe.is_final) and found > 0 and bool((offsets[1:found] == ends[:-1]).all())
    bare = bare and bool((offsets[:found] > 0).all())
    if bare:
        end, what = int(offsets[0]) + layout.page_bytes, "it"
    elif found < needed:
        raise InputError(
            f"{layout.path} is a damaged TIFF file: page {number} lists {found} of its {needed} strips or tiles"
        )
    else:
        worst = int(np.where(counts[:needed] > 0, ends[:needed], 0).argmax())
        end, what = int(ends[worst]), layout.name_piece(worst)
    if end > file.size:
        raise InputError(
            f"{file.path} is truncated: page {number}, {what} ends at byte {end}, the file has {file.size}"
        )
    if page.compression == 1 and not layout.format.startswith("ImageJ"):  # whose large stacks state less
        _check_counts(layout, page, counts[:needed])
    tables: dict[str, bytes | None] = {}
    if page.compression in _JPEG:
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.keyframe.jpegheader}
    return Page(number, file, offsets, counts, bare, page.decode, tables)


def _check_counts(layout: TiffLayout, page: tifffile.TiffPage | tifffile.TiffFrame, counts: Int64) -> None:
    """Say where the bytes of bare pixels are not those that their shape takes: one of the two is wrong."""
    bits = page.keyframe.bitspersample
    if bits != 8 * layout.dtype.itemsize:
        return
    stated, there = int(counts.sum()), int((counts > 0).sum())
    taken = (
        there * layout.piece_bytes if page.keyframe.is_tiled else layout.page_bytes if there == len(counts) else stated
    )
    row = layout.page_bytes // max(1, math.prod(layout.page_shape[:3]))
    if not -1 < stated - taken < row:
        layout.say_once(
            f"{layout.path} contradicts itself: it stores {stated} bytes a page, its pixels take {taken}, "
            "so one of them is wrong: look at the picture"
        )
