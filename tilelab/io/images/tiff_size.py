"""Pixel sizes that a TIFF file states: OME-XML, ImageJ, tags of microscopes, a text beside, resolution tags."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import tifffile

from tilelab.assumptions import Assumption
from tilelab.io.images.stated import FLAG, Stated, known_lengths, parse_tescan, stated_beside
from tilelab.io.images.units import length_nm, resolution_nm

_RESOLUTION_UNITS = {2: "inch", 3: "cm", 4: "mm", 5: "um"}
_PRINTED_UNITS = ("inch", "inches", "in", "cm", "mm")
_FEI_XML, _TESCAN, _FIBICS = 34683, 50431, 51023
_OLYMPUS = 33560
_GATAN_UNIT, _GATAN_SCALE = 65003, 65009  # of x; y and z follow
_ZEISS_WIDTH = 1024
"""Pixels in a line of the frame that SmartSEM's pixel size is of, however many are stored."""
_ZEISS_SIZE = 3
"""Index of that pixel size, in metres, among SmartSEM's values without names."""


def stated_pixels(tiff: tifffile.TiffFile, page: tifffile.TiffPage, path: str, beside: bool, number: int = 0) -> Stated:
    """The first of the file's statements that holds a pixel size on x and y.

    Args:
        tiff: the file.
        page: first page of the image.
        path: of the file.
        beside: look at files beside it too.
        number: of the image among those of the file.
    """
    for read in (partial(_ome, number=number), _imagej, _fei, _fei_xml, _zeiss, _tescan, _fibics, _olympus, _gatan):
        try:
            stated = read(tiff, page)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, SyntaxError, ZeroDivisionError):
            continue  # a statement that cannot be understood is none (SyntaxError: malformed XML)
        if {"x", "y"} <= {*stated.scale_nm}:
            return stated
    if beside and {"x", "y"} <= {*(stated := stated_beside(Path(path))).scale_nm}:
        return stated
    unit = _RESOLUTION_UNITS.get(int(page.resolutionunit))
    x, y = page.resolution
    sizes = known_lengths({"y": resolution_nm(y, unit), "x": resolution_nm(x, unit)} if unit else {})
    return Stated(sizes if len(sizes) == 2 else {})


def _ome(tiff: tifffile.TiffFile, page: tifffile.TiffPage, number: int) -> Stated:  # noqa: ARG001
    """``PhysicalSize`` of the image `number` that OME-XML describes; micrometres where it names no unit.

    Where the file has other images than are described, the one of that name is meant.
    """
    if tiff.ome_metadata is None:
        return Stated()
    described = tifffile.xml2dict(tiff.ome_metadata, sep="")["OME"]["Image"]
    images = described if isinstance(described, list) else [described]
    stated = [_ome_sizes(image.get("Pixels", {})) for image in images]
    series = tiff.series
    if all(sizes == stated[0] for sizes in stated) or (series[number].kind == "ome" and len(series) == len(stated)):
        return Stated(stated[min(number, len(stated) - 1)])
    named = [sizes for image, sizes in zip(images, stated, strict=True) if image.get("Name") == series[number].name]
    return Stated(named[0] if len(named) == 1 else {})


def _ome_sizes(pixels: dict[str, Any]) -> dict[str, float]:
    sizes = {
        letter: length_nm(
            pixels.get(f"PhysicalSize{letter.upper()}"), pixels.get(f"PhysicalSize{letter.upper()}Unit", "µm")
        )
        for letter in "zyx"
    }
    return known_lengths(sizes)


def _imagej(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Stated:
    """ImageJ's calibration: resolution tags in the unit of the description, spacing in ``zunit`` where it has its own.

    ImageJ takes a spacing below 0 as if it were above.
    """
    meta = tiff.imagej_metadata
    if meta is None or "unit" not in meta:
        return Stated()
    x, y = page.resolution
    units = {a: meta.get(f"{a}unit", meta["unit"]) for a in "zyx"}
    sizes: dict[str, float | None] = {"z": length_nm(abs(float(meta.get("spacing", 0))), units["z"])}
    for letter, resolution in (("y", y), ("x", x)):
        if str(units[letter]).strip().lower() in _PRINTED_UNITS:
            sizes[letter] = resolution_nm(resolution, units[letter])
        elif resolution > 0:
            sizes[letter] = length_nm(1 / resolution, units[letter])
    return Stated(known_lengths(sizes))


def _fei(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Stated:  # noqa: ARG001
    """FEI and Thermo Fisher microscopes, in metres."""
    meta = tiff.fei_metadata
    if meta is None:
        return Stated()
    image = meta.get("Image") or {}
    scan = next((meta[name] for name in ("Scan", "EScan", "IScan") if "PixelWidth" in (meta.get(name) or {})), None)
    if scan is not None:
        sizes = {"y": length_nm(scan["PixelHeight"], "m"), "x": length_nm(scan["PixelWidth"], "m")}
    else:
        beam = meta["IRBeam"]
        sizes = {
            "y": length_nm(float(beam["VFW"]) / float(image["ResolutionY"]), "m"),
            "x": length_nm(float(beam["HFW"]) / float(image["ResolutionX"]), "m"),
        }
    bar = (meta.get("PrivateFei") or {}).get("DatabarHeight") or 0
    return Stated(
        known_lengths(sizes),
        width=_whole(image.get("ResolutionX")),
        bar=_whole(bar) or 0,
        bar_said="FEI's DatabarHeight says so",
        height=_whole(image.get("ResolutionY")),
    )


def _fei_xml(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Stated:  # noqa: ARG001
    """Thermo Fisher's newer description: the pixel size of the stored image with its unit."""
    text = _text(page, _FEI_XML)
    if "<PixelSize" not in text or "<!DOCTYPE" in text:
        return Stated()
    root = ET.fromstring(text[text.index("<") :])  # noqa: S314 - without entities it is harmless
    sizes: dict[str, float | None] = {}
    for part in root.iterfind(".//BinaryResult/PixelSize/*"):
        name = part.tag.rpartition("}")[2].lower()
        sizes[{"width": "x", "height": "y"}.get(name, name)] = length_nm(part.text, part.get("unit", "m"))
    return Stated(known_lengths({a: sizes.get(a) for a in "yx"}))


def _zeiss(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Stated:
    """Zeiss SmartSEM: ``AP_IMAGE_PIXEL_SIZE`` of the stored image, else ``AP_PIXEL_SIZE`` of a frame 1024 pixels wide.

    The same stands without a name and unrounded at the beginning; it is taken where both agree.
    """
    meta = tiff.sem_metadata
    if meta is None:
        return Stated()
    width = int(page.imagewidth)
    own = known_lengths({"": _zeiss_length(meta.get("ap_image_pixel_size"))}).get("")
    framed = known_lengths({"": _zeiss_length(meta.get("ap_pixel_size"))}).get("")
    exact = length_nm(meta[""][_ZEISS_SIZE], "m") if len(meta.get("", ())) > _ZEISS_SIZE else None
    if own is None and framed is None and exact is None:
        return Stated()
    rounded = own if own is not None else (framed or exact or 0) * _ZEISS_WIDTH / width
    precise = rounded if exact is None else exact * _ZEISS_WIDTH / width
    size = precise if abs(precise / rounded - 1) < 0.01 else rounded
    guesses: tuple[Assumption, ...] = ()
    if own is None and width % 512:
        because = "SmartSEM states that of a frame 1024 pixels wide, and the image is no whole frame"
        what = f"the pixel size of {tiff.filename}, which is {width} pixels wide"
        guesses = (Assumption(what=what, taken=f"{size:g} nm", because=because, flag=FLAG),)
    return Stated({"y": size, "x": size}, assumptions=guesses)


def _zeiss_length(entry: Any) -> float | None:
    """A length of SmartSEM, (name, value, unit)."""
    return length_nm(entry[1], entry[2]) if isinstance(entry, tuple) and len(entry) == 3 else None


def _tescan(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Stated:  # noqa: ARG001
    return parse_tescan(_text(page, _TESCAN))


def _fibics(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Stated:  # noqa: ARG001
    """Zeiss Atlas, by Fibics: steps along a line (U) and to the next (V), in micrometres, else the field of view."""
    text = _text(page, _FIBICS)
    if not text or "<!DOCTYPE" in text:
        return Stated()
    root = ET.fromstring(text[text.index("<") :])  # noqa: S314 - without entities it is harmless
    image, scan = root.find("Image"), root.find("Scan")
    if image is None or scan is None:
        return Stated()
    width, height = (int(image.findtext(name) or 0) for name in ("Width", "Height"))
    sizes: dict[str, float | None] = {}
    for letter, step, field, pixels in (("x", "U", "FOV_X", width), ("y", "V", "FOV_Y", height)):
        along, across = (float(scan.findtext(f"{step}{axis}") or 0) for axis in "xy")
        view = scan.find(field)
        sizes[letter] = length_nm((along**2 + across**2) ** 0.5, "um")
        if sizes[letter] is None and view is not None:
            sizes[letter] = length_nm(float(view.text or 0) / pixels, view.get("units", "um"))
    return Stated(known_lengths(sizes), width=width or None)


def _olympus(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Stated:
    """Olympus and EMSIS TEM cameras (iTEM), in metres."""
    tag = page.tags.get(_OLYMPUS)
    meta = tiff.sis_metadata if tag is None or not isinstance(tag.value, dict) else tag.value
    if meta is None:
        return Stated()
    return Stated(known_lengths({"y": length_nm(meta["pixelsizey"], "m"), "x": length_nm(meta["pixelsizex"], "m")}))


def _gatan(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Stated:  # noqa: ARG001
    """Gatan DigitalMicrograph: units and scales of x, y and z."""
    sizes: dict[str, float | None] = {}
    for i, letter in enumerate("xyz"):
        scale = page.tags.get(_GATAN_SCALE + i)
        if scale is not None:
            value = scale.value[0] if isinstance(scale.value, tuple) else scale.value
            sizes[letter] = length_nm(abs(float(value)), _text(page, _GATAN_UNIT + i))
    return Stated(known_lengths(sizes))


def _text(page: tifffile.TiffPage, code: int) -> str:
    """The text of a private tag, stored as text or bytes; empty where there is none."""
    tag = page.tags.get(code)
    value = None if tag is None else tag.value
    if isinstance(value, bytes):
        value = value.decode("utf-8" if value.isascii() else "cp1252", "replace")
    return re.sub(r"[\0\r]+", "\n", str(value or "")).strip("\n ")


def _whole(value: Any) -> int | None:
    try:
        return int(value) or None
    except (TypeError, ValueError):
        return None
