"""From a model and corrections to a better model: learned, judged by what it knew, and through the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tilelab.arrays import Float32
from tilelab.engines.base import Engine
from tilelab.engines.files.onnx import embed_spec
from tilelab.engines.registry import read_model
from tilelab.errors import EngineError, ModelError
from tilelab.exporting.export import Exported, check_output, export_model
from tilelab.exporting.home import widen_home
from tilelab.exporting.parity import TOLERANCES, Reference, Sample, compare
from tilelab.exporting.samples import drawn_sample, find_images
from tilelab.exporting.seams import measure_file
from tilelab.exporting.source import OnnxSource
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.machine.disk import work_folder
from tilelab.run.kind.home import knows, look, strangeness
from tilelab.run.normalize import plane_constants
from tilelab.spec import ModelSpec, Normalization
from tilelab.text import install_hint

_SIDE = 512  # pixels of a drawn micrograph
_DRAWN, _REMINDERS = 6, 16  # that it is held to; half as many judge it
_SEED = 20_000  # of what is drawn
_ALIKE = 0.001  # share of labels that the order of sums may change
_PLACES = 2  # of the corrections, that the gate compares on
_LOST = 0.001  # of mean IoU, or of the answers that it was sure of: a fifth of what int8 may change; see `Judged`
_LOST_OF_MADE = TOLERANCES["int8"].iou  # of those on images of our making, where micrographs of home judge beside them
_SLICES, _STACK = 16, 2**26  # planes of a stack of --home, and their pixels, that are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What the user has of what the model knew.

    Attributes:
        images: an image or a folder of them; None where there is nothing.
        masks: their truth; None holds it to what it said before.
        labels: which stored value is which class.
    """

    images: Path | None = None
    masks: Path | None = None
    labels: str = ""


class ImprovedSource(OnnxSource):
    """A network that has learned: its file is proved against what was trained."""

    def __init__(self, path: Path, network: Any) -> None:
        super().__init__(path)
        self.network = network

    def reference(self, spec: ModelSpec) -> Engine:
        """The network in torch."""
        from tilelab.training.engine import TorchEngine

        return TorchEngine(self.network, spec)


@dataclass(frozen=True, slots=True)
class Handed:
    """The new model, and what it learned."""

    exported: Exported
    learned: Any
    """`tilelab.training.improve.Improved`."""


def improve_model(
    model: str,
    corrections: Path,
    output: Path,
    *,
    home: Home | None = None,
    labels: str = "",
    black_white: tuple[float, float] | None = None,
    effort: Any = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Callable[[Any], None] = lambda _: None,
) -> Handed:
    """Learn from corrections and write the better model; nothing is written where it would be worse.

    Args:
        model: bundled, or whatever leads to an ONNX file.
        corrections: see `tilelab.training.corrections.open_corrections`; `labels` and `black_white` likewise.
        output: its suffix is the format.
        home: images of what the model knew.
        effort: `tilelab.training.improve.Effort`.
        force: replace an existing output.
        say: called with one line for each thing that was found.
        report: called after every step of training.

    Raises:
        ModelError: the model cannot be trained on, gets no better, or worse on what it knew.
        InputError: the corrections or the images of home cannot be read.
        ParityError, OutputError, EngineError: see `export_model`.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise EngineError(f"improving a model needs torch: {install_hint('train')}") from None
    from tilelab.models.graph import GraphNetwork
    from tilelab.training.corrections import open_corrections
    from tilelab.training.engine import TorchEngine
    from tilelab.training.improve import Effort, improve
    from tilelab.training.judge import Planes

    file = read_model(model)
    if file.format != "onnx" or file.precision != "fp32":
        raise ModelError(
            f"{model} is {file.format} in {file.precision}: what learns is the fp32 .onnx that it was made from, "
            "or its checkpoint"
        )
    source = OnnxSource(file.path)
    spec, effort = source.spec, effort or Effort()
    if spec.axes != "yx" or spec.neighbours:
        raise ModelError(
            f"{model} sees several slices at once, corrections are planes: only 2-D models learn from them"
        )
    ending = spec.activation if spec.outputs[0].kind == "probabilities" else ""
    check_output(source, output, force)
    network = GraphNetwork(file.path, ending).eval()
    _check_alike(source, TorchEngine(network, spec))
    corrected = open_corrections(corrections, spec, labels=labels, black_white=black_white)
    for line in corrected.notes:
        say(line)
    planes = Planes(name="corrections", planes=corrected.planes, normalizations=corrected.normalizations)
    engine = TorchEngine(network, spec)
    kept, checks = _knowledge(spec, engine, planes, home or Home(), effort.crop, black_white, say)
    learned = improve(network, spec, planes, kept, checks, effort, report)
    for judged in _judged(learned):
        say(str(judged))
    say(_promise(kept, checks, learned.home, home is not None and home.images is not None))
    spec = _describe(spec, output, learned, corrected.digest, len(corrected.planes), file.digest())
    alike = [plane for plane in corrected.planes if str(plane.image.dtype) == spec.normalization.dtype]
    if spec.home is not None and knows(spec) and alike:
        wide = widen_home(spec.home, TorchEngine(learned.network, spec), [plane.image for plane in alike])
        spec = msgspec.structs.replace(spec, home=wide)
    samples = [_sample(plane) for plane in alike]
    output.parent.mkdir(parents=True, exist_ok=True)
    with work_folder(output.parent, ".improve-") as folder:
        trained: Any = learned.network  # a GraphNetwork, as it was given
        trained.save(folder / "learned.onnx")
        embed_spec(folder / "learned.onnx", spec)
        real = [one for planes in checks if planes.real for one in map(_sample, planes.planes)]
        spec = msgspec.structs.replace(spec, seams=measure_file(folder / "learned.onnx", real or samples))
        embed_spec(folder / "learned.onnx", spec)
        made = (
            OnnxSource(folder / "learned.onnx") if ending else ImprovedSource(folder / "learned.onnx", learned.network)
        )
        images = samples[:_PLACES] or [drawn_sample(spec)]
        done = export_model(made, output, images, seams=False, calibrate=False, force=force, report=say)
    return Handed(done, learned)


def _judged(learned: Any) -> list[Any]:
    return [j for j in (learned.abroad, learned.held, *learned.home) if j is not None]


def _promise(kept: list[Any], checks: list[Any], home: tuple[Any, ...], given: bool) -> str:
    """What "never worse at home" means here: of which images it is known, with its number and its resolution."""
    if not home:
        return (
            "never worse at home: not checked, nothing is known of what the model was trained on; name such images "
            "(--home)"
        )
    if not given:
        return (
            f"never worse at home: known of made images alone, {' and '.join(one.name for one in home)}; name real "
            f"ones (--home), and no more than {_LOST:g} of mean IoU is lost on those"
        )
    first, count = home[0], len(checks[0].planes)
    what = f"{_LOST:.1%} of its sure answers" if first.told else f"{_LOST:g} of mean IoU"
    found, least = ((f"{one:.2%}" if first.told else f"{one:.4f}") for one in (max(0.0, -first.gain), first.resolution))
    seen = "" if _apart(kept[0], checks[0]) else ", which it was held to"
    return (
        f"never worse at home: with 95 % confidence no more than {what} lost on {count} of the images of --home{seen} "
        f"(found {found}; a loss of {least} can be told from none)"
    )


def _apart(kept: Any, checks: Any) -> bool:
    """Whether no plane both holds and judges."""
    return not {plane.name for plane in kept.planes} & {plane.name for plane in checks.planes}


def _sample(plane: Any) -> Sample:
    return Sample(plane.name, plane.image, plane.mask.read(Box.whole(plane.shape)))


def _check_alike(source: OnnxSource, engine: Engine) -> None:
    """Refuse a torch network that answers otherwise than the file it was read from."""
    parity = compare(Reference(source.reference, [drawn_sample(source.spec)]), engine, precision="fp32")
    if not parity.changed <= _ALIKE:
        raise ModelError(
            f"{source.path} cannot learn: as a torch network it gives {parity.changed:.1%} of the labels otherwise"
        )


def _describe(spec: ModelSpec, output: Path, learned: Any, digest: str, count: int, before: str) -> ModelSpec:
    """The old description with a name of its own and what was learned; scores of the old weights are no longer true."""
    known = {key: value for key, value in spec.training.items() if key not in ("validation", "steps", "seed")}
    story = {
        "from": spec.name,
        "digest": before,
        "corrections": count,
        "corrections_digest": digest,
        "steps": learned.steps,
        "share": learned.share,
        "scores": {j.name: [round(j.before, 4), round(j.after, 4)] for j in _judged(learned)},
    }
    sure = spec.confidence and msgspec.structs.replace(spec.confidence, images=0, ece=())  # measured of the old ones
    return msgspec.structs.replace(
        spec, name=output.name.split(".")[0], confidence=sure, training=known | {"improved": story}
    )


def _knowledge(
    spec: ModelSpec,
    engine: Engine,
    corrected: Any,
    home: Home,
    crop: int,
    black_white: tuple[float, float] | None,
    say: Callable[[str], None],
) -> tuple[list[Any], list[Any]]:
    """What the model is held to, and by what it is judged."""
    pairs = []
    if home.images is not None:
        pairs.append(_given(spec, home, black_white, say))
    if spec.home is not None and knows(spec):
        if spec.channels == 1 and (drawn := _drawn(spec, engine)) is not None:
            pairs.append(drawn)
        judged = home.images is not None and _apart(*pairs[0])  # by micrographs that it is not held to
        pairs.append(_remembered(spec, corrected, max(_SIDE // 2, crop), _LOST_OF_MADE if judged else _LOST))
    for kept, _ in pairs:
        say(f"held to what it says of {len(kept.planes)} {kept.name}")
    return [kept for kept, _ in pairs], [check for _, check in pairs]


def _given(
    spec: ModelSpec,
    home: Home,
    black_white: tuple[float, float] | None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Any, Any]:
    """The user's images; every second one judges, where there are several.  What their masks hold is said."""
    from tilelab.training.corrections import values_of
    from tilelab.training.judge import Planes
    from tilelab.training.pairs import ArrayMask, MaskedPlane, Plane, load_plane, open_set
    from tilelab.training.sections import IGNORE, Data

    assert home.images is not None  # noqa: S101  # asked for
    names = [known.name for known in spec.classes]
    if home.masks is not None:
        labels = home.labels or values_of(len(names))
        data = Data(str(home.images.absolute()), str(home.masks.absolute()), labels)
        planes, seen = open_set(data, Path(), names, 0, "home")
        for line in (seen.summary(), *seen.notes):
            say(line)
        own = [_constants(spec, plane.image, black_white) for plane in planes]
    else:
        planes, own = [], []
        for name, path in find_images(home.images).items():
            with open_image(path, bar=None) as image:
                depth, height, width = Volume(image).shape
                taken = _slices(depth, height * width)
                if depth > 1:
                    say(f"home: {path} is a stack, {len(taken)} of its {depth} planes are looked at")
                for z in taken:
                    plane = load_plane(Plane(image, z))
                    unknown = ArrayMask(np.full((height, width), IGNORE, np.uint8))
                    planes.append(MaskedPlane(name if depth == 1 else f"{name}[{z}]", plane, unknown))
                    own.append(_constants(spec, plane, black_white))
    told = home.masks is None

    def every(first: int, step: int) -> Any:
        name = "images of --home" + (", against what it said before" if told else "")
        return Planes(
            name=name, planes=planes[first::step], normalizations=own[first::step], tolerance=_LOST, told=told
        )

    return (every(0, 1), every(0, 1)) if len(planes) == 1 else (every(0, 2), every(1, 2))


def _slices(depth: int, pixels: int) -> list[int]:
    """Planes of a stack, spread evenly; as many as `_SLICES` and `_STACK` allow, one at least."""
    count = min(depth, _SLICES, max(1, _STACK // pixels))
    return [depth * (2 * k + 1) // (2 * count) for k in range(count)]


def _constants(spec: ModelSpec, image: Any, black_white: tuple[float, float] | None = None) -> Normalization:
    """As the model normalises an image, in constants; `black_white` are of images of another type than the model's."""
    own = spec.normalization
    given = None if str(image.dtype) == own.dtype else black_white
    mean, gain = plane_constants(Volume(image), own, spec.channels, given)
    stated: dict[str, tuple[float, ...]] = {"mean": tuple(mean.tolist()), "std": tuple((1 / gain).tolist())}
    return msgspec.structs.replace(own, kind="constants", per="stack", dtype=str(image.dtype), **stated)


def _drawn(spec: ModelSpec, engine: Engine) -> tuple[Any, Any] | None:
    """Drawn micrographs, where the model is at home with them; with their truth where its classes are theirs."""
    from tilelab.exporting.samples import FULL_SCALE
    from tilelab.sample import CLASSES, draw_superalloy
    from tilelab.training.judge import Planes
    from tilelab.training.pairs import ArrayMask, MaskedPlane
    from tilelab.training.sections import IGNORE

    assert spec.home is not None  # noqa: S101  # asked for
    truth = [known.name for known in spec.classes] == [known.name for known in CLASSES]
    dtype = spec.normalization.dtype
    planes: list[MaskedPlane] = []
    for number in range(_DRAWN + _DRAWN // 2):
        drawn, mask = draw_superalloy((_SIDE, _SIDE), seed=_SEED + number)
        image = open_image((drawn * np.float32(FULL_SCALE.get(dtype, 1.0))).astype(dtype), axes="yx")
        its = _constants(spec, image)
        mean, gain = np.array(its.mean, np.float32), np.array([1 / s for s in its.std], np.float32)
        if not planes and strangeness(spec.home, look(Volume(image), engine, mean, gain, 1)) > 1:
            return None
        known = mask if truth else np.full(mask.shape, IGNORE, np.uint8)
        planes.append(MaskedPlane(f"drawn {number}", image, ArrayMask(known)))
    own = [_constants(spec, plane.image) for plane in planes]

    def part(where: slice) -> Any:
        return Planes(
            name="drawn micrographs", planes=planes[where], normalizations=own[where], tolerance=_LOST, told=not truth
        )

    return part(slice(_DRAWN)), part(slice(_DRAWN, None))


def _remembered(spec: ModelSpec, corrected: Any, side: int, tolerance: float) -> tuple[Any, Any]:
    """Images with the texture of home, and shapes that are not its own: where there are micrographs, those decide."""
    from tilelab.training.judge import Planes
    from tilelab.training.pairs import ArrayMask, MaskedPlane
    from tilelab.training.reminders import make_reminders
    from tilelab.training.sections import IGNORE

    assert spec.home is not None  # noqa: S101  # asked for
    grounds: list[Float32] = []
    for plane, its in zip(corrected.planes, corrected.normalizations, strict=True):
        pixels: Float32 = plane.image[...].astype(np.float32)
        grey = pixels if pixels.ndim == 2 else pixels.mean(axis=0)
        grounds.append((grey - np.float32(its.mean[0])) / np.float32(its.std[0]))

    def made(count: int, seed: int, name: str) -> Any:
        images = make_reminders(grounds, spec.home, count, side, seed)  # type: ignore[arg-type]
        unknown = np.full((side, side), IGNORE, np.uint8)
        planes = [
            MaskedPlane(f"{name} {i}", open_image(image, axes="yx"), ArrayMask(unknown))
            for i, image in enumerate(images)
        ]
        plain = Normalization(mean=(0.0,), std=(1.0,), dtype="float32", clip=spec.normalization.clip)
        own = [plain] * len(planes)
        return Planes(name=name, planes=planes, normalizations=own, tolerance=tolerance, told=True, real=False)

    name = "images with the texture that it remembers"
    return made(_REMINDERS, _SEED, name), made(_REMINDERS // 2, _SEED + 1, name)
