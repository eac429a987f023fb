"""A page that shows a run while it goes on: opened when the run begins, asked to look again as it advances."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from tilelab.errors import TilelabError
from tilelab.io.results.result import read_result
from tilelab.io.results.sink import partial_path
from tilelab.io.storage.place import Place
from tilelab.run.plan.plan import Plan
from tilelab.run.progress import Progress, Silent
from tilelab.view.gather import Gathering, Note
from tilelab.view.server import ViewServer

_PAUSE_SECONDS = 4.0


class GrowingPage:
    """Told how a run advances, shows its unfinished result, and passes on what it is told; implements `Progress`.

    Attributes:
        server: of the page; None before the run began, and where its result cannot be shown while it grows.
    """

    def __init__(
        self,
        image: str,
        choices: Mapping[str, Any],
        work: Place,
        note: Note,
        opened: Callable[[ViewServer], None],
    ) -> None:
        self._image, self._choices, self._work = image, dict(choices), work
        self._progress: Progress = Silent()
        self._note, self._opened = note, opened
        self._closing = contextlib.ExitStack()
        self._shown = 0.0
        self.server: ViewServer | None = None

    def wrap(self, progress: Progress) -> GrowingPage:
        """Itself, which passes on to `progress` what it is told."""
        self._progress = progress
        return self

    def start(self, plan: Plan, tiles_done: int) -> None:
        """Open the page."""
        self._progress.start(plan, tiles_done)
        if self.server is not None:
            return
        try:
            gathered = self._closing.enter_context(Gathering(self._note))
            gathered.add_image(self._image, self._choices)
            gathered.add_result(read_result(partial_path(self._work)), lasting=False)
            self.server = ViewServer(gathered.scene())
        except TilelabError as error:  # the run goes on without
            self._note(f"no page while it runs: {error}")
            return
        self.server.renew()
        self.server.start()
        self._opened(self.server)

    def advance(self, tiles: int) -> None:
        """Have the page look again, every few seconds."""
        self._progress.advance(tiles)
        if self.server is not None and time.monotonic() - self._shown > _PAUSE_SECONDS:
            self._shown = time.monotonic()
            self.server.renew()

    def stop(self) -> None:
        """The run ended."""
        self._progress.stop()

    def finish(self, result: str) -> ViewServer:
        """Show the finished result, which has another name; the server is the caller's to stop.

        Raises:
            TilelabError: it cannot be read.
        """
        gathered = self._closing.enter_context(Gathering(self._note))
        gathered.add(result, self._image)
        if self.server is None:
            self.server = ViewServer(gathered.scene())
            self.server.start()
            self._opened(self.server)
        else:
            self.server.renew(gathered.scene())
        return self.server

    def close(self) -> None:
        """Close what was opened."""
        if self.server is not None:
            self.server.stop()
        self._closing.close()
