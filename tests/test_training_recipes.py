"""Recipes: the papers' values, and what is refused before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from tilelab.cli.main import main  # noqa: E402
from tilelab.training.recipe import Recipe, RecipeError, load_recipe, shipped_recipes  # noqa: E402

PMCANET = {"pmcanet-isbi2012": (0.01, 128, 16, 40_000), "pmcanet-kasthuri": (0.005, 512, 8, 20_000),
           "pmcanet-sem": (0.005, 512, 8, 40_000)}  # fmt: skip
URISC = {"urisc-unet": "unet:resnet50", "urisc-linknet": "linknet:resnet18", "urisc-casenet": "casenet:resnet152"}


def terms(recipe: Recipe) -> dict[str, float]:
    return {term.kind: term.weight for term in recipe.loss}


@pytest.mark.parametrize("name", PMCANET)
def test_pmcanet(name: str) -> None:
    """Gao et al. 2024."""
    recipe = load_recipe(name)
    rate, crop, batch, steps = PMCANET[name]
    assert recipe.paper.states["network.architecture"] == "pmcanet:resnet50"
    assert (recipe.network.architecture.partition(":")[0], recipe.network.weights) == ("pmcanet", "imagenet")
    assert (recipe.optimizer.kind, recipe.optimizer.rate, recipe.optimizer.momentum) == ("sgd", rate, 0.9)
    assert (recipe.schedule.kind, recipe.schedule.power, recipe.schedule.least) == ("poly", 0.9, 1e-4)
    assert (recipe.sampling.crop, recipe.sampling.batch, recipe.run.steps) == (crop, batch, steps)
    assert recipe.augmentation.flips == "horizontal"
    assert recipe.augmentation.scale == (0.5, 2.0)
    assert terms(recipe) == {"cross-entropy": 1.0, "dice": 1.0}
    assert recipe.inference.tile == crop  # the pyramid pools the tile


@pytest.mark.parametrize("name", URISC)
def test_urisc(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.network.architecture == URISC[name]
    assert recipe.sampling.crop == recipe.inference.tile == (960 if name == "urisc-casenet" else 1024)
    assert recipe.inference.overlap > 0
    assert recipe.pixel_size_nm == 2.18
    assert recipe.optimizer.kind == "adam"
    assert terms(recipe) == {"focal": 1.0, "dice": 1.0}
    assert {term.gamma for term in recipe.loss if term.kind == "focal"} == {2.0}


def test_nasa_segmentation() -> None:
    """Stuckner et al. 2022."""
    recipe = load_recipe("nasa-segmentation")
    assert terms(recipe) == {"balanced-cross-entropy": 0.7, "dice": 0.3}
    assert (recipe.optimizer.kind, recipe.optimizer.rate) == ("adam", 2e-4)
    assert (recipe.schedule.kind, recipe.schedule.rates, recipe.schedule.patience) == ("plateau", (1e-5,), 30)
    assert recipe.sampling.crop == 512
    assert recipe.network.channels == 3
    assert recipe.normalization is not None
    assert recipe.normalization.mean == (123.675, 116.28, 103.53)  # of ImageNet, in units of uint8
    assert recipe.normalization.std == (58.395, 57.12, 57.375)
    changes = recipe.augmentation
    assert changes.flips
    assert all((changes.contrast != (1, 1), changes.brightness, changes.gamma != (1, 1), changes.blur, changes.sharpen))


def test_recipes_that_train_here_need_no_download() -> None:
    for name in set(shipped_recipes()) - {*PMCANET, *URISC, "nasa-segmentation"}:
        recipe = load_recipe(name)
        assert recipe.network.weights in ("", "imagenet")  # the latter come with a package
        assert recipe.provenance["data"]
        assert recipe.provenance["licence"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed=-1", "seed"),
        ("schedule.least=0.1", "schedule.least 0.1 must not be above optimizer.rate"),
        ("augmentation.blur=90.0", "augmentation.blur 90.0 is too wide for crops of 256"),
        ("optimizer.momentum=1.0", "momentum"),
        ("optimizer.betas=[0.9, 1.5]", "betas"),
        ("train.planes=[4, 2]", "planes"),
        ("normalization={mean=[1.0, 2.0], std=[1.0, 2.0]}", "normalization has 2 channels, the network 1"),
        ("classes=[{name='a', color='#000000'}]", "at least two"),
        ("classes=[{name='a', color='#000000'}, {name='a', color='#ffffff'}]", "same name"),
        ("classes=[{name='a', color='black'}, {name='b', color='#ffffff'}]", "not of the form #rrggbb"),
        ("pixel_size_nm=0.0", "pixel_size_nm"),
        ("inference.tile=8", "tile"),
        ("inference.activation=tanh", "activation"),
        ("loss=[]", "at least one term"),
        ("run.precision=fp8", "precision"),
        ("schedule.rates=[1e-5]", "rates belong to plateau"),
        ("network.encoder=resnet18", "for `tilelab pretrain`|encoder"),
    ],
)
def test_impossible_values_are_refused_by_key(change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("superalloy", [change])


def test_what_the_network_cannot_take_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from PIL import Image

    for part in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / part / kind).mkdir(parents=True)
            Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / part / kind / "a.png")
    output = tmp_path / "out"
    tiny = "network.options={widths=[4,6,8]}"
    for changes, said in (
        (["sampling.crop=42", tiny], "sampling.crop of 42 px is not a multiple of"),
        (
            ["sampling.crop=32", "inference.tile=50", "inference.overlap=0", tiny],
            "inference.tile of 50 px is not a multi",
        ),
        (["network.architecture=vnet"], "unknown architecture 'vnet'"),
        (["network.options={depth=3}"], "no option 'depth'"),
        (["train.images=train/pictures", tiny], "no such folder or file"),
        (["validation.masks=masks", tiny], "no such folder or file"),
    ):
        words = [word for change in changes for word in ("--set", change)]
        assert main(["train", "superalloy", "--data", str(tmp_path), "-o", str(output), *words]) == 2
        assert said in capsys.readouterr().err
    assert not output.exists()


def test_the_command_imports_no_torch_to_say_what_is_wrong_with_itself() -> None:
    code = "import sys; from tilelab.cli.main import build_parser as b; b('pretrain'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
