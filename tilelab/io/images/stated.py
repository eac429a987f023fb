"""What microscopes write of their images, in files beside them: JEOL, TESCAN, BigDataViewer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from tilelab.assumptions import Assumption
from tilelab.io.images.units import length_nm

FLAG = "--pixel-size"
_MOST_FILES = 64
_MOST_BYTES = 16 * 2**20
_JEOL = re.compile(r"^\$+(CM_FULL_SIZE|SM_MICRON_BAR|SM_MICRON_MARKER|SM_DATA_BAR)\s+(.+?)\s*$", re.MULTILINE)
_TESCAN = re.compile(r"^\s*(PixelSizeX|PixelSizeY|ImageStripSize)\s*=\s*([-+.\deE]+)", re.MULTILINE)
_LENGTH = re.compile(r"([-+.\deE]+)\s*([^\d\s.].*)")


@dataclass(frozen=True)
class Stated:
    """What is said of an image.

    Attributes:
        scale_nm: nanometres per pixel by axis letter.
        width: pixels in a line of the image that this was said of; None where that is not said.
        bar: rows at the bottom that are a data bar.
        assumptions: what had to be guessed.
    """

    scale_nm: Mapping[str, float] = field(default_factory=dict)
    width: int | None = None
    bar: int = 0
    assumptions: tuple[Assumption, ...] = ()

    def of_image(self, uri: str, width: int, height: int) -> tuple[tuple[str, ...], tuple[Assumption, ...]]:
        """Warnings and assumptions about the image `uri` of that size."""
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
        if not 0 < self.bar < height:
            return (), guesses
        region = f"--region 0:{height - self.bar},0:{width}"
        return (f"{uri} has a data bar in its lowest {self.bar} rows: {region} leaves it out",), guesses


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
    return Stated(known_lengths(sizes), bar=int(found.get("ImageStripSize", 0)))


def parse_jeol(text: str) -> Stated:
    """JEOL's text: so many pixels are a bar of that length."""
    found = dict(_JEOL.findall(text))
    marker = _LENGTH.fullmatch(found["SM_MICRON_MARKER"])
    bar = float(found["SM_MICRON_BAR"])
    size = length_nm(float(marker[1]) / bar, marker[2]) if marker and bar > 0 else None
    width = int(found["CM_FULL_SIZE"].split()[0]) if "CM_FULL_SIZE" in found else None
    rows = int(float(found.get("SM_DATA_BAR", "0").split()[0]))
    return Stated(known_lengths({"y": size, "x": size}), width=width, bar=rows)


def stated_beside(image: Path) -> Stated:
    """What a text beside the file of an image says of it; empty where there is none."""
    names = (".txt", ".TXT", ".hdr", ".HDR", f"-{image.suffix[1:]}.hdr")
    for path in (image.with_name(image.stem + end) for end in names):
        text = _read(path)
        parse = parse_jeol if "SM_MICRON_BAR" in text else parse_tescan if "PixelSizeX" in text else None
        if parse is not None:
            try:
                return parse(text)
            except (KeyError, ValueError, IndexError):
                continue
    return Stated()


def bigdataviewer_sizes(container: Path, setup: int) -> dict[str, float]:
    """Nanometres per pixel that the XML of BigDataViewer beside `container` states for one of its setups."""
    for document in _spim_data(container.absolute().parent):
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
    loader = next((d.find("SequenceDescription/ImageLoader") for d in _spim_data(path.parent, path)), None)
    names = [part.text.strip() for part in loader if part.text] if loader is not None else []
    return str(path.parent / names[0]) if names else None


def _spim_data(folder: Path, only: Path | None = None) -> Iterator[ET.Element]:
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
