"""What a recipe does otherwise than its paper is said; and what the papers ask of augmentation, losses and networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tilelab.cli.main import main  # noqa: E402
from tilelab.errors import ModelError  # noqa: E402
from tilelab.models import build_model  # noqa: E402
from tilelab.models.heads import Heads  # noqa: E402
from tilelab.training import losses  # noqa: E402
from tilelab.training.augment import Symmetry, room_to_turn, turn  # noqa: E402
from tilelab.training.deviations import deviations, tell  # noqa: E402
from tilelab.training.optimize import build_optimizer  # noqa: E402
from tilelab.training.recipe import RecipeError, load_pretraining, load_recipe, shipped_recipes  # noqa: E402
from tilelab.training.sections import IGNORE, LossTerm, Optimizer  # noqa: E402


def test_every_shipped_recipe_names_its_paper_and_only_keys_that_it_has() -> None:
    for command, load in (("train", load_recipe), ("pretrain", load_pretraining)):
        for name in shipped_recipes(command):
            recipe = load(name)
            assert recipe.paper.title, name
            assert tell(recipe)[0].startswith(f"after {recipe.paper.title}: ")
            assert len(tell(recipe)) == 1 + len(deviations(recipe)) + len(recipe.paper.silent)


def test_what_is_changed_is_a_deviation_at_once() -> None:
    before = deviations(load_recipe("pmcanet-isbi2012"))
    after = deviations(load_recipe("pmcanet-isbi2012", ["run.steps=200", "augmentation.flips=true"]))
    assert set(after) - set(before) == {
        "run.steps is 200, the paper's 40000",
        "augmentation.flips is true, the paper's horizontal",
    }


def test_a_statement_about_no_key_is_refused() -> None:
    recipe = load_recipe("pmcanet-isbi2012", ['paper.states={"run.epochs"=3}'])
    with pytest.raises(RecipeError, match=r"names 'run.epochs', and the recipe has no 'epochs'"):
        deviations(recipe)


def test_a_section_is_compared_in_what_the_paper_speaks_of() -> None:
    stated = "paper.states={normalization={mean=[150.0],std=[21.0]}}"
    recipe = load_recipe("superalloy", [stated])
    assert deviations(recipe)[0] == (
        "normalization is {mean = [150], std = [20]}, the paper's {mean = [150], std = [21]}"
    )


def test_the_command_says_so_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "superalloy-pmcanet", "--data", str(tmp_path), "-o", str(tmp_path / "o")]) == 2
    out = capsys.readouterr().out
    assert out.startswith("after PmcaNet")
    assert "  deviates: optimizer.kind is adamw, the paper's sgd" in out


@given(axes=st.sampled_from(["horizontal", "vertical", "both"]), seed=st.integers(0, 10_000))
def test_a_mirror_keeps_to_its_axes(axes: str, seed: int) -> None:
    plane = torch.arange(6).reshape(2, 3)
    allowed = {
        "horizontal": [plane, plane.flip(1)],
        "vertical": [plane, plane.flip(0)],
        "both": [plane, plane.flip(0), plane.flip(1), plane.flip(0, 1)],
    }[axes]
    made = Symmetry.draw_mirror(axes, np.random.default_rng(seed)).apply(plane)  # type: ignore[arg-type]
    assert any(torch.equal(made, one) for one in allowed)


def test_every_allowed_mirror_is_drawn() -> None:
    for axes, count in (("horizontal", 2), ("vertical", 2), ("both", 4)):
        rng = np.random.default_rng(0)
        drawn = {Symmetry.draw_mirror(axes, rng) for _ in range(64)}  # type: ignore[arg-type]
        assert len(drawn) == count


@given(angle=st.floats(-180, 180))
def test_labels_turn_with_the_image_and_from_within_it(angle: float) -> None:
    size = 24
    side = -(-int(size * room_to_turn(angle) * 16) // 16) + 1
    image = torch.zeros(1, side, side)
    image[:, : side // 2] = 100.0
    mask = (image > 50).to(torch.uint8)
    turned, labels = turn(image, angle, size), turn(mask, angle, size)
    assert turned.shape == labels.shape == (1, size, size)
    sure = (turned < 1) | (turned > 99)  # away from the edge both say the same
    assert torch.equal(labels[sure] > 0, turned[sure] > 50)
    assert float(sure.float().mean()) > 0.8


def test_a_quarter_turn_is_exact() -> None:
    image = torch.rand(2, 16, 16)
    assert torch.allclose(turn(image, 90.0, 16), torch.rot90(image, 1, (1, 2)), atol=1e-4) or torch.allclose(
        turn(image, 90.0, 16), torch.rot90(image, -1, (1, 2)), atol=1e-4
    )


def test_edges_are_where_classes_meet_and_nowhere_else() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[:, :, 4:] = 1
    target[:, 0, 3] = IGNORE
    edges = losses.find_edges(target)
    assert edges[0, 1].tolist() == [False, False, False, True, True, False, False, False]
    assert not edges[0, 0, 3]
    assert not losses.find_edges(torch.full((1, 8, 8), 2)).any()
    ring = torch.full((1, 8, 8), IGNORE)
    ring[:, 2:6, 2:6] = 1
    assert not losses.find_edges(ring).any()  # what is ignored is no other class


@pytest.mark.parametrize("kind", ["cross-entropy", "balanced-cross-entropy", "focal"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_boundary_weights_draw_attention_to_the_edge_and_to_nothing_else(kind: str, activation: str) -> None:
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[:, :, 8:] = 1
    outputs = 2 if activation == "softmax" else 1
    wrong_at_edge, wrong_inside = (torch.zeros(1, outputs, 16, 16) for _ in range(2))
    for logits, columns in ((wrong_at_edge, slice(7, 9)), (wrong_inside, slice(0, 2))):
        right = (target[:, None] == torch.arange(outputs)[:, None, None] + (activation == "sigmoid")).float()
        logits += 6 * (2 * right - 1)
        logits[..., columns] *= -1

    def value(logits: torch.Tensor, boundary: float) -> float:
        term = LossTerm(kind=kind, boundary=boundary)  # type: ignore[arg-type]
        return float(losses.weighted_sum([term], logits, target, activation))  # type: ignore[arg-type]

    assert value(wrong_at_edge, 4.0) > 1.5 * value(wrong_at_edge, 0.0)
    assert value(wrong_inside, 4.0) < value(wrong_inside, 0.0)


def test_dice_takes_no_boundary() -> None:
    with pytest.raises(ValueError, match="boundary weighs pixels"):
        LossTerm(kind="dice", boundary=1.0)


def test_every_head_is_supervised() -> None:
    torch.manual_seed(0)
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, 20:40, 10:50] = 1
    network = build_model("pidnet", 1, 2)
    out = network(torch.randn(2, 1, 64, 64))
    assert isinstance(out, Heads)
    total = losses.supervise(losses.cross_entropy, out, target)
    assert float(total.detach()) > float(losses.cross_entropy(out.logits[0], target).detach())
    total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in network.parameters())
    nothing = losses.supervise(losses.cross_entropy, out._replace(edges=None), target)
    assert float(nothing.detach()) < float(total.detach())


def test_edge_loss_falls_with_the_right_edges() -> None:
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[:, 5:9, 5:9] = 1
    right = losses.find_edges(target)[:, None].float() * 12 - 6
    assert float(losses.edge_loss(right, target)) < 0.01 < float(losses.edge_loss(-right, target))


def test_the_encoder_may_have_a_rate_of_its_own() -> None:
    network = build_model("unet", 1, 2, widths=[4, 6])
    groups = build_optimizer(network, Optimizer(encoder=0.1)).param_groups
    inside = {id(p) for group in groups if group["factor"] == 0.1 for p in group["params"]}
    assert inside == {id(p) for p in network.get_submodule("encoder").parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    with pytest.raises(ModelError, match=r"no encoder: leave optimizer\.encoder out"):
        build_optimizer(torch.nn.Conv2d(1, 1, 1), Optimizer(encoder=0.1))


def test_weight_decay_is_for_what_multiplies_many_values() -> None:
    """Slopes of EM-net's rectifiers, (C, 1, 1), shrank; a convolution's weight may be (1, C, 1, 1)."""
    networks = (build_model("emnet", 1, 2, width=4), build_model("pmcanet", 1, 1), build_model("segmenter", 1, 2))
    spared: set[str] = set()
    for network in networks:
        network.norm = torch.nn.LayerNorm((4, 4))
        groups = build_optimizer(network, Optimizer(weight_decay=0.1)).param_groups
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
        for name, parameter in network.named_parameters():
            if id(parameter) not in decayed:
                spared.add(name.rpartition(".")[2])
            layer = network.get_submodule(name.rpartition(".")[0])
            if name.endswith("weight") and isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Linear):
                assert id(parameter) in decayed, name
        ordered = [p for group in groups for p in group["params"]]
        assert [p.ndim > 1 for p in ordered] == sorted((p.ndim > 1 for p in ordered), reverse=True)
    assert spared == {"bias", "weight", "negative", "positive", "cls_token"}


def test_scse_and_hypercolumns() -> None:
    plain = build_model("unet", 1, 2, widths=[4, 6, 8])
    both = build_model("unet", 1, 2, widths=[4, 6, 8], attention="scse", hypercolumns=True).eval()
    assert both.get_submodule("head").weight.shape[1] == 4 + 6 + 8
    assert both(torch.zeros(1, 1, 32, 32)).shape == plain(torch.zeros(1, 1, 32, 32)).shape
    with pytest.raises(ModelError, match="unet attention 'se' is unknown"):
        build_model("unet", 1, 2, attention="se")


def test_casenet_of_urisc_has_five_sides_and_one_supervised_map() -> None:
    network = build_model("casenet:resnet18", 1, 2, sides="urisc")
    x = torch.zeros(2, 1, 32, 32)
    assert [tuple(side.shape[1:]) for side in network.sides(x)] == [(1, 32, 32)] * 5
    assert network(x).shape == (2, 2, 32, 32)  # in training, too
