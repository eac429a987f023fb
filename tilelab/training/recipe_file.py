"""Recipes from TOML files, with single keys changed on the command line."""

from __future__ import annotations

import tomllib
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tilelab.errors import InputError
from tilelab.training.recipe_errors import explain_recipe

T = TypeVar("T")


class RecipeError(InputError):
    """A recipe is missing, unreadable or asks for something impossible; the key is named."""


def shipped_recipes(command: str = "train") -> dict[str, Path]:
    """The recipes for a command (``train`` or ``pretrain``) that come with tilelab, by name."""
    folder = Path(str(resources.files("tilelab") / "recipes"))
    found = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {name: path for name, path in found.items() if _command_of(_read(path)) == command}


def read_recipe(name: str, overrides: list[str] | None, kind: type[T], command: str) -> T:
    """Read a recipe file, or a shipped recipe by its name, and change single keys.

    Args:
        name: path of a TOML file, or the name of a shipped recipe.
        overrides: ``section.key=value`` each, the value in TOML (a bare word is taken as a string).
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
    return parse_recipe(_read(path), overrides or [], kind, command, f"recipe {path}")


def parse_recipe(table: dict[str, Any], overrides: list[str], kind: type[T], command: str, said: str) -> T:
    """Make a recipe of its table; `said` names it in messages, the rest is as for `read_recipe`.

    Raises:
        RecipeError: it is for another command, an unknown key, an impossible value.
    """
    if _command_of(table) != command:
        raise RecipeError(f"{said} is one for `tilelab {_command_of(table)}`, not for `tilelab {command}`")
    table = deepcopy(table)
    for override in overrides:
        _override(table, override)
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


def _override(table: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override {text!r} is not of the form section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    *sections, last = key.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"override {text!r}: {section!r} is not a section")
    table[last] = parsed
