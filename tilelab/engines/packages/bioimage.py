"""Packages of bioimage.io (0.4 and 0.5), a folder, zip or rdf.yaml: a model file with a description.

The package's inputs, outputs, pre- and postprocessing become what a user would say by flags; what tilelab cannot do is
refused by its name, what it leaves out is said.
"""

from __future__ import annotations

import math
import shutil
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from tilelab.assumptions import Assumption
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.engines.files.onnx import read_onnx
from tilelab.engines.overrides import Axes, SpecOverrides, resolve_spec
from tilelab.engines.packages.kept import BROKEN, digest_of, unpacked
from tilelab.engines.packages.processing import normalization_words
from tilelab.errors import ModelError
from tilelab.spec import Activation, ModelSpec, OutputKind
from tilelab.text import install_hint

DOCUMENTS = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
_MAP: OutputKind = "map"
WEIGHTS = ("onnx", "torchscript")
SIDE = 512
"""Of a tile where a package takes any from a smallest one on, px, or the next that it takes."""
_NM = {"nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6, "angstrom": 0.1, "picometer": 1e-3, "meter": 1e9}
_LEFT_OUT = ("ensure_dtype", "clip", "sigmoid", "softmax", "binarize")  # whose sense the description has


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor: ``b``, ``c``, ``z``, ``y``, ``x`` or another letter.

    Attributes:
        size: where it is fixed; else `least` and `step`, as far as known.
        halo: pixels at either end that are not to be used.
        names: of channels.
        nm: of a pixel; 0 where that is not known.
    """

    letter: str
    size: int | None = None
    least: int = 1
    step: int = 0
    halo: int = 0
    names: tuple[str, ...] = ()
    nm: float = 0.0


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as the package describes it; `steps` are its pre- or postprocessing, in order."""

    name: str
    axes: tuple[Axis, ...]
    steps: tuple[tuple[str, dict[str, Any]], ...]
    dtype: str
    span: tuple[float, float]
    test: str

    @property
    def spatial(self) -> tuple[Axis, ...]:
        """Those of an image."""
        return tuple(axis for axis in self.axes if axis.letter in "zyx")

    @property
    def channel(self) -> Axis:
        """That of the channels."""
        return next((axis for axis in self.axes if axis.letter == "c"), Axis("c", 1))


@dataclass(frozen=True)
class Package:
    """An opened package.

    Attributes:
        path: that was named.
        folder: where its document lies, and its files below.
        document: its description, as stored.
        inputs, outputs: of the network.
    """

    path: Path
    folder: Path
    document: dict[str, Any] = field(repr=False)
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    base: Path | None = None
    """Where its archive was unpacked."""

    def file(self, source: str) -> Path:
        """A file of the package; in an archive one in another folder, where it is the only one of that name.

        Raises:
            ModelError: it is an address, lies outside or is not there.
        """
        found, base = self.folder / source, self.base or self.folder
        if "://" not in source and found.resolve().is_relative_to(base.resolve()) and found.is_file():
            return found
        name = _plain_name(source)
        alike = [] if self.base is None else [p for p in base.rglob("*") if p.name == name and p.is_file()]
        if len(alike) != 1 or "://" in source:
            raise ModelError(f"{self.path} keeps {source} elsewhere: download the whole package, as a zip")
        return alike[0]


def is_package(path: Path) -> bool:
    """Whether a path is a folder, zip or document of bioimage.io."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return path.is_file()
    if path.is_dir():
        return any((path / name).is_file() for name in DOCUMENTS)
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(_plain_name(name) in DOCUMENTS for name in archive.namelist())


def read_package(path: Path, weights: str | None = None) -> ModelFile:
    """The network of a package, described.

    Args:
        path: of the package.
        weights: ``onnx`` or ``torchscript``; None takes the first that is there.

    Raises:
        ModelError: it is broken, has no weights that run here, or asks for what tilelab cannot do.
    """
    package = open_package(path)
    file = _network(package, weights)
    if file.description is not None:  # one of ours
        return file
    said, assumptions = _words(package, file)
    spec = resolve_spec(file, said)
    spec = _settled(package, spec)
    notes: tuple[str, ...] = ()
    if file.format == "torchscript":
        first, *others = spec.outputs  # no graph tells what it is, so what the package says is kept
        spec = msgspec.structs.replace(
            spec, outputs=(msgspec.structs.replace(first, kind=first.kind or said.first_is), *others)
        )
        notes = (f"{path} holds its network as TorchScript, a program: it runs as it is, in torch",)
    return replace(file, description=spec.to_json(), notes=notes, assumptions=assumptions)


def open_package(path: Path) -> Package:
    """Unpack a package where that is needed, and read its document.

    Raises:
        ModelError: it is broken or of another format; or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise ModelError(f"{path} is a package of bioimage.io: to read it, {install_hint('bioimageio')}") from None
    try:
        stored, base = _unpacked(path)
        document = yaml.safe_load(stored.read_text(encoding="utf-8"))
        version = str(document["format_version"])
        if document.get("type", "model") != "model":
            raise ModelError(f"{path} is a package of bioimage.io, but a {document['type']}, not a model")
        if version.split(".")[:2] not in (["0", "4"], ["0", "5"]):
            raise ModelError(f"{path} has format {version} of bioimage.io: tilelab reads 0.4 and 0.5")
        read = _tensor_04 if version.startswith("0.4") else _tensor_05
        tensors = {kind: tuple(read(item) for item in document[kind]) for kind in ("inputs", "outputs")}
        if version.startswith("0.4"):
            for kind, tests in (("inputs", "test_inputs"), ("outputs", "test_outputs")):
                names = document.get(tests) or []
                tensors[kind] = tuple(
                    replace(tensor, test=str(names[i])) if i < len(names) else tensor
                    for i, tensor in enumerate(tensors[kind])
                )
    except (*BROKEN, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ModelError(f"{path} is not a package of bioimage.io that can be read: {error!r}") from error
    return Package(path, stored.parent, document, tensors["inputs"], tensors["outputs"], base)


def _unpacked(path: Path) -> tuple[Path, Path | None]:
    """The document, and the folder of what was unpacked for it.

    Raises:
        ModelError: an archive holds several packages.
    """
    if path.is_file() and path.suffix.lower() != ".zip":
        return path, None
    if path.is_dir():
        return next(path / name for name in DOCUMENTS if (path / name).is_file()), None
    base = unpacked(path, lambda made: _unzip(path, made))
    found = [file for name in DOCUMENTS for file in sorted(base.rglob(name)) if file.is_file()]
    highest = min((len(file.parts) for file in found), default=0)
    top = [file for file in found if len(file.parts) == highest]
    several = sorted({file.parent.relative_to(base).as_posix() for file in top})
    if len(several) != 1:
        there = f"several packages, in {' and '.join(several)}" if several else f"none of {', '.join(DOCUMENTS)}"
        raise ModelError(f"{path} holds {there}: zip one package alone")
    return top[0], base


def _unzip(path: Path, folder: Path) -> None:
    """All files of an archive into a folder, as they lie in it: what would land elsewhere is left out."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            parts = [part for part in member.filename.replace("\\", "/").split("/") if part not in ("", ".")]
            if member.is_dir() or not parts or any(part == ".." or ":" in part for part in parts):
                continue
            target = folder.joinpath(*parts)
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as made:
                shutil.copyfileobj(source, made)


def _plain_name(name: str) -> str:
    plain = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "" if plain in (".", "..") else plain


def _tensor_04(item: dict[str, Any]) -> Tensor:
    letters = "".join(item["axes"])
    shape, halo = item.get("shape"), item.get("halo") or [0] * len(letters)
    axes = []
    for i, letter in enumerate(letters):
        axis = Axis(letter, halo=int(halo[i]))
        if isinstance(shape, list):
            axis = replace(axis, size=int(shape[i]))
        elif isinstance(shape, dict) and "min" in shape:
            least, step = int(shape["min"][i]), int(shape["step"][i])
            axis = replace(axis, size=least) if step == 0 else replace(axis, least=least, step=step)
        axes.append(axis)
    steps = item.get("preprocessing") or item.get("postprocessing") or []
    low, high = item.get("data_range") or (-math.inf, math.inf)
    return Tensor(
        str(item["name"]),
        tuple(axes),
        tuple((str(step["name"]), dict(step.get("kwargs") or {})) for step in steps),
        str(item.get("data_type", "float32")),
        (float(low), float(high)),
        "",
    )


def _tensor_05(item: dict[str, Any]) -> Tensor:
    axes = []
    for stored in item["axes"]:
        kind = stored["type"]
        letter = {"batch": "b", "channel": "c", "time": "t", "index": "i"}.get(kind) or str(stored.get("id", "x"))
        size = stored.get("size")
        axis = Axis(letter, halo=int(stored.get("halo") or 0))
        if kind == "channel":
            names = stored.get("channel_names") or []
            names = names if isinstance(names, list) else []
            axis = replace(axis, size=len(names) or None, names=tuple(map(str, names)))
        elif isinstance(size, int):
            axis = replace(axis, size=size)
        elif isinstance(size, dict) and "step" in size:
            axis = replace(axis, least=int(size["min"]), step=int(size["step"]))
        elif isinstance(size, dict) and isinstance(size.get("min"), int):
            axis = replace(axis, least=int(size["min"]), step=1)
        if kind == "space" and stored.get("unit") in _NM:
            axis = replace(axis, nm=float(stored.get("scale") or 1.0) * _NM[stored["unit"]])
        axes.append(axis)
    pairs = list(zip(item["axes"], axes, strict=True))
    named = {str(stored.get("id", "x")): (stored, axis) for stored, axis in pairs}
    axes = [_as_another(item, stored, axis, named) for stored, axis in pairs]
    steps = item.get("preprocessing") or item.get("postprocessing") or []
    data = item.get("data") or {}
    data = data[0] if isinstance(data, list) else data
    low, high = (data.get("range") or (None, None))[:2]
    test = item.get("test_tensor") or {}
    return Tensor(
        str(item.get("id", "input")),
        tuple(axes),
        tuple((str(step["id"]), dict(step.get("kwargs") or {})) for step in steps),
        str(data.get("type", "float32")),
        (-math.inf if low is None else float(low), math.inf if high is None else float(high)),
        str(test.get("source", "") if isinstance(test, dict) else test),
    )


def _as_another(item: dict[str, Any], stored: dict[str, Any], axis: Axis, named: dict[str, Any]) -> Axis:
    """An axis whose size is told by another of the same tensor; any other as it is."""
    size = stored.get("size")
    if not isinstance(size, dict) or size.get("tensor_id") != item.get("id") or size.get("axis_id") not in named:
        return axis
    its, other = named[size["axis_id"]]
    if size.get("offset") or float(its.get("scale") or 1) != float(stored.get("scale") or 1):
        raise ValueError(f"the size of an axis is not that of {size['axis_id']} but depends on it")
    return replace(axis, size=other.size, least=other.least, step=other.step)


def _network(package: Package, wanted: str | None) -> ModelFile:
    """The weights that run here, checked against their digest."""
    stored = package.document.get("weights") or {}
    kinds = [kind for kind in WEIGHTS if stored.get(kind) and wanted in (None, kind)]
    if not kinds:
        there = ", ".join(stored) or "none"
        raise ModelError(
            f"{package.path} has weights for {there}: tilelab runs {' and '.join(WEIGHTS)}, which "
            "`bioimageio add-weights` (pip install bioimageio.core) makes of others"
        )
    entry = stored[kinds[0]]
    path = package.file(str(entry["source"]))
    stated = entry.get("sha256")
    if stated and digest_of(path) != stated:
        raise ModelError(f"{path} is not what its package describes (another sha256): download it again")
    if len(package.inputs) != 1:
        raise ModelError(f"{package.path} has {len(package.inputs)} inputs: tilelab feeds exactly one")
    for axis in package.inputs[0].axes:
        if axis.letter not in "bczyx":
            raise ModelError(f"{package.path} has an axis {axis.letter!r}: tilelab feeds batch, channels, z, y and x")
    if kinds[0] == "onnx":
        return read_onnx(path)
    source, *targets = (_port(package, tensor) for tensor in (*package.inputs, *package.outputs))
    return ModelFile(path, "torchscript", (path,), (source,), tuple(targets), "fp32", None)


def _port(package: Package, tensor: Tensor) -> Port:
    """Of a network that does not tell: as its test tensor is, where sizes are not free."""
    shape: list[int | str] = [axis.size or axis.letter for axis in tensor.axes]
    if tensor.test:
        known = np.load(package.file(tensor.test), mmap_mode="r").shape
        free = not all(axis.size for axis in package.inputs[0].spatial)
        shape = [
            axis.letter if free and axis.letter in "bzyx" else n for axis, n in zip(tensor.axes, known, strict=True)
        ]
    return Port(tensor.name, "float32", tuple(shape))


def _words(package: Package, file: ModelFile) -> tuple[SpecOverrides, tuple[Assumption, ...]]:
    """What the package says, as flags."""
    source = package.inputs[0]
    axes = "".join(axis.letter for axis in source.spatial)
    if axes not in ("yx", "zyx"):
        raise ModelError(f"{package.path} has its axes in the order {axes}: tilelab feeds yx or zyx")
    words, assumptions = normalization_words(
        package.path, source.steps, source.dtype, flat=axes == "yx", channels=source.channel.size or 1
    )
    activation, kinds, guessed = _activation(package, file)
    tile = tuple(_side(axis) for axis in source.spatial)
    halo = _halo(package)
    names = [port.name for port in file.outputs[: len(package.outputs)]]
    sizes = tuple(axis.nm for axis in source.spatial)
    said = SpecOverrides(
        **words,
        axes=cast("Axes", axes),
        channels=source.channel.size,
        tile=tile,
        overlap=tuple(min(2 * h, n - 1) for h, n in zip(halo, tile, strict=True)) if any(halo) else None,
        stride=math.gcd(*(axis.step or axis.size or 1 for axis in source.spatial), *tile) if _free(source) else None,
        activation=activation,
        classes=None if kinds[0] == "map" else _classes(package.outputs[0], activation),
        output=",".join(names) if len(file.outputs) > 1 else None,
        output_is=kinds if len(kinds) > 1 else kinds[0],
        thresholds=_threshold(package.outputs[0]) if activation == "sigmoid" else None,
        pixel_size_nm=sizes if all(sizes) else None,
    )
    return said, (*assumptions, *guessed)


def _activation(
    package: Package, file: ModelFile
) -> tuple[Activation | None, tuple[OutputKind, ...], tuple[Assumption, ...]]:
    """What makes probabilities of the first output, what each output is, and what had to be guessed."""
    first, names = package.outputs[0], [name for name, _ in package.outputs[0].steps]
    ending = file.endings.get(file.outputs[0].name)
    rest: tuple[OutputKind, ...] = tuple(_MAP for _ in package.outputs[1:])
    left = _left_out(package)
    said: tuple[Activation, ...] = ("sigmoid", "softmax")
    for name in said:
        if name in names:
            return name, ("logits", *rest), left
    if ending is not None and ending.kind == "labels":
        return None, ("labels", *rest), left
    if first.span == (0.0, 1.0) or "binarize" in names or (ending is not None and ending.kind == "probabilities"):
        alone = (first.channel.size or 1) == 1 or (ending is not None and ending.unit is False)
        return "sigmoid" if alone else "softmax", ("probabilities", *rest), left
    guess = Assumption(
        what=f"the output {first.name} of {package.path.name}",
        taken="a map of numbers",
        because="nothing in the package makes probabilities of it",
        flag="--output-is",
    )
    return None, ("map", *rest), (*left, guess)


def _left_out(package: Package) -> tuple[Assumption, ...]:
    """Postprocessing that results do not have: they hold what the network gives."""
    return tuple(
        Assumption(
            what=f"the postprocessing {name} of {tensor.name}",
            taken="left out",
            because="results hold what the network gives",
        )
        for tensor in package.outputs
        for name, _ in tensor.steps
        if name not in _LEFT_OUT
    )


def _threshold(tensor: Tensor) -> tuple[float, ...] | None:
    """Of the probability, where a postprocessing cuts there."""
    for name, words in tensor.steps:
        value = words.get("threshold")
        if name == "binarize" and isinstance(value, int | float) and 0 < value < 1:
            return (float(value),)
    return None


def _classes(tensor: Tensor, activation: Activation | None) -> tuple[str, ...] | None:
    names = tensor.channel.names
    if activation == "sigmoid" and (tensor.channel.size or 1) == 1:
        names = names if names and not names[0].startswith("channel") else (tensor.name,)
    if not names or len(set(names)) < len(names):
        return None
    return ("background", *names) if activation == "sigmoid" else names if len(names) > 1 else None


def _free(tensor: Tensor) -> bool:
    return all(axis.size is None for axis in tensor.spatial)


def _side(axis: Axis) -> int:
    """Of a tile: what is fixed, else the first size from `SIDE` on; a depth, the least."""
    if axis.size is not None:
        return axis.size
    most = SIDE if axis.letter != "z" else axis.least
    return axis.least + max(0, -(-(most - axis.least) // (axis.step or 1))) * axis.step


def _halo(package: Package) -> tuple[int, ...]:
    """The greatest of any output, along each axis of a tile."""
    letters = [axis.letter for axis in package.inputs[0].spatial]
    found: dict[str, int] = dict.fromkeys(letters, 0)
    for axis in (axis for tensor in package.outputs for axis in tensor.spatial):
        found[axis.letter] = max(found.get(axis.letter, 0), axis.halo)
    return tuple(found[letter] for letter in letters)


def _settled(package: Package, spec: ModelSpec) -> ModelSpec:
    """With the package's name and the sizes that it allows."""
    source = package.inputs[0]
    stride = spec.stride
    multiples = _free(source) and all(axis.least % stride == 0 for axis in source.spatial)
    document = package.document
    told = {
        key: document[key] for key in ("description", "license", "version", "id") if isinstance(document.get(key), str)
    }
    return msgspec.structs.replace(
        spec,
        name=str(document.get("name", spec.name)),
        tile_fixed=spec.tile_fixed or not multiples,
        tile_min=tuple(axis.least for axis in source.spatial) if multiples and not spec.tile_fixed else None,
        training={**spec.training, **told},
    )
