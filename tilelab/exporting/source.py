"""What is exported: a checkpoint with its network in torch, or an ONNX file, which needs no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from tilelab.engines.base import Engine
from tilelab.engines.files.onnx import embed_spec
from tilelab.engines.overrides import SpecOverrides, override_spec
from tilelab.engines.registry import load_engine, read_model
from tilelab.errors import EngineError, ModelError
from tilelab.exporting.describe import copy_onnx, settle_outputs
from tilelab.geometry import Window
from tilelab.spec import ModelSpec, Precision
from tilelab.text import install_hint

if TYPE_CHECKING:
    from tilelab.training.recipe import Recipe


class NetworkSource(Protocol):
    """Something that can be exported.

    Attributes:
        path: the file.
        spec: what it says of itself.
        precision: the arithmetic of the network as it is here.
        recipe: that it was trained by, where known.
        notes: one line each, for the user.
    """

    @property
    def path(self) -> Path: ...
    @property
    def spec(self) -> ModelSpec: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def recipe(self) -> Recipe | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def place(
        self, tile: int | None = None, overlap: int | None = None, window: Window | None = None, *, free_size: bool
    ) -> ModelSpec:
        """Its description, for use with another tile, overlap or window; `free_size` leaves height and width free.

        Raises:
            ModelError: the network does not allow it.
        """
        ...

    def reference(self, spec: ModelSpec) -> Engine:
        """The network itself, on the CPU, tiled as `spec` says."""
        ...

    def write_onnx(self, spec: ModelSpec, path: Path) -> None:
        """Write the network as it is to an ONNX file that carries `spec`.

        Raises:
            ModelError: the network cannot be traced.
        """
        ...


def open_network(
    path: Path, overrides: SpecOverrides | None = None, *, trust: bool = False
) -> CheckpointSource | OnnxSource:
    """A checkpoint or an ONNX file, under what the user says of it.

    Args:
        path: of either, or of something that leads to an ONNX file.
        overrides: what the user says; a file that does not describe itself needs it.
        trust: import the module that a checkpoint may name.

    Raises:
        ModelError: missing, broken, of another format, or something is missing (the message names every flag).
        EngineError: it needs torch, which is not installed.
    """
    if path.suffix == ".safetensors" and path.is_file():
        return CheckpointSource(path, overrides, trust=trust)
    file = read_model(path)
    if file.format != "onnx":
        raise ModelError(
            f"cannot export {path}: give a .safetensors checkpoint of `tilelab train`, an .onnx, or what leads to one"
        )
    return OnnxSource(path, overrides)


class CheckpointSource:
    """A trained network; `network` is its torch module, in evaluation mode."""

    notes: tuple[str, ...] = ()

    precision: Precision = "fp32"

    def __init__(self, path: Path, overrides: SpecOverrides | None = None, *, trust: bool = False) -> None:
        try:
            import torch
        except ModuleNotFoundError:
            raise EngineError(f"exporting a checkpoint needs torch: {install_hint('train')}") from None
        from tilelab.training.checkpoint import load_checkpoint, load_network

        self.path = path
        self.threads: int = torch.get_num_threads()
        loaded = load_checkpoint(path)
        self.network: Any = load_network(loaded, trust=trust)
        self.recipe: Recipe | None = loaded.header.recipe
        spec = override_spec(loaded.header.spec, overrides)
        self.spec = msgspec.structs.replace(
            spec,
            precisions=("fp32",),
            training={
                **spec.training,
                "steps": loaded.header.step,
                "seed": loaded.header.recipe.seed,
                "validation": loaded.header.scores,
            },
        )

    def place(
        self, tile: int | None = None, overlap: int | None = None, window: Window | None = None, *, free_size: bool
    ) -> ModelSpec:
        """See `NetworkSource.place`."""
        spec = self.spec
        if free_size and spec.receptive_field is None:
            raise ModelError(
                f"{spec.architecture} sees its whole tile, so its output depends on the tile's size: "
                "leave --free-size out"
            )
        side = spec.tile[0] if tile is None else tile
        if overlap is not None:
            over = overlap
        else:  # what the network was trained for, less on a smaller tile
            over = spec.overlap[0] if side == spec.tile[0] else min(spec.overlap[0], side // 4)
        least = max(2 * spec.stride, min(64, side))
        try:
            return msgspec.convert(
                msgspec.to_builtins(spec)
                | {
                    "tile": (side, side),
                    "overlap": (over, over),
                    "window": window or spec.window,
                    "tile_fixed": not free_size,
                    "tile_min": (least, least) if free_size else None,
                },
                ModelSpec,
            )
        except msgspec.ValidationError as error:
            raise ModelError(f"{spec.architecture} cannot be exported so: {error}") from error

    def reference(self, spec: ModelSpec) -> Engine:
        """The network in torch."""
        from tilelab.training.engine import TorchEngine

        return TorchEngine(self.network, spec)

    def write_onnx(self, spec: ModelSpec, path: Path) -> None:
        """See `NetworkSource.write_onnx`."""
        from tilelab.exporting.onnx_file import write_onnx

        write_onnx(self.network, spec, path)


class OnnxSource:
    """A network in an ONNX file; what it says is what ONNX Runtime computes on the CPU."""

    recipe: Recipe | None = None
    threads: int | None = None

    def __init__(self, path: Path, overrides: SpecOverrides | None = None) -> None:
        self.path = path
        self.file = read_model(path)
        self._given = overrides or SpecOverrides()
        engine = self._load(self._given)
        try:
            self.spec = settle_outputs(engine, self._given)
            self.notes = tuple(map(str, (*engine.warnings, *engine.assumptions)))
        finally:
            engine.close()
        if self.spec.axes != "yx":
            raise ModelError(
                f"{path} takes volumes, and files are proved on planes: export is for 2-D networks; "
                "`tilelab infer` runs the file as it is"
            )
        if not self.spec.plain:
            raise ModelError(
                f"{path} gives labels, maps, several outputs or such of another size than its tile: export takes one "
                "output of logits or probabilities; `tilelab infer` runs the file as it is"
            )

    @property
    def precision(self) -> Precision:
        """Of the graph."""
        return self.file.precision

    def place(
        self, tile: int | None = None, overlap: int | None = None, window: Window | None = None, *, free_size: bool
    ) -> ModelSpec:
        """See `NetworkSource.place`; a size that was fixed when the network was traced stays so."""
        if free_size and self.spec.tile_fixed:
            raise ModelError(f"{self.path} has its size fixed: export it from its checkpoint with --free-size")
        sides = None if tile is None else (tile,) * len(self.spec.axes)
        overs = None if overlap is None else (overlap,) * len(self.spec.axes)
        return override_spec(self.spec, SpecOverrides(tile=sides, overlap=overs, window=window))

    def reference(self, spec: ModelSpec) -> Engine:
        """The file in ONNX Runtime, in fp32 or, where it is quantised, in int8."""
        return self._load(replace(self._given, tile=spec.tile, overlap=spec.overlap, window=spec.window))

    def _load(self, given: SpecOverrides) -> Engine:
        return load_engine(
            self.path,
            engine="onnxruntime",
            device="cpu",
            precision="int8" if self.precision == "int8" else "fp32",
            spec_overrides=given,
        )

    def write_onnx(self, spec: ModelSpec, path: Path) -> None:
        """A copy with another description."""
        copy_onnx(self.file, path)
        embed_spec(path, spec)
