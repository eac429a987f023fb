"""Writes the reference pages from what they are about: the parser, the recipe's sections, the model's description.

Nothing of them is typed twice: a flag's help is its help, a key's default its default, its meaning the docstring's.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

import tilelab
import tilelab.io
from tilelab.cli.main import COMMANDS, build_parser
from tilelab.spec import ModelSpec
from tilelab.training.recipe import Pretraining, Recipe

_RECIPES = (
    "What to train, on what, and how: a TOML file for `tilelab train` or `tilelab pretrain`. Unknown keys and "
    "impossible values are refused by name; `--set KEY=VALUE` changes one. Made from the program's own text.\n"
)
_DESCRIPTION = (
    "One JSON document, kept in the file of the engine under the key `tilelab`: `tilelab describe` and `tilelab "
    "export` write it, `tilelab info MODEL --json` prints it, Python has it as `tilelab.ModelSpec`. Made from the "
    "program's own text.\n"
)
_PICTURE = "![What `tilelab --help` prints](../help.png)\n"
_MARKUP = re.compile(r"([\\*_<>\[\]$|#])")


def pages() -> dict[str, str]:
    """The pages by their paths in the site."""
    return {
        "docs/reference/commands.md": commands_page(),
        "docs/reference/recipes.md": recipes_page(),
        "docs/reference/models.md": models_page(),
        "docs/reference/python.md": python_page(),
    }


def escaped(text: str) -> str:
    """Plain text as Markdown; what stands in backquotes stays."""
    parts = re.split(r"(`[^`]*`)", text.replace("``", "`"))
    return "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\1", part) for part in parts)


# Commands


def commands_page() -> str:
    """Every command with every flag."""
    parts = ["# Commands\n", "Made from the program's own help: `tilelab help COMMAND` prints the same.\n", _PICTURE]
    for name in COMMANDS:
        sub = _subparsers(build_parser(name)).choices[name]
        about = sub.description or ""
        parts += [f"(command-{name})=\n## tilelab {name}\n", escaped(about[:1].upper() + about[1:]) + ".\n"]
        parts += [f"```text\n{sub._call()}\n```\n", "\n".join(["```text", *sub.examples, "```\n"]), *_groups(sub)]
        if sub.epilog:
            parts.append(_prose(sub.epilog))
    return "\n".join(parts) + "\n"


def _subparsers(parser: argparse.ArgumentParser) -> Any:
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _metavar(action: argparse.Action) -> str:
    found = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    name = " ".join(found) if isinstance(found, tuple) else found
    return f"{name}..." if action.nargs in ("+", "*") and not action.option_strings else name


def _prose(text: str) -> str:
    """An epilog: indented lines are commands, the others running text."""
    parts: list[str] = []
    for chunk in re.split(r"\n\s*\n", text):
        lines = chunk.splitlines()
        heads = [line for line in lines if not line.startswith(" ")]
        code = textwrap.dedent("\n".join(line for line in lines if line.startswith(" ")))
        parts += [escaped(" ".join(heads)) + "\n"] * bool(heads) + [f"```text\n{code}\n```\n"] * bool(code)
    return "\n".join(parts)


def _groups(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        shown = [
            a for a in group._group_actions if a.help != argparse.SUPPRESS and not isinstance(a, argparse._HelpAction)
        ]
        if not shown:
            continue
        if group.title not in ("positional arguments", "options"):
            yield f"**{escaped((group.title or '').capitalize())}**\n"
        if group.description:
            yield escaped(group.description) + "\n"
        for action in shown:
            takes = "" if action.nargs == 0 else " " + _metavar(action)
            flags = ", ".join(f"`{flag}{takes}`" for flag in action.option_strings) or f"`{_metavar(action)}`"
            said = formatter._expand_help(action) if action.help else ""
            yield f"{flags}\n: {escaped(' '.join(said.replace(chr(10), '; ').split())) or '.'}\n"


# Recipes and descriptions of models


def recipes_page() -> str:
    """Every key of a recipe."""
    parts = [
        "# Recipes\n",
        _RECIPES,
        "## Of `tilelab train`\n",
        *_struct(Recipe),
        "## Of `tilelab pretrain`\n",
        "The sections that are not listed here are those above.\n",
        *_struct(Pretraining, seen=_inner(Recipe)),
    ]
    return "\n".join(parts) + "\n"


def models_page() -> str:
    """Every key of a model's description."""
    parts = [
        "# Description of a model\n",
        _DESCRIPTION,
        *_struct(ModelSpec),
    ]
    return "\n".join(parts) + "\n"


def _inner(kind: type) -> set[type]:
    """The sections of a section, at any depth."""
    found: set[type] = set()
    for hint in get_type_hints(kind).values():
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct) and part not in found:
                found |= {part} | _inner(part)
    return found


def _struct(kind: type, at: str = "", seen: set[type] | None = None) -> Iterator[str]:
    """List the keys of a section, and then those of its sections."""
    seen = set() if seen is None else seen
    hints, meanings = get_type_hints(kind), meanings_of(kind)
    if at:
        yield f"### `{at}`\n"
        yield escaped(_lead(kind)) + "\n"
    inner: list[tuple[str, type]] = []
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        parts = [
            part for part in (hint, *get_args(hint)) if isinstance(part, type) and issubclass(part, msgspec.Struct)
        ]
        inner += [(field.name, part) for part in parts]
        words = [escaped(type_name(hint)), *filter(None, [_default(field)])]
        meaning = escaped(meanings.get(field.name) or "".join(map(_lead, parts)) or "—")
        yield f"`{field.encode_name}` {', '.join(words)}\n: {meaning}\n"
    for name, part in inner:
        if part not in seen:
            seen.add(part)
            yield from _struct(part, f"{at}.{name}" if at else name, seen)


def _lead(kind: type) -> str:
    """The first paragraph of a docstring."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


def meanings_of(kind: type) -> dict[str, str]:
    """What the docstrings of a struct and of those it is made from say of each key."""
    found: dict[str, str] = {}
    for one in reversed(
        [c for c in kind.__mro__ if isinstance(c, type) and issubclass(c, msgspec.Struct) and c is not msgspec.Struct]
    ):
        found |= _said_of_keys(inspect.cleandoc(one.__doc__ or "")) | _said_below(one)
    return found


def _said_of_keys(text: str) -> dict[str, str]:
    """Keys and meanings in a docstring: ``name  meaning``, or the meaning indented under ``name``."""
    found: dict[str, str] = {}
    current: list[str] = []
    for line in text.splitlines():
        head = re.match(r"^((?:\w+, )*\w+)(?:  +(.*))?$", line)
        if head and (head[2] or head[1] == line):
            current = head[1].split(", ")
            found |= dict.fromkeys(current, head[2] or "")
        elif line.startswith(" ") and current:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in current}
        else:
            current = []
    return found


def _said_below(kind: type) -> dict[str, str]:
    """Meanings that stand as a string under a key."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef))
    found = {}
    for one, after in itertools.pairwise(body):
        if isinstance(one, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[ast.unparse(one.target)] = " ".join(str(after.value.value).split())
    return found


def type_name(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in args if part is not type(None))
    if origin is tuple:
        return f"list of {type_name(args[0])}" if args[-1] is ... else f"{len(args)} x {type_name(args[0])}"
    if origin is dict:
        return "table"
    words = {str: "text", int: "whole number", float: "number", bool: "true, false", dict: "table"}
    return words.get(hint, "section" if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else str(hint))


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "needed"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(value, msgspec.Struct) or (
        isinstance(value, tuple) and any(isinstance(v, msgspec.Struct) for v in value)
    ):
        return ""
    if value is None:
        return ""
    return f"by default `{msgspec.json.encode(value).decode()}`" if value not in ("", (), {}) else ""


# Python


def python_page() -> str:
    """The public names, from their docstrings."""
    parts = ["# Python\n", "What `tilelab` and `tilelab.io` promise to keep. [A page to begin with](../python.md).\n"]
    for package in (tilelab, tilelab.io):
        parts.append(f"## {package.__name__}\n")
        for name in package.__all__:
            value = getattr(package, name)
            if name.startswith("__"):
                continue
            where = package.__name__
            if isinstance(value, types.ModuleType):  # a folder that is called as its function
                value = getattr(value, "__wrapped__", value)
                where = value.__module__
            kind = "autoclass" if isinstance(value, type) else "autofunction"
            plain = isinstance(value, type) and not issubclass(value, Exception)
            options = "(**fields)\n:members:" if plain else ""
            parts.append(f"```{{eval-rst}}\n.. {kind}:: {where}.{name}" + options.replace("\n", "\n   ") + "\n```\n")
    return "\n".join(parts) + "\n"
