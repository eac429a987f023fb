"""Pixel sizes that a TIFF file states: OME-XML, ImageJ, the tags of SEM makers, resolution tags."""

from __future__ import annotations

from collections.abc import Mapping

import tifffile

from tilelab.io.images.units import length_nm, resolution_nm

_RESOLUTION_UNITS = {2: "inch", 3: "cm", 4: "mm", 5: "um"}


def pixel_scale(tiff: tifffile.TiffFile) -> dict[str, float]:
    """Nanometres per pixel by axis letter, from the first of the file's statements that holds one for x and y."""
    page = tiff.pages.first
    for read in (_ome, _imagej, _fei, _zeiss, _olympus):
        try:
            scale = read(tiff)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, SyntaxError):
            continue  # a statement that cannot be understood is none (SyntaxError: malformed XML)
        if "x" in scale and "y" in scale:
            return scale
    unit = _RESOLUTION_UNITS.get(int(page.resolutionunit))
    x, y = page.resolution
    sizes = {"y": resolution_nm(y, unit), "x": resolution_nm(x, unit)} if unit else {}
    return _known(sizes) if len(_known(sizes)) == 2 else {}


def _known(sizes: Mapping[str, float | None]) -> dict[str, float]:
    return {letter: size for letter, size in sizes.items() if size is not None}


def _ome(tiff: tifffile.TiffFile) -> dict[str, float]:
    """``PhysicalSize`` of the first image that OME-XML describes; micrometres where it names no unit."""
    if tiff.ome_metadata is None:
        return {}
    images = tifffile.xml2dict(tiff.ome_metadata, sep="")["OME"]["Image"]
    pixels = (images[0] if isinstance(images, list) else images)["Pixels"]
    return _known(
        {
            letter: length_nm(
                pixels.get(f"PhysicalSize{letter.upper()}"), pixels.get(f"PhysicalSize{letter.upper()}Unit", "µm")
            )
            for letter in "zyx"
        }
    )


def _imagej(tiff: tifffile.TiffFile) -> dict[str, float]:
    """The calibration of ImageJ: the resolution tags count in the unit of the description, as does the spacing."""
    meta = tiff.imagej_metadata
    if meta is None or "unit" not in meta:
        return {}
    x, y = tiff.pages.first.resolution
    unit = meta["unit"]
    if unit in ("inch", "inches", "in"):
        sizes = {"y": resolution_nm(y, unit), "x": resolution_nm(x, unit)}
    else:
        sizes = {"y": length_nm(1 / y, unit), "x": length_nm(1 / x, unit)} if x > 0 and y > 0 else {}
    return _known(sizes | {"z": length_nm(meta.get("spacing"), unit)})


def _fei(tiff: tifffile.TiffFile) -> dict[str, float]:
    """FEI and Thermo Fisher microscopes, in metres."""
    if tiff.fei_metadata is None:
        return {}
    scan = tiff.fei_metadata.get("Scan") or tiff.fei_metadata["EScan"]
    return _known({"y": length_nm(scan["PixelHeight"], "m"), "x": length_nm(scan["PixelWidth"], "m")})


def _zeiss(tiff: tifffile.TiffFile) -> dict[str, float]:
    """Zeiss SmartSEM: ``AP_IMAGE_PIXEL_SIZE``, or ``AP_PIXEL_SIZE`` in older files; (name, value, unit)."""
    meta = tiff.sem_metadata
    if meta is None:
        return {}
    _, value, unit = meta["ap_image_pixel_size"] if "ap_image_pixel_size" in meta else meta["ap_pixel_size"]
    return _known({"y": length_nm(value, unit), "x": length_nm(value, unit)})


def _olympus(tiff: tifffile.TiffFile) -> dict[str, float]:
    """Olympus and EMSIS TEM cameras (iTEM), in metres."""
    meta = tiff.sis_metadata
    if meta is None:
        return {}
    return _known({"y": length_nm(meta["pixelsizey"], "m"), "x": length_nm(meta["pixelsizex"], "m")})
