"""What a file names outside of its folder is read, and what it names as code is run, only when the user says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tilelab.cli.main import main
from tilelab.errors import InputError, ModelError
from tilelab.io.convert import convert_image
from tilelab.io.images.open import describe, open_image
from tilelab.io.storage.outside import beyond, leaves

SHAPE = (64, 48)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("0", False), ("labels/classes/0", False), ("a/../b", False), ("", False), ("..a", False), ("a/..b", False),
        ("..", True), ("../0", True), ("a/../../b", True), ("/etc", True), ("./../x", True), ("\\\\host\\x", True),
        ("C:/x", True), ("..\\x", True), ("a\\..\\..\\x", True),
    ],
)  # fmt: skip
def test_names_that_leave_their_folder(name: str, out: bool) -> None:
    assert leaves(name) is out


def test_places_beyond_a_folder(tmp_path: Path) -> None:
    assert beyond(tmp_path, [tmp_path / "a", tmp_path, tmp_path / "b" / ".." / "c"]) == ()
    assert beyond(tmp_path / "a", [tmp_path / "ab", "/x", "/x"]) == (str(tmp_path / "ab"), "/x")


# --- data ---------------------------------------------------------------------------------------------------------

Make = Callable[[Path, Path], Path]
"""Writes an image into a folder whose pixels lie in another one; returns what is opened."""


def external_storage(home: Path, away: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    PIXELS.tofile(away / "raw")
    with h5py.File(home / "a.h5", "w") as file:
        file.create_dataset("raw", SHAPE, np.uint8, external=[(str(away / "raw"), 0, PIXELS.size)])
    return home / "a.h5"


def external_link(home: Path, away: Path) -> str:
    h5py = pytest.importorskip("h5py")
    with h5py.File(away / "b.h5", "w") as file:
        file["raw"] = PIXELS
    with h5py.File(home / "a.h5", "w") as file:
        file["x"] = h5py.ExternalLink(str(away / "b.h5"), "/raw")
    return f"{home / 'a.h5'}::/x"


def soft_link_through_an_external_one(home: Path, away: Path) -> str:
    h5py = pytest.importorskip("h5py")
    external_link(home, away)
    with h5py.File(home / "a.h5", "a") as file:
        file["soft"] = h5py.SoftLink("/x")
    return f"{home / 'a.h5'}::/soft"


def virtual_dataset(home: Path, away: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(away / "b.h5", "w") as file:
        file["raw"] = PIXELS
    layout = h5py.VirtualLayout(SHAPE, np.uint8)
    layout[:] = h5py.VirtualSource(str(away / "b.h5"), "raw", SHAPE)
    with h5py.File(home / "a.h5", "w") as file:
        file.create_virtual_dataset("v", layout)
    return home / "a.h5"


def virtual_over_external(home: Path, away: Path) -> Path:
    """A virtual dataset over one beside it, which keeps its pixels elsewhere."""
    h5py = pytest.importorskip("h5py")
    external_storage(home, away).rename(home / "b.h5")
    layout = h5py.VirtualLayout(SHAPE, np.uint8)
    layout[:] = h5py.VirtualSource("b.h5", "raw", SHAPE)
    with h5py.File(home / "a.h5", "w") as file:
        file.create_virtual_dataset("v", layout)
    return home / "a.h5"


def zarr_level(home: Path, away: Path, *, absolute: bool = False) -> Path:
    np.save(away / "a.npy", PIXELS)
    convert_image(away / "a.npy", away / "store.ome.zarr")
    (home / "evil.ome.zarr").mkdir()
    document = json.loads((away / "store.ome.zarr" / "zarr.json").read_text())
    level = document["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    level["path"] = str(away / "store.ome.zarr" / "0") if absolute else f"../../{away.name}/store.ome.zarr/0"
    document["attributes"]["ome"]["multiscales"][0]["datasets"] = [level]
    (home / "evil.ome.zarr" / "zarr.json").write_text(json.dumps(document))
    return home / "evil.ome.zarr"


def zarr_absolute_level(home: Path, away: Path) -> Path:
    return zarr_level(home, away, absolute=True)


def precomputed_scale(home: Path, away: Path) -> Path:
    tensorstore = pytest.importorskip("tensorstore")
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{away}/p/"},
        "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
        "scale_metadata": {"key": "0", "size": [*SHAPE[::-1], 1], "encoding": "raw", "chunk_size": [64, 64, 1],
                           "resolution": [1, 1, 1]},
    }  # fmt: skip
    tensorstore.open(spec, create=True).result()[:, :, 0, 0].write(PIXELS.T).result()
    document = json.loads((away / "p" / "info").read_text())
    document["scales"][0]["key"] = f"../../{away.name}/p/0"
    (home / "p").mkdir()
    (home / "p" / "info").write_text(json.dumps(document))
    return home / "p"


def ome_tiff(home: Path, away: Path) -> Path:
    """Two planes, the second in a file elsewhere."""
    tifffile.imwrite(away / "second.tif", PIXELS)
    uuid = "urn:uuid:00000000-0000-0000-0000-00000000000"
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">{uuid}{z}</UUID></TiffData>'
        for z, name in enumerate(("a.ome.tif", f"../{away.name}/second.tif"))
    )
    ome = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="{uuid}0"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="48" '
        f'SizeY="64" SizeZ="2" SizeC="1" SizeT="1">{planes}</Pixels></Image></OME>'
    )
    tifffile.imwrite(home / "a.ome.tif", PIXELS, description=ome, metadata=None)
    return home / "a.ome.tif"


def bigdataviewer(home: Path, away: Path) -> Path:
    """An XML that describes a file elsewhere."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(away / "b.h5", "w") as file:
        file["t00000/s00/0/cells"] = PIXELS[None]
    (home / "a.xml").write_text(
        f"<SpimData><SequenceDescription><ImageLoader><hdf5>../{away.name}/b.h5</hdf5></ImageLoader><ViewSetups><ViewSetup>"
        "<id>0</id></ViewSetup></ViewSetups></SequenceDescription></SpimData>"
    )
    return home / "a.xml"


WAYS = [
    external_storage, external_link, soft_link_through_an_external_one, virtual_dataset, virtual_over_external,
    zarr_level, zarr_absolute_level, precomputed_scale, ome_tiff, bigdataviewer,
]  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    monkeypatch.chdir(tmp_path)
    return home, away


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", WAYS)
def test_what_lies_outside_is_refused_until_it_is_allowed(make: Make, folders: tuple[Path, Path]) -> None:
    named = make(*folders)
    for call in (open_image, describe):
        with pytest.raises(InputError, match=r"outside of its own folder: --allow-outside") as refused:
            call(named)
        assert "away" in str(refused.value)
        assert "\n" not in str(refused.value)
    with open_image(named, allow_outside=True) as image:
        assert (np.asarray(image[...]).reshape(-1, *SHAPE) == PIXELS).all()
    assert describe(named, allow_outside=True)["shape"]


@pytest.mark.parametrize("make", [external_storage, external_link, virtual_dataset, virtual_over_external])
def test_what_lies_beside_is_read(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_image(make(tmp_path, tmp_path)) as image:
        assert (image[...] == PIXELS).all()


def test_series_and_fields_that_lead_out_of_their_group(folders: tuple[Path, Path]) -> None:
    home, away = folders
    np.save(away / "a.npy", PIXELS)
    convert_image(away / "a.npy", away / "store.ome.zarr")
    out = f"../../{away.name}/store.ome.zarr"
    for ome in (
        {"bioformats2raw.layout": 3, "series": [out, "0"]},
        {"well": {"images": [{"path": out}]}},
        {"plate": {"wells": [{"path": str(away / "store.ome.zarr")}]}},
    ):
        (home / "evil.zarr").mkdir(exist_ok=True)
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **ome}}}
        (home / "evil.zarr" / "zarr.json").write_text(json.dumps(document))
        for series in (None, "0"):
            with pytest.raises(InputError, match="names an image outside of its own folder"):
                open_image(home / "evil.zarr", series=series)


def test_links_are_files_as_they_are(folders: tuple[Path, Path]) -> None:
    home, away = folders
    np.save(away / "a.npy", PIXELS)
    convert_image(away / "a.npy", away / "b.ome.zarr")
    (away / "b.ome.zarr" / "0").rename(away / "0")
    (away / "b.ome.zarr").rename(home / "b.ome.zarr")
    (home / "b.ome.zarr" / "0").symlink_to(away / "0")
    (home / "a.npy").symlink_to(away / "a.npy")
    for name in ("b.ome.zarr", "a.npy"):
        with open_image(home / name) as image:
            assert (image[...] == PIXELS).all()


def test_a_key_separator_leads_nowhere_else(folders: tuple[Path, Path]) -> None:
    home, away = folders
    np.save(away / "a.npy", PIXELS)
    convert_image(away / "a.npy", home / "b.ome.zarr")
    path = home / "b.ome.zarr" / "0" / "zarr.json"
    document = json.loads(path.read_text())
    document["chunk_key_encoding"]["configuration"]["separator"] = "/../../../away/"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="separator"):
        open_image(home / "b.ome.zarr")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "words",
    [
        ("info", "{}"), ("plan", "{}", "--model", "identity"), ("convert", "{}", "out.ome.zarr"),
        ("infer", "{}", "--model", "identity", "-o", "out.ome.zarr"),
        ("infer", "plain.tif", "--mask", "{}", "--model", "identity", "-o", "out.ome.zarr"),
        ("eval", "plain.tif", "{}"), ("eval", "{}", "plain.tif"),
        ("eval", "plain.tif", "plain.tif", "--image", "{}", "--pictures", "look"),
    ],
)  # fmt: skip
def test_every_command_asks(
    words: tuple[str, ...], folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    PIXELS[:, :2].tofile("unused")
    tifffile.imwrite("plain.tif", (PIXELS > 128).astype(np.uint8))
    named = str(external_storage(*folders))
    (folders[1] / "raw").write_bytes((PIXELS > 99).astype(np.uint8).tobytes())
    command = [word.format(named) for word in words]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "--allow-outside" in said.err.splitlines()[-1]
    assert not Path("out.ome.zarr").exists()
    assert main([*command, "--allow-outside"]) == 0


# --- code ---------------------------------------------------------------------------------------------------------

MODULE = """
import pathlib, torch
pathlib.Path({mark!r}).touch()

class Net(torch.nn.Conv2d):
    def __init__(self, channels, classes):
        super().__init__(channels, classes, 3, padding=1)
"""
RECIPE = """
name = "mine"
classes = [{ name = "background", color = "#000000" }, { name = "thing", color = "#ff0000" }]
sampling = { crop = 32, batch = 1 }
inference = { tile = 32, overlap = 8 }
run = { steps = 1, validate = 1 }
[network]
architecture = "stranger.code:Net"
[train]
images = "images"
masks = "masks"
[validation]
images = "images"
masks = "masks"
"""


def test_a_network_that_a_file_names_is_imported_with_trust_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    place = str(tmp_path / "lib")
    sys.path.insert(0, place)  # monkeypatch would also take away what onnxruntime.transformers adds when imported
    request.addfinalizer(lambda: sys.path.remove(place))
    mark = tmp_path / "it ran"
    (tmp_path / "lib" / "stranger").mkdir(parents=True)
    (tmp_path / "lib" / "stranger" / "__init__.py").touch()
    (tmp_path / "lib" / "stranger" / "code.py").write_text(MODULE.format(mark=str(mark)))
    for part, pixels in (("images", PIXELS), ("masks", PIXELS % 2)):
        (tmp_path / part).mkdir()
        tifffile.imwrite(tmp_path / part / "a.tif", pixels)
    (tmp_path / "r.toml").write_text(RECIPE)

    def refused(*words: str) -> None:
        assert main(list(words)) == 2
        assert "give --trust" in capsys.readouterr().err.splitlines()[-1]
        assert not mark.exists()
        assert "stranger" not in sys.modules

    refused("train", "r.toml", "-o", "run")
    refused("train", "r.toml", "-o", "run", "--set", "network.options={trust=true}")
    refused("info", "stranger.code:Net")
    assert main(["train", "r.toml", "-o", "run", "--trust"]) == 0
    assert mark.exists()
    mark.unlink()
    for name in [name for name in sys.modules if name.startswith("stranger")]:
        monkeypatch.delitem(sys.modules, name)
    best = "run/best.safetensors"
    refused("info", best)
    refused("export", best, "-o", "mine.onnx")
    assert main(["info", best, "--trust"]) == 0
    assert main(["export", best, "-o", "mine.onnx", "--trust"]) == 0


def test_python_asks_too() -> None:
    pytest.importorskip("torch")
    from tilelab.models import build_model

    with pytest.raises(ModelError, match="--trust"):
        build_model("this:Zen", 1, 2)


def test_what_is_code_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("export", "infer"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "machine code" in " ".join(capsys.readouterr().out.split())
    text = (Path(__file__).parents[1] / "SECURITY.md").read_text()
    for words in ("--trust", "--allow-outside", "machine code", ".pt2"):
        assert words in text
