"""What is assumed is said, kept in report and result, and refused with --strict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

import tilelab
from tilelab.assumptions import Assumption, check_strict
from tilelab.cli.main import main
from tilelab.errors import StrictError
from tilelab.io.results.result import read_result

RUN = ["-m", "identity", "--model-pixel-size", "4", "--tile", "32", "--overlap", "8"]


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    path = tmp_path / "plane.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 256, (50, 60), np.uint8))
    return path


def test_an_assumption_is_said_kept_in_report_and_result_and_said_again(
    plane: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out.ome.zarr", tmp_path / "report.json"
    assert main(["infer", str(plane), *RUN, "-o", str(out), "--report", str(report)]) == 0
    said = capsys.readouterr().err
    line = f"assumed: the pixel size of {plane}: the model's, 4 x 4 nm, because nothing states it"
    assert f"tilelab: {line}" in said
    assert said.count("nothing states it") == 2  # before the work and in the table at its end
    kept = json.loads(report.read_text())["assumptions"]
    named = [one | {"what": one["what"].replace(str(plane), plane.name)} for one in kept]
    assert named == read_result(out).info.metadata["assumptions"], "the bytes do not depend on where the image is"
    assert kept[0]["flag"] == "--pixel-size"


def test_a_folder_is_kept_by_its_name_however_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home := tmp_path / "home").mkdir()
    for z in range(2):
        tifffile.imwrite(home / f"z_{z}.tif", np.full((50, 60), z, np.uint8))
    monkeypatch.chdir(home)
    said = {"tile": 32, "overlap": 8, "pixel_size_nm": 4}
    runs = [
        tilelab.infer(named, "identity", tmp_path / f"{n}.ome.zarr", **said)
        for n, named in enumerate((".", "../home", home))
    ]
    first, *others = ((run.path / "zarr.json").read_bytes() for run in runs)
    assert b"images in home are one stack" in first
    assert others == [first, first]


def test_strict_refuses_and_names_the_flag(plane: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("infer", "plan"):
        out = ["-o", str(tmp_path / "out.ome.zarr")] if command == "infer" else ["--speed", "5"]
        assert main([command, str(plane), *RUN, *out, "--strict"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("tilelab: error: --strict allows no assumptions: the pixel size of ")
        assert said.endswith(": say it with --pixel-size\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plane.tif"]
    assert main(["plan", str(plane), *RUN, "--speed", "5", "--strict", "--pixel-size", "4"]) == 0


def test_an_assumption_without_a_flag_says_how_to_accept_it() -> None:
    with pytest.raises(StrictError, match="leave --strict out to accept it"):
        check_strict([Assumption(what="x", taken="y", because="z")], strict=True)
    check_strict([Assumption(what="x", taken="y", because="z")], strict=False)
