"""TIFF, BigTIFF, OME-TIFF and what else tifffile understands; read by strips and tiles, in bounded memory.

    pages of bare pixels                    the wanted rows, straight into place; `chunks` is 1 everywhere
    tiles and strips, compressed or not     those that the region touches, decoded in threads; `chunks` is a tile

A tile of zero bytes is absent, which TIFF allows, and reads as zero; one that ends beyond the file is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from tilelab.arrays import Array
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.source import Source
from tilelab.io.images.tiff_layout import Page, read_layout
from tilelab.io.images.tiff_log import plain
from tilelab.io.storage.decode import DecodedPieces, for_each
from tilelab.io.storage.files import hash_file, read_region
from tilelab.io.storage.outside import beyond
from tilelab.io.storage.place import Address

_END_OF_JPEG = b"\xff\xd9"
_TOGETHER = 16  # strips or tiles of a remote file that are asked for at once


@dataclass(frozen=True, slots=True)
class _Piece:
    """One strip or tile, the part of it that is wanted, and where that goes."""

    page: int
    index: int
    wanted: tuple[slice, ...]
    target: Array


class TiffSource(Source):
    """One image of a TIFF file, or of a set of OME-TIFF files, at one resolution level.

    Raises:
        InputError: the file is missing, damaged, truncated, has no such level, or pixels of a kind without a rule.
    """

    chooses = True

    def __init__(self, address: Address, level: int = 0, series: str | None = None) -> None:
        layout = read_layout(address, level, series)
        self.uri = layout.path
        self.format, self.axes, self.shape, self.dtype = layout.format, layout.axes, layout.shape, layout.dtype
        self.chunks, self.levels, self.scale_nm = layout.chunks, layout.levels, layout.scale_nm
        self.rgb, self.samples, self.lut = layout.rgb, layout.samples, layout.lut
        self.series, self.bar, self.bar_said = layout.series, layout.bar, layout.bar_said
        self.warnings, self.assumptions, self.details = layout.warnings, layout.assumptions, layout.details
        if layout.palette:
            self.warnings += (f"{self.uri} has a colour palette: its colours are read as grey",)
        if not layout.place.waits:
            self.outside = beyond(Path(layout.path).parent, layout.files)
        self._layout = layout
        self._kept = DecodedPieces()

    def read(self, box: Box) -> Array:
        layout, lead = self._layout, len(self._layout.lead)
        out = np.empty(box.shape, self.dtype)
        extent = self._page_extent(box)
        pieces: list[_Piece] = []
        for at in product(*(range(a, b) for a, b in zip(box.start[:lead], box.stop[:lead], strict=True))):
            number = int(np.ravel_multi_index(at, layout.lead)) if at else 0
            target = out[tuple(i - a for i, a in zip(at, box.start, strict=False))].reshape(extent.shape)
            page = layout.pages[0 if layout.stack_offset is not None else number]
            if layout.stack_offset is not None:
                self._read_bare(page, layout.stack_offset + number * layout.page_bytes, extent, target)
            elif page.bare:
                self._read_bare(page, int(page.offsets[0]), extent, target)
            else:
                pieces.extend(self._touched(number, extent, target))
        if layout.place.waits:
            groups = [pieces[i : i + _TOGETHER] for i in range(0, len(pieces), _TOGETHER)]
            for_each(self._place_together, groups, requests=True)
        else:
            for_each(self._place, pieces, threads=self.details["compression"] is not None)
        return out

    def show_indices(self) -> None:
        if self.lut is not None and not self._layout.palette:
            self.assumptions += (
                Assumption(
                    what=f"which classes the values of {self.uri} are",
                    taken="those that are stored",
                    because="that its smallest is to be shown white says nothing of classes",
                    flag="--truth-map",
                ),
            )
        self.lut, self.warnings = None, self._layout.warnings

    def fingerprint(self) -> dict[str, str]:
        files = [file for _, file in sorted(self._layout.files.items())]
        if len(files) == 1:
            return hash_file(files[0])
        hashes = map(hash_file, files)
        return {f"{i}.{name}": value for i, ends in enumerate(hashes) for name, value in ends.items()}

    def stored_bytes(self) -> int:
        layout = self._layout
        if layout.stack_offset is not None:
            return math.prod(layout.lead) * layout.page_bytes
        return sum(layout.page_bytes if page.bare else int(page.counts.sum()) for page in layout.pages)

    def close(self) -> None:
        self._kept.clear()
        for file in self._layout.files.values():
            file.close()

    def _page_extent(self, box: Box) -> Box:
        """The region of a page, on its five axes, that `box` means."""
        lead = len(self._layout.lead)
        start, stop = [0] * 5, list(self._layout.page_shape)
        for i, a, b in zip(self._layout.inner, box.start[lead:], box.stop[lead:], strict=True):
            start[i], stop[i] = a, b
        return Box(tuple(start), tuple(stop))

    def _read_bare(self, page: Page, offset: int, extent: Box, target: Array) -> None:
        """Read pixels that lie in the file as they are."""
        read_region(page.file, offset, self._layout.page_shape, extent, target)
        if self._layout.swap:
            target.byteswap(inplace=True)

    def _touched(self, number: int, extent: Box, target: Array) -> Iterator[_Piece]:
        """The strips or tiles of page `number` that have a pixel in `extent`."""
        layout = self._layout
        tile = (1, *layout.tile)
        ranges = (range(a // t, -(-b // t)) for a, b, t in zip(extent.start, extent.stop, tile, strict=False))
        samples = slice(extent.start[4], extent.stop[4])
        for at in product(*ranges):
            wanted, into = [], []
            for i, t, a, b in zip(at, tile, extent.start, extent.stop, strict=False):
                first, last = max(a, i * t), min(b, (i + 1) * t)
                wanted.append(slice(first - i * t, last - i * t))
                into.append(slice(first - a, last - a))
            index = int(np.ravel_multi_index(at, layout.grid))
            yield _Piece(number, index, (*wanted[1:], samples), target[into[0].start][tuple(into[1:])])

    def _place_together(self, pieces: list[_Piece]) -> None:
        """Decode neighbouring strips or tiles of a remote file, read with as few requests as possible."""
        file = self._layout.pages[pieces[0].page].file
        ranges = []
        for piece in pieces:
            page = self._layout.pages[piece.page]
            if page.counts[piece.index] and self._kept.find((piece.page, piece.index)) is None:
                ranges.append((int(page.offsets[piece.index]), int(page.counts[piece.index])))
        file.fetch(ranges)
        try:
            for piece in pieces:
                self._place(piece)
        finally:
            file.forget(ranges)

    def _place(self, piece: _Piece) -> None:
        """Decode a strip or tile and copy the wanted part of it into place."""
        layout = self._layout
        page = layout.pages[piece.page]
        if page.counts[piece.index] == 0:
            piece.target[...] = 0
            return
        at = [int(i) for i in np.unravel_index(piece.index, layout.grid)[1:]]
        inside = [min(t, n - i * t) for t, n, i in zip(layout.tile, layout.page_shape[1:4], at, strict=True)]
        whole = piece.target.size == math.prod(inside) * layout.page_shape[4]
        decoded = self._kept.get(
            (piece.page, piece.index), layout.piece_bytes, lambda: self._decode(page, piece.index), keep=not whole
        )
        try:
            piece.target[...] = decoded[piece.wanted]
        except ValueError as error:
            where = f"page {page.number}, {layout.name_piece(piece.index)}"
            raise InputError(f"{page.file.path} is corrupt: {where} decodes to {decoded.shape}") from error

    def _decode(self, page: Page, index: int) -> Array:
        """The decoded strip or tile, (depth, rows, columns, samples)."""
        data = page.file.read(int(page.offsets[index]), int(page.counts[index]))
        try:
            if page.tables and page.tables["jpegheader"] is None and _END_OF_JPEG not in data[-64:]:
                raise ValueError("its JPEG data end too early")  # libjpeg would fill the rest with grey, silently
            decoded: Array = page.decode(data, index, **page.tables)[0]
        except Exception as error:  # every codec has its own
            where = f"page {page.number}, {self._layout.name_piece(index)}"
            raise InputError(f"{page.file.path} is corrupt: {where} cannot be decoded: {plain(str(error))}") from error
        return decoded
