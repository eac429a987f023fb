"""Tiled inference for electron micrographs of any size.

    >>> import tilelab
    >>> run = tilelab.infer("sample.tif", "superalloy", "look.ome.zarr", tile=256, overlap=64, device="cpu")
    >>> run.labels[100:102, 200:203].shape  # lazy; np.asarray(run.labels) reads it whole
    (2, 3)

Everything else is found in the modules; names here are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from sys import modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tilelab.machine.version import __version__ as __version__

if TYPE_CHECKING:
    from tilelab.engines.cards import models as models
    from tilelab.engines.overrides import SpecOverrides as SpecOverrides
    from tilelab.engines.registry import load_engine as load_engine
    from tilelab.errors import TilelabError as TilelabError
    from tilelab.exporting.call import export as export
    from tilelab.io.images.open import open_image as open_image
    from tilelab.io.results.result import read_result as read_result
    from tilelab.measure.call import evaluate as evaluate
    from tilelab.measure.call import measure as measure
    from tilelab.run.batch.many import infer_many as infer_many
    from tilelab.run.call import infer as infer
    from tilelab.run.call import plan as plan
    from tilelab.run.map_tiles import map_tiles as map_tiles
    from tilelab.run.options import Options as Options
    from tilelab.spec import ModelSpec as ModelSpec
    from tilelab.training.call import train as train

_HOMES = {
    "ModelSpec": "spec",
    "Options": "run.options",
    "SpecOverrides": "engines.overrides",
    "TilelabError": "errors",
    "evaluate": "measure.call",
    "export": "exporting.call",
    "infer": "run.call",
    "infer_many": "run.batch.many",
    "load_engine": "engines.registry",
    "map_tiles": "run.map_tiles",
    "measure": "measure.call",
    "models": "engines.cards",
    "open_image": "io.images.open",
    "plan": "run.call",
    "read_result": "io.results.result",
    "train": "training.call",
}
_ROOMS = ("measure", "models")  # folders that have the name of a function: they are called as it is
__all__ = sorted([*_HOMES, "__version__"])


def _home(name: str) -> Any:
    """What a public name stands for."""
    return getattr(import_module(f"tilelab.{_HOMES[name]}"), name)


class _Room(ModuleType):
    """A folder that is called as the public function of its name."""

    def __call__(self, *words: Any, **named: Any) -> Any:
        return _home(self.__name__.rpartition(".")[2])(*words, **named)

    @property
    def __wrapped__(self) -> Any:  # where help and notebooks find what it takes
        return _home(self.__name__.rpartition(".")[2])


class _Face(ModuleType):
    """The package: whatever first imports one of those folders, it can be called."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tilelab' has no attribute {name!r}")
    return import_module(f"tilelab.{name}") if name in _ROOMS else _home(name)


def __dir__() -> list[str]:
    return __all__
