"""Architectures: names, shapes, and what is measured of them."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training extra not installed")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from tilelab.errors import ModelError  # noqa: E402
from tilelab.models import build_model  # noqa: E402
from tilelab.models.attention import ChannelConv, average_cells, enlarge, kernel_size, maximum_cells  # noqa: E402
from tilelab.models.build import count_parameters, initialise  # noqa: E402
from tilelab.models.encoders import load_encoder_weights  # noqa: E402
from tilelab.models.measure import macs_per_pixel, measure_network, receptive_field, total_stride  # noqa: E402
from tilelab.models.pmcanet import PyramidAttention  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


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
        build_model(name, 1, 2, trust=True, **options)


def test_a_network_of_the_users_own() -> None:
    model = build_model(f"{__name__}:Plain", 1, 2, trust=True, width=5)
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


# --- PmcaNet, CASENet, encoders


@pytest.mark.parametrize("size", [6, 7, 48, 50, 64, 67])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_is_that_of_torch(size: int, bins: int) -> None:
    x = torch.randn(2, 3, size, size + 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(average_cells(x, bins), functional.adaptive_avg_pool2d(x, bins), atol=1e-6, rtol=0)
    assert torch.equal(maximum_cells(x, bins), functional.adaptive_max_pool2d(x, bins))


def test_kernel_across_channels_is_the_papers() -> None:
    assert {c: kernel_size(c) for c in (64, 128, 256, 512, 1024, 2048)} == {
        64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7,
    }  # fmt: skip


def test_laca_by_hand() -> None:
    gate = ChannelConv(64, norm=True).eval()
    cells = torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    kernel = gate.conv.weight.flatten()
    expected = torch.zeros_like(cells)
    for c in range(64):
        for k in range(3):
            if 0 <= c + k - 1 < 64:
                expected[:, c] += kernel[k] * cells[:, c + k - 1]
    torch.testing.assert_close(gate(cells), (expected / (1 + gate.norm.eps) ** 0.5).sigmoid())


def test_voting_on_cells_equals_voting_on_pixels() -> None:
    """The 1x1 convolution of the fusion acts on cells before they are enlarged; that must change nothing."""
    torch.manual_seed(0)
    pyramid = PyramidAttention(8, (1, 2, 3), "laca", "maf").eval()
    x = torch.randn(2, 8, 12, 10)
    levels = [enlarge(pyramid._gate(s, x), 12, 10) for s in range(3)]
    votes = sum(choose(level) for choose, level in zip(pyramid.choose, levels, strict=True))
    share = votes.softmax(dim=1)
    expected = x * sum(share[:, s : s + 1] * levels[s] for s in range(3))
    torch.testing.assert_close(pyramid(x), expected)


@pytest.mark.parametrize("attention", ["laca", "eca", "se", "cbam"])
@pytest.mark.parametrize("fusion", ["maf", "add", "multiply"])
def test_every_ablation_of_the_pyramid_learns_with_all_its_weights(attention: Any, fusion: Any) -> None:
    torch.manual_seed(0)
    pyramid = PyramidAttention(16, (1, 2, 3, 6), attention, fusion)
    x = torch.randn(2, 16, 12, 10)
    out = pyramid(x)
    assert out.shape == x.shape
    assert not torch.equal(out, x)
    (out**2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pyramid.parameters())


@pytest.mark.parametrize(("attention", "low_stride"), [("laca", 4), ("none", 2), ("laca", 1)])
def test_pmcanet_learns(attention: str, low_stride: int) -> None:
    torch.manual_seed(0)
    network = build_model("pmcanet:resnet18", 1, 2, attention=attention, width=16, low_stride=low_stride)
    x, y = torch.randn(2, 1, 32, 40), torch.randint(0, 2, (2, 32, 40))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    losses = []
    for _ in range(4):
        loss = functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in network.parameters())


def test_pmcanet_sizes() -> None:
    assert count_parameters(build_model("pmcanet:compact", 1, 2)) == pytest.approx(11.62e6, rel=0.01)
    assert count_parameters(build_model("pmcanet:resnet50", 1, 2)) > 25e6


def test_pmcanet_sees_its_whole_tile_and_casenet_does_not_say_so() -> None:
    network = build_model("pmcanet:resnet18", 1, 2, width=8).eval()
    assert total_stride(network, 1) == 8
    assert receptive_field(network, 1, 8) is None


def test_casenet_slices_and_fuses_by_class() -> None:
    torch.manual_seed(0)
    network = build_model("casenet:resnet18", 1, 3)
    x = torch.randn(2, 1, 32, 32)
    fused, high = network(x)
    assert fused.shape == high.shape == (2, 3, 32, 32)
    network.eval()
    with torch.no_grad():
        network.fuse.weight.copy_(torch.rand_like(network.fuse.weight))
        one, two, three, high = network.sides(x)
        got = network(x)
        for k in range(3):
            w = network.fuse.weight[k, :, 0, 0]
            expected = w[0] * high[:, k] + w[1] * one[:, 0] + w[2] * two[:, 0] + w[3] * three[:, 0]
            torch.testing.assert_close(got[:, k], expected + network.fuse.bias[k])


@pytest.mark.parametrize("name", ["pmcanet:resnet18", "casenet:resnet18"])
def test_sizes_that_are_no_multiple_of_the_stride_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        build_model(name, 1, 2).eval()(torch.zeros(1, 1, 36, 32))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("pmcanet:resnet17", {}, "resnet18"),
        ("pmcanet:vgg11", {}, "stride of 8"),
        ("pmcanet:resnet18", {"attention": "sca"}, "laca, eca, se, cbam, none"),
        ("pmcanet:resnet18", {"fusion": "sum"}, "maf, add, multiply"),
        ("pmcanet:resnet18", {"bins": [0]}, "bins"),
        ("pmcanet:resnet18", {"low_stride": 3}, "low_stride 1, 2 or 4, not 5 and 3"),
        ("pmcanet:resnet18", {"encoder": "resnet34"}, "leave the option out"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_model(name, 1, 2, trust=True, **options)


def pretrained(network: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in network.encoder.state_dict().items()
    }


@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q.", "encoder."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar"])
def test_pretrained_weights_of_other_tools(tmp_path: Path, prefix: str, suffix: str) -> None:
    network = build_model("unet:resnet18", 1, 2)
    weights = pretrained(network)
    first = torch.rand(64, 3, 7, 7)
    stored = {prefix + name: value for name, value in (weights | {"conv1.weight": first}).items()}
    stored |= {prefix + "fc.weight": torch.zeros(3, 512), prefix + "extra.weight": torch.zeros(2)}
    del stored[prefix + "layer1.0.bn1.weight"]
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(stored, path)
    else:
        torch.save({"state_dict": stored, "norms": {"mean": 0.57, "std": 0.12}, "epoch": 3}, path)
    report = load_encoder_weights(network, path)
    assert report.missing == ("layer1.0.bn1.weight",)
    assert report.unused == ("extra.weight",)
    assert report.adapted == ("conv1.weight",)
    loaded = network.encoder.state_dict()
    assert torch.equal(loaded["layer3.1.conv2.weight"], weights["layer3.1.conv2.weight"])
    torch.testing.assert_close(loaded["conv1.weight"], first.sum(dim=1, keepdim=True))
    assert "121 tensors" not in str(report)
    assert "1 missing" in str(report)


def test_weights_that_fit_nothing_are_an_error(tmp_path: Path) -> None:
    save_file({"stem.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"nothing in .* fits the encoder: it begins with 'stem\.weight'"):
        load_encoder_weights(build_model("unet:resnet18", 1, 2), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="no weights file"):
        load_encoder_weights(build_model("unet:resnet18", 1, 2), tmp_path / "none.pth")


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "args": Trap()}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="without running code"):
        load_encoder_weights(build_model("unet:resnet18", 1, 2), tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()
