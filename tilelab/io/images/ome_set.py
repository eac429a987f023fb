"""Sets of OME-TIFF files: the description of all of them lies in one, or in a companion of its own."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import tifffile

from tilelab.errors import InputError
from tilelab.io.storage.outside import leaves

_MOST_BYTES = 2**28


def open_set(path: Path) -> tuple[tifffile.TiffFile, str]:
    """A TIFF file and the description of the set that it is one of; or, of a companion, the first of its files.

    Raises:
        InputError: the companion or every member is missing, or the companion is no OME-XML.
    """
    with path.open("rb") as file:
        is_tiff = file.read(2) in (b"II", b"MM")
    if not is_tiff:
        text = _read(path)
        members = member_files(text, path)
        there = [name for name in members if (path.parent / name).is_file()]
        if not there:
            named = f"its first is {members[0]}" if members else "it names none"
            raise InputError(f"{path} describes OME-TIFF files, none of which lies beside it: {named}")
        return tifffile.TiffFile(path.parent / there[0], omexml=text), text
    tiff = tifffile.TiffFile(path)
    own = tiff.ome_metadata if tiff.is_ome else None
    if not own or "BinaryOnly" not in own:
        return tiff, own or ""
    try:
        binary = next((e for e in _parse(own, path).iter() if e.tag.endswith("BinaryOnly")), None)
        name = None if binary is None else binary.get("MetadataFile")
        if not name:
            return tiff, own
        beside = path.parent / name
        if leaves(name) or not beside.is_file():
            raise InputError(
                f"{path} is one file of a set that {name} describes, which is missing: copy it beside, or rewrite this "
                "file alone as a plain TIFF"
            )
        text = _read(beside)
    except InputError:
        tiff.close()
        raise
    tiff.close()
    return tifffile.TiffFile(path, omexml=text), text


def member_files(text: str, path: Path) -> list[str]:
    """Names of the files that OME-XML says its planes are in, each once."""
    named = (e.get("FileName") for e in _parse(text, path).iter() if e.tag.endswith("UUID"))
    return list(dict.fromkeys(name for name in named if name))


def _read(path: Path) -> str:
    """The OME-XML of a companion, or of a TIFF file that is one."""
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path} is too large for a description: {path.stat().st_size} bytes")
    data = path.read_bytes()
    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            return tiff.ome_metadata or ""
    return data.decode("utf-8", "replace")


def _parse(text: str, path: Path) -> ET.Element:
    if "<!DOCTYPE" in text:
        raise InputError(f"the OME-XML of {path} has a document type, which no OME-XML has: it is not read")
    try:
        return ET.fromstring(text)  # noqa: S314 - without entities it is harmless
    except (ET.ParseError, ValueError) as error:
        raise InputError(f"the OME-XML of {path} is damaged: {error}") from error
