"""Runs benchmarks, and keeps the one document that their measurements go to."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.machine import Others, describe_machine
from benchmarks.bench.processes import without_paths
from benchmarks.bench.settings import RESULTS
from benchmarks.bench.workbench import Workbench
from benchmarks.registry import SUITE
from tilelab.errors import InputError

FORMAT = 1
RESULTS_FILE = "results.json"


def run_suite(names: Sequence[str], bench: Workbench, out: Path, say: Callable[[str], None]) -> bool:
    """Measure, and write results and page after each benchmark, so that nothing is lost by a later one's failure.

    What the ledger of a run that goes on has is not measured again.

    Returns:
        Whether all succeeded; one that failed keeps its message in the document.
    """
    scale, ok = bench.scale, True
    for name in sorted(names, key=list(SUITE).index):
        done = bench.ledger.get(f"benchmark {name}")
        if done is not None:
            say(f"{name}: measured {done['began']}")
            keep(out, name, done)
            continue
        say(f"{name}: {SUITE[name].title.lower()}")
        section: dict[str, Any] = {
            "scale": scale.name,
            "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "machine": describe_machine(),
        }
        began, others = time.perf_counter(), Others()
        try:
            section["found"] = SUITE[name].measure(bench)
        except Exception as error:  # noqa: BLE001 - the others are measured all the same
            ok = False
            section["failed"] = without_paths(f"{type(error).__name__}: {error}")
            say(traceback.format_exc())
        section["seconds"] = time.perf_counter() - began
        section["others"] = others.cores()
        section["commands"] = [f"python -m benchmarks run {name} --scale {scale.name}", *bench.take_commands()]
        section["commit"] = " and ".join(bench.ledger.commits)
        if not (section.get("failed") or section["found"].get("left_out")):
            bench.ledger.put(f"benchmark {name}", section)
        keep(out, name, section)
        draw(out, say)
    return ok


def keep(out: Path, name: str, section: dict[str, Any]) -> None:
    """Put one benchmark's section into the document."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / RESULTS_FILE
    document: dict[str, Any] = load_document(out) if path.exists() else {"format": FORMAT, "sections": {}}
    document["sections"][name] = section
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


def load_document(out: Path) -> dict[str, Any]:
    """The document.

    Raises:
        InputError: there is none, or it is of another format.
    """
    path = out / RESULTS_FILE
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"no measurements in {path} ({error}): python -m benchmarks run") from error
    if document.get("format") != FORMAT:
        raise InputError(f"{path} has format {document.get('format')}, this is {FORMAT}: measure again")
    return document


def draw(out: Path, say: Callable[[str], None]) -> None:
    """The page and the plots, from the document."""
    from benchmarks.page.index import write_index
    from benchmarks.page.page import write_page

    document = load_document(out)
    try:
        from benchmarks.page.plots import draw_plots

        pictures = draw_plots(document, out)
    except ModuleNotFoundError as error:
        say(f"no plots: {error.name} is not installed (pip install -r benchmarks/requirements.txt)")
        pictures = {}
    write_page(document, out / "README.md", pictures)
    if out.parent == RESULTS:
        write_index(RESULTS)
