"""Every architecture, taken the whole way: one step of training, export through the parity gate, `tilelab infer`.

`python -m benchmarks models` writes the table to benchmarks/results/models.md.  Networks are untrained but for that one
step: the table shows that the way is open, not how well a network segments.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tifffile
import torch
from torch import nn

from tilelab.exporting.export import export_model
from tilelab.exporting.parity import Parity, Sample
from tilelab.io.images.open import open_image
from tilelab.models.build import count_parameters, initialise
from tilelab.models.measure import macs_per_pixel, total_stride
from tilelab.sample import draw_superalloy
from tilelab.spec import ModelSpec
from tilelab.training.checkpoint import Checkpoint, Header, save_checkpoint
from tilelab.training.losses import cross_entropy, supervise
from tilelab.training.recipe import load_recipe

CLASSES = 3
CROP = 64

_DECODERS = ("unet", "unet++", "linknet", "fpn", "pspnet", "deeplabv3+")
_FAMILIES = (  # those of the NASA paper, then two of later years
    "vgg16_bn",
    "densenet121",
    "dpn68",
    "efficientnet-b0",
    "resnet50",
    "inceptionv4",
    "inceptionresnetv2",
    "xception",
    "mobilenet_v2",
    "resnext50_32x4d",
    "se_resnet50",
    "senet154",
    "mit_b0",
    "tu-convnext_atto",
)
_CROPS = {"inceptionv4": 128}  # its convolutions do not pad: of 64 px it leaves a single one to normalise by

_COLUMNS = (
    "architecture",
    "parameters, M",
    "the paper's",
    "kMAC per pixel",
    "stride",
    "loss before",
    "after",
    "logits",
    "labels",
    "permits",
    "ONNX, MB",
    "s",
)


@dataclass(frozen=True)
class Entry:
    """One row: a name of `build_model`, with options.

    Attributes:
        name, options: as there.
        crop: side of its crops and of its tile, px.
        paper: parameters that its paper gives, in millions, for the classes of its data; None where it gives none.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    crop: int = CROP
    paper: float | None = None

    @property
    def title(self) -> str:
        """Its name, and the size among its options."""
        return f"{self.name} {self.options['size']}" if "size" in self.options else self.name


TABLE = (
    Entry("unet"),
    Entry("pmcanet:resnet50"),
    Entry("pmcanet:compact", paper=11.65),
    Entry("casenet:resnet152"),
    Entry("pidnet", {"size": "s"}, crop=128, paper=7.6),
    Entry("pidnet", {"size": "l"}, crop=128, paper=36.9),
    Entry("emnet"),
    Entry("segmenter", {"size": "small"}, paper=27),
    Entry("segvit", {"size": "base"}),
    Entry("mitonet:resnet50"),
    *(Entry(f"{decoder}:resnet18") for decoder in _DECODERS),
    Entry("pan:resnet18", crop=128),  # halves the encoder's last features three times more
    *(Entry(f"unet:{encoder}", crop=_CROPS.get(encoder, CROP)) for encoder in _FAMILIES),
)


@dataclass(frozen=True)
class Row:
    """What was found.

    Attributes:
        name: of the architecture.
        paper: see `Entry`.
        parameters, macs_per_pixel, stride: see `tilelab info`.
        before, after: loss on the same crops, before and after one step of gradient descent.
        megabytes: of the ONNX file.
        checks: every comparison with torch.
        permitted: precisions that passed.
        wrong: share of the pixels that `tilelab infer` labels otherwise than torch.
        seconds: all of it.
    """

    name: str
    paper: float | None
    parameters: int
    macs_per_pixel: float
    stride: int
    before: float
    after: float
    megabytes: float
    checks: tuple[Parity, ...]
    permitted: tuple[str, ...]
    wrong: float
    seconds: float


def examine(entry: Entry, folder: Path, *, engine: str = "onnxruntime") -> Row:
    """Take one architecture the whole way.

    Args:
        entry: which.
        folder: for its files.
        engine: that `tilelab infer` shall use.

    Raises:
        TilelabError: a step fails; `ParityError` when the file does not say what the network says.
    """
    from tilelab.cli import main

    began, crop = time.perf_counter(), entry.crop
    network = initialise(0, entry.name, 1, CLASSES, **entry.options)
    before, after = train_once(network, crop)
    network.eval()
    stride = total_stride(network, 1)
    checkpoint = folder / "c.safetensors"
    _save(entry, network, stride, checkpoint)
    image, _ = draw_superalloy((3 * crop // 2, 2 * crop - 5), seed=3)
    model, picture, result = folder / "m.onnx", folder / "image.tif", folder / "labels.tif"
    done = export_model(checkpoint, model, [Sample("drawn", open_image(image, axes="yx"))], force=True)
    tifffile.imwrite(picture, image)
    words = ["infer", picture, "--model", model, "-o", result, "--engine", engine, "--precision", "fp32"]
    assert main([str(word) for word in [*words, "--probabilities", "none"]]) == 0
    labels = tifffile.imread(result)
    return Row(
        name=entry.title,
        paper=entry.paper,
        parameters=count_parameters(network),
        macs_per_pixel=macs_per_pixel(network, 1, -(-crop // stride) * stride),
        stride=stride,
        before=before,
        after=after,
        megabytes=model.stat().st_size / 1e6,
        checks=done.checks,
        permitted=done.spec.precisions,
        wrong=float((labels != _expected(network, done.spec, image)).mean()),
        seconds=time.perf_counter() - began,
    )


def train_once(network: nn.Module, crop: int) -> tuple[float, float]:
    """Loss on two crops before and after one small step of gradient descent on them; dropout is drawn alike."""
    image, truth = draw_superalloy((crop, 2 * crop), seed=1)
    halves = [slice(0, crop), slice(crop, None)]
    pixels = np.stack([(image[None, :, half].astype(np.float32) - 150) / 20 for half in halves])
    classes = torch.from_numpy(np.stack([truth[:, half] for half in halves]).astype(np.int64))
    network.train()

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        return supervise(cross_entropy, network(torch.from_numpy(pixels)), classes)

    with torch.random.fork_rng(devices=[]):
        first = loss()
        first.backward()
        # as training does; an untrained inceptionv4 has gradients in the thousands
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        torch.optim.SGD(network.parameters(), lr=1e-3).step()
        with torch.no_grad():
            return float(first.detach()), float(loss())


def _save(entry: Entry, network: nn.Module, stride: int, path: Path) -> None:
    crop = entry.crop
    recipe = load_recipe("superalloy", [f"inference.tile={crop}", f"inference.overlap={crop // 4}"])
    recipe = msgspec.structs.replace(
        recipe,
        network=msgspec.structs.replace(recipe.network, architecture=entry.name, options=entry.options),
    )
    assert recipe.normalization is not None
    spec = ModelSpec(
        name=entry.name,
        architecture=entry.name,
        classes=recipe.classes,
        normalization=recipe.normalization,
        tile=(crop, crop),
        overlap=(crop // 4, crop // 4),
        stride=stride,
    )
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    save_checkpoint(path, Checkpoint(Header(recipe=recipe, spec=spec, step=1), tensors))


def _expected(network: nn.Module, spec: ModelSpec, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Labels by torch."""
    from tilelab.training.engine import TorchEngine
    from tilelab.training.validate import infer_logits

    return infer_logits(TorchEngine(network, spec), open_image(image, axes="yx")).argmax(axis=0)


def write_table(
    path: Path,
    entries: Sequence[Entry] = TABLE,
    only: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Examine `entries` and write the table as Markdown, row after row.

    Args:
        path: of the table.
        entries: its rows.
        only: beginnings of names: the other rows stay as the table has them.
        say: called with every row.
    """
    lines = {entry.title: line for entry in entries if only and (line := _kept(path, entry.title))}
    for entry in entries:
        if not only or entry.title.startswith(tuple(only)):
            with tempfile.TemporaryDirectory() as folder:
                lines[entry.title] = _line(examine(entry, Path(folder)))
            say(lines[entry.title])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_page([lines[e.title] for e in entries if e.title in lines]))


def _kept(path: Path, title: str) -> str | None:
    """The row of an architecture that the table has."""
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(f"| `{title}` |")), None)


def as_markdown(rows: Sequence[Row]) -> str:
    """The table."""
    return _page([_line(row) for row in rows])


def _page(lines: Sequence[str]) -> str:
    from importlib.metadata import version

    libraries = ", ".join(
        f"{n} {version(n)}" for n in ("torch", "segmentation_models_pytorch", "onnxruntime", "openvino")
    )
    return "\n".join(
        [
            "# Every architecture, from training to inference",
            "",
            "Made by `python -m benchmarks models`: one step of gradient descent on two drawn crops lowers the loss,",
            f"`tilelab export` writes ONNX (tile {CROP}) that passes the parity gate, `tilelab infer` runs it in ONNX",
            "Runtime. *logits*: greatest difference of a blended logit from torch in fp32, as a share of the greatest",
            "logit, for the worst engine. *labels*: share of pixels that `tilelab infer` labels otherwise than torch.",
            "*permits*: precisions that passed on this untrained network (fp16 simulated). *the paper's*: parameters",
            "that its paper gives, for the classes of its data, in millions. `oneformer` (218.8 of the paper's 219) is",
            "no row yet: its graph equals torch to 3e-6 in ONNX Runtime, after minutes of tracing.",
            "",
            f"Libraries of the latest rows: {libraries}; one input channel, {CLASSES} classes.",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            "|---" * len(_COLUMNS) + "|",
            *lines,
            "",
        ]
    )


def _line(row: Row) -> str:
    exact = max(check.logit / check.scale for check in row.checks if check.precision == "fp32")
    cells = (
        f"`{row.name}`",
        f"{row.parameters / 1e6:.2f}",
        "-" if row.paper is None else f"{row.paper:g}",
        f"{row.macs_per_pixel / 1e3:.1f}",
        f"{row.stride}",
        f"{row.before:.5f}",
        f"{row.after:.5f}",
        f"{exact:.1e}",
        f"{row.wrong:.1e}" if row.wrong else "0",
        ", ".join(row.permitted),
        f"{row.megabytes:.1f}",
        f"{row.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"
