"""What several tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Where the tests run in the background of a shell, Ctrl-C is ignored, and would be by every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real labelled micrographs; tests that need it skip where it is absent."""
    root = Path(os.environ.get("TILELAB_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real micrographs at {root} (set TILELAB_DATA)")
    return root
