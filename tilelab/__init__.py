"""Tiled inference for electron micrographs of any size.

    >>> import tilelab
    >>> run = tilelab.infer("sample.tif", "superalloy", "look.ome.zarr", tile=256, overlap=64, device="cpu")
    >>> run.labels[100:102, 200:203].shape  # lazy; np.asarray(run.labels) reads it whole
    (2, 3)

Everything else is found in the modules; names here are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilelab.machine.version import __version__ as __version__

if TYPE_CHECKING:
    from tilelab.engines.overrides import SpecOverrides as SpecOverrides
    from tilelab.engines.registry import load_engine as load_engine
    from tilelab.errors import TilelabError as TilelabError
    from tilelab.io.images.open import open_image as open_image
    from tilelab.io.results.result import read_result as read_result
    from tilelab.run.batch.many import infer_many as infer_many
    from tilelab.run.call import infer as infer
    from tilelab.run.call import plan as plan
    from tilelab.run.map_tiles import map_tiles as map_tiles
    from tilelab.run.options import Options as Options
    from tilelab.spec import ModelSpec as ModelSpec

_HOMES = {
    "ModelSpec": "spec",
    "Options": "run.options",
    "SpecOverrides": "engines.overrides",
    "TilelabError": "errors",
    "infer": "run.call",
    "infer_many": "run.batch.many",
    "load_engine": "engines.registry",
    "map_tiles": "run.map_tiles",
    "open_image": "io.images.open",
    "plan": "run.call",
    "read_result": "io.results.result",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "measure":  # a room: tilelab.measure.measure(...)
        return import_module("tilelab.measure")
    if name not in _HOMES:
        raise AttributeError(f"module 'tilelab' has no attribute {name!r}")
    return getattr(import_module(f"tilelab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
