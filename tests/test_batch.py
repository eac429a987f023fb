"""Many images in one run: a result, a picture and a row each, whatever becomes of the others."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as replace_row
from tiny_models import make_spec, save_conv

import tilelab
from tilelab.cli import main
from tilelab.engines.base import BaseEngine
from tilelab.engines.overrides import SpecOverrides
from tilelab.errors import InputError, Interrupted, ModelError, OutputError, StrictError
from tilelab.geometry import Box
from tilelab.io import convert_image
from tilelab.io.images.folders import gather_images
from tilelab.io.images.series import are_counted
from tilelab.run.batch.names import choose_names, known_names, place_of
from tilelab.run.batch.row import Row
from tilelab.run.batch.shared import Turns
from tilelab.run.batch.table import read_table, write_table
from tilelab.run.options import Options
from tilelab.sample import draw_superalloy

MODEL = str(save_conv(Path(tempfile.mkdtemp()) / "tiny.onnx", ("y", "x"), spec=make_spec((64, 64), overlap=(16, 16))))
FLAGS = ["-m", MODEL, "--tile", "64", "--overlap", "16", "-q"]
OPTIONS = Options(model=SpecOverrides(tile=(64, 64), overlap=(16, 16)))


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=5)


def micrograph(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape or (90 + 7 * seed, 120), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images of their own and three broken ones."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(9):
        tifffile.imwrite(images / f"m{i}.tif", micrograph(i))
    (images / "empty.tif").touch()
    (images / "words.png").write_text("no picture")
    (images / "half.tif").write_bytes((images / "m8.tif").read_bytes()[:4000])
    (images / "notes.txt").write_text("of the session")
    return images


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def files_of(result: Path) -> dict[str, bytes]:
    return {str(p.relative_to(result)): p.read_bytes() for p in result.rglob("*") if p.is_file()}


def test_a_folder_gives_a_result_a_picture_and_a_row_each_and_failures_cost_theirs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["infer", str(folder), *FLAGS, "-o", str(out)]) == 4
    said = capsys.readouterr().err
    rows = table(out)
    assert set(rows) == {f"m{i}" for i in range(9)} | {"empty", "words", "half"}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {"empty", "words", "half"}
    for name in ("empty", "words", "half"):
        assert f"failed: {name}: " in said
        assert rows[name]["error"]
    for i in range(9):
        row = rows[f"m{i}"]
        assert (row["width_px"], row["height_px"], row["status"]) == ("120", str(90 + 7 * i), "done")
        labels = np.asarray(tilelab.read_result(row["result"]).labels[0][:, :])
        assert float(row["area_class 1"]) == pytest.approx((labels == 1).mean(), abs=1e-6)
        assert (out / "overviews" / f"m{i}.jpg").read_bytes().startswith(b"\xff\xd8")
    page = (out / "summary.html").read_text()
    assert page.count("<article") == page.count("data:image/jpeg") == 9
    assert "http" not in page  # nothing comes from elsewhere
    assert "9 of 12 images done" in said


def test_the_page_of_very_many_shows_the_pictures_beside_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilelab.run.batch.page._MOST_INSIDE", 1)
    list(tilelab.infer_many([folder / "m1.tif", folder / "m2.tif"], MODEL, tmp_path / "a b", options=OPTIONS))
    page = (tmp_path / "a b" / "summary.html").read_text()
    shown = re.findall(r"src='([^']+)'", page)
    assert sorted(shown) == ["overviews/m1.jpg", "overviews/m2.jpg"]
    assert all((tmp_path / "a b" / name).is_file() for name in shown)


def test_results_have_the_bytes_of_single_runs_whatever_the_number_under_way(folder: Path, tmp_path: Path) -> None:
    for at_once in (1, 5):
        out = tmp_path / f"out{at_once}"
        found = list(tilelab.infer_many(folder, MODEL, out, options=OPTIONS, at_once=at_once))
        assert len(found) == 12
        for outcome in found:
            if outcome.run is None:
                continue
            alone = tmp_path / "alone" / "r.ome.zarr"
            tilelab.infer(outcome.image, MODEL, alone, options=OPTIONS)
            assert files_of(alone) == files_of(Path(str(outcome.run.path)))
            shutil.rmtree(alone)


def test_images_of_several_sizes_get_the_tiles_that_they_get_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.tif").write_bytes(b"")  # the first one is broken
    shapes = [(300, 420), (260, 300), (300, 420), (200, 500), (130, 140), (260, 300)]
    for i, shape in enumerate(shapes):
        tifffile.imwrite(images / f"m{i * i}.tif", draw_superalloy(shape, i)[0])
    found = list(tilelab.infer_many(images, "superalloy", tmp_path / "out"))
    tiles = set()
    for outcome in found:
        if outcome.run is not None:
            tiles.add(tuple(outcome.run.report["tile"]))
            alone = tmp_path / "alone" / "r.ome.zarr"
            tilelab.infer(outcome.image, "superalloy", alone)
            assert files_of(alone) == files_of(Path(str(outcome.run.path)))
            shutil.rmtree(alone)
    assert len(found) == 7
    assert len(tiles) > 1
    monkeypatch.setattr("tilelab.run.batch.shared.load", None)  # what is finished needs no other engine
    again = [o.run for o in tilelab.infer_many(images, "superalloy", tmp_path / "out")]
    assert sum(run is not None and run.already_finished for run in again) == 6


def test_run_again_skips_what_is_finished_tries_again_what_failed_and_adds_what_is_new(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["infer", str(folder), *FLAGS, "-o", str(out)]
    main(command)
    before = {name: (out / f"{name}.ome.zarr" / "zarr.json").stat().st_ino for name in ("m0", "m8")}
    times = {name: row["seconds"] for name, row in table(out).items()}
    tifffile.imwrite(folder / "half.tif", micrograph(8))
    tifffile.imwrite(folder / "new.tif", micrograph(3))
    (folder / "empty.tif").unlink()
    (folder / "words.png").unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert "2 of 11 images done" in (said := capsys.readouterr().err)
    assert "9 were finished before" in said
    assert {name: (out / f"{name}.ome.zarr" / "zarr.json").stat().st_ino for name in before} == before
    rows = table(out)
    assert all(row["status"] == "done" and row["area_class 1"] for row in rows.values())
    assert rows["m3"]["seconds"] == times["m3"]


def test_runs_of_other_images_into_one_folder_add_up(folder: Path, tmp_path: Path) -> None:
    """As those of a scheduler's array: the table had the images of the last alone."""
    out = tmp_path / "out"
    for name in ("m1.tif", "half.tif", "m2.tif", "m1.tif"):
        main(["infer", str(folder / name), *FLAGS, "-o", f"{out}/"])
    rows = table(out)
    assert {name: row["status"] for name, row in rows.items()} == {"m1": "done", "half": "failed", "m2": "done"}
    assert sum(map(float, (rows["m2"]["area_class 0"], rows["m2"]["area_class 1"]))) == pytest.approx(1)
    assert (out / "summary.html").read_text().count("<article") == 2
    shutil.rmtree(out / "m2.ome.zarr")
    main(["infer", str(folder / "m3.tif"), *FLAGS, "-o", f"{out}/"])
    assert set(table(out)) == {"m1", "half", "m3"}


_AT_ONCE = """
import sys, time
from pathlib import Path
from tilelab.cli import main
from tilelab.run.batch import many
def slow(function):  # what is read is out of date by the time that it is replaced
    def called(*given):
        found = function(*given)
        time.sleep(0.3)
        return found
    return called
for name in ("read_table", "known_names"):
    setattr(many, name, slow(getattr(many, name)))
place, number, *words = sys.argv[1:]
def meet(when):
    (Path(place) / f"{when}{number}").touch()
    while not (Path(place) / when).exists():
        time.sleep(0.01)
def summarize(batch, end=many.Batch.summarize):
    meet("end")
    end(batch)
many.Batch.summarize = summarize
meet("begin")
sys.exit(main(words))
"""


def test_runs_into_one_folder_at_the_same_time_keep_their_rows_and_names_apart(tmp_path: Path) -> None:
    """Each read table and names before the others had written theirs, and replaced them."""
    out, images = tmp_path / "out", [tmp_path / place for place in ("a/m.tif", "b/m.tif", "c/n.tif")]
    runs = []
    for number, image in enumerate(images):
        image.parent.mkdir()
        tifffile.imwrite(image, micrograph(number))
        words = ["infer", str(image), *FLAGS, "-o", f"{out}/"]
        runs.append(subprocess.Popen([sys.executable, "-c", _AT_ONCE, str(tmp_path), str(number), *words]))
    for when in ("begin", "end"):
        wait_for(lambda when=when: len([*tmp_path.glob(f"{when}?")]) == len(runs), "processes")
        (tmp_path / when).touch()
    assert [run.wait(120) for run in runs] == [0, 0, 0]
    rows = table(out)
    assert {row["image"]: row["status"] for row in rows.values()} == {str(image): "done" for image in images}
    assert {path.name for path in out.glob("*.ome.zarr")} == {f"{name}.ome.zarr" for name in rows}
    assert (out / "summary.html").read_text().count("<article") == 3


@settings(deadline=None)
@given(st.builds(
    Row,
    name=WORDS, image=WORDS, result=WORDS, model=WORDS, error=WORDS,
    status=st.sampled_from(["done", "failed", "waiting"]),
    areas=st.dictionaries(WORDS, st.floats(0, 1).map(lambda share: round(share, 6)), max_size=2),
    seconds=st.none() | st.integers(0, 10**5).map(lambda n: n / 100),
))  # fmt: skip
def test_a_table_is_read_as_it_was_written(row: Row) -> None:
    volume = replace_row(row, shape=(3, 5, 7), axes="zyx", pixel_size_nm=(30.0, 4.0, 5.5))
    plane = replace_row(row, shape=(5, 7), axes="yx", pixel_size_nm=(4.0, 4.0), assumptions=("a: b", "c: d"))
    rows = [row, volume, plane]
    with tempfile.TemporaryDirectory() as made:
        write_table(Path(made) / "t.csv", rows)
        assert read_table(Path(made) / "t.csv") == rows


def test_a_stopped_restart_says_what_is_left_of_earlier_results(folder: Path, tmp_path: Path) -> None:
    images = [folder / "m1.tif", folder / "m2.tif"]
    list(tilelab.infer_many(images, MODEL, tmp_path / "out", options=OPTIONS))
    again = tilelab.infer_many(images, MODEL, tmp_path / "out", options=replace(OPTIONS, restart=True))
    next(iter(again))
    said = r"the same command without --restart continues, but leaves 1 earlier result as it is \(finished results: "
    with pytest.raises(Interrupted, match=said):
        again.throw(KeyboardInterrupt)  # type: ignore[attr-defined]


def test_a_kill_is_taken_up(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for i in range(9, 100):
        tifffile.imwrite(folder / f"m{i}.tif", micrograph(i, 100, 100))
    command = [sys.executable, "-m", "tilelab", "infer", str(folder), *FLAGS, "-o", str(out)]
    for stop in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        known = len([*out.glob("m*.ome.zarr")])
        wait_for(lambda known=known: len([*out.glob("m*.ome.zarr")]) > known + 3, "results", process=process)
        process.send_signal(stop)
        process.communicate(timeout=60)  # closes its pipe, too
        assert process.returncode in (-signal.SIGKILL, 3, 4)
    assert main(command[3:]) == 4
    rows = table(out)
    assert sum(row["status"] == "done" for row in rows.values()) == 100
    assert not [*out.glob("*.partial")]
    alone = tmp_path / "alone" / "r.ome.zarr"
    tilelab.infer(folder / "m20.tif", MODEL, alone, options=OPTIONS)
    assert files_of(alone) == files_of(out / "m20.ome.zarr")


class Broken(BaseEngine):
    """Fails whenever it is asked; counts how many ask at a time."""

    name = "broken"

    def run(self, tiles: Any, out: Any) -> None:
        raise RuntimeError("the machine\nburns")


def test_what_nobody_expected_is_one_images_failure_with_its_kind(folder: Path, tmp_path: Path) -> None:
    engine = Broken(tilelab.load_engine(MODEL, spec_overrides=OPTIONS.model).spec)
    found = list(tilelab.infer_many(folder / "m1.tif", engine, tmp_path / "out"))
    assert [o.error for o in found] == ["RuntimeError: the machine burns"]
    assert isinstance(found[0].failure, RuntimeError)


def test_no_more_calls_of_an_engine_are_under_way_than_it_has_streams(folder: Path, tmp_path: Path) -> None:
    engine = tilelab.load_engine(MODEL, spec_overrides=OPTIONS.model)
    inner, under_way, most = engine.run, 0, 0

    def run(tiles: Any, out: Any) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        inner(tiles, out)
        under_way -= 1

    engine.run = run  # type: ignore[method-assign]
    list(tilelab.infer_many(folder, engine, tmp_path / "out", at_once=8))
    assert most == engine.streams


def test_a_function_is_a_model_of_many_too(folder: Path, tmp_path: Path) -> None:
    def bright(tiles: Any) -> Any:
        return np.concatenate([-tiles, tiles], axis=1)

    said = {"tile": 64, "overlap": 16, "mean": 128.0, "std": 64.0, "classes": ("dark", "bright")}
    found = list(tilelab.infer_many(folder, bright, tmp_path / "out", **said))
    assert sum(o.run is not None for o in found) == 9
    for outcome in found:
        if outcome.run is not None:
            share = (tifffile.imread(outcome.image) > 128).mean()
            assert outcome.row.areas["bright"] == pytest.approx(share, abs=0.01)


def test_two_images_of_one_name_keep_theirs_for_ever(tmp_path: Path) -> None:
    for inner in ("a", "b"):
        (tmp_path / inner).mkdir()
        tifffile.imwrite(tmp_path / inner / "x.tif", micrograph(1 + (inner == "b")))
    out = tmp_path / "out"
    assert main(["infer", str(tmp_path / "b" / "x.tif"), *FLAGS, "-o", f"{out}/"]) == 0
    assert main(["infer", str(tmp_path / "*" / "x.tif"), *FLAGS, "-o", str(out)]) == 0
    rows = table(out)
    assert {name: Path(row["image"]).parent.name for name, row in rows.items()} == {"a_x": "a", "x": "b"}
    assert known_names(out / "summary.csv") == {row["image"]: name for name, row in rows.items()}


def test_names_that_a_spreadsheet_would_take_for_formulas_stay(tmp_path: Path) -> None:
    images = [tmp_path / "-10.tif", tmp_path / "+10.tif"]
    for i, image in enumerate(images):
        tifffile.imwrite(image, micrograph(i))
    for again in (False, True):
        found = list(tilelab.infer_many(images, MODEL, tmp_path / "out", options=OPTIONS))
        assert [o.run is not None and o.run.already_finished for o in found] == [again, again]
    assert {path.name for path in (tmp_path / "out").glob("*.ome.zarr")} == {"-10.ome.zarr", "+10.ome.zarr"}
    assert set(table(tmp_path / "out")) == {"'-10", "'+10"}


def test_an_image_that_does_not_suit_the_model_costs_itself_alone(tmp_path: Path) -> None:
    images = [tmp_path / f"m{size}.tif" for size in (20, 8, 9)]
    for image, size in zip(images, (20, 8, 9), strict=True):
        resolution = (1e7 / size, 1e7 / size)
        pixels = draw_superalloy((130, 140), size)[0]
        tifffile.imwrite(image, pixels, resolution=resolution, resolutionunit="CENTIMETER")
    words: dict[str, Any] = {"model_pixel_size_nm": 8.5, "device": "cpu"}
    found = {o.name: o.error for o in tilelab.infer_many(images, "superalloy", tmp_path / "out", **words)}
    assert {name for name, error in found.items() if error} == {"m20"}
    assert "20 nm per pixel, the model was trained on 8.5" in found["m20"]
    with pytest.raises(ModelError, match="20 nm per pixel"):
        list(tilelab.infer_many(images[:1], "superalloy", tmp_path / "one", **words))


@given(
    st.lists(st.sampled_from(["a/x.tif", "b/x.tif", "a/X.TIF", "x.png", "x.ome.tif", "f.h5::/a", "f.h5::/b", "*.tif"]))
)
def test_names_are_unique_and_stay(images: list[str]) -> None:
    names = choose_names(images, {})
    assert set(names) == set(images)
    assert len({name.lower() for name in names.values()}) == len(names)
    known = {place_of(image): name for image, name in names.items()}
    assert choose_names(reversed(images), known) == names


def write_slices(folder: Path, numbers: list[int], shapes: list[tuple[int, int]] | None = None) -> Path:
    folder.mkdir()
    for i, number in enumerate(numbers):
        tifffile.imwrite(folder / f"s_{number:03d}.tif", micrograph(number, *(shapes[i] if shapes else (70, 80))))
    return folder


def test_a_folder_is_a_stack_only_where_that_was_said_or_is_evident(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = write_slices(tmp_path / "stack", [3, 4, 5, 6])
    out = str(tmp_path / "stack.ome.zarr")
    assert main(["infer", str(stack), *FLAGS, "-o", out]) == 0
    assert "one stack, because their names count without a gap" in capsys.readouterr().err
    assert tilelab.read_result(out).labels[0].shape == (4, 70, 80)
    with pytest.raises(StrictError, match="--stack or --no-stack"):
        tilelab.infer(stack, MODEL, tmp_path / "strict.ome.zarr", options=Options(strict=True))
    said = Options(strict=True, stack=True)
    assert not tilelab.infer(stack, MODEL, tmp_path / "said.ome.zarr", options=said).report["assumptions"]
    assert main(["infer", str(stack), *FLAGS, "-o", str(tmp_path / "into")]) == 0
    assert list(table(tmp_path / "into")) == ["stack"]
    assert main(["infer", str(stack), "--no-stack", *FLAGS, "-o", str(tmp_path / "each")]) == 0
    assert len(table(tmp_path / "each")) == 4


@pytest.mark.parametrize(
    ("numbers", "shapes"), [([1, 2, 4], None), ([1, 2, 3], [(70, 80), (70, 80), (70, 81)]), ([1, 10, 20], None)]
)
def test_other_folders_are_images_of_their_own(
    tmp_path: Path, numbers: list[int], shapes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_slices(tmp_path / "images", numbers, shapes)
    assert main(["infer", str(folder), *FLAGS, "-o", str(tmp_path / "out")]) == 0
    assert "3 images of their own (--stack makes slices of one stack of them)" in capsys.readouterr().err
    assert len(table(tmp_path / "out")) == 3
    with pytest.raises(InputError, match=r"--stack|separate images are no stack"):
        tilelab.infer(folder, MODEL, tmp_path / "one.ome.zarr")
    if shapes is None:
        run = tilelab.infer(folder, MODEL, tmp_path / "one.ome.zarr", options=Options(stack=True))
        assert run.report["shape"] == [3, 70, 80]


@given(st.integers(-3, 995), st.integers(2, 12), st.sampled_from(["{}", "s{}", "s_{:03d}", "a2_z{:04d}_b7"]))
def test_numbers_that_count_are_seen_in_any_spelling(first: int, count: int, pattern: str) -> None:
    names = [pattern.format(n) + ".tif" for n in range(max(0, first), max(0, first) + count)]
    assert are_counted(names)
    assert not are_counted([*names, pattern.format(max(0, first) + count + 1) + ".tif"])
    assert not are_counted([*names[:-1], "other.tif"])


def test_words_mean_files_folders_patterns_and_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "m1_mask.tif").write_bytes((folder / "m1.tif").read_bytes())
    monkeypatch.chdir(folder.parent)
    found, notes = gather_images(["images/m1.tif", "images", "images/m*.tif", "nowhere.tif", "**/m2.tif"], None)
    assert found[0] == "images/m1.tif"
    assert len(found) == len(set(found)) == 13
    assert "nowhere.tif" in found
    assert any("m1_mask.tif" in note for note in notes)


def test_what_cannot_be_meant_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    many = [str(folder / "m1.tif"), str(folder / "m2.tif")]
    for words in (
        [*many, "-o", str(tmp_path / "one.ome.zarr")],
        many,
        [*many, "-o", str(tmp_path / "out"), "--report", str(tmp_path / "r.json")],
        [*many, "--stack", "-o", str(tmp_path / "out")],
        [many[0], "-o", str(tmp_path / "one.png"), "--format", "png"],
    ):
        assert main(["infer", *words, *FLAGS]) == 2
    out = tmp_path / "mine"
    out.mkdir()
    (out / "summary.csv").write_text("a,b\n1,2\n")
    with pytest.raises(OutputError, match="not a table of tilelab"):
        tilelab.infer_many(many, MODEL, out)
    assert [p.name for p in out.iterdir()] == ["summary.csv"]


@pytest.mark.parametrize("kind", ["png", "ome.tif"])
def test_results_can_be_files(folder: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    images = [str(folder / "m1.tif"), str(folder / "m2.tif")]
    for seen in ("2 of 2", "0 of 2"):
        assert main(["infer", *images, *FLAGS, "-o", str(out), "--format", kind]) == 0, seen
        assert all(row["area_class 1"] for row in table(out).values())
    assert (out / f"m1.{kind}").is_file()
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_images_wait_for_memory_in_the_order_in_which_they_ask() -> None:
    from tilelab.run.plan.plan import BASE_BYTES

    class Asked:
        memory_bytes = BASE_BYTES + 60

    turns = Turns(Options(memory_bytes=BASE_BYTES + 100), alone=False)
    with turns.turn(Asked()):  # type: ignore[arg-type]
        assert not turns._fits(60)
        assert turns._fits(40)
    assert turns._fits(10**12)  # alone it may always


def test_plan_sums_many_and_names_those_that_cannot_be_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(folder), *FLAGS[:-1], "--speed", "2"]
    assert main([*command, "--json"]) == 4
    plan = json.loads(capsys.readouterr().out)
    assert plan["images"] == len(plan["plans"]) == 9
    assert {Path(path).name for path in plan["failed"]} == {"empty.tif", "words.png", "half.tif"}
    assert plan["megapixels"] == pytest.approx(sum((90 + 7 * i) * 120 for i in range(9)) / 1e6)
    assert plan["seconds"] == pytest.approx(plan["megapixels"] / 2, rel=0.2)
    assert plan["tiles"] == sum(one["tiles"] for one in plan["plans"].values())
    main(command)
    assert "9, " in capsys.readouterr().out


def test_a_plan_of_many_chooses_tiles_by_the_first_that_can_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first by name is broken, and ended the plan."""
    chosen: dict[str, Any] = {"resolution": (200_000, 200_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "a-coarse.tif", micrograph(1), **chosen)  # 50 nm
    broken = {"a-coarse.tif", "empty.tif", "words.png", "half.tif"}
    command = ["plan", str(folder), "-m", "superalloy", "--model-pixel-size", "5", "--speed", "2", "--json"]
    assert main(command) == 4
    plan = json.loads(capsys.readouterr().out)
    assert (plan["images"], {Path(path).name for path in plan["failed"]}) == (9, broken)
    for path in folder.glob("m*.tif"):
        path.unlink()
    assert main(command) == 2
    assert main([*command[:2], "-m", "nothing"]) == 2
    assert "there is no model 'nothing'" in capsys.readouterr().err


def test_workers_give_a_picture_a_report_and_the_areas_of_each_too(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    out, images = tmp_path / "out", [str(folder / name) for name in ("m1.tif", "empty.tif")]
    assert main(["infer", *images, *FLAGS, "-o", str(out), "--at-once", "2", "--workers", "2"]) == 2
    for _ in range(2):  # and again, from what was kept
        assert main(["infer", *images, *FLAGS, "-o", str(out), "--workers", "2"]) == 4
        row = table(out)["m1"]
        assert 0 < float(row["area_class 1"]) < 1
        assert row["seconds"]
    assert (out / "overviews" / "m1.jpg").is_file()
    assert json.loads((out / "reports" / "m1.json").read_text())["workers"]["count"] == 2
    assert "class 1" in (out / "summary.html").read_text()


def test_convert_writes_each_of_many_and_leaves_what_is_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "zarrs"
    assert main(["convert", str(folder), str(out) + "/", "-q"]) == 4
    assert "9 of 12 images written, 3 failed" in capsys.readouterr().err
    for i in range(9):
        with tilelab.open_image(out / f"m{i}.ome.zarr") as image:
            assert np.array_equal(image.read(Box.whole(image.shape)), micrograph(i))
    assert main(["convert", str(folder / "m*.tif"), str(out), "-q"]) == 0
    assert "0 of 9 images written, 9 were there already" in capsys.readouterr().err


def test_convert_says_where_many_go(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder / "m1.tif"), str(folder / "m2.tif"), str(tmp_path / "a.ome.tif")]) == 2
    assert "a.ome.tif holds one result: give a folder, FOLDER/ as DST" in capsys.readouterr().err


def test_convert_is_strict_when_asked(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 60, 70), np.float32))
    target = tmp_path / "a.ome.zarr"
    with pytest.raises(StrictError, match="--axes"):
        convert_image(tmp_path / "a.npy", target, strict=True)
    assert not target.exists()
    assert main(["convert", str(tmp_path / "a.npy"), str(target), "--strict", "-q"]) == 2
    assert main(["convert", str(tmp_path / "a.npy"), str(target), "--strict", "--axes", "zyx", "-q"]) == 0


def test_eval_names_the_pairs_that_cannot_be_read_and_scores_the_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth"
    shutil.copytree(folder, truth)
    tifffile.imwrite(truth / "m3.tif", micrograph(4))  # of another size
    for inner in (folder, truth):
        for file in inner.glob("m*.tif"):
            tifffile.imwrite(file, (tifffile.imread(file) > 128).astype(np.uint8))
    assert main(["eval", str(folder), str(truth), "--json", str(tmp_path / "e.json")]) == 4
    document = json.loads((tmp_path / "e.json").read_text())
    assert set(document["failed"]) == {"m3", "empty", "words", "half"}
    assert len(document["images"]) == 8
    assert document["all"]["mean_iou"] == 1
    assert "in no score: m3: " in capsys.readouterr().out
    assert main(["eval", str(folder / "m3.tif"), str(truth / "m3.tif")]) == 2
