"""What a run does with what it was given: images stay as they are, files are closed, questions change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

import tilelab
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine
from tilelab.errors import Interrupted, ModelError
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.storage.local_path import LocalPath
from tilelab.run.autotile import choose_tile
from tilelab.run.opening import open_source
from tilelab.run.options import Options
from tilelab.run.prepare import prepare
from tilelab.run.rehearse import dry_run
from tilelab.run.target import clear_way, is_finished

TILE = SpecOverrides(tile=(64, 64), overlap=(16, 16))


class Given(Image):
    """An image of the caller's that counts how often it is closed."""

    def __init__(self, array: np.ndarray) -> None:
        self.uri, self.axes, self.shape, self.dtype, self.chunks = "given", "yx", array.shape, array.dtype, array.shape
        self.array, self.closed = array, 0

    def read(self, box):
        return self.array[box.slices]

    def fingerprint(self):
        return {"given": "1"}

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (200, 150), np.uint8)


@pytest.fixture
def files(pixels, tmp_path) -> Path:
    """An image and a mask."""
    tifffile.imwrite(tmp_path / "image.tif", pixels, tile=(64, 64))
    tifffile.imwrite(tmp_path / "mask.tif", np.ones_like(pixels), tile=(64, 64))
    return tmp_path


def open_files() -> list[str]:
    """Files that this process holds open."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("the system does not say which files are open")
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(fd.readlink()))
        except FileNotFoundError:  # the listing's own
            continue
    return [name for name in found if name.endswith((".tif", ".npy"))]


@pytest.mark.parametrize("region", [None, "10:110,20:140"])
def test_an_image_that_was_given_stays_as_it_is(pixels, tmp_path, region):
    image = Given(pixels)
    before = dict(vars(image))
    sized, plain = Options(model=TILE, region=region, pixel_size_nm=(4.0,)), Options(model=TILE, region=region)
    engine = load_engine("identity:3", spec_overrides=TILE)
    for options, out in ((sized, "a"), (plain, "b"), (sized, "c")):
        run = tilelab.infer(image, engine, tmp_path / f"{out}.ome.zarr", options=options)
        assert run.report["pixel_size_nm"] == ((4.0, 4.0) if options is sized else None)
        assert vars(image) == before
    again = tilelab.infer(image, engine, tmp_path / "a.ome.zarr", options=sized)
    assert again.already_finished
    tilelab.plan(image, "identity:3", options=sized)
    dry_run(image, "identity:3", tmp_path / "d.ome.zarr", sized, lambda line: None)
    choose_tile("identity:3", image, sized, lambda line: None)
    assert vars(image) == before


def test_what_is_assumed_of_an_image_is_not_written_into_it(pixels):
    image = Given(pixels)
    spec = load_engine("identity:3", spec_overrides=SpecOverrides(tile=(64, 64), pixel_size_nm=(4.0, 4.0))).spec
    for _ in range(2):
        assert len(open_source(image, Options(), spec).assumptions) == 1
    assert image.assumptions == ()


def test_what_was_opened_is_closed(files, monkeypatch):
    monkeypatch.chdir(files)
    before = open_files()
    options = Options(model=TILE, mask="mask.tif")
    tilelab.infer("image.tif", "identity:3", "a.ome.zarr", options=options)
    tilelab.plan("image.tif", "identity:3", options=options)
    choose_tile("identity:3", "image.tif", options, lambda line: None)
    dry_run("image.tif", "identity:3", "b.ome.zarr", options, lambda line: None)
    assert open_files() == before


def test_what_was_opened_is_closed_after_an_error(files, monkeypatch):
    monkeypatch.chdir(files)
    before = open_files()
    sized = SpecOverrides(tile=(64, 64), pixel_size_nm=(4.0, 4.0))
    engine = load_engine("identity:3", spec_overrides=sized)
    for options in (
        Options(pixel_size_nm=(9.0,)),
        Options(pixel_size_nm=(4.0,), mask="mask.tif", probabilities=("cheese",)),
    ):
        with pytest.raises(ModelError):
            tilelab.infer("image.tif", engine, "a.ome.zarr", options=options)
    assert open_files() == before


def test_what_was_given_open_stays_open(files):
    engine = load_engine("identity:3", spec_overrides=TILE)
    with open_image(files / "image.tif") as image:
        tilelab.infer(image, engine, files / "a.ome.zarr", options=Options(region="0:100,:"))
        assert image[:3, :3].shape == (3, 3)
    given = Given(np.zeros((200, 150), np.uint8))
    tilelab.infer(given, engine, files / "b.ome.zarr", options=Options(region="0:100,:", pixel_size_nm=(3.0,)))
    assert not given.closed


def test_whether_a_result_is_there_is_asked_without_touching_it(files):
    out = LocalPath(files) / "a.ome.zarr"
    engine = load_engine("identity:3", spec_overrides=TILE)
    with prepare(files / "image.tif", engine, Options()) as prepared:
        fingerprint = prepared.fingerprint
    partial = files / "a.ome.zarr.partial"
    (partial / ".tilelab").mkdir(parents=True)
    (partial / ".tilelab" / "progress").write_text("0 64\n")
    for restart in (False, True):
        assert not is_finished(out, out, fingerprint, restart)
        assert (partial / ".tilelab" / "progress").exists()
    clear_way(out, out, fingerprint, restart=False)
    assert (partial / ".tilelab" / "progress").exists()
    clear_way(out, out, fingerprint, restart=True)
    assert not partial.exists()


class Interrupting:
    """An engine that is interrupted when it is asked for its n-th tile."""

    def __init__(self, engine, tiles):
        self.engine, self.left = engine, tiles

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def run(self, tiles, out):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        self.engine.run(tiles, out)


@pytest.fixture(scope="module")
def tall():
    """Two grains wide, and high enough that one row of them is finished before the image is."""
    return np.random.default_rng(0).integers(0, 256, (4200, 2300), np.uint8)


def interrupt(image, engine, out, tiles, **options):
    with pytest.raises(Interrupted):
        tilelab.infer(image, Interrupting(engine, tiles), out, options=Options(**options))
    assert [path.name for path in out.parent.glob(f"{out.name}*")] == [f"{out.name}.partial"]


def test_a_continued_run_reports_the_plan_that_ran(tall, tmp_path):
    """Begun in two lanes, interrupted, and continued by a command that asks for one."""
    engine = load_engine("identity:3", tile=(256, 256))
    interrupt(tall, engine, tmp_path / "a.ome.zarr", 200, lanes=2)
    notes: list[str] = []
    continued = tilelab.infer(tall, engine, tmp_path / "a.ome.zarr", note=notes.append)
    assert any("was finished by an earlier run" in note for note in notes)
    assert tilelab.plan(tall, "identity:3").units.cuts[2].extent > 2048
    lanes = tilelab.infer(tall, engine, tmp_path / "b.ome.zarr", options=Options(lanes=2))
    assert continued.report["units"] == lanes.report["units"] == 2
    assert continued.report["memory"]["planned"] == lanes.report["memory"]["planned"]


def test_a_run_that_finished_nothing_leaves_the_cut_to_the_next(tall, tmp_path):
    """Else what the second finishes of its lanes would be taken for rows of the first one's."""
    engine = load_engine("identity:3", tile=(256, 256))
    out = tmp_path / "a.ome.zarr"
    interrupt(tall, engine, out, 1)
    interrupt(tall, engine, out, 200, lanes=2)
    found = tilelab.read_result(tilelab.infer(tall, engine, out).path).labels[0][:]
    whole = tilelab.infer(tall, engine, tmp_path / "b.ome.zarr").path
    np.testing.assert_array_equal(found, tilelab.read_result(whole).labels[0][:])
