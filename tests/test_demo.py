"""`tilelab demo`, small: it draws, segments, scores and shows, and says how to go on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image as Pillow

from tilelab.cli.main import main
from tilelab.errors import Interrupted
from tilelab.evaluation.metrics import count_confusion, score_confusion
from tilelab.io.results.result import read_result
from tilelab.sample import CLASSES, draw_superalloy


def test_the_demo_segments_what_it_draws_and_scores_it_honestly(tmp_path: Path, capsys):
    command = ["demo", "--folder", str(tmp_path / "demo"), "--size", "640", "--seed", "3"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    image, truth = draw_superalloy((640, 640), seed=3)
    sample = tmp_path / "demo" / "sample-640-3.tif"
    np.testing.assert_array_equal(tifffile.imread(sample), image)
    result = read_result(tmp_path / "demo" / "sample.superalloy.ome.zarr")
    assert [info.name for info in result.info.classes] == [info.name for info in CLASSES]
    scores = score_confusion(count_confusion(result.labels[0][:, :], truth)[:3, :3])
    match = re.search(r"mean IoU (\d\.\d{3})", out)
    assert match is not None
    assert float(match[1]) == round(scores.mean_iou, 3)
    assert scores.mean_iou > 0.8  # the bundled model was trained on real micrographs only
    with Pillow.open(tmp_path / "demo" / "overview.png") as picture:
        assert picture.size[0] > 640
    assert json.loads((tmp_path / "demo" / "report.json").read_text())["shape"] == [640, 640]
    assert "tilelab infer IMAGE --model superalloy" in out
    assert "drawing a micrograph" in err
    drawn = sample.stat().st_mtime_ns
    assert main(command) == 0  # again: the sample is kept, the job is done anew
    out, err = capsys.readouterr()
    assert match[0] in out
    assert "drawing" not in err
    assert sample.stat().st_mtime_ns == drawn


def test_a_demo_that_is_stopped_begins_anew(tmp_path: Path, capsys, monkeypatch):
    def stop(*_, **__):
        raise Interrupted("stopped; the same command without --restart continues")

    monkeypatch.setattr("tilelab.run.infer.infer", stop)
    assert main(["demo", "--folder", str(tmp_path), "--size", "256"]) == 130
    assert "stopped; the same command segments it anew" in capsys.readouterr().err


def test_impossible_samples_are_refused(tmp_path: Path, capsys):
    assert main(["demo", "--folder", str(tmp_path), "--size", "10"]) == 2
    assert "--size is at least 256" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["demo", "--folder", str(tmp_path / "file"), "--size", "256"]) == 2
    assert "cannot be written" in capsys.readouterr().err
