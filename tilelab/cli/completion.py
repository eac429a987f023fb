"""`tilelab completion SHELL`: a script that lets a shell complete commands, options and their values."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from tilelab.cli.main import COMMANDS, parser_of

SHELLS = ("bash", "zsh", "fish")
_OR_FILES = ("train", "pretrain")  # take a name of ours, or a file
EXAMPLES = (
    "tilelab completion bash > ~/.local/share/bash-completion/completions/tilelab",
    "tilelab completion zsh > ~/.zfunc/_tilelab    # a folder of your fpath",
    "tilelab completion fish > ~/.config/fish/completions/tilelab.fish",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](), end="")
    return 0


@dataclass(frozen=True)
class _Option:
    """An option of a command: its flags, whether a value follows, which values there are, what it is."""

    flags: tuple[str, ...]
    takes: bool
    values: tuple[str, ...]
    about: str


def _options(command: str) -> Iterator[_Option]:
    from tilelab.engines.bundled import bundled_models

    for action in parser_of(command)._actions:
        if not action.option_strings:
            continue
        values = tuple(map(str, action.choices or ()))
        if "--model" in action.option_strings:
            values = tuple(bundled_models())
        about = "" if action.help in (None, argparse.SUPPRESS) else str(action.help).partition("\n")[0]
        about = about.replace("%(default)s", str(action.default)).replace("%%", "%") or "show the help"
        yield _Option(tuple(action.option_strings), action.nargs != 0, values, about)


def _words(command: str) -> tuple[str, ...]:
    """What may stand where no option does, beside files."""
    from tilelab.engines.bundled import bundled_models
    from tilelab.training.recipe_file import shipped_recipes

    if command in _OR_FILES:
        return tuple(shipped_recipes(command))
    return {"help": tuple(COMMANDS), "completion": SHELLS, "models": tuple(bundled_models())}.get(command, ())


def _bash() -> str:
    values, flags = [], []
    for command in COMMANDS:
        options = list(_options(command))
        for option in options:
            if option.values:
                heads = "|".join(f'"{command} {flag}"' for flag in option.flags)
                files = ' $(compgen -f -- "$word")' if "--model" in option.flags else ""
                values.append(
                    f'    {heads}) COMPREPLY=( $(compgen -W "{" ".join(option.values)}" -- "$word"){files} ); return;;'
                )
        names = " ".join(flag for option in options for flag in option.flags if flag.startswith("--"))
        flags.append(f'    {command}) flags="{names}"; words="{" ".join(_words(command))}";;')
    return "\n".join(
        [
            "# Completes tilelab's commands, options and values in bash.",
            "_tilelab() {",
            '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="${COMP_WORDS[1]}"',
            '  local flags="" words=""',
            '  if [ "$COMP_CWORD" -eq 1 ]; then',
            f'    COMPREPLY=( $(compgen -W "{" ".join(COMMANDS)} --help --version" -- "$word") ); return',
            "  fi",
            '  case "$command $before" in',
            *values,
            "  esac",
            '  case "$command" in',
            *flags,
            "  esac",
            '  if [ "${word#-}" = "$word" ]; then flags="$words"; fi',
            '  COMPREPLY=( $(compgen -W "$flags" -- "$word") )',
            "}",
            "complete -o default -o bashdefault -F _tilelab tilelab",
            "",
        ]
    )


def _zsh() -> str:
    lines = [
        "#compdef tilelab",
        "# Completes tilelab's commands, options and values in zsh.",
        "_tilelab() {",
        "  local -a commands",
    ]
    lines += ["  commands=(", *(f"    {_quoted(f'{name}:{about}')}" for name, about in COMMANDS.items()), "  )"]
    lines += ["  if (( CURRENT == 2 )); then _describe command commands; return; fi", "  shift words; (( CURRENT-- ))"]
    lines += ["  case $words[1] in"]
    for command in COMMANDS:
        lines.append(f"    {command}) _arguments -s \\")
        for option in _options(command):
            about = option.about.translate({ord("["): "(", ord("]"): ")", ord(":"): "\\:"})
            value = ""
            if option.takes:
                value = f":value:({' '.join(option.values)})" if option.values else ":value:_files"
                if "--model" in option.flags:
                    value = f":model:{{ _values model {' '.join(option.values)}; _files }}"
            lines += [f"      {_quoted(f'{flag}[{about}]{value}')} \\" for flag in option.flags]
        words = " ".join(_words(command))
        some = f"{{ _values word {words}; _files }}" if command in _OR_FILES else f"({words})"
        lines.append(f"      {_quoted(f'*:word:{some}' if words else '*:file:_files')};;")
    end = 'if [ "$funcstack[1]" = "_tilelab" ]; then _tilelab "$@"; else compdef _tilelab tilelab; fi'
    return "\n".join([*lines, "  esac", "}", end, ""])


def _fish() -> str:
    lines = ["# Completes tilelab's commands, options and values in fish."]
    for name, about in COMMANDS.items():
        lines.append(f"complete -c tilelab -n __fish_use_subcommand -f -a {name} -d {_quoted(about)}")
    for command in COMMANDS:
        when = f"-n '__fish_seen_subcommand_from {command}'"
        for option in _options(command):
            names = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in option.flags)
            takes = " -r" if option.takes else ""
            values = f" -a {_quoted(' '.join(option.values))}" if option.values else ""
            lines.append(f"complete -c tilelab {when} {names}{takes}{values} -d {_quoted(option.about)}")
        if words := _words(command):
            alone = "" if command in _OR_FILES else " -f"
            lines.append(f"complete -c tilelab {when}{alone} -a {_quoted(' '.join(words))}")
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    """In single quotes, for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"
