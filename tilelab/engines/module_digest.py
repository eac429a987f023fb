"""What tells one torch module from another: its structure, its numbers, and the code that makes an answer of them."""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import secrets
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.engines.script_archive import ScriptArchive

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Path, enum.Enum)
_CALLED = (types.FunctionType, types.MethodType, functools.partial)
_HOLDING = (list, dict, set, frozenset)
_ANSWERING = ("_forward_pre_hooks", "_forward_hooks")  # of what a module keeps for itself


def module_digest(module: Any) -> str:
    """SHA-256 of a torch module: the same for the same answers, in any process of the same Python.

    It covers structure, weights and buffers, attributes, hooks, the code of every class of its parts, and of functions
    that this calls as far as they are no part of an installed package. Comments and places of code do not count.
    Of what torch has compiled (TorchScript) it covers what torch would save, and so is the same once that is loaded;
    what torch cannot save, as it calls Python, has another one each time.
    """
    told = _Telling()
    told.module(module)
    return told.sha.hexdigest()


class _Telling:
    """Feeds things to a hash, each in a form that depends on what it is and not on where it lies."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self._torch: Any = sys.modules["torch"]
        self._own = set(vars(self._torch.nn.Module()))
        self._seen: dict[int, tuple[int, Any]] = {}  # things are kept, so that no other gets their place

    def module(self, module: Any) -> None:
        """All that a module is."""
        self._say("module", str(module))
        tensors = dict(module.state_dict()) | dict(module.named_buffers())
        for name, tensor in sorted(tensors.items()):
            self._say(name)
            self.value(tensor)
        scripted: list[str] = []  # what the names of their parts begin with
        for name, part in module.named_modules():
            self._seen.setdefault(id(part), (len(self._seen), part))
            kept = vars(part)
            self._say(f"part {name}")
            for hooks in _ANSWERING:
                self.value(list(kept.get(hooks, {}).values()))
            if isinstance(part, self._torch.jit.ScriptModule):
                if not any(name.startswith(outer) for outer in scripted):
                    scripted.append(f"{name}." if name else "")
                    self._scripted(part)
                continue
            self._class(type(part))
            self._attributes({key: kept[key] for key in kept.keys() - self._own})
            if isinstance(part, self._torch.fx.GraphModule):
                with contextlib.suppress(RuntimeError, AttributeError):  # there may be none
                    self._say(str(part.code))

    def _scripted(self, part: Any) -> None:
        """A module of TorchScript with its parts, or a function."""
        try:
            self._say(*ScriptArchive(self._torch, part).words())
        except RuntimeError:
            self._say(secrets.token_hex())

    def value(self, thing: Any) -> None:
        """Anything."""
        if isinstance(thing, _PLAIN):
            self._say(type(thing).__qualname__, repr(thing))
        elif isinstance(thing, self._torch.Tensor):
            array = thing.detach().cpu()
            exact = array.numpy() if array.dtype in _numpy_types(self._torch) else array.float().numpy()
            self._say(str(array.dtype), str(tuple(array.shape)))
            self.sha.update(np.ascontiguousarray(exact).tobytes())
        elif isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
            self._say(str(thing.dtype), str(thing.shape))
            self.sha.update(thing.tobytes())
        elif isinstance(thing, (np.generic, self._torch.dtype, self._torch.device)):
            self._say(repr(thing))
        elif id(thing) in self._seen:
            self._say("again", str(self._seen[id(thing)][0]))
        else:
            self._seen[id(thing)] = (len(self._seen), thing)
            self._thing(thing)

    def _thing(self, thing: Any) -> None:
        """What may hold others, for the first time."""
        self._say(type(thing).__qualname__)
        if isinstance(thing, self._torch.nn.Module):  # one that is hidden in a list, say
            self.module(thing)
        elif isinstance(thing, self._torch.jit.ScriptFunction):
            self._scripted(thing)
        elif isinstance(thing, (self._torch.ScriptObject, self._torch.jit.RecursiveScriptClass)):
            self._say(secrets.token_hex())  # nothing tells what it holds
        elif isinstance(thing, Mapping):
            self.value([part for item in thing.items() for part in item])
        elif isinstance(thing, list | tuple):
            self._say(str(len(thing)))
            for part in thing:
                self.value(part)
        elif isinstance(thing, set | frozenset):
            self._say(*sorted(repr(part) for part in thing if isinstance(part, (*_PLAIN, tuple))))
        elif isinstance(thing, functools.partial):
            self.value([thing.func, thing.args, thing.keywords])
        elif isinstance(thing, types.MethodType):
            self.value([thing.__func__, thing.__self__])
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        elif isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, type):
            self._class(thing)
        elif isinstance(thing, types.BuiltinFunctionType | types.ModuleType):
            self._say(str(getattr(thing, "__module__", "")), str(thing.__name__))
        else:
            self._object(thing)

    def _object(self, thing: Any) -> None:
        """Of the user's own all that it holds; of a library's its plain values."""
        held, ours = getattr(thing, "__dict__", {}), not _installed(type(thing).__module__)
        if ours:
            self._class(type(thing))
        if type(thing).__module__.partition(".")[0] not in sys.stdlib_module_names:
            self._attributes({key: value for key, value in held.items() if ours or isinstance(value, _PLAIN)})

    def _attributes(self, held: Mapping[str, Any]) -> None:
        for key, value in sorted(held.items()):
            self._say(key)
            self.value(value)

    def _class(self, kind: type) -> None:
        """The code of a class and of those that it builds on, up to torch's and Python's."""
        for one in kind.__mro__:
            root = one.__module__.partition(".")[0]
            self._say(f"{one.__module__}.{one.__qualname__}")
            if root in ("torch", *sys.stdlib_module_names) and root != "__main__":
                continue
            if id(one) in self._seen and one is not kind:
                continue
            self._seen.setdefault(id(one), (len(self._seen), one))
            for name, value in sorted(vars(one).items()):
                inner = getattr(value, "__func__", value)  # of static and class methods
                parts = [value.fget, value.fset] if isinstance(value, property) else [inner]
                if name.startswith("__") and not any(isinstance(part, types.FunctionType) for part in parts):
                    continue  # what Python keeps of a class
                self._say(name)
                for part in parts:
                    self.value(part)

    def _function(self, function: types.FunctionType) -> None:
        """Its code, what it holds, and what of the user's own it calls; of a library's what it wraps."""
        self._code(function.__code__)
        library = _installed(function.__module__)
        self.value([] if library else [function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # nothing was put into it yet
                held = cell.cell_contents
                if not library or isinstance(held, _CALLED):
                    self.value(held)
        if library:
            return
        named, places = sorted(_names(function.__code__)), [function.__globals__]
        places += [vars(found) for name in named if _is_ours(found := function.__globals__.get(name))]
        for place in places:
            for name in named:
                found = place.get(name)
                called = isinstance(found, (types.FunctionType, type)) and not _installed(found.__module__)
                kept = isinstance(found, _HOLDING) and name.isupper()  # one in lower case may be filled while it runs
                if called or kept or isinstance(found, (*_PLAIN[1:], tuple, self._torch.Tensor, np.ndarray)):
                    self._say(name)
                    self.value(found)

    def _code(self, code: types.CodeType) -> None:
        """What Python compiled, without where it stood."""
        self._say("code", *code.co_names)
        for part in (code.co_code, getattr(code, "co_exceptiontable", b"")):
            self.sha.update(len(part).to_bytes(8, "little") + part)
        self.value(list(code.co_consts))

    def _say(self, *words: str | bytes) -> None:
        for word in words:
            text = word.encode() if isinstance(word, str) else word
            self.sha.update(len(text).to_bytes(8, "little") + text)


def _names(code: types.CodeType) -> Iterable[str]:
    """The names that code and what is defined in it look up."""
    inner = (name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const))
    return {*code.co_names, *inner}


def _is_ours(found: Any) -> bool:
    """Whether it is a module of the user's own."""
    return isinstance(found, types.ModuleType) and not _installed(found.__name__)


@functools.cache
def _installed(name: str | None) -> bool:
    """Whether a module is Python's or belongs to an installed package, which is edited by nobody."""
    root = (name or "").partition(".")[0]
    if root == "__main__" or root not in sys.modules:
        return False
    if root in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules[root], "__file__", None) or next(iter(getattr(sys.modules[root], "__path__", [])), None)
    paths = sysconfig.get_paths()
    return file is not None and any(Path(file).is_relative_to(paths[key]) for key in ("stdlib", "purelib", "platlib"))


@functools.cache
def _numpy_types(torch: Any) -> frozenset[Any]:
    """The types of tensors that NumPy has, too."""
    names = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64")
    return frozenset(getattr(torch, name) for name in names)
