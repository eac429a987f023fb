"""What `benchmarks.gpu` runs on a bare GPU machine: networks from torchvision alone, and torch as an engine."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


def stand_in_for_msgspec() -> None:
    """Model descriptions need msgspec, which a bare machine lacks; nothing is parsed here, so dataclasses will do."""

    class Struct:
        def __init_subclass__(cls, kw_only: bool = False, **_: Any) -> None:
            for name, value in list(vars(cls).items()):
                if isinstance(value, dict) and not name.startswith("__"):
                    setattr(cls, name, dataclasses.field(default_factory=dict))
            dataclasses.dataclass(frozen=True, kw_only=kw_only)(cls)

    module = ModuleType("msgspec")
    module.Struct, module.MsgspecError = Struct, ValueError  # type: ignore[attr-defined]
    module.json = SimpleNamespace(Decoder=lambda kind: None)  # type: ignore[attr-defined]  # noqa: ARG005
    sys.modules["msgspec"] = module


def build_network(name: str, channels: int, classes: int) -> Any:
    """``unet-resnet18``, ``unet-resnet50``, ``pmcanet`` or ``small``, with random weights, in evaluation mode.

    Raises:
        ImportError: its library is not here.
    """
    import torch

    torch.manual_seed(0)
    if name == "small":
        conv = torch.nn.Conv2d(channels, classes, 3, padding=1)
        return conv.eval()
    if name == "pmcanet":
        from tilelab.models.build import build_model

        return build_model("pmcanet:resnet50", channels, classes).eval()
    return _unet(name.removeprefix("unet-"), channels, classes).eval()


def _unet(encoder: str, channels: int, classes: int) -> Any:
    """A U-Net over a torchvision ResNet with a decoder of 256, 128, 64, 32, 16 channels, as is customary."""
    import torch
    import torchvision
    from torch import nn

    def double(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for n in (inputs, outputs):
            layers += [nn.Conv2d(n, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            body = getattr(torchvision.models, encoder)(weights=None)
            body.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            self.stem = nn.Sequential(body.conv1, body.bn1, body.relu)
            self.pool = body.maxpool
            self.stages = nn.ModuleList([body.layer1, body.layer2, body.layer3, body.layer4])
            widths = [64] + [64 * 2**i * (4 if encoder == "resnet50" else 1) for i in range(4)]
            self.up = nn.ModuleList()
            below = widths[-1]
            for skip, width in zip([*widths[3::-1], 0], (256, 128, 64, 32, 16), strict=True):
                self.up.append(double(below + skip, width))
                below = width
            self.head = nn.Conv2d(16, classes, 3, padding=1)

        def forward(self, x: Any) -> Any:
            skips = [self.stem(x)]
            x = self.pool(skips[0])
            for stage in self.stages:
                x = stage(x)
                skips.append(x)
            skips.pop()
            for block in self.up:
                x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
                if skips:
                    x = torch.cat([x, skips.pop()], 1)
                x = block(x)
            return self.head(x)

    return UNet()


def make_engine(kind: str, network: Any, spec: Any, batch: int, precision: str, folder: Path) -> Any:
    """An engine of one kind for a torch network; all but ``torch`` go through a file, as users' models do.

    Raises:
        ImportError, EngineError: its library is not here, or it cannot be built.
    """
    from tilelab.kernels import device

    if kind == "torch":
        return CudaTorchEngine(network, spec, batch, precision, simulated=bool(device.SIMULATED))
    from tilelab.engines.registry import load_engine

    if kind == "aotinductor":
        from tilelab.engines.builders.aotinductor import compile_package

        path = compile_package(network, spec, folder / "n.pt2", batch=batch, precision=precision)
        return load_engine(path, engine=kind, device="cuda:0")
    path = export_onnx(network, spec, batch, folder / "n.onnx")
    if kind == "tensorrt":
        from tilelab.engines.builders.tensorrt import build_engine
        from tilelab.engines.files.half import convert_to_half

        if precision == "fp16":
            path.write_bytes(convert_to_half(path))
        build_engine(path, folder / "n.engine")
        return load_engine(folder / "n.engine", engine=kind, device="cuda:0")
    return load_engine(path, engine=kind, device="cuda:0", precision=precision)


def export_onnx(network: Any, spec: Any, batch: int, path: Path) -> Path:
    """The network as ONNX with its description, batch and tile fixed."""
    import torch

    from tilelab.engines.files.onnx import embed_spec

    example = torch.zeros((batch, spec.channels, *spec.tile))
    torch.onnx.export(network, (example,), path, dynamo=True, external_data=False, verbose=False)
    embed_spec(path, spec)
    return path


class CudaTorchEngine:
    """A torch network as an engine of the device sweep: channels last, replayed as a CUDA graph where that works."""

    name = "torch"
    streams = 1

    def __init__(self, network: Any, spec: Any, batch: int, precision: str, *, simulated: bool) -> None:
        import torch

        from tilelab.kernels import device

        self._torch, self._device, self._simulated = torch, device, simulated
        self.spec, self.batch, self.tile, self.precision = spec, batch, spec.tile, precision
        self.index, self.device = 0, "cuda:0"
        self.stream = device.stream()
        kind = torch.float16 if precision == "fp16" else torch.float32
        self.tiles_dtype = self.logits_dtype = np.dtype(np.float16 if precision == "fp16" else np.float32)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        place = "cpu" if simulated else "cuda"
        self._network = network.to(place, kind, memory_format=torch.channels_last)
        self._graphs: dict[tuple[int, int], Any] = {}
        self.graphs = not simulated

    def enqueue(self, tiles: Any, logits: Any) -> None:
        """One batch, in the order of `stream`."""
        torch = self._torch
        if self._simulated:
            with torch.inference_mode():
                result = self._network(torch.from_numpy(np.ascontiguousarray(tiles.copy_to_host())))
            logits.copy_to_device(np.ascontiguousarray(result.numpy()))
            return
        key = self._device.pointer(tiles), self._device.pointer(logits)
        stream = torch.cuda.ExternalStream(self._device.stream_handle(self.stream))
        with torch.inference_mode(), torch.cuda.stream(stream):
            if key not in self._graphs:
                self._graphs[key] = self._capture(tiles, logits, stream)
            self._graphs[key]()

    def _capture(self, tiles: Any, logits: Any, stream: Any) -> Any:
        """A function that puts the batch on the stream: a graph's replay, or the network called anew each time."""
        torch = self._torch
        source, target = (torch.as_tensor(array, device="cuda") for array in (tiles, logits))

        def call() -> None:
            target.copy_(self._network(source.contiguous(memory_format=torch.channels_last)))

        for _ in range(3):
            call()
        stream.synchronize()
        if not self.graphs:
            return call
        try:
            graph = torch.cuda.CUDAGraph()
            # other threads wait for events meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                call()
        except RuntimeError:  # what cannot be captured runs as it is
            self.graphs = False
            return call
        return graph.replay

    def run(self, tiles: Any, out: Any) -> None:
        """Host arrays, for the sweep on the CPU."""
        device = self._device
        shape = (self.batch, self.spec.values, *self.tile)
        source, target = device.empty(tiles.shape, self.tiles_dtype), device.empty(shape, self.logits_dtype)
        device.upload(tiles.astype(self.tiles_dtype), source, self.stream)
        self.enqueue(source, target)
        host = np.empty(shape, self.logits_dtype)
        device.download(target, host, self.stream)
        self.stream.synchronize()
        self._graphs.clear()
        out[...] = host

    def versions(self) -> dict[str, str]:
        """Of torch."""
        return {"torch": str(self._torch.__version__)}

    def close(self) -> None:
        """Forget the graphs."""
        self._graphs.clear()
