"""Loaded by Dask into each worker process that is started here."""

from __future__ import annotations

import signal
import threading
from typing import Any


def dask_setup(worker: Any) -> None:  # noqa: ARG001 - Dask's interface
    """Leave Ctrl-C, which a terminal sends to all processes, to the client: it ends the workers when it is ready."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
