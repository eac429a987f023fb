"""Draws pages of help as a terminal shows them, in colour or without, at any width.

    python docs/draw_help.py FOLDER [--columns 80,120] [COMMAND ...]

A picture keeps the text that it was drawn from (key `text`), so a test can tell when the help has moved on. Those in
docs/ are made by `python docs/draw_help.py docs --columns 80 --picture help tilelab`, and `--picture help-view view`.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from PIL import Image, ImageDraw, PngImagePlugin
from PIL.ImageFont import FreeTypeFont, truetype

from tilelab.cli.command_parser import in_colour
from tilelab.cli.main import COMMANDS, build_parser, parser_of

_COLOURS = {"1": "#ffffff", "2": "#7d8590", "36": "#4cc9d8"}
_INK, _GROUND = "#d5d9de", "#111418"
_LINE, _EDGE = 17, 8


def page_of(command: str, columns: int, *, colour: bool = True) -> str:
    """The help of a command, or of ``tilelab``, as it is printed on a terminal that many columns wide."""
    os.environ["COLUMNS"] = str(columns)
    text = (build_parser() if command == "tilelab" else parser_of(command)).format_help()
    return in_colour(text) if colour else text


def draw(text: str, columns: int, path: Path) -> None:
    """Draw what a terminal shows of `text`; lines that are too long for it are broken where it breaks them."""
    fonts = {bold: _font(bold) for bold in (False, True)}
    width = round(fonts[False].getlength("M"))
    lines = text.rstrip("\n").split("\n")
    rows = sum(max(1, -(-len(re.sub(r"\x1b\[\d*m", "", line)) // columns)) for line in lines)
    picture = Image.new("RGB", (columns * width + 2 * _EDGE, rows * _LINE + 2 * _EDGE), _GROUND)
    pen, y = ImageDraw.Draw(picture), _EDGE
    for line in lines:
        x, ink, bold = 0, _INK, False
        for part in re.split(r"(\x1b\[\d*m)", line):
            if code := re.fullmatch(r"\x1b\[(\d*)m", part):
                ink, bold = _COLOURS.get(code[1], _INK), code[1] == "1"
                continue
            for letter in part:
                if x == columns:
                    x, y = 0, y + _LINE
                pen.text((_EDGE + x * width, y), letter, fill=ink, font=fonts[bold])
                x += 1
        y += _LINE
    kept = PngImagePlugin.PngInfo()
    kept.add_text("text", text)
    picture.quantize(64).save(path, pnginfo=kept, optimize=True)


def _font(bold: bool) -> FreeTypeFont:
    import matplotlib as mpl  # brings the letters; of the extra `train`

    name = "DejaVuSansMono-Bold.ttf" if bold else "DejaVuSansMono.ttf"
    return truetype(str(Path(mpl.get_data_path()) / "fonts/ttf" / name), 13)


def main() -> None:
    """Draw COMMAND-COLUMNS-colour.png and -plain.png of each, or one picture by its name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("commands", nargs="*", default=["tilelab", *COMMANDS])
    parser.add_argument("--columns", default="80,120")
    parser.add_argument("--picture", help="name of the one picture, in colour")
    args = parser.parse_intermixed_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for columns in map(int, args.columns.split(",")):
        for command in args.commands:
            for kind in ("colour",) if args.picture else ("colour", "plain"):
                name = args.picture or f"{command}-{columns}-{kind}"
                draw(page_of(command, columns, colour=kind == "colour"), columns, args.folder / f"{name}.png")


if __name__ == "__main__":
    main()
