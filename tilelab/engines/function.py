"""Any function of batches as an engine: a torch module, or whatever takes tiles as NumPy arrays and gives as many maps.

Nothing here imports torch: who hands over a module has done so.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.assumptions import Assumption
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.engines.loading import FileEngine, LoadRequest, made_up_tiles, try_out
from tilelab.engines.meaning import read_meaning
from tilelab.engines.module_digest import module_digest
from tilelab.engines.outputs import choose_ports
from tilelab.engines.overrides import SpecOverrides, resolve_spec
from tilelab.errors import EngineError, ModelError
from tilelab.spec import Precision
from tilelab.text import explain, size_text

SIDE = 512
"""Of a tile where none is said, px: a network of convolutions takes any."""
_USUAL = ("out", "logits")  # what torchvision and transformers call the output among several

Batches = Callable[[Float32], Mapping[str, Array]]


def load_function(
    function: Callable[[Any], Any],
    given: SpecOverrides,
    *,
    batch: int | None = None,
    digest: str = "",
    trial: bool = True,
) -> FileEngine:
    """A loaded engine around a function.

    Args:
        function: a torch module, called with a tensor on its own device; or anything else that can be called, with a
            float32 array ``(B, C, *tile)``.  It returns an array or tensor ``(B, K, *tile)``, or several by name.
        given: what is said of it: normalisation at the least; channels, where they are not one (or those of a module's
            first layer); tile and classes, where the defaults do not suit.
        batch: tiles per call; 1 by default.
        digest: identifies the function for results; of a module the digest of its weights and code, of another function
            by default a new one each time: no result is continued with a function that may be another.
        trial: refuse one that answers a made-up batch with NaN or infinite values.

    Raises:
        ModelError: something is missing (the message names the flag, an argument of the same name), or the function
            does not take or give what is said.
    """
    module = _torch_module(function)
    name = _name(function)
    assumptions: tuple[Assumption, ...] = ()
    if given.tile is None:
        rank = len(given.axes or "yx")
        given = replace(given, tile=(SIDE,) * rank)
        assumptions = (_assumed_tile(name, rank),)
    channels = given.channels or (2 * given.neighbours + 1 if given.neighbours else 0) or _first_channels(module) or 1
    tile = given.tile or ()
    tile = tile * len(given.axes or "yx") if len(tile) == 1 else tile
    shape = (batch or 1, channels, *tile)
    digest = digest or (secrets.token_hex(16) if module is None else module_digest(module))  # before it keeps anything
    call = _numpy_function(function) if module is None else _ModuleFunction(module)
    with contextlib.ExitStack() as failing:
        if isinstance(call, _ModuleFunction):  # which is given back in the mode that it was in
            failing.callback(call.close)
        found = call(made_up_tiles(shape))
        outputs = tuple(Port(key, "float32", ("batch", *value.shape[1:])) for key, value in found.items())
        file = ModelFile(
            path=Path(name),
            format="function",
            files=(),
            inputs=(Port("tiles", "float32", ("batch", *shape[1:])),),
            outputs=outputs,
            precision="fp32",
            description=None,
        )
        if given.output is None and len(outputs) > 1 and (usual := [key for key in _USUAL if key in found]):
            given = replace(given, output=usual[0])
        spec = resolve_spec(file, given)
        ports = choose_ports(file, given.output, given.output_is, given.axes)
        meaning = read_meaning(file, ports.targets[0], spec, given.first_is)
        meaning = replace(meaning, assumptions=(*ports.assumptions, *meaning.assumptions))
        device = "cpu" if module is None else str(call.device)  # type: ignore[attr-defined]
        request = LoadRequest(
            file, ports.source, ports.targets, spec, device, "fp32", batch or 1, spec.tile, None, (), meaning
        )
        engine = FunctionEngine(request, call, digest)
        engine.assumptions += assumptions
        if trial:
            meaning = meaning.confirm(try_out(engine, name)[:, : spec.class_values])
            engine.measure_memory()
        engine.settle(meaning)
        failing.pop_all()
    return engine


class FunctionEngine(FileEngine):
    """A function as an engine; one batch at a time, for it may not bear more."""

    name = "function"
    precision: Precision = "fp32"

    def __init__(self, request: LoadRequest, call: Batches, digest: str) -> None:
        super().__init__(request)
        self._call = call
        self._own_digest = digest

    @property
    def model_digest(self) -> str:
        """Of the function, or of a module's weights and code."""
        return " ".join([self._own_digest, *(target.name for target in self._request.targets)]).strip()

    def _compute(self, source: Array, targets: tuple[Array, ...], stream: int) -> None:  # noqa: ARG002
        found = self._call(source)
        for port, target in zip(self._request.targets, targets, strict=True):
            if (shape := found[port.name].shape) != target.shape:
                raise ModelError(
                    f"{self._request.file.path} gives {size_text(shape)} for a batch, not {size_text(target.shape)} "
                    "(batch, outputs, pixels): check --classes and --activation"
                )
            np.copyto(target, found[port.name], casting="same_kind")

    def versions(self) -> Mapping[str, str]:
        """Of torch, for a module."""
        if not isinstance(self._call, _ModuleFunction):
            return {}
        return {"torch": str(sys.modules["torch"].__version__)}

    def close(self) -> None:
        """Give a module back in the mode that it was in."""
        if isinstance(self._call, _ModuleFunction):
            self._call.close()


class _ModuleFunction:
    """A torch module as a function of arrays, in evaluation mode until it is closed."""

    def __init__(self, module: Any) -> None:
        self._torch: Any = sys.modules["torch"]
        self._module = module
        self._trained = [part for part in module.modules() if part.training]
        module.eval()
        first = next(iter(module.parameters()), None)
        self.device = self._torch.device("cpu") if first is None else first.device
        self._dtype = self._torch.float32 if first is None or not first.is_floating_point() else first.dtype
        self._threads = self._torch.get_num_threads()

    def __call__(self, tiles: Float32) -> Mapping[str, Array]:
        torch = self._torch
        if torch.get_num_threads() != self._threads:  # a property of each thread that calls
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            batch = torch.from_numpy(tiles).to(self.device, self._dtype)
            try:
                return _named(self._module(batch))
            except RuntimeError as error:
                raise _refused(_name(self._module), tiles.shape, error) from error

    def close(self) -> None:
        """Put the module back into the mode that it was in."""
        for part in self._trained:
            part.training = True


def _numpy_function(function: Callable[[Any], Any]) -> Batches:
    def call(tiles: Float32) -> Mapping[str, Array]:
        try:
            return _named(function(tiles))
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise _refused(_name(function), tiles.shape, error) from error

    return call


def _refused(name: str, shape: tuple[int, ...], error: BaseException) -> EngineError:
    return EngineError(
        f"{name} failed on a batch of {size_text(shape)} (batch, channels, pixels): {type(error).__name__}: "
        f"{explain(error)}: check channels and tile"
    )


def _named(result: Any) -> dict[str, Array]:
    """What a function returned, as float32 arrays by name; an only one has none."""
    if isinstance(result, Mapping):
        parts = dict(result)
    elif isinstance(result, tuple | list):
        parts = {str(i): part for i, part in enumerate(result)}
    else:
        return {"": _array(result)}
    found = {str(key): _array(part) for key, part in parts.items() if hasattr(part, "shape")}
    if not found:
        raise ModelError(
            f"a function returned {type(result).__name__} without an array in it: return (batch, K, *tile)"
        )
    return {"": next(iter(found.values()))} if len(found) == 1 else found


def _array(part: Any) -> Array:
    """A float32 array of an array or tensor."""
    if hasattr(part, "detach"):  # a tensor, wherever it is
        part = part.detach().float().cpu().numpy()
    array: Array = np.asarray(part)
    return array if array.dtype == np.float32 else array.astype(np.float32)


def _torch_module(function: object) -> Any:
    """`function` where it is a torch module, else None."""
    torch = sys.modules.get("torch")
    return function if torch is not None and isinstance(function, torch.nn.Module) else None


def _first_channels(module: Any) -> int:
    """Input channels of a module's first convolution; 0 where that is not known."""
    first = None if module is None else next((p for p in module.parameters() if p.ndim >= 4), None)
    return 0 if first is None else int(first.shape[1])


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", "") or type(function).__name__)


def _assumed_tile(name: str, rank: int) -> Assumption:
    return Assumption(
        what=f"the tile of {name}",
        taken=f"{size_text((SIDE,) * rank)} px",
        because="none is said, and a network of convolutions takes any",
        flag="--tile",
    )
