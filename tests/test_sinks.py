"""Every form of a result keeps what all forms promise; see `check_sink`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.check_sink import SHAPES, SINKS, check_sink
from tilelab.io.storage import remote_store
from tilelab.io.storage.remote_access import Access
from tilelab.run.target import SUFFIXES


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket in this process's memory."""
    obstore = pytest.importorskip("obstore.store")
    store = obstore.MemoryStore()

    def open_access(root: str, prefix: str | None = None) -> Access:
        assert prefix is None
        return Access(store, "bucket", "memory", anonymous=True, advice="", seconds=1.0, tries=1)

    monkeypatch.setattr(remote_store, "open_access", open_access)
    remote_store._cached_store.cache_clear()
    yield
    remote_store._cached_store.cache_clear()


@pytest.mark.parametrize(
    ("name", "axes"), [(name, axes) for name, sink in SINKS.items() for axes in SHAPES if sink.stacks or axes == "yx"]
)
def test_sink(tmp_path: Path, name: str, axes: str) -> None:
    check_sink(SINKS[name], axes, tmp_path)


def test_every_suffix_has_a_row() -> None:
    assert {suffix for sink in SINKS.values() for suffix in sink.suffixes} == set(SUFFIXES)
