"""What is wrong with a recipe, in a line that names the key as it is written there."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

_PLACE = re.compile(r"(?s)(.*) - at `(?:key in )?\$\.?(.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_KIND = re.compile(r"Expected `(.*)`, got `(.*)`")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a section",
    "null": "nothing",
}


def explain_recipe(error: Exception, kind: type) -> str:
    """`error` of msgspec, or of a section's own check, in words; `kind` is the whole recipe's type."""
    match = _PLACE.fullmatch(str(error))
    text, place = (match[1], match[2]) if match else (str(error), "")
    if unknown := _UNKNOWN.fullmatch(text):
        known = _keys(kind, place)
        near = get_close_matches(unknown[1], known, 1)
        meant = f", do you mean {near[0]}?" if near else ""
        return f"unknown key {_join(place, unknown[1])}{meant} (known: {', '.join(known)})"
    if missing := _MISSING.fullmatch(text):
        return f"the key {_join(place, missing[1])} is missing"
    if wrong := _KIND.fullmatch(text):
        wanted, got = (" or ".join(_KINDS.get(k, k) for k in part.split(" | ")) for part in wrong.groups())
        return f"{place or 'the recipe'} must be {wanted}, not {got}"
    if text.startswith("Invalid enum value"):
        choices = _choices(kind, place)
        ways = f": choose one of {', '.join(choices)}" if choices else ""
        return f"{place} cannot be {text.removeprefix('Invalid enum value').strip()}{ways}"
    return text if text.startswith(place) else f"{place}: {text}"


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _keys(kind: type, place: str) -> list[str]:
    """The keys of the section at `place`."""
    section = _struct(_at(kind, place))
    return [] if section is None else [entry.name for entry in msgspec.structs.fields(section)]


def _choices(kind: type, place: str) -> list[str]:
    """The values that a key may have."""
    found = _at(kind, place)
    return [str(value) for value in get_args(found)] if get_origin(found) is Literal else []


def _at(kind: Any, place: str) -> Any:
    """The type of what stands at `place`, e.g. ``loss[0].kind``."""
    for part in place.split(".") if place else []:
        section = _struct(kind)
        kind = None if section is None else get_type_hints(section).get(part.partition("[")[0])
    return kind


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    """The section among the types that `kind` is made of: itself, or one of a list, or that or nothing."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for part in get_args(kind) if (found := _struct(part)) is not None), None)
