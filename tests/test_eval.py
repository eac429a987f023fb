"""`tilelab eval`: pairing, label maps, streaming, tables, pictures, and one clear line for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from tilelab.cli.main import main
from tilelab.errors import InputError
from tilelab.evaluation import LabelMap, Pair, evaluate, find_pairs, open_labels, pictures, scoring, shapes
from tilelab.evaluation.metrics import count_confusion, score_confusion
from tilelab.evaluation.metrics.isbi import score_isbi
from tilelab.evaluation.metrics.surface import measure_surfaces
from tilelab.evaluation.pictures import accuracy_map, draw_errors, error_overlay
from tilelab.evaluation.report import to_json, to_markdown
from tilelab.evaluation.scoring import Question, block_extent
from tilelab.geometry import Box
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Finished
from tilelab.io.zarr.layout import Layout
from tilelab.spec import ClassInfo

CLASSES = (ClassInfo("inside", "#000000"), ClassInfo("membrane", "#ff0000"))


def blobs(seed, shape=(90, 120), classes=3):
    """Smooth labels of every class, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (-(-shape[-2] // 7), -(-shape[-1] // 9)), dtype=np.uint8)
    return np.kron(coarse, np.ones((7, 9), np.uint8))[: shape[-2], : shape[-1]]


def save_png(path: Path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(labels).save(path)
    return path


def save_result(path: Path, labels, *, probabilities=None, pixel_size_nm=None, classes=CLASSES):
    """A result as `tilelab infer` writes it, from labels (y, x) or (z, y, x) and probabilities of class 1."""
    axes = "yx" if labels.ndim == 2 else "zyx"
    layout = Layout.fit(labels.shape, pixel_size_nm)
    sink = OmeZarrSink.create(
        path,
        layout,
        classes=classes,
        probabilities=() if probabilities is None else (1,),
        axes=axes,
        pixel_size_nm=pixel_size_nm,
    )
    writer = sink.writer(Box.whole(layout.shape), 0, 1)
    volume = labels.reshape(layout.shape)
    channel = None if probabilities is None else probabilities.reshape(1, *layout.shape)
    writer.write(Finished(volume, channel, None))
    writer.close()
    sink.finalize()
    return path


def whole(labels):
    """Everything in a `Labels`, ``(z, y, x)``."""
    return labels.read(Box.whole(labels.shape))


# --- label maps -------------------------------------------------------------------------------------------------


def test_label_maps_of_values():
    stored = np.array([[0, 255, 128, 7]])
    assert LabelMap.parse("255:1").map_values(stored).tolist() == [[0, 1, 0, 0]]
    assert LabelMap.parse("0:1").map_values(stored).tolist() == [[1, 0, 0, 0]]  # an inverted mask
    assert LabelMap.parse(" 255:1, 128:2 ,7:3").map_values(stored).tolist() == [[0, 1, 2, 3]]
    assert LabelMap.parse("65535:1").map_values(np.array([[65535, 1]], np.uint16)).tolist() == [[1, 0]]


@pytest.mark.parametrize("text", ["", "255", "255=1", "#00f:1", "a:1", "1:256", "255:1,", "255:1,#0000ff:2"])
def test_label_maps_that_mean_nothing_are_refused(text):
    with pytest.raises(InputError, match="label map"):
        LabelMap.parse(text)


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 1), (np.uint16, 257)])
@pytest.mark.parametrize("samples", [3, 4])
def test_label_maps_of_colours(tmp_path, dtype, scale, samples):
    palette = np.array([[40, 40, 40, 255], [0, 0, 255, 255], [255, 0, 0, 255], [0, 0, 254, 255]], np.uint16) * scale
    truth = blobs(1, classes=4)
    tifffile.imwrite(tmp_path / "m.tif", palette[truth][..., :samples].astype(dtype), photometric="rgb")
    labels = open_labels(tmp_path / "m.tif", LabelMap.parse("#0000ff:1,#FF0000:2"))
    np.testing.assert_array_equal(whole(labels)[0], np.array([0, 1, 2, 0], np.uint8)[truth])
    with pytest.raises(InputError, match=r"m\.tif is in colours, #282828 \(.* %\).* #ff0000 \(.* %\).*--truth-map '#"):
        open_labels(tmp_path / "m.tif")


def test_palettes_are_read_as_indices(tmp_path):
    truth = blobs(2)
    picture = Pillow.fromarray(truth, mode=None).convert("L")
    picture.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    picture.save(tmp_path / "p.png")
    with Pillow.open(tmp_path / "p.png") as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(whole(open_labels(tmp_path / "p.png"))[0], truth)


def test_values_that_are_no_indices_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", np.full((5, 6), 0.5, np.float32))
    tifffile.imwrite(tmp_path / "i.tif", np.full((5, 6), 300, np.uint16))
    for name, said in (
        ("f.tif", r"values that are no class, 0\.5 .*whole numbers from 0 to 255"),
        ("i.tif", "300.*300:1"),
    ):
        with pytest.raises(InputError, match=rf"{name} holds {said}"):
            whole(open_labels(tmp_path / name))
    tifffile.imwrite(tmp_path / "ok.tif", np.full((5, 6), 3, np.int32))
    assert np.unique(whole(open_labels(tmp_path / "ok.tif"))).tolist() == [3]


# --- pairs ------------------------------------------------------------------------------------------------------


def test_folders_pair_by_name_and_say_what_does_not(tmp_path):
    for name in ("pred/a.ome.zarr/zarr.json", "pred/b.tif", "pred/c.PNG", "pred/only.png", "pred/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("truth/a.png", "truth/b_mask.ome.tif", "truth/C.labels.tif", "truth/lost.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pairs, notes = find_pairs(tmp_path / "pred", tmp_path / "truth")
    assert [(p.name, p.prediction.name, p.truth.name) for p in pairs] == [
        ("a", "a.ome.zarr", "a.png"),
        ("b", "b.tif", "b_mask.ome.tif"),
        ("c", "c.PNG", "C.labels.tif"),
    ]
    assert len(notes) == 2
    assert notes[0].endswith(f"only.png has no truth in {tmp_path / 'truth'}")
    assert notes[1].endswith(f"lost.png has no prediction in {tmp_path / 'pred'}")


def test_a_name_without_ending_pairs_only_when_it_is_clear(tmp_path):
    for name in (
        "pred/a.png",
        "truth/a_mask.png",
        "truth/a_label.png",
        "pred/b.png",
        "truth/b.png",
        "truth/b_mask.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pairs, notes = find_pairs(tmp_path / "pred", tmp_path / "truth")
    assert [(p.name, p.truth.name) for p in pairs] == [("b", "b.png")]
    assert len(notes) == 4


def test_files_pair_whatever_their_names_and_take_namesakes_out_of_folders(tmp_path):
    labels = blobs(0)
    one, other = save_png(tmp_path / "one.png", labels), save_png(tmp_path / "other.png", labels)
    assert find_pairs(one, other)[0] == [Pair("one", one, other)]
    save_png(tmp_path / "truth" / "one.png", labels)
    save_png(tmp_path / "truth" / "two.png", labels)
    pairs, notes = find_pairs(one, tmp_path / "truth", tmp_path / "truth")
    assert pairs == [Pair("one", one, tmp_path / "truth" / "one.png", tmp_path / "truth" / "one.png")]
    assert notes == []


def test_a_result_that_is_named_after_its_model_pairs_with_its_image_alone(tmp_path):
    for name in (
        "pred/a.superalloy.ome.zarr",
        "pred/b.axon.png",
        "pred/b.superalloy.png",
        "truth/a.tif",
        "truth/b.tif",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pairs, notes = find_pairs(tmp_path / "pred", tmp_path / "truth")
    assert [(p.name, p.truth.name) for p in pairs] == [("a.superalloy", "a.tif")]
    assert len(notes) == 3  # which of two models is meant for b, nobody said


def test_nothing_to_pair_is_an_error(tmp_path):
    one = save_png(tmp_path / "pred" / "one.png", blobs(0))
    save_png(tmp_path / "truth" / "two.png", blobs(0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="one against two"):
        find_pairs(tmp_path / "pred", tmp_path / "truth")
    with pytest.raises(InputError, match="empty holds no image"):
        find_pairs(one, tmp_path / "empty")
    with pytest.raises(InputError, match="no such file or folder"):
        find_pairs(one, tmp_path / "nowhere")
    save_png(tmp_path / "truth" / "two.tif", blobs(0))
    with pytest.raises(InputError, match=r"two\.png and .*two\.tif have the same name"):
        find_pairs(tmp_path / "pred", tmp_path / "truth")


# --- scores -----------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9000), st.integers(1, 200_000)),
    chunk=st.tuples(st.integers(1, 3000), st.integers(1, 200_000)),
)
def test_blocks_are_whole_chunks_and_bounded(shape, chunk):
    _, rows, columns = block_extent(shape, (1, *chunk))
    rows_of_chunk, columns_of_chunk = min(chunk[0], shape[1]), min(chunk[1], shape[2])
    assert rows % rows_of_chunk == 0 or rows == shape[1]
    assert columns % columns_of_chunk == 0 or columns == shape[2]
    assert rows * columns <= max(scoring._BLOCK, rows_of_chunk * columns_of_chunk)


def test_streaming_counts_what_one_look_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_BLOCK", 500)
    labels, truth = blobs(1, (130, 173)), blobs(2, (130, 173))
    tifffile.imwrite(tmp_path / "p.tif", labels, tile=(32, 48), compression="zlib")
    tifffile.imwrite(tmp_path / "t.tif", truth, rowsperstrip=7)
    evaluation = evaluate([Pair("p", tmp_path / "p.tif", tmp_path / "t.tif")])
    np.testing.assert_array_equal(evaluation.pooled.confusion, count_confusion(labels, truth)[:3, :3])


def test_pairs_are_pooled_pixel_by_pixel_and_absent_classes_left_out(tmp_path):
    small, large = blobs(3, (20, 30), classes=2), blobs(4, (200, 90))
    wrong = large.copy()
    wrong[:50] = 0
    pairs = [
        Pair("a", save_png(tmp_path / "a.png", small), save_png(tmp_path / "at.png", small)),
        Pair("b", save_png(tmp_path / "b.png", wrong), save_png(tmp_path / "bt.png", large)),
    ]
    evaluation = evaluate(pairs, Question(classes=("m", "s", "t")))
    expected = count_confusion(small, small)[:3, :3] + count_confusion(wrong, large)[:3, :3]
    np.testing.assert_array_equal(evaluation.pooled.confusion, expected)
    first, second = (pair.scores for pair in evaluation.pairs)
    assert np.isnan(first.iou[2])
    assert first.mean_iou == 1
    assert evaluation.image_mean_iou == pytest.approx((1 + second.mean_iou) / 2)
    row = next(line for line in to_markdown(evaluation).splitlines() if line.startswith("| a "))
    assert row.split("|")[7].strip() == "-"
    assert json.loads(to_json(evaluation))["images"][0]["iou"] == {"m": 1.0, "s": 1.0, "t": None}


def test_ignored_pixels_do_not_count(tmp_path):
    truth, labels = blobs(5), blobs(6)
    marked = truth.copy()
    marked[30:60] = 255
    pair = Pair("a", save_png(tmp_path / "a.png", labels), save_png(tmp_path / "t.png", marked))
    with pytest.raises(InputError, match=r"t\.png holds 0 .*255 \(33\.3 %\).*--truth-map 0:0,1:1,2:2,255:ignore "):
        evaluate([pair])
    kept = np.r_[0:30, 60:90]
    expected = count_confusion(labels[kept], truth[kept])[:3, :3]
    for question in (Question(ignore=255), Question(truth_map=LabelMap.parse("0:0,1:1,2:2,255:ignore"))):
        evaluation = evaluate([pair], question)
        np.testing.assert_array_equal(evaluation.pooled.confusion, expected)
        assert evaluation.pairs[0].ignored == 30 * 120


def test_what_is_left_out_may_be_any_value_and_is_no_error_in_pictures(tmp_path):
    truth, labels = blobs(5), blobs(6)
    save_png(tmp_path / "p.png", labels)
    for value, dtype in ((255, np.uint8), (65535, np.uint16), (300, np.uint16), (-1, np.int16)):
        marked = truth.astype(dtype)
        marked[30:60] = value
        tifffile.imwrite(tmp_path / "t.tif", marked)
        ways = [["--ignore", str(value)], [f"--truth-map=0:0,1:1,2:2,{value}:ignore"]]
        for way in ways:
            told, look = tmp_path / "s.json", tmp_path / "look"
            command = ["eval", str(tmp_path / "p.png"), str(tmp_path / "t.tif"), *way, "--objects", "--tolerance", "1"]
            assert main([*command, "--json", str(told), "--pictures", str(look)]) == 0
            scores = json.loads(told.read_text())
            assert scores["images"][0]["ignored"] == 30 * 120
            assert len(scores["classes"]) == 3
            assert any("left out count there as background" in note for note in scores["notes"])
            picture = np.array(Pillow.open(look / "p.errors.png"))[30:60]
            assert np.all(picture == picture[..., :1])  # grey: nothing is wrong


def test_a_prediction_leaves_nothing_out(tmp_path, capsys):
    save_png(tmp_path / "a.png", blobs(0))
    command = ["eval", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "--pred-map", "0:0,1:1,2:ignore"]
    assert main(command) == 2
    assert "leaves pixels out: only the truth can" in capsys.readouterr().err


def test_results_bring_their_classes_and_pixel_size(tmp_path):
    truth = blobs(7, (70, 80), classes=2)
    result = save_result(tmp_path / "r.ome.zarr", blobs(8, (70, 80), classes=2), pixel_size_nm=(4.0, 4.0))
    pair = Pair("r", result, save_png(tmp_path / "t.png", truth))
    evaluation = evaluate([pair], Question(surfaces=True))
    assert [info.name for info in evaluation.classes] == ["inside", "membrane"]
    assert evaluation.pixel_size_nm == (4.0, 4.0)
    expected = measure_surfaces(lambda a, b: (blobs(8, (70, 80), 2)[a:b], truth[a:b]), (70, 80), [1])
    assert evaluation.surfaces is not None
    assert evaluation.surfaces.assd[0] == pytest.approx(expected.assd[0])
    table = to_markdown(evaluation)
    assert f"{4 * expected.assd[0]:.1f} |" in table
    save_png(tmp_path / "t.png", np.full((70, 80), 2, np.uint8))
    with pytest.raises(InputError, match=r"holds 2 \(100 %\).*the classes are 0 to 1"):
        evaluate([pair])


def test_unfinished_results_and_results_without_labels_are_refused(tmp_path):
    (tmp_path / "r.ome.zarr.partial").mkdir()
    with pytest.raises(InputError, match="unfinished result"):
        open_labels(tmp_path / "r.ome.zarr.partial")


def test_stacks_are_scored_plane_by_plane_and_the_worst_plane_is_known(tmp_path):
    truth = np.stack([blobs(s, (60, 50), 2) for s in range(4)])
    labels = truth.copy()
    labels[2, :30] = 1 - labels[2, :30]
    labels[1, :5] = 1 - labels[1, :5]
    tifffile.imwrite(tmp_path / "t.tif", truth, photometric="minisblack")
    result = save_result(tmp_path / "r.ome.zarr", labels)
    scored = evaluate([Pair("r", result, tmp_path / "t.tif")], Question(surfaces=True, lines="membrane"))
    assert (scored.pairs[0].shape, scored.pairs[0].plane) == ((4, 60, 50), 2)
    np.testing.assert_array_equal(scored.pooled.confusion, count_confusion(labels, truth)[:2, :2])
    found = [measure_surfaces(lambda a, b, z=z: (labels[z, a:b], truth[z, a:b]), (60, 50), [1]) for z in range(4)]
    assert scored.surfaces is not None
    assert scored.surfaces.assd[0] == pytest.approx(sum(f.distance[0] for f in found) / sum(f.count[0] for f in found))
    assert scored.isbi == score_isbi([(1 - truth[z], 1 - labels[z]) for z in range(4)])


def test_isbi_scores_use_probabilities_where_a_result_has_them(tmp_path):
    rng = np.random.default_rng(0)
    stack = [blobs(s, (40, 50), 2) for s in (1, 2)]
    pairs, planes = [], []
    for i, truth in enumerate(stack):
        byte = np.clip(truth * 160.0 + rng.normal(40, 60, truth.shape), 0, 255).astype(np.uint8)
        result = save_result(tmp_path / f"{i}.ome.zarr", (byte > 127).astype(np.uint8), probabilities=byte)
        pairs.append(Pair(str(i), result, save_png(tmp_path / f"{i}.png", truth)))
        planes.append(((truth == 0).astype(np.float32), (255 - byte).astype(np.float32) / np.float32(255)))
    evaluation = evaluate(pairs, Question(lines=1))
    assert evaluation.isbi == score_isbi(planes)
    assert evaluation.pairs[0].isbi == score_isbi(planes[:1])
    assert 0 < evaluation.isbi.v_rand < 1
    assert "V_rand" in to_markdown(evaluation)
    assert json.loads(to_json(evaluation))["all"]["isbi"]["v_info"] == evaluation.isbi.v_info


def test_planes_too_large_for_region_scores_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "available_memory", lambda: 1000)
    save_png(tmp_path / "a.png", blobs(1, classes=2))
    from tilelab.errors import PlanError

    with pytest.raises(PlanError, match=r"whole plane in memory.*are free"):
        evaluate([Pair("a", tmp_path / "a.png", tmp_path / "a.png")], Question(lines=1))


# --- pictures ---------------------------------------------------------------------------------------------------


def test_accuracy_maps_have_the_colours_of_the_paper():
    found, true = np.array([[1, 0, 1, 0]], bool), np.array([[1, 0, 0, 1]], bool)
    white, black, cyan, magenta = (255, 255, 255), (0, 0, 0), (0, 255, 255), (255, 0, 255)
    assert [tuple(c) for c in accuracy_map(found, true)[0].tolist()] == [white, black, cyan, magenta]


def test_the_overlay_colours_wrong_pixels_only():
    labels, truth = np.array([[0, 1, 1, 0, 2]], np.uint8), np.array([[0, 1, 0, 2, 1]], np.uint8)
    picture = error_overlay(labels, truth, np.full((1, 5), 100, np.uint8))
    assert picture[0].tolist() == [[100] * 3, [100] * 3, [25, 216, 216], [216, 25, 216], [216, 216, 25]]


def test_pictures_are_bounded_and_average_the_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_BLOCK", 3000)
    truth, labels = blobs(1, (103, 205), 2), blobs(2, (103, 205), 2)
    tifffile.imwrite(tmp_path / "t.tif", truth, tile=(16, 16))
    tifffile.imwrite(tmp_path / "p.tif", labels, tile=(32, 32))
    for size, factor in ((1000, 1), (100, 3)):
        files = draw_errors(
            open_labels(tmp_path / "p.tif"), open_labels(tmp_path / "t.tif"), CLASSES, tmp_path / "out", "p", size=size
        )
        assert [f.name for f in files] == ["p.membrane.accuracy.png", "p.errors.png"]
        picture = np.array(Pillow.open(files[0]))
        full = accuracy_map(labels == 1, truth == 1).astype(float)
        assert picture.shape == (-(-103 // factor), -(-205 // factor), 3)
        for y, x in ((0, 0), (5, 9), (picture.shape[0] - 1, picture.shape[1] - 1)):
            cell = full[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            np.testing.assert_allclose(picture[y, x], cell.mean((0, 1)), atol=0.51)


def test_classes_of_alike_names_have_a_picture_each(tmp_path):
    truth = open_labels(save_png(tmp_path / "t.png", blobs(1)))
    found = open_labels(save_png(tmp_path / "p.png", blobs(2)))
    known = tuple(map(ClassInfo, ("matrix", "gamma'", "gamma''"), ("#000000", "#ff0000", "#00ff00")))
    *maps, _ = draw_errors(found, truth, known, tmp_path / "out", "p")
    for k, path in enumerate(maps, start=1):
        np.testing.assert_array_equal(np.array(Pillow.open(path)), accuracy_map(blobs(2) == k, blobs(1) == k))


def test_pictures_lie_over_the_micrograph(tmp_path):
    truth = blobs(1, (64, 64), 2)
    image = np.linspace(1000, 3000, 64 * 64).reshape(64, 64).astype(np.uint16)
    tifffile.imwrite(tmp_path / "image.tif", image)
    save_png(tmp_path / "t.png", truth)
    arguments = ["eval", str(tmp_path / "t.png"), str(tmp_path / "t.png"), "--pictures", str(tmp_path / "out")]
    assert main([*arguments, "--image", str(tmp_path / "image.tif")]) == 0
    picture = np.array(Pillow.open(tmp_path / "out" / "t.errors.png"))
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[-1, -1].tolist() == [255, 255, 255]
    assert np.all(np.diff(picture[..., 0].reshape(-1).astype(int)) >= 0)  # nothing is wrong, so nothing is coloured
    tifffile.imwrite(tmp_path / "image.tif", image[:32])
    assert main([*arguments, "--image", str(tmp_path / "image.tif")]) == 2


def test_pictures_of_a_micrograph_with_holes_show_the_rest(tmp_path):
    truth = blobs(1, (64, 64), 2)
    image = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    image[:8] = np.nan
    tifffile.imwrite(tmp_path / "image.tif", image)
    save_png(tmp_path / "t.png", truth)
    arguments = ["eval", str(tmp_path / "t.png"), str(tmp_path / "t.png"), "--pictures", str(tmp_path / "out")]
    assert main([*arguments, "--image", str(tmp_path / "image.tif")]) == 0
    picture = np.array(Pillow.open(tmp_path / "out" / "t.errors.png"))
    assert not picture[:8].any()
    assert picture[-1, -1].tolist() == [255, 255, 255]


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 2)):
        save_png(tmp_path / "pred" / f"{name}.png", blobs(seed, classes=2))
        save_png(tmp_path / "truth" / f"{name}.png", blobs(seed + 5, classes=2) * 255)
    save_png(tmp_path / "truth" / "c.png", blobs(0))
    files = ["--markdown", str(tmp_path / "s.md"), "--json", str(tmp_path / "s.json")]
    command = ["eval", str(tmp_path / "pred"), str(tmp_path / "truth"), "--truth-map", "255:1", "--classes", "in, out"]
    assert main([*command, *files]) == 0
    out, err = capsys.readouterr()
    assert out == (tmp_path / "s.md").read_text()
    assert "c.png has no prediction" in err
    assert "c.png has no prediction" in out
    document = json.loads((tmp_path / "s.json").read_text())
    counts = sum(count_confusion(blobs(s, classes=2), blobs(s + 5, classes=2)) for s in (1, 2))[:2, :2]
    assert document["all"]["confusion"] == counts.tolist()
    assert document["all"]["mean_iou"] == pytest.approx(score_confusion(counts).mean_iou)
    assert [image["name"] for image in document["images"]] == ["a", "b"]
    assert f"{score_confusion(counts).mean_iou:.4f}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "wide.png"], "a.png is 90 x 120 (y, x) pixels, its truth"),
        (["a.png", "missing.png"], "no such file or folder: "),
        (["a.png", "a.png", "--truth-map", "x"], "label map 'x'"),
        (["a.png", "a.png", "--isbi", "nothing"], "no class 'nothing': there are 0 class 0, 1 class 1, 2 class 2"),
        (["a.png", "a.png", "--json", "nowhere/x.json"], "there is no folder"),
        (["broken.png", "a.png"], "broken.png"),
    ],
)
def test_what_does_not_fit_gets_one_line_and_code_2(tmp_path, capsys, arguments, message):
    save_png(tmp_path / "a.png", blobs(0))
    save_png(tmp_path / "wide.png", blobs(0, (90, 121)))
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    paths = [str(tmp_path / a) if "." in a else a for a in arguments]
    assert main(["eval", *paths]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tilelab: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_masks_as_nasa_distributes_them(real_data: Path):
    native = real_data / "superalloy_native" / "val_annot" / "spot1_0d_0_mask.tif"
    ours = real_data / "superalloy" / "val" / "masks" / "spot1_0d_0.png"
    mapped = whole(open_labels(native, LabelMap.parse("#0000ff:1,#ff0000:2")))
    np.testing.assert_array_equal(mapped, whole(open_labels(ours)))
    assert set(np.unique(mapped)) == {0, 1, 2}
