"""Masks of every kind, judged by one rule before training and in `tilelab eval`: true, or refused with the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tilelab.cli.main import main
from tilelab.errors import InputError
from tilelab.evaluation import LabelMap, open_labels
from tilelab.evaluation.census import Census, judge, report_unlisted, suggest_map
from tilelab.evaluation.label_map import IGNORE
from tilelab.evaluation.metrics import count_confusion, score_confusion
from tilelab.geometry import Box

Encode = Callable[[np.ndarray], np.ndarray]


def draw(classes: int = 2, shape: tuple[int, int] = (40, 48), seed: int = 0) -> np.ndarray:
    """Classes in blocks of 4 px, all of them there."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (shape[0] // 4, shape[1] // 4), dtype=np.uint8)
    coarse.flat[:classes] = range(classes)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        if array.ndim == 3 and array.shape[-1] in (3, 4):
            options.setdefault("photometric", "rgb")
        tifffile.imwrite(path, array, **options)
    return path


def whole(path: Path, text: str = "") -> np.ndarray:
    labels = open_labels(path, LabelMap.parse(text) if text else None)
    return labels.read(Box.whole(labels.shape))[0]


# --- what a map says ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-300, 300), st.integers(0, 90), st.integers(0, 255)), max_size=6), st.data())
def test_ranges_are_inclusive_and_say_one_thing_of_each_value(spans: list[Any], data: st.DataObject) -> None:
    """Against a dictionary of all values."""
    table: dict[int, int] = {}
    clash = False
    for first, length, label in spans:
        clash |= any(value in table for value in range(first, first + length + 1))
        table |= dict.fromkeys(range(first, first + length + 1), label)
    text = ",".join(f"{a}-{a + n}:{k}" if n or data.draw(st.booleans()) else f"{a}:{k}" for a, n, k in spans)
    if clash:
        with pytest.raises(InputError, match="says twice what"):
            LabelMap.parse(text)
        return
    if not spans:
        return
    stored = np.arange(-310, 400)
    expected = [table.get(value, 0) for value in stored.tolist()]
    mapping = LabelMap.parse(text)
    assert mapping.map_values(stored.astype(np.float32)).tolist() == expected
    positive = stored[stored >= 0].astype(np.uint16)
    assert mapping.map_values(positive).tolist() == expected[310:]
    assert [mapping.lists(value) for value in stored.tolist()] == [value in table for value in stored.tolist()]


def test_others_and_ignore() -> None:
    stored = np.array([0, 7, 9, 255], np.uint8)
    assert LabelMap.parse("9:2,*:1").map_values(stored).tolist() == [1, 1, 2, 1]
    assert LabelMap.parse("7:ignore, 255:1").map_values(stored).tolist() == [0, IGNORE, 0, 1]


@pytest.mark.parametrize("text", ["9-3:1", "0-9:1,5:1", "1:0,1:1", "*:1,*:0", "#ff0000:1,#FF0000:2", "1-:1", "0..9:1"])
def test_maps_that_contradict_themselves_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="label map"):
        LabelMap.parse(text)


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 65535), st.integers(1, 50), min_size=1, max_size=40), st.integers(2, 6))
def test_the_map_that_is_proposed_would_be_taken(counts: dict[int, int], classes: int) -> None:
    """It parses, every value is in it but for a background that needs none, and it names only classes there are."""
    census = Census("m.tif")
    census.add([np.repeat(np.array(list(counts), np.uint16), list(counts.values()))])
    assert census.counts == counts
    names = [f"c{k}" for k in range(classes)]
    if max(counts) < classes:
        judge(census, None, names)
        return
    mapping = LabelMap.parse(suggest_map(census, classes))
    with pytest.raises(
        InputError, match=f'labels = "{mapping.text}" in the recipe or --truth-map {mapping.text} in eval'
    ):
        judge(census, None, names)
    assert mapping.classes() <= {*range(classes), IGNORE}
    assert set(census.unlisted(mapping)) <= {0}
    judge(census, mapping, names)
    report_unlisted(census, mapping, names)


# --- every kind, in training and in scoring -------------------------------------------------------------------------

RGB = np.array([(90, 90, 90), (0, 0, 255), (255, 0, 0)], np.uint8)

# name of the file, number of classes, how classes are stored, what is said, and the map that mends it
REFUSED: dict[str, tuple[str, int, Encode, str, str]] = {
    "0, 255": ("m.png", 2, lambda m: m * np.uint8(255), r"0 \(.* %\), 255 \(.* %\)", "255:1"),
    "0, 1, 255": ("m.png", 2, lambda m: np.where(draw(2, seed=9) & (m == 0), 255, m).astype(np.uint8),
                  r"0 .*, 1 .*, 255 \(.* %\)", "0:0,1:1,255:ignore"),
    "0, 127, 254": ("m.png", 3, lambda m: m * np.uint8(127), r"127 .*, 254", "0:0,127:1,254:2"),
    "16 bits": ("m.tif", 2, lambda m: m * np.uint16(65535), "65535", "65535:1"),
    "floats": ("m.tif", 2, lambda m: m * np.float32(255), "255", "255:1"),
    "signed": ("m.tif", 2, lambda m: -m.astype(np.int16), "-1", "-1:"),
    "more values than classes": ("m.npy", 2, lambda m: m + 2 * draw(2, seed=9), r"2 \(.*3 \(",
                                 "0:0,1:1,2:ignore,3:ignore"),
    "grey values": ("m.png", 2, lambda m: grey(m), r"0 to 8 \(.* %\), 247 to 255 \(.* %\)", "0-127:0,128-255:1"),
    "colours": ("m.png", 3, lambda m: RGB[m], r"in colours, (?=.*#5a5a5a \()(?=.*#0000ff \().*#ff0000 \(", "#"),
    "colours with alpha": ("m.tif", 2, lambda m: np.dstack([RGB[m], np.full_like(m, 255)]), "in colours", "#"),
    "grey as colours": ("m.png", 2, lambda m: np.dstack([m * np.uint8(255)] * 3), "#000000 .*#ffffff", "#"),
    "a probability": ("m.tif", 2, lambda m: m * np.float32(0.5), "no class, 0.5 .*thresholded", ""),
    "not finite": ("m.tif", 2, lambda m: np.where(m == 1, np.nan, 0).astype(np.float32), "no class, nan", ""),
}  # fmt: skip


def grey(mask: np.ndarray) -> np.ndarray:
    """As U-RISC's truth is stored: 0 to 8 is class 1, 247 to 255 the rest."""
    noise = np.random.default_rng(5).integers(0, 9, mask.shape)
    noise.flat[:9] = range(9)
    noise.flat[-9:] = range(9)
    return np.where(mask == 1, noise, 255 - noise).astype(np.uint8)


@pytest.mark.parametrize("kind", REFUSED)
def test_eval_refuses_with_the_map_that_mends(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    name, classes, encode, said, text = REFUSED[kind]
    truth = draw(classes)
    save(tmp_path / "pred.png", truth)
    path = save(tmp_path / name, encode(truth))
    names = ",".join(f"c{k}" for k in range(classes))
    command = ["eval", str(tmp_path / "pred.png"), str(path), "--classes", names]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"{re.escape(name)}.*{said}", line)
    if text:
        proposed = re.search(r"--truth-map[ =]'?(\S+?)'? in eval", line)
        assert proposed is not None
        assert proposed[1].startswith(text)
        assert f'labels = "{proposed[1]}"' in line
        assert main([*command, f"--truth-map={proposed[1]}"]) == 0


TAKEN: dict[str, tuple[str, Encode, str]] = {
    "true and false": ("m.npy", lambda m: m == 1, ""),
    "true and false with an old map": ("m.npy", lambda m: m == 1, "255:1"),
    "one bit": ("m.tif", lambda m: m == 1, ""),  # tifffile writes it to be shown white where it is false
    "floats": ("m.tif", lambda m: m.astype(np.float64), ""),
    "int64": ("m.npy", lambda m: m.astype(np.int64), ""),
    "grey values": ("m.tif", grey, "0-127:1,128-255:0"),
    "16 bits": ("m.tif", lambda m: m * np.uint16(65535), "65535:1"),
    "colours": ("m.png", lambda m: RGB[m], "#0000ff:1"),
    "grey as colours": ("m.png", lambda m: np.dstack([m * np.uint8(255)] * 3), "255:1"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_said_is_taken(tmp_path: Path, kind: str) -> None:
    name, encode, text = TAKEN[kind]
    mask = draw()
    np.testing.assert_array_equal(whole(save(tmp_path / name, encode(mask)), text), mask)


def palette_tiff(path: Path, mask: np.ndarray) -> None:
    table = np.zeros((3, 256), np.uint16)
    table[:, :3] = [[65535, 15420, 15420], [65535, 15420, 15420], [65535, 15420, 15420]]
    tifffile.imwrite(path, mask, photometric="palette", colormap=table)


def palette_png(path: Path, mask: np.ndarray) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette([255, 255, 255, 60, 60, 60, 60, 60, 60])
    picture.save(path)


def palette_png_of_two_bits(path: Path, mask: np.ndarray) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette([255, 255, 255, 60, 60, 60, 60, 60, 60])
    picture.save(path, bits=2)


@pytest.mark.parametrize(
    ("suffix", "write"), [(".tif", palette_tiff), (".png", palette_png), (".png", palette_png_of_two_bits)]
)
def test_colour_tables_are_indices(tmp_path: Path, suffix: str, write: Callable[[Path, np.ndarray], None]) -> None:
    """Even where two indices have one colour; as single files and as a folder of slices."""
    mask = draw(3)
    write(tmp_path / f"m{suffix}", mask)
    np.testing.assert_array_equal(whole(tmp_path / f"m{suffix}"), mask)
    np.testing.assert_array_equal(whole(tmp_path / f"m{suffix}", "2:1"), mask == 2)
    (tmp_path / "slices").mkdir()
    for z in range(3):
        write(tmp_path / "slices" / f"{z}{suffix}", np.roll(mask, z))
    labels = open_labels(tmp_path / "slices")
    expected = np.stack([np.roll(mask, z) for z in range(3)])
    np.testing.assert_array_equal(labels.read(Box.whole(labels.shape)), expected)


def test_a_folder_of_slices_in_colours_is_not_read_as_grey(tmp_path: Path) -> None:
    mask = draw(3)
    for z in range(2):
        save(tmp_path / "slices" / f"{z}.png", RGB[mask])
    with pytest.raises(InputError, match=r"slices is in colours.*#0000ff"):
        open_labels(tmp_path / "slices")
    picture = np.random.default_rng(0).integers(0, 255, (*mask.shape, 1), np.uint8).repeat(3, axis=2)
    picture[mask == 1] = RGB[1]
    with pytest.raises(InputError, match=r'shown\.png is in colours.* others .*labels = "#0000ff:1"'):
        open_labels(save(tmp_path / "shown.png", picture))  # greys of a picture are all others
    labels = open_labels(tmp_path / "slices", LabelMap.parse("#0000ff:1,#ff0000:2"))
    np.testing.assert_array_equal(labels.read(Box.whole(labels.shape))[1], mask)


def test_a_map_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    mask = draw(3)
    for name, array, text in (("rgb.png", RGB[mask], "255:1"), ("grey.png", mask, "#ff0000:1")):
        path = save(tmp_path / name, array)
        with pytest.raises(InputError, match=rf"{name} .*while the label map '{text}' names"):
            whole(path, text)


def test_qupaths_labels_score_one(capsys: pytest.CaptureFixture[str]) -> None:
    import os

    root = Path(os.environ.get("TILELAB_CASES", Path(__file__).parents[1].parent / "shared" / "cases")) / "images"
    if not root.is_dir():
        pytest.skip("no cases of others here (set TILELAB_CASES)")
    pair = [str(root / "qupath_labels.tif"), str(root / "qupath_labels_plain.png")]
    for command in (pair, pair[::-1]):
        assert main(["eval", *command]) == 0
        assert "1.0000 |   1.0000" in capsys.readouterr().out


# --- scores ---------------------------------------------------------------------------------------------------------


def test_grey_truth_as_urisc_stores_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The obvious command gives the pixel F1 of membrane that counting by hand gives, for every image and for all."""
    rng = np.random.default_rng(1)
    total = np.zeros((256, 256), np.int64)
    expected = {}
    for k in range(4):
        truth = draw(seed=k, shape=(64, 80))
        labels = np.where(rng.random(truth.shape) < 0.2, 1 - truth, truth).astype(np.uint8)
        save(tmp_path / "truth" / f"{k}.tiff", grey(truth))
        save(tmp_path / "pred" / f"{k}.png", labels)
        hits = int((labels & truth).sum())
        expected[str(k)] = 2 * hits / int(labels.sum() + truth.sum())
        total += count_confusion(labels, truth)
    command = ["eval", str(tmp_path / "pred"), str(tmp_path / "truth"), "--truth-map", "0-127:1,128-255:0"]
    assert main([*command, "--json", str(tmp_path / "s.json")]) == 0
    document = json.loads((tmp_path / "s.json").read_text())
    assert {image["name"]: image["foreground_f1"] for image in document["images"]} == pytest.approx(expected)
    assert document["all"]["foreground_f1"] == pytest.approx(score_confusion(total[:2, :2]).f1[1])
    assert document["notes"] == []
    capsys.readouterr()
    assert main([*command[:-1], "0:1"]) == 0  # the map of a set without greys: what it drops is said
    said = capsys.readouterr().out
    assert re.search(r"truth \(4 files\): not in the label map '0:1' and so class 0: 1 to 8 \(.* %\), 247 to 255", said)
    assert "unlisted" in said


def test_a_map_of_other_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "m.png", draw())
    assert main(["eval", str(path), str(path), "--truth-map", "255:1"]) == 2
    assert re.search(r"nothing that the label map '255:1' lists occurs, there is 0 .*, 1 ", capsys.readouterr().err)
    empty = save(tmp_path / "e.png", np.zeros((40, 48), np.uint8))  # a truth without anything is no mistake
    assert main(["eval", str(path), str(empty), "--truth-map", "255:1"]) == 0
    assert "not in the label map '255:1' and so class 0: 0 (100 %)" in capsys.readouterr().out


def test_what_is_left_out_and_what_the_means_are_over_is_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = draw(2)
    truth[:10] = 7
    pred = save(tmp_path / "p.png", draw(2))
    path = save(tmp_path / "t.png", truth)
    command = ["eval", str(pred), str(path), "--classes", "a,b,c", "--json", str(tmp_path / "s.json")]
    for words in (["--truth-map", "0:0,1:1,7:ignore"], ["--ignore", "7"]):
        assert main([*command, *words]) == 0
        out = capsys.readouterr().out
        row = next(line for line in out.splitlines() if line.startswith("| p "))
        assert row.rstrip("| ").endswith(f"{10 * 48}")
        assert "Means are over a, b; c occurs nowhere." in out
        document = json.loads((tmp_path / "s.json").read_text())
        assert (document["images"][0]["ignored"], document["all"]["mean_over"]) == (480, ["a", "b"])
        assert document["all"]["iou"]["c"] is None
    assert main([*command, "--ignore", "7", "--assd"]) == 0
    assert "pixels that are left out count there as background" in capsys.readouterr().out
    assert main([*command, "--truth-map", "0:0,1:5,7:ignore"]) == 2
    assert "names class 5, the classes are 0 to 2 (a, b, c)" in capsys.readouterr().err


def test_different_pixel_sizes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, per_cm in (("p.tif", 2.5e6), ("t.tif", 1.25e6), ("same.tif", 2.501e6)):
        tifffile.imwrite(tmp_path / name, draw(), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
    assert main(["eval", str(tmp_path / "p.tif"), str(tmp_path / "t.tif")]) == 0
    assert re.search(r"p\.tif has pixels of 4 nm, its truth .*t\.tif of 8 nm", capsys.readouterr().out)
    assert main(["eval", str(tmp_path / "p.tif"), str(tmp_path / "same.tif")]) == 0
    assert "has pixels of" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--markdown", "."], "would overwrite PRED"),
        (["--json", "s", "--markdown", "./s"], "are one place"),
        (["--pictures", "m.png"], "would overwrite PRED"),
        (["--pictures", "m.png/sub"], "m.png is no folder"),
        (["--pictures", "out", "--picture-size", "0"], "at least 1 pixel"),
        (["--pictures", "out", "--image", "small.png"], r"small\.png is 8 x 8 \(yx\), .*m\.png 1 x 40 x 48"),
    ],
)
def test_outputs_are_checked_before_anything_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("m.png"), draw())
    save(Path("small.png"), np.zeros((8, 8), np.uint8))
    monkeypatch.setattr("tilelab.evaluation.scoring._count", lambda *_: pytest.fail("counted"))
    assert main(["eval", "m.png", "m.png", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
