"""What microscopes write of their images, in files beside them: JEOL, TESCAN, Hitachi, BigDataViewer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from tilelab.assumptions import Assumption
from tilelab.io.images.units import length_nm

FLAG = "--pixel-size"
_HIGHEST_BAR = 0.3  # of the height
_MOST_FILES = 64
_MOST_BYTES = 16 * 2**20
_JEOL = re.compile(r"^\$+(CM_FULL_SIZE|SM_MICRON_BAR|SM_MICRON_MARKER|SM_DATA_BAR)\s+(.+?)\s*$", re.MULTILINE)
_TESCAN = re.compile(r"^\s*(PixelSizeX|PixelSizeY|ImageStripSize)\s*=\s*([-+.\deE]+)", re.MULTILINE)
_HITACHI = re.compile(r"^\s*(DataSize|PixelSize)\s*=\s*(\S+)\s*$", re.MULTILINE)
_LENGTH = re.compile(r"([-+.\deE]+)\s*([^\d\s.].*)")


@dataclass(frozen=True)
class Stated:
    """What is said of an image.

    Attributes:
        scale_nm: nanometres per pixel by axis letter.
        width: pixels in a line of the image that this was said of; None where that is not said.
        bar: rows at the bottom that are an info bar.
        bar_said: where that stands, for people.
        height: rows of the image proper, without an info bar; None where that is not said.
        assumptions: what had to be guessed.
    """

    scale_nm: Mapping[str, float] = field(default_factory=dict)
    width: int | None = None
    bar: int = 0
    bar_said: str = "its metadata say so"
    height: int | None = None
    assumptions: tuple[Assumption, ...] = ()

    def bar_rows(self, width: int, height: int) -> int:
        """Rows of an image of that size that are its info bar; 0 where it has none, or was cut or resized."""
        if self.width not in (None, width):
            return 0
        rows = height - self.height if self.height is not None else self.bar
        return rows if 0 < rows <= _HIGHEST_BAR * height and (not self.bar or rows == self.bar) else 0

    def of_image(self, uri: str, width: int) -> tuple[Assumption, ...]:
        """Assumptions about the image `uri` of that width."""
        guesses = self.assumptions
        if self.width not in (None, width) and "x" in self.scale_nm:
            guesses += (
                Assumption(
                    what=f"the pixel size of {uri}",
                    taken=f"{self.scale_nm['x']:g} nm",
                    because=f"that is stated, but of an image {self.width} pixels wide, and this one has {width}",
                    flag=FLAG,
                ),
            )
        return guesses


def known_lengths(sizes: Mapping[str, float | None]) -> dict[str, float]:
    """Those that are known."""
    return {letter: size for letter, size in sizes.items() if size is not None}


def without_unit(uri: str, values: object) -> Assumption:
    """That pixel sizes in an unknown unit are none."""
    return Assumption(
        what=f"the pixel size of {uri}", taken="unknown", because=f"it gives {values} without a unit", flag=FLAG
    )


def parse_tescan(text: str) -> Stated:
    """TESCAN's ``[MAIN]`` section, in metres."""
    found = {name: float(value) for name, value in _TESCAN.findall(text)}
    sizes = {a: length_nm(found.get(f"PixelSize{a.upper()}"), "m") for a in "yx"}
    return Stated(
        known_lengths(sizes), bar=int(found.get("ImageStripSize", 0)), bar_said="TESCAN's ImageStripSize says so"
    )


def parse_jeol(text: str) -> Stated:
    """JEOL's text: so many pixels are a bar of that length."""
    found = dict(_JEOL.findall(text))
    marker = _LENGTH.fullmatch(found["SM_MICRON_MARKER"])
    bar = float(found["SM_MICRON_BAR"])
    size = length_nm(float(marker[1]) / bar, marker[2]) if marker and bar > 0 else None
    extent = [int(n) for n in found.get("CM_FULL_SIZE", "").split()[:2]]
    width, height = extent if len(extent) == 2 else (None, None)
    rows = int(float(found.get("SM_DATA_BAR", "0").split()[0]))
    said = "JEOL's text says so"
    return Stated(known_lengths({"y": size, "x": size}), width=width, bar=rows, bar_said=said, height=height)


def parse_hitachi(text: str) -> Stated:
    """Hitachi's ``[SemImageFile]`` section: nanometres per pixel of an image of so many pixels."""
    found = dict(_HITACHI.findall(text))
    size = length_nm(found.get("PixelSize"), "nm")
    width, height = (int(n) for n in found["DataSize"].lower().split("x"))
    said = "Hitachi's text says so"
    return Stated(known_lengths({"y": size, "x": size}), width=width, bar_said=said, height=height)


_TEXTS = {"SM_MICRON_BAR": parse_jeol, "PixelSizeX": parse_tescan, "[SemImageFile]": parse_hitachi}


def stated_beside(image: Path) -> Stated:
    """What a text beside the file of an image says of it; empty where there is none."""
    names = (".txt", ".TXT", ".hdr", ".HDR", f"-{image.suffix[1:]}.hdr")
    for path in (image.with_name(image.stem + end) for end in names):
        text = _read(path)
        parse = next((parse for sign, parse in _TEXTS.items() if sign in text), None)
        if parse is not None:
            try:
                return parse(text)
            except (KeyError, ValueError, IndexError):
                continue
    return Stated()


def bigdataviewer_sizes(container: Path, setup: int) -> dict[str, float]:
    """Nanometres per pixel that the XML of BigDataViewer beside `container` states for one of its setups."""
    for document in spim_data(container.absolute().parent):
        loader = document.find("SequenceDescription/ImageLoader")
        named = [part.text or "" for part in loader] if loader is not None else []
        if not any((container.absolute().parent / name.strip()).absolute() == container.absolute() for name in named):
            continue
        for view in document.iterfind("SequenceDescription/ViewSetups/ViewSetup"):
            if (view.findtext("id") or "").strip() == str(setup):
                unit = view.findtext("voxelSize/unit")
                values = (view.findtext("voxelSize/size") or "").split()
                return known_lengths({a: length_nm(v, unit) for a, v in zip("xyz", values, strict=False)})
    return {}


def described_by_bigdataviewer(path: Path) -> str | None:
    """The file or folder that an XML of BigDataViewer describes; None for another file."""
    loader = next((d.find("SequenceDescription/ImageLoader") for d in spim_data(path.parent, path)), None)
    names = [part.text.strip() for part in loader if part.text] if loader is not None else []
    return str(path.parent / names[0]) if names else None


def spim_data(folder: Path, only: Path | None = None) -> Iterator[ET.Element]:
    """The BigDataViewer documents in a folder, or the one that is named."""
    try:
        paths = [only] if only is not None else sorted(folder.glob("*.xml"))[:_MOST_FILES]
    except OSError:
        return
    for path in paths:
        text = _read(path)
        if "<SpimData" in text and "<!DOCTYPE" not in text:
            try:
                yield ET.fromstring(text)  # noqa: S314 - without entities it is harmless
            except ET.ParseError:
                continue


def _read(path: Path) -> str:
    """A small text; empty where there is none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return ""
        return path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return ""
