"""Recipes from TOML files, with single keys changed on the command line."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tilelab.errors import InputError
from tilelab.training.recipe_errors import explain_recipe

T = TypeVar("T")


Change = tuple[str, Any]
"""A key of a recipe, its sections before it with dots between, and its new value."""
_WHOLE = ("normalization",)
"""What is written as a table and is one value: half of another one would be neither."""


class RecipeError(InputError):
    """A recipe is missing, unreadable or asks for something impossible; the key is named."""


def shipped_recipes(command: str = "train") -> dict[str, Path]:
    """The recipes for a command (``train`` or ``pretrain``) that come with tilelab, by name."""
    folder = Path(str(resources.files("tilelab") / "recipes"))
    found = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {name: path for name, path in found.items() if _command_of(_read(path)) == command}


def read_recipe(name: str, changes: Iterable[Change], kind: type[T], command: str) -> T:
    """Read a recipe file, or a shipped recipe by its name, and change single keys.

    Args:
        name: path of a TOML file, or the name of a shipped recipe.
        changes: of single keys; see `read_overrides`, `flatten_changes`.
        kind: what to make of it.
        command: ``train`` or ``pretrain``, whichever takes that kind.

    Raises:
        RecipeError: no such file, not TOML, for another command, an unknown key, an impossible value.
    """
    path = Path(name)
    if not path.suffix and not path.is_file():
        every = shipped_recipes("train") | shipped_recipes("pretrain")
        if name not in every:
            raise RecipeError(f"no recipe {name!r}: give a .toml file or one of {', '.join(shipped_recipes(command))}")
        path = every[name]
    return parse_recipe(_read(path), changes, kind, command, f"recipe {path}")


def parse_recipe(table: dict[str, Any], changes: Iterable[Change], kind: type[T], command: str, said: str) -> T:
    """Make a recipe of its table; `said` names it in messages, the rest is as for `read_recipe`.

    Raises:
        RecipeError: it is for another command, an unknown key, an impossible value.
    """
    if _command_of(table) != command:
        raise RecipeError(f"{said} is one for `tilelab {_command_of(table)}`, not for `tilelab {command}`")
    table = deepcopy(table)
    for key, value in changes:
        _change(table, key, value)
    try:
        return msgspec.convert(table, type=kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise RecipeError(f"{said}: {explain_recipe(error, kind)}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise RecipeError(f"recipe {path} is no file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe file {path}: shipped ones are {', '.join(shipped_recipes())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}") from error


def _command_of(table: dict[str, Any]) -> str:
    """The command that a recipe is for: to pretrain is to name an encoder where others name an architecture."""
    network = table.get("network")
    return "pretrain" if isinstance(network, dict) and "encoder" in network else "train"


def read_overrides(overrides: Iterable[str]) -> Iterator[Change]:
    """Changes from ``section.key=value``, the value in TOML (a bare word is taken as a string).

    Raises:
        RecipeError: one is not of that form.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"override {text!r} is not of the form section.key=value")
        try:
            yield key.strip(), tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            yield key.strip(), value.strip()


def flatten_changes(changes: Mapping[str, Any]) -> Iterator[Change]:
    """Changes from a dictionary: a section given as one changes the keys that it names, ``{"run": {"steps": 200}}``.

    What is below a section replaces what is there, as ``network.options={...}`` does; paths become texts, NumPy's
    numbers plain ones.

    Raises:
        RecipeError: a value is nothing that a recipe holds.
    """
    for key, value in changes.items():
        try:
            plain = msgspec.to_builtins(value, enc_hook=_plain, str_keys=True)
        except TypeError as error:
            raise RecipeError(f"changes[{key!r}]: {error}") from error
        if isinstance(plain, dict) and "." not in key and key not in _WHOLE:
            yield from ((f"{key}.{inner}", part) for inner, part in plain.items())
        else:
            yield key, plain


def _plain(value: object) -> object:
    """What msgspec does not know, as it would be written in TOML."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a recipe holds numbers, texts, lists and tables, not {type(value).__name__}")


def _change(table: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{key}={value!r}: {section!r} is not a section")
    table[last] = value
