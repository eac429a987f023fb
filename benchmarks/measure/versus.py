"""tilelab against what users would pick instead: same weights, image, tile, overlap; each a process of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.bench.contenders import CONTENDERS, WHOLE, Contender, recall, segment, why_not
from benchmarks.bench.quality import compare_labels, compare_logits, labels_of, read_logits
from benchmarks.bench.settings import MEMORY_LIMIT, PlaneShape, Scale
from benchmarks.bench.workbench import Workbench
from tilelab.arrays import Float32
from tilelab.geometry import AxisTiling
from tilelab.io.images.image import Image


def measure_peers(bench: Workbench) -> dict[str, Any]:
    """Every contender on every plane: time, memory, agreement, seams, and what a kill costs.

    The small planes come first, then those who lead on the largest; what no time is left for is estimated from the
    smaller planes (`estimate`), and marked so.
    """
    scale = bench.scale
    rows: dict[str, dict[str, Any]] = {}
    ready = []
    for contender in CONTENDERS:
        if contender.name.startswith(bench.contenders):
            reason = why_not(bench, contender)
            rows[contender.name] = {"precision": contender.precision, "missing": reason, "sizes": {}}
            if not reason:
                ready.append(contender)
    race = Race(bench, rows)
    first, *between, last = scale.peers if len(scale.peers) > 1 else (scale.peers[0], scale.peers[0])
    race.time(ready, first)
    race.time([c for c in ready if c.leads], last)
    race.compare(ready)
    for shape in between:
        race.time(ready, shape)
    if scale.kill:
        race.kill(ready, scale.kill)
    race.time(ready, last)
    for contender in ready:
        sizes = rows[contender.name]["sizes"]
        rows[contender.name]["sizes"] = {_name(shape): sizes[_name(shape)] for shape in scale.peers}
    return {
        "tile": scale.tile,
        "overlap": scale.overlap,
        "sizes": [_name(shape) for shape in scale.peers],
        "whole": _name(scale.whole),
        "kill": _name(scale.kill) if scale.kill else "",
        "memory_limit": MEMORY_LIMIT,
        "data": bench.model.data,
        "left_out": race.left_out,
        "rows": rows,
    }


class Race:
    """The measurements of all contenders, each put into the ledger when it is made.

    Attributes:
        left_out: what there was no time for.
    """

    def __init__(self, bench: Workbench, rows: dict[str, dict[str, Any]]) -> None:
        self.bench, self.rows = bench, rows
        self.left_out: list[str] = []
        self._whole: tuple[Float32, Image] | None = None

    def time(self, contenders: list[Contender], shape: PlaneShape) -> None:
        """Every contender on one plane, or an estimate."""
        size = _name(shape)
        for contender in contenders:
            sizes = self.rows[contender.name]["sizes"]
            if sizes.get(size, {}).get("finished"):
                continue
            expected = estimate(sizes, shape, _scale_of(contender, self.bench.scale))
            row = self._once(contender, f"on {size}", expected["seconds"], lambda c=contender: self._time(c, shape))
            if row is None:
                row = {"finished": False, "reason": "not run, for want of time", "estimate": expected}
            elif row.get("late"):
                row["estimate"] = expected
            sizes[size] = row

    def compare(self, contenders: list[Contender]) -> None:
        """Each contender's logits against those of the whole image at once, in fp32."""
        shape = self.bench.scale.whole
        with self.bench.folder() as folder:
            for contender in contenders:
                row = self.rows[contender.name]
                expected = estimate(row["sizes"], shape, self.bench.scale)["seconds"]
                found = self._once(
                    contender, "against the whole image", expected, lambda c=contender: self._compare(c, folder)
                )
                if found is not None and "failed" not in found:
                    row["whole"] = found
            self._whole = None

    def kill(self, contenders: list[Contender], shape: PlaneShape) -> None:
        """Kill each halfway, and give the same command again."""
        for contender in contenders:
            row = self.rows[contender.name]
            known = row["sizes"].get(_name(shape))
            expected = 1.5 * estimate(row["sizes"], shape, self.bench.scale)["seconds"]
            found = self._once(
                contender, "killed halfway", expected, lambda c=contender, k=known: _kill(self.bench, c, shape, k)
            )
            if found is not None:
                row["kill"] = found

    def _once(self, contender: Contender, what: str, expected: float, make: Callable[[], Any]) -> Any:
        """A measurement, from the ledger or made now; None when there is no time for it."""
        name = f"{contender.name} {what}"
        if self.bench.ledger.get(name) is None and expected > self.bench.seconds_left:
            self.bench.say(f"{name}: left out, it would take {expected:.0f} s")
            self.left_out.append(name)
            return None
        found = self.bench.ledger.get(name)
        if found is None:
            self.bench.say(name)
            found = make()
            if not found.get("late"):  # more time may be given to it
                self.bench.ledger.put(name, found)
        return found

    def _time(self, contender: Contender, shape: PlaneShape) -> dict[str, Any]:
        bench = self.bench
        with bench.folder() as folder:
            again = recall(bench, contender, shape)
            limit = min(bench.scale.peer_seconds, max(1.0, bench.seconds_left))
            attempt = again or segment(bench, contender, shape, folder, time_limit=limit)
            return attempt.row(shape[0] * shape[1] / 1e6)

    def _compare(self, contender: Contender, folder: Path) -> dict[str, Any]:
        bench, shape = self.bench, self.bench.scale.whole
        if self._whole is None:
            bench.say(f"the whole image at once, {_name(shape)}")
            whole = segment(bench, WHOLE, shape, folder, logits=True)
            if not whole.outcome.ok:
                raise RuntimeError(f"the whole image at once: {whole.outcome.reason}")
            self._whole = read_logits(whole.logits), labels_of(whole.labels)
        logits, labels = self._whole
        with bench.folder() as other:
            attempt = segment(bench, contender, shape, other, logits=True)
            if not attempt.outcome.ok:
                return {"failed": attempt.outcome.reason}
            classes = len(bench.model.spec.classes)
            compared = compare_labels(labels_of(attempt.labels), labels, classes)
            return compare_logits(read_logits(attempt.logits), logits) | compared


def estimate(sizes: dict[str, Any], shape: PlaneShape, scale: Scale) -> dict[str, Any]:
    """Time and memory that a plane should take, from the planes that were finished.

    Time is a start and so much for each tile, memory so much for each pixel.  With one plane known the start is what it
    took beside inferring, where that is known, and the memory in proportion; with none the time is 0.

    Returns:
        ``seconds``, ``megapixels_per_s``, ``growth`` in bytes, and the planes it is ``from``.
    """
    known = sorted((*_shape(size), row) for size, row in sizes.items() if row["finished"])
    pixels = shape[0] * shape[1]
    if not known:
        return {"seconds": 0.0, "megapixels_per_s": 0.0, "growth": 0.0, "from": []}
    seconds, growth = (
        _line([(amount(h, w), row[key]) for h, w, row in known], amount(*shape))
        for key, amount in (("seconds", lambda h, w: tiles(h, w, scale)), ("growth", lambda h, w: h * w))
    )
    if len(known) == 1 and (inferring := known[0][2].get("phases", {}).get("infer")):
        height, width, row = known[0]
        seconds = row["seconds"] + inferring * (tiles(*shape, scale) / tiles(height, width, scale) - 1)
    return {
        "seconds": seconds,
        "megapixels_per_s": pixels / 1e6 / seconds,
        "growth": growth,
        "from": [_name((h, w)) for h, w, _ in known],
    }


def _scale_of(contender: Contender, scale: Scale) -> Scale:
    """The scale with the contender's own tile."""
    return scale if contender.tile is None else replace(scale, tile=contender.tile)


def tiles(height: int, width: int, scale: Scale) -> int:
    """That cover a plane."""
    return math.prod(len(AxisTiling(n, scale.tile, scale.overlap, 1)) for n in (height, width))


def _line(points: list[tuple[float, float]], at: float) -> float:
    """On the line through the first and the last point, or through zero and the only one."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else y1 / x1
    return max(y1 * min(1.0, at / x1), y1 + slope * (at - x1))


def _name(shape: PlaneShape) -> str:
    return f"{shape[0]} x {shape[1]}"


def _shape(size: str) -> PlaneShape:
    height, _, width = size.partition(" x ")
    return int(height), int(width)


def _kill(bench: Workbench, contender: Contender, shape: PlaneShape, known: dict[str, Any] | None) -> dict[str, Any]:
    """Seconds that SIGKILL at half time costs, when the same command is given again; `known` is an undisturbed run."""
    if known is None:
        with bench.folder() as folder:
            known = segment(bench, contender, shape, folder).row(shape[0] * shape[1] / 1e6)
    if not known["finished"]:
        return {"lost": None, "reason": known["reason"]}
    undisturbed = known["seconds"] + known["outside_seconds"]
    with bench.folder() as folder:
        first = segment(bench, contender, shape, folder, kill_after=undisturbed / 2)
        again = segment(bench, contender, shape, folder)
    return {
        "undisturbed": undisturbed,
        "killed_after": first.outcome.seconds,
        "again": again.outcome.seconds,
        "lost": first.outcome.seconds + again.outcome.seconds - undisturbed if again.outcome.ok else None,
    }
