"""Tables of objects as CSV, or as Parquet where pyarrow is installed; written as they come."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import OutputError
from tilelab.machine.disk import replacing
from tilelab.text import install_hint

Columns = dict[str, Array]
SUFFIXES = (".csv", ".parquet")


def check_table(path: Path) -> None:
    """Refuse what could not be written.

    Raises:
        OutputError: it is of no known kind, or pyarrow is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path} is of no kind that a table can be: name it NAME.csv or NAME.parquet")
    if path.suffix.lower() == ".parquet":
        _pyarrow(path)


def write_table(path: Path, parts: Iterable[Columns]) -> int:
    """Write tables of the same columns one below the other; returns the number of rows.

    Floats have 7 digits in CSV; what is infinite or no number stays empty.

    Raises:
        OutputError: it cannot be written.
    """
    check_table(path)
    with replacing(path) as temporary:
        return (_write_csv if path.suffix.lower() == ".csv" else _write_parquet)(temporary, parts)


def _write_csv(path: Path, parts: Iterable[Columns]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for i, part in enumerate(parts):
            if not i:
                file.write(",".join(map(_quoted, part)) + "\n")
            columns = [_texts(values) for values in part.values()]
            file.writelines(",".join(row) + "\n" for row in zip(*columns, strict=True))
            count += len(columns[0])
    return count


def _texts(values: Array) -> list[str]:
    """A column as text."""
    if values.dtype.kind == "f":
        return [f"{value:.7g}" if abs(value) < np.inf else "" for value in values.tolist()]
    if values.dtype.kind == "b":
        return ["1" if value else "0" for value in values.tolist()]
    if values.dtype.kind in "iu":
        return list(map(str, values.tolist()))
    return list(map(_quoted, values.tolist()))


def _quoted(text: str) -> str:
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if any(c in text for c in '",\n\r') else text


def _write_parquet(path: Path, parts: Iterable[Columns]) -> int:
    arrow, parquet = _pyarrow(path)
    count, writer = 0, None
    for part in parts:
        table = arrow.table({key: arrow.array(values) for key, values in part.items()})
        writer = writer or parquet.ParquetWriter(str(path), table.schema, compression="zstd")
        writer.write_table(table)
        count += table.num_rows
    if writer is None:
        parquet.write_table(arrow.table({}), str(path))
    else:
        writer.close()
    return count


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise OutputError(f"{path} needs pyarrow, which is not installed: {install_hint('tables')}") from error
    return arrow, parquet
