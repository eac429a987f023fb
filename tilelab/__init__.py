"""Tiled inference for electron micrographs of any size.

    >>> import tilelab
    >>> run = tilelab.infer("big.tif", "superalloy")          # doctest: +SKIP
    >>> labels = tilelab.read_result(run.path).labels[0]      # doctest: +SKIP

Everything else is found in the modules; names here are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tilelab.engines.overrides import SpecOverrides as SpecOverrides
    from tilelab.engines.registry import load_engine as load_engine
    from tilelab.errors import TilelabError as TilelabError
    from tilelab.io.open import open_image as open_image
    from tilelab.io.result import read_result as read_result
    from tilelab.lazy_array import map_tiles as map_tiles
    from tilelab.options import Options as Options
    from tilelab.run import infer as infer
    from tilelab.run import plan as plan
    from tilelab.spec import ModelSpec as ModelSpec

_HOMES = {
    "ModelSpec": "spec",
    "Options": "options",
    "SpecOverrides": "engines.overrides",
    "TilelabError": "errors",
    "infer": "run",
    "load_engine": "engines.registry",
    "map_tiles": "lazy_array",
    "open_image": "io.open",
    "plan": "run",
    "read_result": "io.result",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tilelab' has no attribute {name!r}")
    return getattr(import_module(f"tilelab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
