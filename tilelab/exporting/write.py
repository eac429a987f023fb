"""Write a network in each format, undecided yet whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilelab.engines.builders.tensorrt import BuildOptions, Progress, build_engine
from tilelab.engines.files.half import convert_to_half
from tilelab.engines.files.onnx import embed_spec, read_onnx
from tilelab.engines.files.tensorrt_plan import Compatibility
from tilelab.engines.outputs import choose_ports
from tilelab.errors import ModelError
from tilelab.exporting.calibration import TILES, Tiles, Variation, draw_tiles
from tilelab.exporting.source import CheckpointSource, OnnxSource
from tilelab.io.images.image import Image
from tilelab.machine.disk import move_whole
from tilelab.spec import ModelSpec, Precision


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file: its name among `ModelFile.format`, what it can hold, and whether its size is always fixed."""

    name: str
    precisions: tuple[Precision, ...]
    fixed: bool


FORMATS = {
    ".onnx": Format("onnx", ("fp32", "fp16", "int8"), fixed=False),
    ".xml": Format("openvino", ("fp32", "fp16", "int8"), fixed=False),
    ".pt2": Format("aotinductor", ("fp32", "fp16", "bf16"), fixed=True),
    ".engine": Format("tensorrt", ("fp32", "fp16", "int8"), fixed=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What quantisers and compilers want to know.

    Attributes:
        calibration: planes to measure the ranges of activations on, for int8.
        tiles: how many are cut from them.
        variation: of their brightness and contrast; None is that of the training, where known.
        device: a compiled file is for, ``cpu`` or ``cuda:N``; ``auto`` is a GPU where there is one.
        batch: tiles per run of a compiled file: one number, or for TensorRT least, best and most; None is 8 on a GPU
            and 1 on a CPU.
        compatibility, timing_cache: of TensorRT, see `BuildOptions`.
        progress: called as TensorRT builds.
    """

    calibration: Sequence[Image] = ()
    tiles: int = TILES
    variation: Variation | None = None
    device: str = "auto"
    batch: int | tuple[int, int, int] | None = None
    compatibility: Compatibility = "this"
    timing_cache: Path | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A file that may still get another description."""

    describe: Callable[[ModelSpec], None]


@dataclass(frozen=True, slots=True)
class Writing:
    """One file on its way.

    Attributes:
        source: the network.
        spec: its description, which goes into the file.
        precision: of the file.
        path: directly written.
        request: what quantisers and compilers want to know.
        scratch: a folder that is removed when the export is over.
    """

    source: CheckpointSource | OnnxSource
    spec: ModelSpec
    precision: Precision
    path: Path
    request: Request
    scratch: Path

    def write(self) -> Written:
        """Write `path` in the format of its suffix.

        Raises:
            ModelError: the network cannot be converted so.
            EngineError: something that is needed is not installed.
        """
        if self.path.suffix == ".pt2":
            return self._package()
        if self.path.suffix == ".onnx":
            self._onnx(self.path)
            return Written(lambda final: embed_spec(self.path, final))
        return self._openvino() if self.path.suffix == ".xml" else self._tensorrt()

    def _tensorrt(self) -> Written:
        onnx, source, request = self.scratch / "network.onnx", self.source, self.request
        self._onnx(onnx, symmetric=True)
        build_engine(
            onnx,
            self.path,
            precision=self.precision,
            options=BuildOptions(
                batch=request.batch or 8,
                device="cuda:0" if request.device == "auto" else request.device,
                compatibility=request.compatibility,
                timing_cache=request.timing_cache,
            ),
            progress=request.progress,
            origin=(source.path.name, source.file.digest())
            if isinstance(source, OnnxSource)
            else (self.path.with_suffix(".onnx").name, ""),
        )
        return Written(lambda final: None)  # noqa: ARG005 - it permits what it was built for

    def _onnx(self, path: Path, *, symmetric: bool = False) -> None:
        if self.precision == self.source.precision:
            self.source.write_onnx(self.spec, path)
            return
        plain = self._plain()
        if self.precision == "fp16":
            path.write_bytes(convert_to_half(plain))
        else:
            from tilelab.exporting.quantize import quantize_onnx

            tiles = self._calibration_tiles()
            quantize_onnx(plain, choose_ports(read_onnx(plain)).source.name, tiles, path, symmetric=symmetric)
        embed_spec(path, self.spec)

    def _openvino(self) -> Written:
        from tilelab.exporting.openvino_file import read_network, write_ir
        from tilelab.exporting.quantize import quantize_openvino

        plain = self._plain()
        if self.precision == "int8" and self.source.precision != "int8":
            network = quantize_openvino(plain, self.spec, self._calibration_tiles())
        else:
            network = read_network(plain)
        half = self.precision == "fp16"
        write_ir(network, self.spec, self.path, half=half)

        def describe(final: ModelSpec) -> None:
            again = self.scratch / "again.xml"
            write_ir(network, final, again, half=half)
            for suffix in (".bin", ".xml"):
                move_whole(again.with_suffix(suffix), self.path.with_suffix(suffix))

        return Written(describe)

    def _package(self) -> Written:
        from tilelab.engines.builders.aotinductor import compile_package
        from tilelab.machine.nvidia import gpu_count

        source, request = self.source, self.request
        if not isinstance(source, CheckpointSource):
            raise ModelError(
                f"a .pt2 is compiled from the network in torch, not from {source.path}: give its checkpoint"
            )
        target = request.device
        if target == "auto":
            target = "cuda" if gpu_count() else "cpu"
        batch = request.batch or (1 if target == "cpu" else 8)
        if not isinstance(batch, int):
            raise ModelError(f"a .pt2 has one batch size, not {batch}: give --batch N")
        compile_package(source.network, self.spec, self.path, batch=batch, precision=self.precision, target=target)
        return Written(lambda final: None)  # noqa: ARG005 - it permits what it was compiled for

    def _plain(self) -> Path:
        """The network as an ONNX file in the source's precision."""
        plain = self.scratch / "plain.onnx"
        self.source.write_onnx(self.spec, plain)
        return plain

    def _calibration_tiles(self) -> Tiles:
        request = self.request
        variation = _variation(self.source, request)
        return draw_tiles(request.calibration, self.spec, count=request.tiles, variation=variation)


def _variation(source: CheckpointSource | OnnxSource, request: Request) -> Variation:
    """That asked for, else that of the training, else the default."""
    if request.variation is not None:
        return request.variation
    if source.recipe is None:
        return Variation()
    trained = source.recipe.augmentation
    return Variation(trained.brightness, trained.contrast)
