"""The page's part on many workers."""

from __future__ import annotations

from typing import Any

from benchmarks.page.markdown import paragraph, picture, table


def scaleout(found: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    """The curve, what it rests on, and what limits it."""
    costs = {name: f"{1e3 * value:.2f} ms" for name, value in found["costs"].items()}
    rate = f"{found['pixels_per_second'] / 1e6:.0f} MP/s"
    return [
        *paragraph(
            f"Workers that compute {rate} each, a terabyte an hour, as one H100 would have to: the real planner and",
            "the real dispatcher on a simulated clock, with costs measured here with Dask's real scheduler and",
            f"workers that compute nothing: {costs['submit']} of the client and the scheduler for each unit,",
            f"{costs['message']} for each message, {costs['latency']} from client to worker, {costs['start']} for a",
            "unit to start. Ideal is all pixels shared equally; reading and writing are taken as fast enough.",
        ),
        *table(
            ["volume", "workers", "units", "computed twice", "ideal", "takes", "efficiency", "client busy"],
            [_cells(point, f"{point['computed_twice']:.2%}") for point in found["points"]],
        ),
        *picture(pictures, "scaleout", "Efficiency over the number of workers"),
        *paragraph(*_limit(found)),
        *_slept(found),
        *paragraph("Planning, with the first units handed out and the last one known; no list of units is ever made:"),
        *table(
            ["volume", "pixels", "workers", "units", "tiles", "time, ms", "most memory, KiB", "the plan, KiB"],
            _planning(found),
        ),
    ]


def _cells(point: dict[str, Any], *more: str) -> list[str]:
    """A point of the curve as a row of a table; `more` goes behind the units."""
    return [
        point["volume"],
        str(point["workers"]),
        f"{point['units']:,}",
        *more,
        _duration(point["ideal_seconds"]),
        _duration(point["seconds"]),
        f"{point['efficiency']:.3f}",
        f"{point['client_busy']:.1%}",
    ]


def _slept(found: dict[str, Any]) -> list[str]:
    """What Dask itself did."""
    if not found["real"]:
        return []
    return [
        *paragraph(
            "The same volume handed out by the real client through Dask's real scheduler to as many real Dask workers,",
            "many to a process, that sleep for as long as a GPU would compute and report as they would:",
        ),
        *table(
            ["volume", "workers of Dask", "units", "ideal", "takes", "efficiency", "client busy"],
            map(_cells, found["real"]),
        ),
    ]


def _planning(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            row["volume"],
            f"{row['pixels']:.3g}",
            str(row["workers"]),
            f"{row['units']:,}",
            f"{row['tiles']:,}",
            f"{1e3 * row['seconds']:.1f}",
            f"{row['peak'] / 1024:.0f}",
            f"{row['held'] / 1024:.0f}",
        ]
        for row in found["planning"]
    ]


def _limit(found: dict[str, Any]) -> list[str]:
    """What stops the worst point."""
    worst = min(found["points"], key=lambda point: point["efficiency"])
    submit, message = found["costs"]["submit"], found["costs"]["message"]
    per_unit = 1e3 * (submit + 2 * message)
    ideal, takes = _duration(worst["ideal_seconds"]), _duration(worst["seconds"])
    words = f"Beyond: {worst['volume']} on {worst['workers']} workers would ideally take {ideal}"
    if worst["client_busy"] > 0.5:
        return [
            f"{words}, but one client and one scheduler hand out its {worst['units']:,} units one after the other,",
            f"{per_unit:.1f} ms each: {_duration(worst['units'] * per_unit / 1e3)} of the {takes}.",
            "A larger volume has longer units and does not feel it.",
        ]
    return [f"{words}; there the start of units and the last rows of shards, which few can share, tell."]


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
