"""What a command reads, and what nobody named as its output, keeps its bytes: every command, every kind of name."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

import tilelab
from tests.tiny_models import save_conv
from tilelab.cli.main import main
from tilelab.errors import OutputError
from tilelab.io.convert import convert_image
from tilelab.run.options import Options

RECIPE = """
name = "small"
classes = [{ name = "background", color = "#000000" }, { name = "thing", color = "#ff0000" }]
[network]
architecture = "unet"
options = { widths = [2, 2, 2, 2, 2] }
[train]
images = "data/images"
masks = "data/masks"
[validation]
images = "data/images"
masks = "data/masks"
[run]
steps = 1
validate = 1
"""


def digests(folder: Path) -> dict[str, str]:
    """Every file and link below, with its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: images under several names, a model, a truth, a mask, a recipe, a store, slices, a photo."""
    folder = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    image, truth = rng.integers(0, 256, (96, 80), np.uint8), rng.integers(0, 2, (96, 80), np.uint8)
    tifffile.imwrite(folder / "in.tif", image)
    tifffile.imwrite(folder / "in.png", image)  # a TIFF that is called PNG: what is read goes by its bytes
    for name in ("truth.tif", "pred.tif", "mask.tif"):
        tifffile.imwrite(folder / name, truth)
    (folder / "link.png").symlink_to("in.tif")
    os.link(folder / "in.tif", folder / "hard.png")
    (folder / "sub").mkdir()
    (folder / "up.png").symlink_to("sub/../in.tif")
    tifffile.imwrite(folder / "photo.json", image)
    for part, pixels in (("images", image), ("masks", truth)):
        (folder / "data" / part).mkdir(parents=True)
        tifffile.imwrite(folder / "data" / part / "a.tif", pixels)
    (folder / "slices").mkdir()
    for z in range(2):
        tifffile.imwrite(folder / "slices" / f"{z}.tif", image)
    convert_image(folder / "in.tif", folder / "store.ome.zarr")
    save_conv(folder / "net.onnx")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "recipe.json").write_text(RECIPE)
    return folder


@pytest.fixture
def user(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, in which the command runs."""
    folder = tmp_path / "user"
    shutil.copytree(drawn, folder, symlinks=True)
    (folder / "hard.png").unlink()
    os.link(folder / "in.tif", folder / "hard.png")
    monkeypatch.chdir(folder)
    return folder


INFER = ("infer", "in.tif", "--model", "identity")
EVAL = ("eval", "pred.tif", "truth.tif", "--image", "in.tif")
EXPORT = ("export", "net.onnx", "--images", "in.tif", "--masks", "truth.tif", "--calibrate", "slices")
TRAIN = ("train", "recipe.toml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*INFER, "--overview", "in.tif"), "name it .png"),
        *(((*INFER, "--overview", name), "the image") for name in ("link.png", "hard.png", "up.png")),
        (("infer", "in.png", "--model", "identity", "--overview", "./in.png"), "the image"),
        ((*INFER, "--overview", "look.PNG", "--report", "sub/../look.PNG"), "one place"),
        ((*INFER, "--report", "in.tif"), "the image"),
        ((*INFER, "--report", "photo.json"), "another kind of file"),
        ((*INFER, "--report", "truth.tif"), "another kind of file"),
        ((*INFER, "--report", "sub"), "is a folder"),
        ((*INFER, "--report", "store.ome.zarr/report.json", "-o", "store.ome.zarr"), "one place"),
        (("infer", "in.tif", "--model", "net.onnx", "--report", "net.onnx"), "the model"),
        ((*INFER, "--mask", "mask.tif", "--report", "mask.tif"), "--mask"),
        ((*INFER, "--dry-run", "--report", "in.tif"), "the image"),
        (("plan", "in.tif", "--model", "identity", "--mask", "mask.tif", "--overview", "mask.tif"), "--mask"),
        (("plan", "in.tif", "--model", "net.onnx", "--json=net.onnx"), "the model"),
        (("plan", "truth.tif", "in.tif", "--model", "identity", "--json=in.tif"), "the image"),
        ((*INFER, "-o", "link.png"), "is the input"),
        ((*INFER, "-o", "hard.png", "--restart"), "the image"),
        ((*INFER, "-o", "truth.tif"), "was not made by tilelab"),
        ((*INFER, "-o", "sub/../in.tif", "--restart"), "input|the image"),
        (("infer", "slices", "--model", "identity", "-o", "slices/out.ome.tif"), "become a part of the image"),
        (("infer", "store.ome.zarr", "--model", "identity", "-o", "store.ome.zarr/x.ome.zarr"), "a part of the image"),
        (("infer", "store.ome.zarr/0", "--model", "identity", "-o", "store.ome.zarr"), "would overwrite the image"),
        (("infer", "store.ome.zarr", "--model", "identity", "--report", "store.ome.zarr/zarr.json"), "the image"),
        ((*EVAL, "--markdown", "truth.tif"), "TRUTH"),
        ((*EVAL, "--markdown", "pred.tif"), "PRED"),
        ((*EVAL, "--markdown", "in.tif"), "--image"),
        ((*EVAL, "--markdown", "link.png"), "--image"),
        ((*EVAL, "--markdown", "mask.tif"), "another kind"),
        ((*EVAL, "--json", "photo.json"), "another kind"),
        ((*EVAL, "--json", "x.json", "--markdown", "./x.json"), "one place"),
        ((*EVAL, "--pictures", "in.tif"), "would overwrite --image"),
        (("eval", "data/masks", "data/masks", "--pictures", "data/masks"), "among PRED"),
        (("eval", "store.ome.zarr", "truth.tif", "--pictures", "store.ome.zarr/look"), "a part of PRED"),
        ((*EXPORT, "-o", "net.onnx"), "would overwrite SOURCE|exists"),
        ((*EXPORT, "-o", "net.onnx", "--force"), "would overwrite SOURCE"),
        ((*EXPORT, "-o", "new.onnx", "--timing-cache", "in.tif"), "exists: choose|--images"),
        ((*EXPORT, "-o", "new.onnx", "--timing-cache", "photo.json"), "exists: choose"),
        (("convert", "in.tif", "in.tif", "--overwrite"), "the source"),
        (("convert", "link.png", "in.tif", "--overwrite"), "the source"),
        (("convert", "in.tif", "truth.tif"), "exists"),
        (("convert", "store.ome.zarr/0", "store.ome.zarr", "--overwrite"), "the source"),
        (("convert", "slices", "slices/all.ome.tif"), "the source"),
        ((*TRAIN, "-o", "data/images"), "among the data"),
        ((*TRAIN, "-o", "recipe.toml"), "would overwrite the recipe"),
        ((*TRAIN, "-o", ".", "--set", "network.checkpoint=best.safetensors"), "the checkpoint|network.checkpoint"),
        ((*TRAIN, "-o", "full"), "another kind of file"),
    ],
)  # fmt: skip
def test_nothing_that_is_read_or_not_named_is_overwritten(
    user: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] == "train":
        pytest.importorskip("torch")
        (user / "best.safetensors").write_bytes(b"weights")
        (user / "full").mkdir()
        tifffile.imwrite(user / "full" / "log.csv", np.zeros((4, 4), np.uint8))
    before = digests(user)
    assert main(list(words)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert any(part in said for part in message.split("|")), said
    assert digests(user) == before


def test_python_is_as_careful(user: Path) -> None:
    before = digests(user)
    for call in (
        lambda: tilelab.infer("in.tif", "identity", "out.ome.zarr", overview="link.png"),
        lambda: tilelab.infer(tilelab.open_image("in.tif"), "identity", "out.ome.zarr", overview="hard.png"),
        lambda: tilelab.infer("in.tif", "identity", "link.png", options=Options(restart=True)),
        lambda: convert_image("link.png", "in.tif", overwrite=True),
    ):
        with pytest.raises(OutputError):
            call()
    assert digests(user) == before


def test_what_is_asked_for_is_written_again(user: Path) -> None:
    """The second time every output is there, and is of its own kind."""
    words = [*INFER, "-q", "-o", "out.ome.zarr", "--report", "r.json", "--overview", "look.png"]
    scores = [*EVAL, "--json", "s.json", "--markdown", "s.md", "--pictures", "pictures"]
    before = digests(user)
    for restart in ([], ["--restart"]):
        assert main([*words, *restart]) == 0
        assert main(scores) == 0
    after = digests(user)
    assert {name: after[name] for name in before} == before
    new = {name.split("/")[0] for name in after if name not in before}
    assert new == {"out.ome.zarr", "r.json", "look.png", "s.json", "s.md", "pictures"}


def test_a_trained_network_that_cannot_be_continued_is_kept(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    small = ["--set", "run.steps=2", "--set", "sampling.crop=32", "--set", "sampling.batch=1",
             "--set", "inference.tile=32", "--set", "inference.overlap=8", "-o", "run"]  # fmt: skip
    assert main([*TRAIN, *small]) == 0
    (user / "run" / "last.safetensors").unlink()
    before = digests(user / "run")
    capsys.readouterr()
    assert main([*TRAIN, *small, "--set", "seed=5"]) == 2
    assert "cannot be continued" in capsys.readouterr().err
    assert digests(user / "run") == before
    assert main([*TRAIN, *small, "--set", "seed=5", "--restart"]) == 0


# --- names of ours that others have ---------------------------------------------------------------------------


def link(path: Path, thesis: Path) -> None:
    path.symlink_to(thesis)


def folder(path: Path, thesis: Path) -> None:
    shutil.copytree(thesis, path)


@pytest.mark.parametrize("make", [link, folder])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.ome.zarr.converting", ("convert", "in.tif", "out.ome.zarr")),
        ("out.ome.tif.converting", ("convert", "in.tif", "out.ome.tif")),
        ("out.ome.zarr.partial", (*INFER, "-o", "out.ome.zarr")),
        (".out.ome.tif.work.partial", (*INFER, "-o", "out.ome.tif")),
        (".out.ome.tif.work", (*INFER, "-o", "out.ome.tif")),
        (".out.png.work", (*INFER, "-o", "out.png", "--restart")),
        ("out.precomputed.partial", (*INFER, "-o", "out.precomputed")),
        ("out.precomputed", (*INFER, "-o", "out.precomputed", "--restart")),
        ("out.ome.zarr", (*INFER, "-o", "out.ome.zarr", "--restart")),
    ],
)
def test_folders_that_are_not_ours_stay(
    name: str,
    words: tuple[str, ...],
    make: Callable[[Path, Path], None],
    user: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    thesis = user / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("mine")
    make(user / name, thesis)
    before = digests(user)
    assert main(list(words)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "was not made by tilelab" in said
    after = digests(user)
    assert {path: after.get(path) for path in before} == before


@pytest.mark.parametrize("out", ["out.ome.zarr", "out.ome.tif", "out.precomputed"])
def test_what_is_ours_is_replaced_and_nothing_is_left(out: str, user: Path) -> None:
    before = {path.name for path in user.iterdir()}
    for restart in ([], ["--restart"], []):
        assert main([*INFER, "-q", "-o", out, *restart]) == 0
    assert {path.name for path in user.iterdir()} == before | {out}
    if out != "out.precomputed":
        for _ in range(2):
            assert main(["convert", "in.tif", out, "--overwrite", "-q"]) == 0
        assert {path.name for path in user.iterdir()} == before | {out}
