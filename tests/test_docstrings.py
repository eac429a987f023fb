"""The examples in docstrings run, in a folder with a drawn sample, and say what they say."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import tilelab
from tilelab.sample import draw_superalloy

NO_EXAMPLE = {"ModelSpec", "Options", "SpecOverrides", "TilelabError", "__version__"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``sample.tif``, its ``truth.tif``, and a result ``sample.ome.zarr``."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("docstrings")
    image, truth = draw_superalloy((300, 400))
    tifffile.imwrite(folder / "sample.tif", image)
    tifffile.imwrite(folder / "truth.tif", truth)
    tilelab.infer(folder / "sample.tif", "superalloy", folder / "sample.ome.zarr", tile=256, overlap=64, device="cpu")
    return folder


def examples() -> Iterator[tuple[str, Any]]:
    """Every public name that has a docstring, by name."""
    yield "tilelab", tilelab
    for name in tilelab.__all__:
        thing = getattr(tilelab, name)
        yield name, getattr(thing, "__wrapped__", thing)


@pytest.mark.parametrize(("name", "thing"), list(examples()))
def test_examples_run(
    name: str, thing: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    text = inspect.getdoc(thing) or ""
    if name == "train":
        pytest.importorskip("torch", reason="training extra not installed")
        request.getfixturevalue("one_thread")
    if name in NO_EXAMPLE:
        return
    monkeypatch.chdir(folder)
    known: dict[str, Any] = {"tilelab": tilelab, "np": np, "tifffile": tifffile, "Path": Path}
    if "dask." in text:
        pytest.importorskip("dask.array")
        known["dask"] = __import__("dask")
    test = doctest.DocTestParser().get_doctest(text, known, name, None, 0)
    assert test.examples, f"{name} has no example"
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test)
    assert result.failed == 0
