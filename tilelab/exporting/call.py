"""`tilelab.export`: from a checkpoint or an ONNX file to a checked engine file, as the command does it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilelab.engines.overrides import SpecOverrides
from tilelab.errors import EngineError, InputError, ModelError, OutputError
from tilelab.exporting.export import Exported, Place, export_model
from tilelab.exporting.package_file import Credits, write_package
from tilelab.exporting.parity import Sample
from tilelab.exporting.samples import drawn_sample, planes_of, training_images, user_samples, validation_samples
from tilelab.exporting.source import CheckpointSource, OnnxSource, open_network
from tilelab.exporting.write import Request
from tilelab.io.images.image import Image
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import MARK
from tilelab.run.notebook import Bar, in_notebook
from tilelab.run.options import model_words
from tilelab.spec import ModelSpec, Precision, parse_precision
from tilelab.text import size_text

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The images that a file is compared with its network on; a drawn micrograph where none are named.

    Attributes:
        images: an image, or a folder: 8 of it, of each at most the middle 2048 x 2048 px.
        masks: their truth, so that scores are compared, too.
        labels: which stored value of a mask is which class.
        data: data folder of the checkpoint's recipe: its validation set.
        like: image or folder that the network was trained on; the file remembers what they look like.
    """

    images: Path | None = None
    masks: Path | None = None
    labels: str = ""
    data: Path | None = None
    like: Path | None = None

    def samples(self, source: CheckpointSource | OnnxSource, spec: ModelSpec) -> Sequence[Sample]:
        """The images.

        Raises:
            InputError: what was named contradicts itself, or is not there.
        """
        if self.images is not None and self.data is not None:
            raise InputError("--images and --data both say what to compare on: leave one out")
        if self.images is None and (self.masks is not None or self.labels):
            raise InputError("--masks and --labels are about --images: give those, too")
        if self.images is not None:
            return user_samples(self.images, self.masks, self.labels, spec)
        if self.data is not None:
            if source.recipe is None:
                raise InputError(f"--data needs the recipe of a checkpoint, {source.path} has none: give --images")
            return validation_samples(source.recipe, self.data)
        return [drawn_sample(spec)]

    def trained(self, source: CheckpointSource | OnnxSource) -> Sequence[Image]:
        """The images that the network was trained on, as far as they are named."""
        if self.like is not None:
            return planes_of(self.like, source.spec.neighbours)
        return [] if self.data is None or source.recipe is None else training_images(source.recipe, self.data)


def export(
    source: str | Path,
    out: str | Path,
    *,
    precision: str | None = None,
    require: Sequence[str] = (),
    calibrate: str | Path | None = None,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    labels: str = "",
    data: str | Path | None = None,
    like: str | Path | None = None,
    free_size: bool = False,
    device: str = "auto",
    batch: int | tuple[int, int, int] | None = None,
    credits: Credits | None = None,  # noqa: A002
    force: bool = False,
    trust: bool = False,
    note: Note | None = None,
    **words: Any,
) -> Exported:
    """Write an engine file that is proved to say what the network says.

    >>> done = tilelab.export("superalloy", "copy.onnx", images="sample.tif", tile=128, overlap=32)
    >>> done.path.name, done.file.format, done.spec.precisions[0]
    ('copy.onnx', 'onnx', 'fp32')

    Args:
        source: a checkpoint of `train`, or an ONNX file.
        out: its suffix is the format: .onnx, .xml, .engine, .pt2, or .zip, a package of bioimage.io.
        precision: arithmetic that the file holds; left out, that of the source.
        require: precisions that engines here must reach with the file.
        calibrate: image or folder that int8 takes the ranges of activations from.
        images, masks, labels, data, like: see `Comparison`.
        free_size: leave height and width free, in .onnx and .xml.
        device, batch: of .engine and .pt2.
        credits: who made the network and under which licence, for a package.
        force: replace an existing file.
        trust: import the module that a checkpoint may name.
        note: called with one line per check; left out, they are shown where this is a notebook.
        words: what there is to say of the model by name: ``tile=512, overlap=128, mean=128``; see `SpecOverrides`.

    Raises:
        TilelabError: the network cannot be exported or the file does not say what it says; nothing is left then under
            the final name.
        TypeError: nothing of a model has such a name; the nearest one is named.
    """
    paths = {"images": images, "masks": masks, "data": data, "like": like}
    compared = Comparison(labels=labels, **{name: None if p is None else Path(p) for name, p in paths.items()})
    return export_file(
        Path(source),
        Path(out),
        compared,
        overrides=model_words(words),
        precision=None if precision is None else parse_precision(precision),
        require=[parse_precision(text) for text in require],
        calibrate=None if calibrate is None else Path(calibrate),
        free_size=free_size,
        request=Request(device=device, batch=batch),
        credits=credits,
        force=force,
        trust=trust,
        note=note or (Bar("").say if in_notebook() else lambda line: None),  # noqa: ARG005
    )


def export_file(
    path: Path,
    out: Path,
    compared: Comparison,
    *,
    overrides: SpecOverrides,
    precision: Precision | None,
    require: Sequence[Precision],
    calibrate: Path | None,
    free_size: bool,
    request: Request,
    credits: Credits | None,  # noqa: A002
    force: bool,
    trust: bool,
    note: Note,
    warn: Note | None = None,
) -> Exported:
    """What `export` and the command have in common; `warn` is told what was noticed, `note` what was checked."""
    warn = warn or note
    _claim(path, out, compared, calibrate, request)
    place = square_place(overrides) if path.suffix == ".safetensors" else Place()
    if path.suffix == ".safetensors":
        overrides = replace(overrides, tile=None, overlap=None, window=None)
    source = open_network(path, overrides, trust=trust)
    for line in source.notes:
        warn(line)
    cache = request.timing_cache or _timing_cache(out, request.device)
    request = replace(request, calibration=planes_of(calibrate, source.spec.neighbours), timing_cache=cache)

    def write(file: Path, *, force: bool) -> Exported:
        return export_model(
            source,
            file,
            lambda spec: compared.samples(source, spec),
            precision=precision,
            place=replace(place, free_size=free_size),
            request=request,
            require=require,
            trained=compared.trained(source),
            force=force,
            report=note,
        )

    if out.suffix != ".zip":
        return write(out, force=force)
    stated = source.spec.training.get("license") or source.spec.training.get("licence")
    credits = replace(credits or Credits((), "", ""), license=(credits.license if credits else "") or stated or "")  # noqa: A001
    missing = [
        flag for flag, said in (("--author NAME", credits.authors), ("--license SPDX", credits.license)) if not said
    ]
    if missing:
        raise ModelError(f"a package names who made it and under which licence: give {' and '.join(missing)}")
    if out.exists() and not force:
        raise OutputError(f"{out} exists: give another name or --force")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", suffix=MARK, dir=out.parent) as folder:
        onnx = Path(folder) / "weights.onnx"
        done = write(onnx, force=False)
        write_package(onnx, out, compared.samples(source, done.spec)[0], credits, warn)
    return replace(done, path=out)


def square_place(given: SpecOverrides) -> Place:
    """How a checkpoint's network is to be tiled; its tiles are squares.

    Raises:
        ModelError: they are to be something else.
    """
    sides = {}
    for flag, value in (("tile", given.tile), ("overlap", given.overlap)):
        if isinstance(value, float):
            raise ModelError(f"--{flag} {value:.0%} is not for checkpoints: give pixels")
        if value is not None and len(set(value)) > 1:
            raise ModelError(f"--{flag} {size_text(value)}: tiles of a checkpoint are squares, give one number")
        sides[flag] = None if value is None else value[0]
    return Place(tile=sides["tile"], overlap=sides["overlap"], window=given.window)


def _timing_cache(out: Path, device_name: str) -> Path | None:
    """The user's own, for this version of TensorRT and this GPU.

    Raises:
        EngineError: TensorRT is not to be had here.
    """
    if out.suffix != ".engine":
        return None
    from tilelab.engines.builders.tensorrt import default_timing_cache
    from tilelab.engines.registry import availability

    found = availability("tensorrt")
    if found.reason:
        raise EngineError(found.reason)
    from tilelab.kernels import device

    index = 0 if device_name == "auto" else device.parse_index(device_name)
    return default_timing_cache(found.version, device.select(index).capability)


def _claim(path: Path, out: Path, compared: Comparison, calibrate: Path | None, request: Request) -> None:
    """Refuse to overwrite what is read.

    Raises:
        OutputError: it names both.
    """
    reads = {
        "SOURCE": path,
        "--calibrate": calibrate,
        "--images": compared.images,
        "--masks": compared.masks,
        "--like": compared.like,
        "--data": compared.data,
    }
    cache = request.timing_cache
    ours = cache is None or cache.suffix in (".timing", ".cache")
    weights = out.with_suffix(".bin") if out.suffix == ".xml" else None
    files = (Write(file, "-o", "result") for file in (out, weights))
    claim(reads, [Write(cache, "--timing-cache", replace=ours), *files])
