"""The examples run as they stand, and say what they should."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import tilelab
from tilelab.sample import draw_superalloy

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run an example in a folder of its own, as `python examples/NAME FOLDER WORDS` does; gives what it prints."""

    def run_example(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, str(tmp_path), *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_the_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+\.py)\)", page)) == {path.name for path in EXAMPLES.glob("*.py")}


def test_measure_objects(run, tmp_path: Path) -> None:
    said = run("measure_objects.py")
    truth = np.bincount(draw_superalloy((900, 1000))[1].ravel()) / 900_000
    shares = [float(share) / 100 for share in re.findall(r"^\w+ +([\d.]+)%", said, re.MULTILINE)]
    np.testing.assert_allclose(shares, truth, atol=1e-4)
    count = int(re.findall(r"^(\d+) objects in", said, re.MULTILINE)[0])
    with tilelab.open_image(tmp_path / "objects.ome.zarr", as_labels="integers") as image:
        assert image[:, :].max() == count


def test_infer_and_read(run, tmp_path: Path) -> None:
    said = run("infer_and_read.py")
    areas = {name: float(area) for name, area in re.findall(r"^(\S+) .*? ([\d.]+) um2", said, re.MULTILINE)}
    truth = np.bincount(draw_superalloy((900, 1000))[1].ravel()) * 400e-6
    assert sum(areas.values()) == pytest.approx(900 * 1000 * 400e-6, abs=0.02)
    assert list(areas.values()) == pytest.approx(truth, rel=0.25)
    assert "made by" in said
    assert "was there" in run("infer_and_read.py")


def test_many_images(run, tmp_path: Path) -> None:
    said = run("many_images.py")
    assert "broken failed: " in said
    assert len(re.findall(r"^sample_\d: matrix [\d.]+%", said, re.MULTILINE)) == 3
    assert (tmp_path / "results" / "summary.html").exists()


def test_own_engine(run, tmp_path: Path) -> None:
    """The stitched threshold is that of the whole image, but where it is undecided."""
    share = re.search(r"([\d.]+)% of the pixels are bright", run("own_engine.py"))
    assert share is not None
    image = draw_superalloy((900, 1000))[0].astype(np.float64)
    summed = np.pad(np.pad(image, 4, mode="reflect"), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    mean = (summed[9:, 9:] - summed[:-9, 9:] - summed[9:, :-9] + summed[:-9, :-9]) / 81
    labels = tilelab.read_result(tmp_path / "bright.ome.zarr").labels[0][...]
    assert np.mean(labels == (mean > image.mean())) > 0.99
    assert float(share[1]) == pytest.approx(100 * labels.mean(), abs=0.06)


def test_map_tiles_in_dask(run, tmp_path: Path) -> None:
    pytest.importorskip("dask.array")
    zarr = pytest.importorskip("zarr")
    said = run("map_tiles_in_dask.py")
    labels = zarr.open_array(tmp_path / "labels.zarr", mode="r")[:]
    shares = [f"{part:.1%}" for part in (labels > 0).mean(axis=(1, 2))]
    assert f"precipitates in each slice: {', '.join(shares)}" in said
    truth = np.stack([draw_superalloy((512, 512), seed)[1] for seed in (0, 2, 4)])
    assert np.mean(labels == truth) > 0.9


def test_train_and_export(run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training extra not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where other tests run beside
    try:
        said = run("train_and_export.py", "4")
    finally:
        torch.set_num_threads(threads)
    assert "step 4 of 4" in said
    assert tilelab.load_engine(tmp_path / "tiny.onnx").spec.name == "tiny"
    checked = re.search(r"mean IoU ([\d.]+) -> ", said)
    final = re.search(r"held-out image: ([\d.]+)", said)
    assert checked is not None
    assert final is not None
    assert float(final[1]) == pytest.approx(float(checked[1]), abs=0.02)  # the file says what the network says
