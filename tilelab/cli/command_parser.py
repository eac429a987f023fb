"""The parser of every command: examples first, one line an option, errors that point at the page that helps."""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tilelab.cli.json_output import name_json
from tilelab.cli.terminal import drawn, one_line
from tilelab.text import did_you_mean

_USAGE = 2  # exit code
_COLUMN, _WIDEST = 27, 100
_NUMBER = re.compile(r"-\.?\d")
_BOLD, _CYAN, _DIM, _PLAIN = "\x1b[1m", "\x1b[36m", "\x1b[2m", "\x1b[0m"


class Formatter(argparse.HelpFormatter):
    """One line an option, or all that there is to say of it where `full`.

    Help texts are ``what it is in a few words`` and, behind a line break, what else there is to say.
    """

    full = False

    def __init__(self, prog: str, **words: Any) -> None:
        super().__init__(prog, **(words | {"max_help_position": _COLUMN, "width": terminal_width()}))

    def _split_lines(self, text: str, width: int) -> list[str]:
        first, _, rest = text.partition("\n")
        return super()._split_lines(f"{first}; {rest}" if self.full and rest else first, width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        flags = sorted(action.option_strings, key=len)
        return f"{', '.join(flags)} {self._format_args(action, action.dest.upper())}"


class CommandParser(argparse.ArgumentParser):
    """A parser of a command, or of ``tilelab COMMAND`` where it has `commands`.

    Attributes:
        examples: command lines, with a comment or without.
        commands: heading to command to summary.
        epilog: what stands below the options; its first paragraph alone in short help.
    """

    def __init__(self, **words: Any) -> None:
        words["formatter_class"] = Formatter
        super().__init__(**words, allow_abbrev=False, add_help=False)
        self.examples: Sequence[str] = ()
        self.commands: Mapping[str, Mapping[str, str]] = {}
        setattr(self, "color", False)  # noqa: B010 - of Python 3.14 on; ours are the same in every Python
        self._positionals.title, self._optionals.title = "what it takes", "options"
        self.add_argument("-h", "--help", action=_Help, help=argparse.SUPPRESS)

    def format_help(self, *, full: bool = False) -> str:
        """The page: what it does, examples, how it is called, options; one line for each unless `full`."""
        formatter: Any = self._get_formatter()
        formatter.full = full
        parts = [f"{self.prog}: {self.description}\n", _section("examples", _aligned(self.examples))]
        parts += [_section(title, _table(commands)) for title, commands in self.commands.items()]
        parts += [f"usage: {self._call()}\n"]
        if not self.commands:
            for group in self._action_groups:
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
            parts += [formatter.format_help()]
        parts += [_filled(self.epilog if full else self.epilog.strip().partition("\n\n")[0])] if self.epilog else []
        if self.commands:
            parts += ["`tilelab COMMAND --help` tells of one of them, `tilelab help COMMAND` more.\n"]
        elif not full and self._says_more():
            parts += [f"`tilelab help {self.prog.partition(' ')[2]}` says more of each.\n"]
        return "\n".join(part for part in parts if part)

    def _call(self) -> str:
        """The command in one line: what it must have, and ``[options]``."""
        if self.commands:
            return f"{self.prog} COMMAND ..."
        words = [self.prog]
        for action in self._actions:
            if not action.option_strings:
                name = action.metavar if isinstance(action.metavar, str) else action.dest
                words.append({"+": f"{name}...", "?": f"[{name}]"}.get(str(action.nargs), name))
            elif action.required:
                words.append(f"{min(action.option_strings, key=len)} {action.metavar}")
        free = any(action.option_strings and action.help != argparse.SUPPRESS for action in self._actions)
        return " ".join([*words, "[options]"] if free else words)

    def _says_more(self) -> bool:
        """Whether full help has more than the short one."""
        return "\n\n" in (self.epilog or "").strip() or any("\n" in (action.help or "") for action in self._actions)

    def print_help(self, file: Any = None, *, full: bool = False) -> None:
        """Print the page, in colours on a terminal that has them."""
        text, stream = self.format_help(full=full), file or sys.stdout
        print(in_colour(text) if has_colours(stream) else text, end="", file=drawn(stream))

    def parse_known_args(  # type: ignore[override]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does, but that ``-5:30`` is a value, and ``--json`` takes a name of a JSON file alone."""
        words = list(_join_values(sys.argv[1:] if args is None else args))
        if self.commands:
            self._check_command(words)
        found, unknown = super().parse_known_args(words, namespace)
        if unknown and not self.commands:
            self.error(self._of_unknown(unknown[0]))
        return found, unknown

    def _check_command(self, words: Sequence[str]) -> None:
        """Refuse a first word that is no command, with the one that may have been meant."""
        named = next((word for word in words if not word.startswith("-")), None)
        known = [name for commands in self.commands.values() for name in commands]
        if named is None or named in known:
            return
        if os.path.lexists(named):
            self.error(f"{named} is no command: to segment it, tilelab infer {named} --model superalloy")
        self.error(f"there is no command {named!r}{did_you_mean(named, known)}")

    def _of_unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} is one too many"
        flag = word.partition("=")[0]
        known = [flag for action in self._actions for flag in action.option_strings]
        return f"there is no option {flag}{did_you_mean(flag, known)}"

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is, in one line, and end."""
        if (choice := re.search(r"invalid choice: '?(.+?)'? \(choose from (.*)\)", message)) is not None:
            message += did_you_mean(choice[1], re.findall(r"[\w.-]+", choice[2]))
        if "required" in message and "--model" in message:
            message += "; `tilelab models` lists those that come along"
        self.exit(_USAGE, f"{self.prog}: error: {one_line(message)} (see `{self.prog} --help`)\n")


class _Help(argparse.Action):
    """``-h`` and ``--help``."""

    def __init__(self, option_strings: Sequence[str], **words: Any) -> None:
        given = words | {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "nargs": 0}
        super().__init__(option_strings, **given)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.print_help()
        parser.exit()


def terminal_width() -> int:
    """Columns to write in: those of the terminal, 100 at most."""
    import shutil

    return max(40, min(shutil.get_terminal_size().columns - 1, _WIDEST))


def has_colours(stream: Any) -> bool:
    """Whether to write in colours: to a terminal that has them, unless NO_COLOR says otherwise."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return bool(stream.isatty()) and (os.name != "nt" or "WT_SESSION" in os.environ)


def in_colour(page: str) -> str:
    """A page of help with its headings, commands and options set off."""
    page = re.sub(r"^(\S[^\n`]*:)$", rf"{_BOLD}\1{_PLAIN}", page, flags=re.MULTILINE)
    page = re.sub(r"^(tilelab[\w ]*:|usage:)", rf"{_BOLD}\1{_PLAIN}", page, flags=re.MULTILINE)
    page = re.sub(r"(  +# [^\n]*)$", rf"{_DIM}\1{_PLAIN}", page, flags=re.MULTILINE)
    return re.sub(r"^(  (?:-\S.*?|[A-Z]\S*|[a-z]+))(?=  |$)", rf"{_CYAN}\1{_PLAIN}", page, flags=re.MULTILINE)


def _join_values(words: Iterable[str]) -> Iterator[str]:
    """``--range -5:30`` as ``--range=-5:30``: a word that begins like a number is no option."""
    words = name_json(list(words))
    held: str | None = None
    for at, word in enumerate(words):
        if word == "--":
            yield from [held] if held is not None else []
            yield from words[at:]
            return
        if held is not None and _NUMBER.match(word):
            yield f"{held}={word}"
            held = None
            continue
        if held is not None:
            yield held
        held = word if word.startswith("--") and "=" not in word else None
        if held is None:
            yield word
    if held is not None:
        yield held


def _filled(text: str) -> str:
    """Paragraphs and lists, in the width that there is."""
    lines = []
    for line in text.strip().split("\n"):
        inner = "   " if line.startswith("  ") else ""
        lines += textwrap.wrap(line, terminal_width(), subsequent_indent=inner, break_on_hyphens=False) or [""]
    return "\n".join([*lines, ""])


def _aligned(examples: Sequence[str]) -> list[str]:
    """Command lines with their comments below each other."""
    parts = [line.partition("  # ") for line in examples]
    column = max((len(command.rstrip()) for command, mark, _ in parts if mark), default=0)
    return [f"{command.rstrip():<{column}}   # {said}" if mark else command for command, mark, said in parts]


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines), ""]) if lines else ""


def _table(rows: Mapping[str, str]) -> list[str]:
    return [f"{name:<11} {text}" for name, text in rows.items()]


def program() -> str:
    """How this program is called from here: by name where the shell finds it, else by its path."""
    import shutil

    called = Path(sys.argv[0])
    if called.name != "tilelab" or shutil.which("tilelab"):
        return "tilelab"
    here = Path.cwd()
    return str(called.relative_to(here) if called.is_relative_to(here) else called)
