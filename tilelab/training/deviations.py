"""Where a recipe does otherwise than its paper: derived from its values, so that none goes unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tilelab.training.recipe import BaseRecipe
from tilelab.training.recipe_file import RecipeError

_OPTIONS = "network.options."


def deviations(recipe: BaseRecipe) -> list[str]:
    """Every deviation from the recipe's paper: values that differ from those it states, then what is said in words.

    Raises:
        RecipeError: ``paper.states`` names a key that the recipe does not have.
    """
    paper, document = recipe.paper, msgspec.to_builtins(recipe)
    found = []
    for key, theirs in paper.states.items():
        mine = _look_up(document, key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):  # of a section, what the paper speaks of
            mine = {part: mine.get(part) for part in theirs}
        if not _same(mine, theirs):
            found.append(f"{key} is {_text(mine)}, the paper's {_text(theirs)}")
    return found + list(paper.deviations)


def tell(recipe: BaseRecipe) -> list[str]:
    """The lines that are said before training starts; none where the recipe follows no paper."""
    paper = recipe.paper
    if not paper.title:
        return []
    found = deviations(recipe)
    count = f"{len(found)} deviation{'' if len(found) == 1 else 's'}" if found else "no deviation"
    lines = [f"after {paper.title}: {count}"]
    lines += [f"  deviates: {text}" for text in found]
    return lines + [f"  not in the paper: {text}" for text in paper.silent]


def _look_up(document: Any, key: str) -> Any:
    """A value by its dotted key; parts that are whole numbers count in lists; an option not given is none."""
    if key.startswith(_OPTIONS):
        return document["network"].get("options", {}).get(key.removeprefix(_OPTIONS), "")
    value = document
    for part in key.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise RecipeError(f"paper.states names {key!r}, and the recipe has no {part!r}: correct or remove it")
    return value


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(map(_same, mine, theirs))
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        return mine.keys() == theirs.keys() and all(_same(mine[key], theirs[key]) for key in mine)
    return bool(mine == theirs) and isinstance(mine, bool) == isinstance(theirs, bool)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {_text(item)}' for key, item in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else f"{value}" if value != "" else "none"
