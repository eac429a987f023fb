"""Architectures: names, shapes, and what is measured of them."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch", reason="training extra not installed")

from torch import nn  # noqa: E402

from tilelab.errors import ModelError  # noqa: E402
from tilelab.models import build_model  # noqa: E402
from tilelab.models.build import count_parameters, initialise  # noqa: E402
from tilelab.models.measure import macs_per_pixel, measure_network, receptive_field, total_stride  # noqa: E402


def test_importing_models_does_not_import_torch() -> None:
    code = "import sys, tilelab.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_published_unet_has_the_papers_size() -> None:
    widths, expected, before = (64, 128, 256, 512, 1024), 0, 1
    for width in widths:
        expected += 9 * before * width + width + 9 * width * width + width
        before = width
    for fine, coarse in pairwise(widths):
        expected += 4 * coarse * fine + fine + 9 * 2 * fine * fine + fine + 9 * fine * fine + fine
    expected += 2 * widths[0] + 2
    assert count_parameters(build_model("unet", 1, 2, norm="none")) == expected == 31_030_658


@pytest.mark.parametrize("name", ["unet", "unet:resnet18", "unet++:mobilenet_v2", "linknet:resnet18", "fpn:resnet18"])
def test_output_is_as_large_as_the_input(name: str) -> None:
    options = {"widths": [4, 8, 12]} if name == "unet" else {}
    model = build_model(name, 2, 3, **options).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 2, 64, 96)).shape == (1, 3, 64, 96)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet", {}, "unet:ENCODER"),
        ("unet:resnet17", {}, "resnet18"),
        ("unet", {"width": 3}, "widths"),
        ("unet", {"widths": [8]}, "at least two"),
        ("nowhere.to:Find", {}, "cannot be imported"),
        ("tilelab.spec:ModelSpec", {}, "not a torch.nn.Module"),
    ],
)
def test_what_is_unknown_is_named_beside_what_is_known(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said.replace(".", r"\.")):
        build_model(name, 1, 2, **options)


def test_a_network_of_the_users_own() -> None:
    model = build_model(f"{__name__}:Plain", 1, 2, width=5)
    assert isinstance(model, Plain)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)


class Plain(nn.Sequential):
    """Three convolutions in a row: every measured fact can be worked out by hand."""

    def __init__(self, channels: int, classes: int, width: int = 4):
        super().__init__(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 5, padding=2))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = initialise(1, "unet", 1, 2, widths=[4, 8])
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = (initialise(seed, "unet", 1, 2, widths=[4, 8]) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_facts_of_a_plain_network_are_those_worked_out_by_hand() -> None:
    facts = measure_network(Plain(2, 3, 4), 2)
    assert facts.parameters == 2 * 4 * 9 + 4 + 4 * 3 * 25 + 3
    assert facts.macs_per_pixel == 2 * 4 * 9 + 4 * 3 * 25
    assert facts.stride == 1
    assert facts.receptive_field == 3 + 5 - 1


def unet_receptive_field(levels: int) -> int:
    """Worst output pixel of a U-Net, by following index ranges down and up the network."""
    worst = 0
    for pixel in range(4096, 4096 + 2**levels):
        ranges = {}  # level -> the outputs of its encoder block that are needed
        low = high = pixel
        for level in range(levels - 1):
            low, high = low - 2, high + 2  # decoder block
            ranges[level] = (low, high)
            low, high = low // 2, high // 2  # up-convolution
        low, high = low - 2, high + 2
        for level in reversed(range(levels - 1)):
            low, high = 2 * low, 2 * high + 1  # pooling
            low, high = min(low, ranges[level][0]) - 2, max(high, ranges[level][1]) + 2
        worst = max(worst, high - low + 1)
    return worst


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_receptive_field_of_a_unet(levels: int) -> None:
    model = build_model("unet", 1, 2, widths=[4] * levels).eval()
    assert total_stride(model, 1) == 2 ** (levels - 1)
    assert receptive_field(model, 1, 2 ** (levels - 1)) == unet_receptive_field(levels)


def test_a_network_that_sees_everything_has_no_receptive_field() -> None:
    class Global(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x.mean(dim=(2, 3), keepdim=True)

    assert receptive_field(Global(1, 2).eval(), 1, 1) is None


def test_outside_the_receptive_field_nothing_matters() -> None:
    """The measured field is enough: pixels outside it do not change the output by a single bit."""
    torch.manual_seed(0)
    model = build_model("unet", 1, 2, widths=[4, 6, 8]).eval()
    reach = receptive_field(model, 1, 4)
    assert reach is not None
    x = torch.randn(1, 1, 32, 256)
    with torch.no_grad():
        before = model(x)[..., 128]
        x[..., : 128 - reach] = 9
        x[..., 128 + reach :] = -9
        assert torch.equal(model(x)[..., 128], before)


def test_measuring_leaves_the_mode_alone() -> None:
    model = build_model("unet", 1, 2, widths=[4, 8]).train()
    measure_network(model, 1)
    assert model.training
    assert macs_per_pixel(model, 1, 32) == macs_per_pixel(model, 1, 64)
