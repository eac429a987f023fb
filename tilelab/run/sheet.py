"""The page of a run: image and segmentation, areas, brightness of each class, what ran, what was assumed.

One HTML file that needs no other and no network.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tilelab.assumptions import Assumption
from tilelab.errors import OutputError
from tilelab.io.images.image import Image
from tilelab.io.results.overview import Drawn, draw_layers
from tilelab.io.storage.place import Place
from tilelab.machine.disk import replacing, why_unwritten
from tilelab.run.look import SHEET, STYLE
from tilelab.text import format_bytes, sides_text

_MARK = '<meta name="generator" content="tilelab">'
_STAGES = {
    "start": "#8a94a3",
    "sweep": "#3987e5",
    "with image": "#c2497d",
    "overview": "#c98500",
    "page": "#7a5bd0",
    "convert": "#2a9d6f",
}


@dataclass(frozen=True)
class Sheet:
    """What is drawn of a result while it is there as OME-Zarr."""

    drawn: Drawn
    name: str

    @classmethod
    def of(cls, image: Image, result: Place) -> Sheet:
        """Of a finished result and its image.

        Raises:
            InputError: a file is corrupt.
        """
        return cls(draw_layers(image, result), Path(image.uri).name)

    def write(self, path: Path, report: Mapping[str, Any]) -> None:
        """Write the page of the run that `report` tells of.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", errors="replace") as file:
                for part in _parts(self, report):
                    file.write(part)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {why_unwritten(error)}") from error


def _parts(sheet: Sheet, report: Mapping[str, Any]) -> Iterator[str]:
    drawn, title = sheet.drawn, _text(sheet.name)
    size = report["pixel_size_nm"]
    extent = dict(zip(report["axes"], report["shape"], strict=True))
    facts = [" &times; ".join(str(extent[a]) for a in "xyz" if a in extent) + " px"]
    facts += [f"{size[-1]:g} nm per pixel"] if size is not None else ["pixel size unknown"]
    facts += [f"model {_text(report['model'])}", f"{report['seconds']['wall']:.1f} s"]
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8">{_MARK}'
    yield f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{STYLE}{SHEET}</style>'
    yield f"</head><body><header><h1>{title}</h1><p>{' &middot; '.join(facts)}</p></header>"
    yield "<div class=look><img alt='the image' src='"
    yield _jpeg(drawn.plain)
    yield "'><img id=over alt='the segmentation over it' src='"
    yield _jpeg(drawn.painted)
    yield "'></div><label class=fade>image <input type=range min=0 max=1 step=0.01 value=1 "
    yield "oninput='over.style.opacity=this.value'> with segmentation</label>"
    if drawn.depth > 1:
        yield f"<p class=faint>slice {drawn.slice} of {drawn.depth}</p>"
    yield "<div class=two>"
    yield _areas(drawn, extent, size)
    yield _brightness(drawn)
    yield _times(report["seconds"])
    yield _assumed(report)
    yield f"</div>{_provenance(report)}</body></html>\n"


def _areas(drawn: Drawn, extent: Mapping[str, int], size: Sequence[float] | None) -> str:
    """The share of each class, and its area or volume where the pixel size is known."""
    if not drawn.areas:
        return ""
    kept = [a for a in "zyx" if a in extent]
    bar = "".join(f"<i style='width:{share:.3%};background:{drawn.color(i)}'></i>" for i, share in drawn.areas.items())
    rows = []
    for i, share in drawn.areas.items():
        whole = ""
        if size is not None:
            amount = share
            for axis, nm in zip(kept, size, strict=True):
                amount *= extent[axis] * nm / 1e3
            whole = f"<td>{amount:.4g} &micro;m<sup>{len(kept)}</sup></td>"
        name = _text(drawn.names[i])
        rows.append(f"<tr><td><i style='background:{drawn.color(i)}'></i>{name}</td><td>{share:.2%}</td>{whole}</tr>")
    what = "Volumes" if len(kept) == 3 else "Areas"
    return f"<section><h2>{what}</h2><div class=bar>{bar}</div><table>{''.join(rows)}</table></section>"


def _brightness(drawn: Drawn) -> str:
    """How bright the pixels of each class are, as curves of equal area."""
    if not drawn.brightness:
        return ""
    top = max(max(curve) for curve in drawn.brightness.values()) or 1.0
    lines = ""
    for i, curve in drawn.brightness.items():
        points = " ".join(
            f"{4 + 392 * x / (len(curve) - 1):.1f},{116 - 108 * v / top:.1f}" for x, v in enumerate(curve)
        )
        lines += f"<polyline points='{points}' style='stroke:{drawn.color(i)}'/>"
    low, high = (f"{v:.4g}" for v in drawn.contrast)
    return (
        "<section><h2>Brightness of each class</h2><svg viewBox='0 0 400 132' role=img aria-label='histograms'>"
        f"<line x1=4 x2=396 y1=116 y2=116 />{lines}<text x=4 y=129>{low}</text>"
        f"<text x=396 y=129 text-anchor=end>{high}</text></svg>"
        "<p class=faint>on the picture above, each class to the same area</p></section>"
    )


def _times(seconds: Mapping[str, float]) -> str:
    stages = {name: seconds[name] for name in _STAGES if name in seconds}
    total = sum(stages.values()) or 1.0
    bar = "".join(f"<i style='width:{t / total:.3%};background:{_STAGES[name]}'></i>" for name, t in stages.items())
    rows = "".join(
        f"<tr><td><i style='background:{_STAGES[name]}'></i>{name}</td><td>{t:.2f} s</td></tr>"
        for name, t in stages.items()
    )
    waits = ", ".join(f"{name} {seconds[f'waited_for_{name}']:.1f} s" for name in ("read", "blend", "write"))
    engine = f"the engine was busy for {seconds['engine']:.1f} s and waited for {waits}"
    return f"<section><h2>Time</h2><div class=bar>{bar}</div><table>{rows}</table><p class=faint>{engine}</p></section>"


def _assumed(report: Mapping[str, Any]) -> str:
    guesses = [str(msgspec.convert(one, Assumption)).removeprefix("assumed: ") for one in report["assumptions"]]
    lines = "".join(f"<li>{_text(one)}</li>" for one in guesses) or "<li>nothing: all was stated</li>"
    notes = "".join(f"<li>{_text(one)}</li>" for one in report["notes"])
    told = f"<h2>Notes</h2><ul>{notes}</ul>" if notes else ""
    return f"<section><h2>Assumed</h2><ul>{lines}</ul>{told}</section>"


def _provenance(report: Mapping[str, Any]) -> str:
    engine, tiles = report["engine"], report["tiles"]
    own = ("name", "device", "precision", "batch", "streams")
    rows = {
        "image": report["input"],
        "result": report["output"],
        "engine": f"{engine['name']} {engine['precision']} on {engine['device']}",
        "made with": ", ".join(f"{k} {v}" for k, v in {**report["versions"], **engine}.items() if k not in own),
        "tiles": f"{sides_text(report['tile'])}, overlap {sides_text(report['overlap'])}, {report['window']} window; "
        f"{tiles['inferred']} inferred, {tiles['skipped']} skipped",
        "normalisation": ", ".join(f"{key} {value}" for key, value in report["normalization"].items()),
        "speed": f"{report['megapixels']:.1f} megapixels, {report['megapixels_per_second']:.2f} a second",
        "memory": f"peak {format_bytes(report['memory']['peak'])}",
    }
    lines = "".join(f"<tr><td>{name}</td><td>{_text(str(value))}</td></tr>" for name, value in rows.items())
    return f"<section class=wide><h2>Made by</h2><table>{lines}</table></section>"


def _jpeg(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _text(text: str) -> str:
    return html.escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
