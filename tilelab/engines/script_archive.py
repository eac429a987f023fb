"""What tells a module of TorchScript from another: its operations, and what torch saves of it beside its code."""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

_MANGLED = re.compile(r"\.___torch_mangle_\d+")  # where torch has compiled something of that name in this process
_PLACE = re.compile(r"__torch__(?:\.\w+)+")
_SOURCE = re.compile(r" # .*:\d+:\d+$", re.MULTILINE)


class ScriptArchive:
    """A module or function of TorchScript, saved into memory.

    Args:
        torch: the library.
        module: what it has compiled.

    Raises:
        RuntimeError: torch cannot save it, e.g. as it calls Python (``torch.jit.ignore``).
    """

    def __init__(self, torch: Any, module: Any) -> None:
        self._torch, self._saved = torch, module.save_to_buffer()
        self._zip = zipfile.ZipFile(io.BytesIO(self._saved))
        self._names = {name.partition("/")[2]: name for name in self._zip.namelist()}
        self._places: dict[str, str] = {}  # as they are told
        self._met: Counter[str] = Counter()

    def words(self) -> Iterator[str | bytes]:
        """All that its answers depend on, the same in any process, and after saving and loading."""
        yield from self._operations()
        for name in ("data", "constants"):
            yield from self._tell(_Reader(self._zip, self._names, name).load())

    def _operations(self) -> Iterator[str]:
        """What its way forward comes down to, as it is read back: code has other lines where names are longer."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            read = self._torch.jit.load(io.BytesIO(self._saved), map_location="cpu")._c
        hooks = [*read._get_forward_pre_hooks(), *read._get_forward_hooks()]
        for method in [read._get_method("forward"), *hooks] if read._has_method("forward") else hooks:
            graph = self._torch._C._jit_pass_canonicalize(method.inlined_graph)
            yield self._plain(_SOURCE.sub("", graph.str(False)))

    def _plain(self, text: str) -> str:
        """Names as they are in any process: things of one name numbered in the order in which they are met."""
        for place in _PLACE.findall(text):
            if place not in self._places:
                name = _MANGLED.sub("", place)
                self._places[place] = f"{name} {self._met[name]}"
                self._met[name] += 1
        return _PLACE.sub(lambda found: self._places[found[0]], text)

    def _tell(self, thing: Any) -> Iterator[str | bytes]:
        """What is saved, but for what no answer depends on: whether it trains, and where its tensors are."""
        if isinstance(thing, _Held):
            yield self._plain(thing.place)
            tensor = thing.place == "torch._utils._rebuild_tensor_v2"
            yield from self._tell(thing.given[:4] if tensor else thing.given)
            state = thing.state
            if isinstance(state, dict) and thing.place.startswith("__torch__."):
                state = {key: state[key] for key in sorted(state) if key != "training"}
            yield from self._tell(state)
        elif isinstance(thing, dict | list | tuple):
            yield f"{type(thing).__name__} {len(thing)}"
            for part in chain.from_iterable(thing.items()) if isinstance(thing, dict) else thing:
                yield from self._tell(part)
        else:
            yield thing if isinstance(thing, bytes) else f"{type(thing).__name__} {thing!r}"


class _Held:
    """An object that was saved: what it was made of (`given`) and its attributes (`state`)."""

    place = ""
    given: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *given: Any) -> _Held:  # all that a pickle calls
        held = super().__new__(cls)
        held.given = given
        return held

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Makes every object a `_Held`, and of the numbers of tensors bytes; runs nothing."""

    def __init__(self, archive: zipfile.ZipFile, names: Mapping[str, str], folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(names[f"{folder}.pkl"])))
        self._archive, self._names, self._folder = archive, names, folder

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Held,), {"place": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, *_ = pid
        return kind.place, self._archive.read(self._names[f"{self._folder}/{key}"])
