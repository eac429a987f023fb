"""A bar in notebooks, a line of HTML that is written over; in scripts there is none, and nothing is imported for it."""

from __future__ import annotations

import contextvars
import html
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilelab.run.plan.plan import Plan

_SECONDS = 0.25  # from one drawing to the next


def in_notebook() -> bool:
    """Whether this is a cell of a notebook; IPython is asked only where it is there already."""
    module: Any = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class Bar:
    """A bar with lines below; may be moved from any thread.

    Args:
        title: what is under way.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._lines: list[str] = []
        self._done, self._total, self._said = 0.0, 0.0, ""
        self._first: tuple[float, float] | None = None
        self._drawn = 0.0
        self._display: Any = None
        self._lock = threading.Lock()
        self._context = contextvars.copy_context()  # a kernel knows by it to which cell an output belongs

    def show(self, done: float, total: float, said: str = "") -> None:
        """Move on to `done` of `total`."""
        with self._lock:
            self._done, self._total, self._said = done, total, said
            now = time.monotonic()
            self._first = self._first or (now, done)
            if done >= total or now - self._drawn >= _SECONDS:
                self._drawn = now
                self._context.run(self._draw)

    def say(self, line: str) -> None:
        """Add a line, once."""
        with self._lock:
            if line not in self._lines:
                self._lines.append(line)
                self._context.run(self._draw)

    def stop(self) -> None:
        """Draw how far it came."""
        with self._lock:
            if self._total:
                self._context.run(self._draw)

    def page(self) -> str:
        """The HTML."""
        lines = "".join(f"<div style='opacity:.75'>{html.escape(line)}</div>" for line in self._lines)
        if not self._total:
            return lines
        share = min(1.0, self._done / self._total)
        words = [f"{self._title} {share:.0%}", self._said, self._left()]
        text = html.escape(", ".join(word for word in words if word))
        bar = f"<progress value='{share:.4f}' max='1' style='width:16em'></progress>"
        return f"<div>{bar} {text}</div>{lines}"

    def _left(self) -> str:
        first, done = self._first or (0.0, 0.0)
        if self._done >= self._total or self._done <= done:
            return ""
        seconds = (time.monotonic() - first) * (self._total - self._done) / (self._done - done)
        return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"

    def _draw(self) -> None:
        from IPython.display import HTML, display

        if self._display is None:
            self._display = display(HTML(self.page()), display_id=True)
        else:
            self._display.update(HTML(self.page()))


class RunBar(Bar):
    """The bar of a run, or of several at once; implements `Progress`."""

    def __init__(self) -> None:
        super().__init__("segmenting")
        self._tiles = self._all = 0

    def start(self, plan: Plan, tiles_done: int) -> None:
        """See `Progress`."""
        self._all += plan.tiles
        self.advance(tiles_done)

    def advance(self, tiles: int) -> None:
        """See `Progress`."""
        with self._lock:
            self._tiles += tiles
        self.show(self._tiles, self._all, f"{self._tiles:,} of {self._all:,} tiles")
