"""The XML of BigDataViewer opens what it describes: setups and time points are images to choose from."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.image_files import Array, pixels
from tilelab.cli.main import main
from tilelab.errors import InputError
from tilelab.io import describe, open_image

SHAPE = (4, 20, 30)
XML = """<SpimData version="0.2"><BasePath type="relative">.</BasePath><SequenceDescription>
<ImageLoader format="{format}"><{tag} type="relative">{name}</{tag}></ImageLoader><ViewSetups>{setups}</ViewSetups>
<Timepoints type="range"><first>0</first><last>{last}</last></Timepoints></SequenceDescription></SpimData>"""
SETUP = """<ViewSetup><id>{i}</id><name>{name}</name><size>30 20 4</size><voxelSize><unit>um</unit>
<size>0.008 0.008 0.03</size></voxelSize></ViewSetup>"""


def draw(folder: Path, kind: str, setups: tuple[str, ...], times: int) -> dict[str, Array]:
    """The container and its XML; the volumes by their names."""
    name = f"a.{kind}"
    drawn = {}
    file = h5py.File(folder / name, "w") if kind == "h5" else None
    for i, setup in enumerate(setups):
        for t in range(times):
            values = pixels(SHAPE, "uint16", 10 * i + t)
            drawn[f"{setup}, time point {t}" if times > 1 else setup] = values
            if file is not None:
                for level, step in enumerate((1, 2)):
                    file[f"t{t:05d}/s{i:02d}/{level}/cells"] = values[:, ::step, ::step].view("int16")
                file.require_dataset(f"s{i:02d}/resolutions", (2, 3), "f8")[...] = [[1, 1, 1], [2, 2, 1]]
            else:
                draw_n5(folder / name / f"setup{i}" / f"timepoint{t}" / "s0", values)
    if file is not None:
        file.close()
    text = "".join(SETUP.format(i=i, name=setup) for i, setup in enumerate(setups))
    form, tag = ("bdv.hdf5", "hdf5") if kind == "h5" else ("bdv.n5", "n5")
    (folder / "a.xml").write_text(XML.format(format=form, tag=tag, name=name, setups=text, last=times - 1))
    return drawn


def draw_n5(path: Path, values: Array) -> None:
    ts = pytest.importorskip("tensorstore")
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}}
    spec["metadata"] = {"compression": {"type": "gzip"}, "blockSize": [16, 16, 4]}
    store = ts.open(spec, create=True, dtype=ts.uint16, shape=values.shape[::-1]).result()
    store[...].write(values.transpose()).result()


@pytest.mark.parametrize("kind", ["h5", "n5"])
def test_setups_and_time_points(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = draw(tmp_path, kind, ("left", "right"), 2)
    with pytest.raises(InputError, match=r"several volumes: choose one with --series.*right, time point 1"):
        open_image(tmp_path / "a.xml")
    for i, (name, values) in enumerate(drawn.items()):
        for series in (i, name):
            with open_image(tmp_path / "a.xml", series=series) as image:
                assert (image.axes, image.pixel_size_nm) == ("zyx", pytest.approx((30, 8, 8)))
                np.testing.assert_array_equal(image[...], values)
    assert describe(tmp_path / "a.xml")["series"] == list(drawn)
    assert main(["info", str(tmp_path / "a.xml")]) == 0
    assert "right, time point 1" in capsys.readouterr().out


def test_levels_and_one_setup(tmp_path: Path) -> None:
    (values,) = draw(tmp_path, "h5", ("only",), 1).values()
    with open_image(tmp_path / "a.xml", level=1) as image:
        assert image.pixel_size_nm == pytest.approx((30, 16, 16))
        np.testing.assert_array_equal(image[...], values[:, ::2, ::2])
    with pytest.raises(InputError, match="level 2 was asked for"):
        open_image(tmp_path / "a.xml", level=2)
    (tmp_path / "a.h5").unlink()
    with pytest.raises(InputError, match=r"a\.h5, which is not there: copy it beside"):
        open_image(tmp_path / "a.xml")
