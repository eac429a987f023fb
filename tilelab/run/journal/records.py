"""What units have on disk, as lines of text with a checksum each.

    UNIT START STOP FILES BYTES DIGEST CHECKSUM

The checksum also covers the name of the job, so that lines of another one, or of an earlier attempt, do not pass.
Reading ends at the first line that does not: what lies behind it was never promised, and is computed again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from tilelab.io.results.sink import Stored
from tilelab.io.zarr.census import Census


def format_record(job: str, unit: int, stored: Stored) -> bytes:
    """A line."""
    count = stored.census
    body = f"{unit} {stored.start} {stored.stop} {count.files} {count.bytes} {count.digest:016x}"
    return f"{body} {_checksum(job, body)}\n".encode()


def parse_records(job: str, data: bytes) -> Iterator[tuple[int, Stored]]:
    """The records before the first line that is torn, damaged or another job's."""
    whole, _, _ = data.rpartition(b"\n")
    for line in whole.split(b"\n"):
        try:
            body, _, checksum = line.decode("ascii").rpartition(" ")
            unit, start, stop, files, size, digest = body.split(" ")
            record = int(unit), Stored(int(start), int(stop), Census(int(files), int(size), int(digest, 16)))
        except ValueError:
            return
        if checksum != _checksum(job, body) or format_record(job, *record) != line + b"\n":
            return
        yield record


def _checksum(job: str, body: str) -> str:
    return f"{zlib.crc32(f'{job} {body}'.encode()):08x}"


def contiguous(parts: Iterable[Stored], start: int) -> int:
    """Up to where `parts` cover a unit from its `start` on without a gap."""
    position = start
    for part in sorted(parts, key=lambda part: part.start):
        if part.start > position:
            break
        position = max(position, part.stop)
    return position
