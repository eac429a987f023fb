"""What every form of a result owes, checked in one place: a new form is one row in `SINKS`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from tests.result_files import CLASSES, METADATA, make_result
from tilelab.io import open_image
from tilelab.io.results.made_of import read_made_of
from tilelab.io.results.png import write_png
from tilelab.io.results.precomputed import write_precomputed
from tilelab.io.results.result import Result, read_result
from tilelab.io.results.tiff import write_tiff
from tilelab.io.storage.place import Address, as_place

SHAPES = {"yx": (700, 1030), "zyx": (3, 130, 530)}


@dataclass(frozen=True)
class Sink:
    """A form of a result and what is expected of it.

    suffixes: of the names that ask for it.
    write: makes it of a result in a local OME-Zarr.
    metadata: what the run said, read back.
    names: the classes' names, read back by other means than ours.
    labels: the address of the labels' image.
    stacks: it holds stacks.
    levels: it holds the pyramid.
    repeatable: the same result has the same bytes, and what is there is replaced.
    folder: where it is written, by default a local one.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Path, Any], object]
    metadata: Callable[[Any], dict[str, Any]]
    names: Callable[[Any], list[str]]
    labels: Callable[[Any], str] = str
    stacks: bool = True
    levels: bool = True
    repeatable: bool = True
    folder: str | None = None


def _copy_result(result: Path, out: Address) -> None:
    """The very result, written again at `out` by the sink."""
    shape = read_result(result).labels[0].shape
    make_result(out, shape)  # type: ignore[arg-type]


def _zarr_names(out: Address) -> list[str]:
    document = json.loads((as_place(out) / "labels" / "classes" / "zarr.json").read_bytes())
    return [entry["name"] for entry in document["attributes"]["ome"]["image-label"]["properties"]]


def _tiff_names(out: Any) -> list[str]:
    with tifffile.TiffFile(out) as tiff:
        described = tifffile.xml2dict(tiff.ome_metadata or "")["OME"]["StructuredAnnotations"]
    values = described["MapAnnotation"]["Value"]["M"]
    return [str(entry["value"]).rpartition(" ")[0] for entry in values]


def _png_names(out: Any) -> list[str]:
    with Picture.open(out) as picture:
        return [entry.partition(" ")[2] for entry in picture.text["Description"].split(", ")]  # type: ignore[attr-defined]


def _precomputed_names(out: Any) -> list[str]:
    inline = json.loads((Path(out) / "segment_properties" / "info").read_text())["inline"]
    return [CLASSES[0].name, *inline["properties"][0]["values"]]


def _metadata(out: Any) -> dict[str, Any]:
    info = read_made_of(out)
    assert info is not None
    return info.metadata


_ZARR = Sink(
    suffixes=(".ome.zarr", ".zarr"),
    write=_copy_result,
    metadata=lambda out: read_result(out).info.metadata,
    names=_zarr_names,
    labels=lambda out: f"{out}/labels/classes",
    repeatable=False,
)

SINKS = {
    "OME-Zarr": _ZARR,
    "OME-Zarr in a bucket": Sink(**{**vars(_ZARR), "folder": "s3://bucket/results"}),
    "OME-TIFF": Sink((".ome.tif", ".ome.tiff", ".tif", ".tiff"), write_tiff, _metadata, _tiff_names),
    "PNG": Sink((".png",), write_png, _metadata, _png_names, stacks=False, levels=False),
    "precomputed": Sink((".precomputed",), write_precomputed, _metadata, _precomputed_names),
}


def check_sink(sink: Sink, axes: str, folder: Path) -> None:
    """What is written reads back: every level, pixel size, classes, and what the run was."""
    result = make_result(folder / "source.ome.zarr", SHAPES[axes])
    for suffix in sink.suffixes:
        out = f"{sink.folder or folder}/{axes}{suffix}"
        sink.write(result.path, out)
        _check_labels(sink, result, out)
        assert sink.metadata(out) == METADATA
        assert sink.names(out) == [known.name for known in CLASSES]
    if sink.repeatable:
        before = _bytes(Path(out))
        sink.write(result.path, out)
        assert _bytes(Path(out)) == before
    if sink.folder is None:  # nothing but what was asked for
        names = {f"{axes}{suffix}" for suffix in sink.suffixes}
        assert {path.name for path in folder.iterdir()} == names | {"source.ome.zarr"}
        shutil.rmtree(folder / "source.ome.zarr")  # and that needs nothing else
        with open_image(sink.labels(out)) as image:
            assert image[...].shape == result.labels[0].shape


def _check_labels(sink: Sink, result: Result, out: str) -> None:
    for level, labels in enumerate(result.labels if sink.levels else result.labels[:1]):
        palette: Any = {"as_labels": "indices"} if out.endswith((".png", ".tif", ".tiff")) else {}
        with open_image(sink.labels(out), level=level, **palette) as image:
            assert image.dtype == np.uint8
            assert image.axes == labels.axes
            assert image.pixel_size_nm == pytest.approx(labels.pixel_size_nm)
            np.testing.assert_array_equal(image[...], labels[...])
    if sink.levels:
        assert len(result.labels) > 1


def _bytes(out: Path) -> dict[str, bytes]:
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
