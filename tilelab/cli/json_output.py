"""`--json`, which means the same in every command: alone it prints JSON, ``--json FILE.json`` writes it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SCREEN = "-"
_NAMES_FILE = ("attribute", "eval", "measure")
"""Commands whose file may have any name, as it could before `--json` was one thing everywhere."""
_IMAGES = (".tif", ".tiff", ".png", ".npy", ".h5", ".hdf5", ".mrc", ".jpg", ".jpeg", ".bmp", ".zarr")


def add_json(parser: argparse.ArgumentParser, what: str = "it") -> None:
    """Declare the flag."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=SCREEN,
        metavar="FILE.json",
        help=f"print {what} as JSON, or write it",
    )


def put_json(asked: str | None, text: str) -> bool:
    """Print `text`, or write it into a file; whether it was printed, and so nothing else is to be.

    Raises:
        OutputError: the file cannot be written.
    """
    if asked is None:
        return False
    if asked == SCREEN:
        print(text.rstrip("\n"))
        return True
    from tilelab.machine.disk import write_text  # with OpenSSL, which help pages do without

    write_text(Path(asked), text.rstrip("\n") + "\n")
    return False


def json_file(asked: str | None) -> str | None:
    """The file that is to be written, if any."""
    return None if asked == SCREEN else asked


def name_json(words: list[str]) -> list[str]:
    """`words` in which ``--json`` has its value, so that it takes no image for the name of its file."""
    for at, word in enumerate(words):
        if word == "--":
            break
        if word == "--json":
            following = words[at + 1] if at + 1 < len(words) else ""
            named = following.lower().endswith(".json") or (words[0] in _NAMES_FILE and _is_old_name(following))
            if named:
                return [*words[:at], f"--json={following}", *words[at + 2 :]]
            return [*words[:at], f"--json={SCREEN}", *words[at + 1 :]]
    return words


def _is_old_name(word: str) -> bool:
    """Whether a word names a file to write: not an option, nor an image or result that is there."""
    if not word or word.startswith("-"):
        return False
    return not os.path.lexists(word) or (os.path.isfile(word) and not word.lower().endswith(_IMAGES))  # noqa: PTH113
