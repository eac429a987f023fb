"""Describe a network once: what the user says of it goes into a copy of its file, which then needs no flags."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tilelab.engines.base import Engine
from tilelab.engines.bundled import quantised_file
from tilelab.engines.files.model_file import ModelFile
from tilelab.engines.files.onnx import embed_spec
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine, model_files, read_model
from tilelab.errors import ModelError, OutputError
from tilelab.exporting.home import learn_home
from tilelab.exporting.openvino_file import read_network, write_ir
from tilelab.io.images.image import Image
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import move_whole, replacing, why_unwritten, work_folder
from tilelab.spec import Confidence, ModelSpec
from tilelab.text import install_hint


@dataclass(frozen=True, slots=True)
class Described:
    """What was written: the file and what it says of itself now."""

    path: Path
    file: ModelFile
    spec: ModelSpec


def describe_model(
    source: Path,
    output: Path,
    overrides: SpecOverrides,
    *,
    name: str | None = None,
    trained: Sequence[Image] = (),
    known: Sequence[Image] = (),
    foreign: Sequence[Sequence[Image]] = (),
    confidence: Confidence | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Described:
    """Write a copy of a model file that describes itself; its network stays as it is.

    The network is run on a made-up batch first: what cannot run, or contradicts the description, is not written.

    Args:
        source: an .onnx or .xml file, or whatever leads to one.
        output: the file to write, with the suffix of `source`.
        overrides: what there is to say, over what the file says of itself.
        name: of the model; None keeps its own, or that of the file.
        trained: images that the network was trained on: what they look like is kept in the file, see `learn_home`.
        known: others that it is at home with.
        foreign: groups of images that it is not at home with.
        confidence: what calibrates its probabilities; None keeps what the file says.
        force: replace an existing file.
        report: called with one line for each thing the user should know.

    Raises:
        ModelError: something is still missing (the message names every flag at once), or contradicts the network.
        OutputError: `output` exists or cannot be written.
    """
    file = read_model(source)
    if file.format not in ("onnx", "openvino"):
        raise ModelError(f"{source} describes itself and cannot be described anew: export its network again")
    suffix = file.path.suffix
    if output.suffix != suffix:
        raise OutputError(f"{output} would hold what {source} does: name it NAME{suffix} (tilelab export converts)")
    weights = [output.with_suffix(".bin")] if suffix == ".xml" else []
    for path in (output, *weights):
        if path.exists() and not force:
            raise OutputError(f"{path} exists: give another name or --force")
    claim(
        {"the model": [*file.files, *model_files(source)]}, [Write(path, "-o", "model") for path in (output, *weights)]
    )
    named = file.path if quantised_file(str(source)) is not None else source  # a name may lead to another file: int8
    engine = load_engine(named, spec_overrides=overrides)
    try:
        spec = settle_outputs(engine, overrides)
        spec = msgspec.structs.replace(spec, name=name or spec.name, confidence=confidence or spec.confidence)
        if trained:
            spec = msgspec.structs.replace(spec, home=learn_home(engine, trained, known, foreign))
        for line in (*engine.warnings, *engine.assumptions):
            report(str(line))
    finally:
        engine.close()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".xml":
            _write_xml(file.path, spec, output)
        else:
            _write_onnx(file, spec, output)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {why_unwritten(error)}") from error
    return Described(output, read_model(output), spec)


def settle_outputs(engine: Engine, overrides: SpecOverrides) -> ModelSpec:
    """The description of a loaded engine, with what the trial run and the user told of its first output."""
    spec = engine.spec
    first, *others = spec.outputs
    if first.kind is None:
        first = msgspec.structs.replace(first, kind=engine.output_is)
    if not first.name and overrides.output is not None:
        first = msgspec.structs.replace(first, name=overrides.output)
    return msgspec.structs.replace(spec, outputs=(first, *others))


def copy_onnx(file: ModelFile, path: Path) -> None:
    """Copy an ONNX file to `path`; weights that lie in other files are put into it.

    Raises:
        ModelError: that takes the package onnx, or more than the 2 GB of one file.
    """
    if len(file.files) == 1:
        shutil.copyfile(file.path, path)
        return
    try:
        import onnx
    except ImportError:
        raise ModelError(
            f"{file.path} keeps its weights in another file; to put them into it: {install_hint('export')}"
        ) from None
    try:
        onnx.save(onnx.load(file.path), path)
    except ValueError as error:
        raise ModelError(f"{file.path} with its weights does not fit one ONNX file of 2 GB") from error


def _write_onnx(file: ModelFile, spec: ModelSpec, output: Path) -> None:
    with replacing(output, suffix=".onnx") as partial:
        copy_onnx(file, partial)
        embed_spec(partial, spec)
        read_model(partial)


def _write_xml(source: Path, spec: ModelSpec, output: Path) -> None:
    network = read_network(source)
    with work_folder(output.parent, ".describe-") as folder:
        partial = folder / output.name
        write_ir(network, spec, partial)
        read_model(partial)
        for path in (partial.with_suffix(".bin"), partial):  # both are whole before one of them replaces another
            move_whole(path, output.with_name(path.name))
