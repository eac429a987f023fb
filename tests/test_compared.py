"""The networks that the papers compare with: they train with every head, keep sizes, and say what they cannot."""

from __future__ import annotations

import builtins

import pytest

torch = pytest.importorskip("torch", reason="training extra not installed")

from tilelab.errors import ModelError  # noqa: E402
from tilelab.models import build_model  # noqa: E402
from tilelab.models.build import count_parameters  # noqa: E402
from tilelab.models.emnet import Rectifier  # noqa: E402
from tilelab.models.heads import Heads  # noqa: E402
from tilelab.models.measure import macs_per_pixel  # noqa: E402
from tilelab.training import losses  # noqa: E402
from tilelab.training.sections import IGNORE  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "emnet": {"width": 2},
    "segmenter": {"size": "tiny", "depth": 1, "grid": 4},
    "segvit": {"size": "tiny", "grid": 4},
    "mitonet:resnet18": {},
    "pidnet": {},
}
PAPERS = {  # parameters that the papers give, in millions, with the classes of their data
    "pidnet": (19, {}, 7.6),
    "segmenter": (150, {"size": "tiny"}, 7),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_learns_and_sizes_stay(name: str) -> None:
    torch.manual_seed(0)
    network = build_model(name, 1, 3, **SMALL[name])
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, 8:24, 8:30], target[:, 40:60, 30:50] = 1, 2
    loss = losses.supervise(losses.cross_entropy, network(torch.randn(2, 1, 64, 64)), target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in network.parameters())
    with torch.no_grad():
        out = network.eval()(torch.randn(1, 1, 64, 128))
    assert out.shape == (1, 3, 64, 128)
    assert bool(out.isfinite().all())
    assert macs_per_pixel(network, 1, 64) > 100  # which training asks of every network


@pytest.mark.parametrize("name", PAPERS)
def test_parameters_are_those_of_the_paper(name: str) -> None:
    classes, options, millions = PAPERS[name]
    with torch.device("meta"):
        network = build_model(name, 3, classes, **options)
    assert count_parameters(network) / 1e6 == pytest.approx(millions, rel=0.06)


def test_the_rectifier_has_two_slopes() -> None:
    rectifier = Rectifier(2)
    x = torch.tensor([-2.0, 3.0]).reshape(1, 1, 1, 2).expand(1, 2, 1, 2)
    assert torch.equal(rectifier(x), x.relu())  # as it begins
    with torch.no_grad():
        rectifier.negative[1], rectifier.positive[1] = 0.5, 2.0
    assert rectifier(x)[0, 1, 0].tolist() == [-1.0, 6.0]


def test_objects_are_what_hangs_together() -> None:
    target = torch.zeros(1, 32, 48, dtype=torch.long)
    target[:, 4:9, 4:9] = 1
    target[:, 20:25, 30:41] = 1
    target[:, 20:25, 41:46] = 2  # of another class, so another object
    target[:, 30:] = IGNORE
    hills, ways, inside = losses.object_targets(target)
    assert float(inside.sum()) == 25 + 55 + 25
    for y, x in ((6, 6), (22, 35), (22, 43)):
        assert float(hills[0, y, x]) == 1
        assert ways[0, :, y, x].tolist() == [0, 0]
    assert ways[0, :, 4, 8].tolist() == [2, -2]
    assert ways[0, :, 20, 30].tolist() == [2, 5]
    right = torch.cat([hills[:, None], ways], dim=1)
    assert float(losses.instance_loss(right, target)) == 0
    assert float(losses.instance_loss(right + 1, target)) > 100


def test_points_are_judged_where_they_are() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[:, :, 4:] = 1
    places = torch.tensor([[[0.1, 0.5], [0.9, 0.5]]])
    points = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]])
    even = torch.zeros(1, 2, 8, 8)
    bare = losses.supervise(losses.cross_entropy, Heads((even,), (1.0,)), target)
    right = losses.supervise(losses.cross_entropy, Heads((even,), (1.0,), points=points, places=places), target)
    wrong = losses.supervise(losses.cross_entropy, Heads((even,), (1.0,), points=-points, places=places), target)
    assert float(right) == pytest.approx(float(bare), abs=1e-4)
    assert float(wrong) > float(bare) + 10


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("pidnet", {"size": "xl"}, "unknown size 'xl' of pidnet: choose one of s, m, l"),
        ("segmenter", {"size": "huge"}, "unknown size 'huge' of a vision transformer"),
        ("segvit", {"grid": 0}, "grid of positions must be at least 1"),
        ("emnet", {"norm": "layer"}, "emnet takes norm batch or none"),
        ("oneformer", {"size": "base"}, "unknown size 'base' of oneformer"),
    ],
)
def test_options_that_are_none(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_model(name, 1, 2, **options)


def test_what_oneformer_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object, **more: object) -> object:
        if name == "transformers":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModelError, match="needs the library transformers"):
        build_model("oneformer", 1, 2)
