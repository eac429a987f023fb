"""What training says of its data before it starts, and what a model says of where it comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from test_masks import REFUSED, draw, save  # noqa: E402

from tilelab.cli.main import main  # noqa: E402
from tilelab.errors import InputError  # noqa: E402
from tilelab.machine.version import __version__  # noqa: E402
from tilelab.training.checkpoint import load_checkpoint  # noqa: E402
from tilelab.training.log import BEST, LAST  # noqa: E402
from tilelab.training.loop import StepReport  # noqa: E402
from tilelab.training.pairs import open_set  # noqa: E402
from tilelab.training.recipe import Recipe, RecipeError, load_recipe, shipped_recipes  # noqa: E402
from tilelab.training.recipe_file import flatten_changes, read_recipe  # noqa: E402
from tilelab.training.sections import Data  # noqa: E402

TINY = [
    "network.options={widths=[4,6]}",
    "sampling.crop=32",
    "sampling.batch=2",
    "inference.tile=32",
    "inference.overlap=0",
    "schedule.warmup=0",
    "run={steps=1, validate=1}",
]
TWO = "classes=[{name='back', color='#000000'}, {name='front', color='#ffffff'}]"


def image_of(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).integers(0, 60, mask.shape) + 80 * mask).astype(np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pairs to train on and one to validate on, as the shipped recipes lay them out; smaller than a crop of 64."""
    root = tmp_path / "my-steel"
    for part, seeds in (("train", (1, 2)), ("val", (3,))):
        for seed in seeds:
            mask = draw(2, seed=seed)
            save(root / part / "images" / f"{seed}.png", image_of(mask, seed))
            save(root / part / "masks" / f"{seed}.png", mask)
    return root


def run(data: Path, *changes: str, recipe: str = "superalloy", output: str = "out") -> int:
    words = [word for change in (TWO, *TINY, *changes) for word in ("--set", change)]
    return main(["train", recipe, "--data", str(data), "-o", str(data.parent / output), *words])


def refused(data: Path, capsys: pytest.CaptureFixture[str], said: str, *changes: str) -> None:
    assert run(data, *changes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tilelab: error: ")
    assert re.search(said, line)
    assert not (data.parent / "out").exists()


# --- masks


@pytest.mark.parametrize("kind", REFUSED)
def test_training_refuses_what_eval_refuses_in_the_same_words(tmp_path: Path, kind: str) -> None:
    name, classes, encode, said, text = REFUSED[kind]
    mask = draw(classes)
    save(tmp_path / "i.png", image_of(mask))
    save(tmp_path / name, encode(mask))
    names = [f"c{k}" for k in range(classes)]
    with pytest.raises(InputError, match=rf"{re.escape(name)}.*{said}") as caught:
        open_set(Data("i.png", name), tmp_path, names)
    if text:
        proposed = re.search(r'labels = "(\S+?)"', str(caught.value))
        assert proposed is not None
        assert proposed[1].startswith(text)
        open_set(Data("i.png", name, proposed[1]), tmp_path, names)


def test_masks_of_0_and_255_are_found_before_training(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second of two masks, and after the whole first set, in one line; the map in it is one to paste."""
    path = data / "train" / "masks" / "2.png"
    save(path, draw(2, seed=2) * np.uint8(255))
    refused(data, capsys, r'masks/2\.png holds 0 \(.* %\), 255 \(.* %\), .*back, front.*labels = "255:1"')
    save(data / "train" / "masks" / "1.png", draw(2, seed=1) * np.uint8(255))
    refused(data, capsys, r"validation masks: nothing that the label map '255:1' lists occurs",
            'train.labels="255:1"', 'validation.labels="255:1"')  # fmt: skip
    assert run(data, 'train.labels="255:1"') == 0
    assert "train masks: not in the label map '255:1' and so back: 0 (" in capsys.readouterr().out


def test_what_is_in_the_masks_is_said(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = "classes=[{name='a', color='#000000'}, {name='b', color='#ffffff'}, {name='c', color='#ff0000'}]"
    mask = draw(2, seed=1)
    mask[:10] = 9
    save(data / "train" / "masks" / "1.png", mask)
    assert run(data, three, 'train.labels="0:0,1:1,9:ignore"') == 0
    out = capsys.readouterr().out
    assert re.search(r"train: 2 planes, 0\.00384 MP: a .* %, b .* %, c 0 %; 12\.5 % of the pixels left out", out)
    assert "train: no pixel of c: not to be learned" in out
    assert "validation: no pixel of c" in out


@pytest.mark.parametrize("part", ["train", "validation"])
def test_masks_without_anything_to_learn_or_score_are_refused(
    data: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    said = r"train masks hold front alone, of back, front" if part == "train" else r"validation masks hold no class"
    refused(data, capsys, said, f'{part}.labels="*:{"1" if part == "train" else "ignore"}"')


def test_a_map_that_names_a_class_too_many_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        data, capsys, r"train\.labels '1:2' names class 2, the classes are 0 to 1 \(back, front\)", 'train.labels="1:2"'
    )
    refused(data, capsys, r"train: label map '0-9:1,3:0' says twice what 3 is", 'train.labels="0-9:1,3:0"')


# --- files


def test_files_that_cannot_be_are_named(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, masks = data / "train" / "images", data / "train" / "masks"
    good = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(good[: len(good) // 2])
    refused(data, capsys, r"images/2\.png is a corrupt or truncated PNG")
    (images / "2.png").unlink()
    refused(data, capsys, r"masks/2\.png has no image of the same name")
    (masks / "2.png").unlink()
    (images / "2.png").write_bytes(good)
    (masks / "2.tif").mkdir()
    refused(data, capsys, r"masks/2\.tif is a folder without images")
    (masks / "2.tif").rmdir()
    save(masks / "2.tif", draw(2, shape=(48, 40)))
    refused(data, capsys, r"images/2\.png has 1 x 40 x 48 .*masks/2\.tif 1 x 48 x 40")
    (data / "none").mkdir()
    refused(data, capsys, r"none holds no image", "train.images=none")
    save(masks / "2.tif", draw(2))
    refused(data, capsys, r"none holds no image", "validation.masks=none")

    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", deny)
    refused(data, capsys, r"train/images cannot be read: Permission denied")


@pytest.mark.parametrize("normalized", [True, False])
def test_pixels_that_are_not_finite_are_counted(
    data: Path, capsys: pytest.CaptureFixture[str], normalized: bool
) -> None:
    for path in (*(data / "train" / "images").iterdir(), *(data / "val" / "images").iterdir()):
        pixels = image_of(draw(2, seed=int(path.stem)), int(path.stem)).astype(np.float32)
        if path.stem == "2":
            pixels[3, 5:8] = np.nan
            pixels[20, 0] = np.inf
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), pixels)
    change = (
        "normalization={mean=[60.0], std=[40.0], dtype='float32'}" if normalized else "normalization={kind='mean-std'}"
    )
    refused(data, capsys, r"images/2\.tif holds 4 pixels that are not finite .* first at z 0, y 3, x 5", change)


def test_images_that_the_network_cannot_take_are_refused_in_the_recipes_words(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data / "val" / "images" / "3.png"
    pixels = image_of(draw(2, seed=3))
    path.unlink()
    tifffile.imwrite(path.with_suffix(".tif"), pixels.astype(np.uint16))
    refused(data, capsys, r"3\.tif is uint16, the normalization is for uint8: .*normalization\.kind = 'mean-std'")
    tifffile.imwrite(
        path.with_suffix(".tif"), np.stack([pixels] * 2), photometric="minisblack", metadata={"axes": "CYX"}
    )
    refused(data, capsys, r"3\.tif has 2 channels, the network 1: set network\.channels = 2")


# --- provenance


def test_a_shipped_recipe_says_nothing_of_its_own_data_about_others(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data) == 0
    assert "provenance in recipe superalloy is of other data and left out" in capsys.readouterr().out
    for name in ("best", "last"):
        content = (tmp_path / "out" / f"{name}.safetensors").read_bytes()
        assert b"NASA" not in content
        assert b"nasa" not in content
        assert b"licence" not in content
    training = load_checkpoint(tmp_path / "out" / "best.safetensors").header.spec.training
    assert (training["recipe"], training["tilelab"]) == ("superalloy", __version__)
    seen = {key: training["trained_on"][key] for key in ("folder", "images", "masks", "planes", "pixels")}
    assert seen == {"folder": "my-steel", "images": "train/images", "masks": "train/masks", "planes": 2, "pixels": 3840}
    assert training["validated_on"]["planes"] == 1
    assert str(tmp_path) not in json.dumps(training)
    assert main(["info", str(tmp_path / "out" / "best.safetensors")]) == 0
    assert "trained on" in capsys.readouterr().out


def test_what_the_user_states_is_stated_and_a_digest_says_of_what(data: Path, tmp_path: Path) -> None:
    assert run(data, "provenance={data='my steel', licence='CC0'}", output="one") == 0
    training = load_checkpoint(tmp_path / "one" / "best.safetensors").header.spec.training
    assert (training["data"], training["licence"]) == ("my steel", "CC0")
    digest = training["trained_on"]["digest"]
    assert run(data, f"provenance={{data='my steel', digest='{digest}'}}", output="two") == 0
    training = load_checkpoint(tmp_path / "two" / "best.safetensors").header.spec.training
    assert training["data"] == "my steel"
    assert "digest" not in training
    save(data / "train" / "masks" / "1.png", draw(2, seed=8))
    assert run(data, f"provenance={{data='my steel', digest='{digest}'}}", output="three") == 0
    training = load_checkpoint(tmp_path / "three" / "best.safetensors").header.spec.training
    assert "data" not in training
    assert training["trained_on"]["digest"] != digest


def test_the_shipped_recipes_know_their_data(real_data: Path) -> None:
    for name in shipped_recipes():
        recipe = load_recipe(name)
        folder = real_data / name.partition("-")[0]
        if recipe.provenance and folder.is_dir():
            _, seen = open_set(recipe.train, folder, [info.name for info in recipe.classes])
            assert seen.digest == recipe.provenance["digest"]


def test_a_fine_tuned_model_names_its_ancestor_as_one(data: Path, tmp_path: Path) -> None:
    assert run(data, "provenance={data='first', licence='CC0'}", "name=parent", output="one") == 0
    parent = tmp_path / "one" / "best.safetensors"
    save(data / "train" / "masks" / "1.png", draw(2, seed=8))
    assert run(data, "provenance={}", f"network.checkpoint={parent}", output="two") == 0
    training = load_checkpoint(tmp_path / "two" / "best.safetensors").header.spec.training
    assert not {"data", "licence"} & set(training)
    began = training["began_with"]
    assert (began["file"], began["name"], began["steps"]) == ("best.safetensors", "parent", 1)
    assert began["training"]["licence"] == "CC0"
    assert began["training"]["trained_on"]["digest"] != training["trained_on"]["digest"]


def test_an_interrupted_training_goes_on_with_its_own_data_only(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data) == 0
    assert run(data) == 0
    save(data / "train" / "images" / "1.png", image_of(draw(2, seed=1), 77))
    capsys.readouterr()
    assert run(data) == 2
    assert "are not those that this training began with" in capsys.readouterr().err


def test_scores_on_two_validation_sets_are_not_compared(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data) == 0
    save(data / "val" / "masks" / "3.png", draw(2, seed=9))
    capsys.readouterr()
    assert run(data) == 2
    assert "the validation images or masks are not those that this training began with" in capsys.readouterr().err


def test_a_stopped_training_says_what_is_on_disk(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tilelab.cli.training_run import Screen

    at = 1

    def stop(_: Screen, progress: StepReport) -> None:
        if progress.step == at:
            raise KeyboardInterrupt

    steps = ("run.steps=4", "run.validate=2", "schedule.warmup=0")
    with monkeypatch.context() as patch:
        patch.setattr(Screen, "show", stop)
        assert run(data, *steps) == 130
        said = capsys.readouterr().err
        assert re.search("before there was anything to go on from, .* every 2 steps", said)
        at = 3
        assert run(data, *steps) == 3
        said = capsys.readouterr().err
        assert re.search(f"goes on from .*{LAST}; best weights so far: .*{BEST}", said)
    assert run(data, *steps) == 0
    assert "continuing after step 2" in capsys.readouterr().out
    assert run(data, *steps) == 0
    assert "ended before, with step 4 of 4: --restart trains anew" in capsys.readouterr().out


def test_weights_of_other_data_are_not_replaced_unasked(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data) == 0
    (data.parent / "out" / LAST).unlink()
    before = (data.parent / "out" / BEST).read_bytes()
    save(data / "train" / "images" / "1.png", image_of(draw(2, seed=1), 77))
    capsys.readouterr()
    assert run(data) == 2
    assert "are not those that this training began with" in capsys.readouterr().err
    assert (data.parent / "out" / BEST).read_bytes() == before


def test_changes_from_python_are_those_of_the_command_line() -> None:
    def changed(changes: dict[str, Any]) -> Recipe:
        return read_recipe("superalloy", flatten_changes(changes), Recipe, "train")

    wanted = load_recipe("superalloy", ["run.steps=7", "run.validate=3", "schedule.warmup=2"])
    assert changed({"run.steps": 7, "run": {"validate": np.int64(3)}, "schedule": {"warmup": 2}}) == wanted
    assert changed({"train": {"images": Path("a") / "b"}}).train.images == str(Path("a/b"))
    assert changed({"network": {"options": {"widths": [8, 16]}}}).network.options == {"widths": [8, 16]}
    plain = changed({"normalization": {"kind": "mean-std"}}).normalization
    assert plain == load_recipe("superalloy", ['normalization={ kind = "mean-std" }']).normalization
    assert changed({"run": {"threads": 1}, "normalization": None}).normalization is None
    with pytest.raises(RecipeError, match="not object"):
        changed({"run": {"steps": object()}})
    with pytest.raises(RecipeError, match=r"run\.stepz"):
        changed({"run": {"stepz": 3}})
