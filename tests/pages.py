"""What our pages say to type: code blocks, the commands in them, and flags named in passing."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tilelab.cli.main import COMMANDS, build_parser

ROOT = Path(__file__).parents[1]
PATTERNS = ("README.md", "docs/**/*.md", "examples/*.md", "packaging/*.md")
_FENCE = re.compile(r"^```(?P<language>[\w{}.-]*)[^\n]*\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_SHELL = ("", "sh", "bash", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, what it says, and the line that it begins at."""

    page: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> tuple[str, ...]:
        """One line for each command, comments and continuations taken out; none where it is no shell."""
        if self.language not in _SHELL:
            return ()
        lines = self.text.replace("\\\n", " ").splitlines()
        said = (shlex.join(shlex.split(line.removeprefix("$ "), comments=True)) for line in lines)
        return tuple(line for line in said if line)


def all_pages() -> tuple[str, ...]:
    """Those a user reads, by their paths from the root."""
    return tuple(sorted(path.relative_to(ROOT).as_posix() for glob in PATTERNS for path in ROOT.glob(glob)))


def blocks_of(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    for found in _FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["text"])


def commands_of(page: str) -> tuple[str, ...]:
    """The commands of a page, in order."""
    return tuple(command for block in blocks_of(page) for command in block.commands)


def refusal(words: list[str]) -> str | None:
    """What the real parser says against the words after ``tilelab``; None where it takes them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            build_parser(words[0] if words else None).parse_args(words)
    except SystemExit as end:
        return None if end.code == 0 else said.getvalue().strip().splitlines()[-1]
    return None


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    actions = build_parser(command)._actions
    return next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices[command]


@cache
def known_flags(command: str | None) -> frozenset[str]:
    """The flags of a command, or of all."""
    names = [command] if command else list(COMMANDS)
    found = (flag for name in names for action in parser_of(name)._actions for flag in action.option_strings)
    return frozenset(found) | {"--version"}


def flags_in_passing(page: str) -> Iterator[tuple[str | None, str]]:
    """Commands (None: whichever) and flags in ``code`` of the running text."""
    text = _FENCE.sub("", (ROOT / page).read_text())
    for code in re.findall(r"`([^`\n]+)`", text):
        named = re.match(r"(?:tilelab )?([a-z]+)(?= |$)", code)
        command = named[1] if named and named[1] in COMMANDS else None
        if command or code.startswith("-"):
            yield from ((command, flag) for flag in re.findall(r"(?:^|(?<= ))--[a-z][a-z-]*", code))
