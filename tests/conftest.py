"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real labelled micrographs; tests that need it skip where it is absent."""
    root = Path(os.environ.get("TILELAB_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real micrographs at {root} (set TILELAB_DATA)")
    return root
