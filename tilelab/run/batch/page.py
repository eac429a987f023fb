"""The page of a batch: every image with its segmentation, sums above, failures first, all in one file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tilelab.errors import OutputError
from tilelab.io.results.drawing import visible_colors
from tilelab.machine.disk import replacing
from tilelab.run.batch.row import Row
from tilelab.run.look import SCRIPT, STYLE
from tilelab.spec import ClassInfo

_MOST_INSIDE = 2000
"""Pictures that a page holds itself, about 40 kB each; of more it shows those in the folder beside it."""
_MARK = '<meta name="generator" content="tilelab">'


def write_page(path: Path, rows: Sequence[Row], pictures: Mapping[str, Path], classes: Sequence[ClassInfo]) -> None:
    """Write one HTML file that needs no other and no network.

    Args:
        path: of the file.
        rows: one an image.
        pictures: JPEG by name of the row, in a folder beside the page; those that are missing are left out.
        classes: of the model, background first.

    Raises:
        OutputError: it cannot be written.
    """
    colors = {known.name: "#%02x%02x%02x" % color for known, color in zip(classes, _colors(classes), strict=True)}  # noqa: UP031
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", errors="replace") as file:
        for part in _page(path.absolute().parent.name, rows, pictures, colors):
            file.write(part)


def check_page(path: Path) -> None:
    """Refuse a file that is no page of ours, before anything runs.

    Raises:
        OutputError: it would be replaced.
    """
    try:
        with path.open("rb") as file:
            ours = _MARK.encode() in file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    if not ours:
        raise OutputError(f"{path} is not a page of tilelab and is not replaced: choose another folder")


def _colors(classes: Sequence[ClassInfo]) -> Sequence[tuple[int, int, int]]:
    return visible_colors([known.color for known in classes])


def _page(title: str, rows: Sequence[Row], pictures: Mapping[str, Path], colors: Mapping[str, str]) -> Iterator[str]:
    done = [row for row in rows if row.status == "done"]
    failed = [row for row in rows if row.status == "failed"]
    waiting = len(rows) - len(done) - len(failed)
    model = next((row.model for row in done if row.model), "")
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8">{_MARK}'
    yield f'<meta name="viewport" content="width=device-width"><title>{_text(title)}</title><style>{STYLE}</style>'
    yield f"</head><body><header><h1>{_text(title)}</h1><p>"
    pixels = sum(_pixels(row) for row in done)
    facts = [f"{len(done)} of {len(rows)} images", f"{pixels / 1e6:.1f} megapixels"]
    facts += [f"model {_text(model)}"] if model else []
    facts += [f"<b class=bad>{len(failed)} failed</b>"] if failed else []
    facts += [f"<b>{waiting} not done yet</b>"] if waiting else []
    yield f"{' &middot; '.join(facts)}</p>{_means(done, colors)}</header>"
    if failed:
        yield "<section class=failed><h2>Failed</h2><table>"
        for row in failed:
            yield f"<tr><td title='{_text(row.image)}'>{_text(row.name)}</td><td>{_text(row.error)}</td></tr>"
        yield "</table></section>"
    yield (
        '<nav><input id=find type=search placeholder="find by name" aria-label="find by name"> sorted by '
        "<select id=sort aria-label='sorted by'><option value=n>name</option>"
    )
    names = list(dict.fromkeys(name for row in done for name in row.areas))
    yield "".join(f"<option value='{i}'>{_text(name)}</option>" for i, name in enumerate(names))
    yield "</select></nav><main>"
    for row in done:
        yield _card(row, _source(pictures.get(row.name), len(done) <= _MOST_INSIDE), names, colors)
    yield f"</main><script>{SCRIPT}</script></body></html>\n"


def _means(done: Sequence[Row], colors: Mapping[str, str]) -> str:
    """The share of each class in all pixels, as one bar with its legend."""
    names = list(dict.fromkeys(name for row in done for name in row.areas))
    total = sum(_pixels(row) for row in done if row.areas)
    if not names or not total:
        return ""
    shares = {name: sum(row.areas.get(name, 0) * _pixels(row) for row in done) / total for name in names}
    legend = "".join(
        f"<span><i style='background:{_color(name, names, colors)}'></i>{_text(name)} {share:.1%}</span>"
        for name, share in shares.items()
    )
    return f"{_bar(shares, names, colors)}<p class=legend>{legend}</p>"


def _bar(shares: Mapping[str, float], names: Sequence[str], colors: Mapping[str, str]) -> str:
    parts = "".join(
        f"<i style='width:{share:.3%};background:{_color(name, names, colors)}'></i>" for name, share in shares.items()
    )
    return f"<div class=bar>{parts}</div>"


def _color(name: str, names: Sequence[str], colors: Mapping[str, str]) -> str:
    """Of a class; the first, which no picture shows, is plain."""
    return "var(--plain)" if names and name == names[0] else colors.get(name, "#888888")


def _source(picture: Path | None, inside: bool) -> str:
    """A picture as an address: of itself, or of many its path from the page."""
    if picture is None or not picture.is_file():
        return ""
    if not inside:
        return _text(quote(f"{picture.parent.name}/{picture.name}"))
    return f"data:image/jpeg;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _card(row: Row, source: str, names: Sequence[str], colors: Mapping[str, str]) -> str:
    values = ",".join(f"{row.areas.get(name, 0):.5f}" for name in names)
    drawn = f"<img alt='' loading=lazy src='{source}'>" if source else "<div class=none>no picture</div>"
    extent, size = row.extent, row.pixel_size_nm
    facts = [" &times; ".join(str(extent[a]) for a in "xyz" if a in extent) + " px"]
    facts += [f"{size[-1]:g} nm/px"] if size is not None else []
    facts += [f"{row.seconds:.1f} s"] if row.seconds is not None else []
    shares = "".join(
        f"<tr><td><i style='background:{_color(name, names, colors)}'></i>{_text(name)}</td>"
        f"<td>{row.areas[name]:.2%}</td></tr>"
        for name in names
        if name in row.areas
    )
    guesses = "".join(f"<li>{_text(one)}</li>" for one in row.assumptions)
    assumed = (
        f"<details><summary>{len(row.assumptions)} assumed</summary><ul>{guesses}</ul></details>" if guesses else ""
    )
    return (
        f"<article data-name='{_text(row.name.lower())}' data-v='{values}'><figure>{drawn}</figure>"
        f"<h3 title='{_text(row.image)}'>{_text(row.name)}</h3><p>{' &middot; '.join(facts)}</p>"
        f"{_bar(row.areas, names, colors) if row.areas else ''}<table>{shares}</table>{assumed}</article>\n"
    )


def _pixels(row: Row) -> int:
    count = 1
    for axis, n in row.extent.items():
        count *= 1 if axis == "c" else n
    return count if row.shape else 0


def _text(text: str) -> str:
    return html.escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
