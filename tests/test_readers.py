"""Every reader keeps what all readers promise; see `check_reader`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tilelab.io.images
from tests.check_reader import READERS, check_reader, check_truncated


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, row in READERS.items() for dtype in row.dtypes])
def test_reader(tmp_path: Path, name: str, dtype: str) -> None:
    check_reader(READERS[name], dtype, tmp_path)


@pytest.mark.parametrize("name", [name for name, row in READERS.items() if row.opened is str])
def test_truncated(tmp_path: Path, name: str) -> None:
    check_truncated(READERS[name], tmp_path)


def test_every_reader_has_a_row() -> None:
    source = re.compile(r"^class \w+\((Source|StoredVolume)\):", re.MULTILINE)
    folder = Path(tilelab.io.images.__path__[0])
    found = {file.stem for file in folder.glob("*.py") if source.search(file.read_text())} - {"tensorstore"}
    assert {row.module for row in READERS.values()} == found | {"slices"}
