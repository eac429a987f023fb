"""Pre-training without labels: what it learns, that a kill changes nothing, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from tilelab.cli.main import main  # noqa: E402
from tilelab.errors import InputError, ResumeError  # noqa: E402
from tilelab.models import build_model  # noqa: E402
from tilelab.models.encoders import load_encoder_weights  # noqa: E402
from tilelab.models.moco import MoCo  # noqa: E402
from tilelab.training.checkpoint import read_checkpoint  # noqa: E402
from tilelab.training.contrastive import Contrastive  # noqa: E402
from tilelab.training.encoder_task import EncoderHeader  # noqa: E402
from tilelab.training.folders import find_unlabelled  # noqa: E402
from tilelab.training.log import ENCODER, LAST  # noqa: E402
from tilelab.training.loop import StepReport  # noqa: E402
from tilelab.training.pretraining import pretrain  # noqa: E402
from tilelab.training.recipe import Pretraining, RecipeError, load_pretraining  # noqa: E402
from tilelab.training.sections import ImageFolders  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = (
    "network.encoder=tu-resnet10t",
    "sampling.crop=32",
    "sampling.batch=8",
    "moco.queue=32",
    "moco.features=16",
    "moco.momentum=0.9",
    "augmentation={scale=[0.9,1.1]}",
    'optimizer={kind="adamw",rate=3e-3}',
    "run={steps=8,validate=4}",
    "data.held_back=0.25",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images in two folders, one of them deeper, and a file that is none."""
    root = tmp_path_factory.mktemp("images")
    for seed in range(8):
        folder = root / "a" if seed % 2 else root / "b" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:80, :96]
        wave = np.sin(2 * np.pi * (x * np.cos(seed) + y * np.sin(seed)) / (6 + seed))
        picture = np.clip(128 + 60 * wave + rng.normal(0, 6, x.shape), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{seed}.png")
    (root / "readme.txt").write_text("no labels")
    return root


def recipe(*overrides: str) -> Pretraining:
    return load_pretraining("moco", [*SETTINGS, *overrides])


def test_the_command_trains_an_encoder_that_a_network_begins_with(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for change in SETTINGS for word in ("--set", change)]
    changed = ["--set", "method=classification", "--method", "moco"]  # the flag has the last word
    assert main(["pretrain", "moco", "--data", str(images), "-o", str(tmp_path), *words, *changed]) == 0
    out = capsys.readouterr().out
    assert "deviates: network.encoder is tu-resnet10t, the paper's resnet50" in out
    assert "images without labels: 6 to train on, 2 to validate on" in out
    assert "found " in out
    header = read_checkpoint(tmp_path / ENCODER, EncoderHeader).header
    assert header.classes == ()
    assert 0 <= header.scores["found"] <= 1
    report = load_encoder_weights(build_model("unet:tu-resnet10t", 1, 2), tmp_path / ENCODER)
    assert report.matched
    assert not report.missing


def test_a_kill_changes_nothing(images: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(report: StepReport) -> None:
        if report.step == 6:
            raise Killed

    whole = pretrain(recipe(), images, tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain(recipe(), images, tmp_path / "cut", report=kill)
    cut = pretrain(recipe(), images, tmp_path / "cut")
    for name in (ENCODER, LAST):
        one, two = (read_checkpoint(path.parent / name, EncoderHeader).tensors for path in (whole, cut))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    with pytest.raises(ResumeError, match="another moco"):
        pretrain(recipe("moco.queue=16"), images, tmp_path / "cut")


def test_views_are_of_one_place_and_differ(images: Path) -> None:
    task = Contrastive(recipe(), images)
    views, right = task.draw(3, 1)
    assert views.shape == (2, 32, 32)
    assert int(right) == 0
    assert not torch.equal(views[0], views[1])
    again, _ = task.draw(3, 1)
    assert torch.equal(views, again)


def test_the_follower_follows_and_the_queue_keeps_the_newest() -> None:
    torch.manual_seed(0)
    network = MoCo(1, encoder="tu-resnet10t", features=8, queue=6, momentum=0.75, temperature=0.5)
    before = [p.clone() for p in network.follower.parameters()]
    with torch.no_grad():
        for parameter in network.learner.parameters():
            parameter.add_(1.0)
    queue = network.queue.clone()
    logits = network(torch.randn(4, 2, 32, 32))
    assert logits.shape == (4, 7)
    for old, new in zip(before, network.follower.parameters(), strict=True):
        assert torch.allclose(new, old + 0.25, atol=1e-5)
        assert not new.requires_grad
    assert torch.equal(network.queue[4:], queue[4:])
    assert not torch.isclose(network.queue[:4], queue[:4]).all(dim=1).any()
    network(torch.randn(4, 2, 32, 32))
    assert int(network.place) == 2  # round the end
    assert torch.allclose(network.queue.norm(dim=1), torch.ones(6), atol=1e-5)
    vectors = network.eval()(torch.randn(3, 1, 32, 32))
    assert vectors.shape == (3, 8)


def test_what_cannot_be_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"moco\.queue of 4 must hold at least a batch of 8"):
        recipe("moco.queue=4")
    with pytest.raises(InputError, match="no such folder"):
        find_unlabelled(ImageFolders("nowhere"), images, 0)
    with pytest.raises(InputError, match="holds no image"):
        find_unlabelled(ImageFolders("."), tmp_path, 0)
    train, held = find_unlabelled(ImageFolders("b/*", held_back=0.3), images, 0)
    assert len(train) + len(held) == 4


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_the_follower_moves_once_a_step_however_many_pieces(images: Path, pieces: int) -> None:
    network = Contrastive(recipe(f"run.accumulate={pieces}"), images).network.train()
    weight = network.follower.head[0].weight
    with torch.no_grad():
        network.learner.head[0].weight.add_(1.0)
    wanted = torch.lerp(weight, network.learner.head[0].weight, 1 - 0.9)
    for part in torch.zeros(8, 2, 32, 32).chunk(pieces):
        network(part)
    torch.testing.assert_close(weight, wanted.detach())
