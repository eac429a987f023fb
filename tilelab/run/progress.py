"""Who is told how a run advances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tilelab.run.plan.plan import Plan


class Progress(Protocol):
    """Told how a run advances."""

    def start(self, plan: Plan, tiles_done: int) -> None:
        """The work is about to begin; `tiles_done` of ``plan.tiles`` were done by an earlier run."""

    def advance(self, tiles: int) -> None:
        """So many more tiles are done; called from a worker thread."""

    def stop(self) -> None:
        """The run ended, finished or not."""


class Silent:
    """Tells nobody; implements `Progress`."""

    def start(self, plan: Plan, tiles_done: int) -> None: ...
    def advance(self, tiles: int) -> None: ...
    def stop(self) -> None: ...
