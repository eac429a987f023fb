"""Raw rows on the device: a ring, filled through pinned buffers while earlier rows are being cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from tilelab.arrays import Array
from tilelab.kernels import device
from tilelab.run.sweep.device_blanks import Blanks
from tilelab.run.sweep.rows import RawRows


class DeviceBand:
    """The ring of raw rows on the device.

    ring: ``(C, R, A, X)`` on the device; row `r` of the image is in slot ``r % R``.
    blanks: the tiles in these rows that are blank.
    """

    def __init__(
        self, ring: device.DeviceArray, pinned: Array, up: device.Stream, compute: device.Stream, blanks: Blanks
    ) -> None:
        """Rows are copied on the stream `up` from `pinned`, ``(buffers, C, rows, A, X)``, and cut on `compute`."""
        self.ring, self.blanks = ring, blanks
        self._capacity = ring.shape[1]
        self._pinned = list(pinned)
        self._copied: list[device.Event | None] = [None] * len(self._pinned)
        self._up, self._compute = up, compute
        self._turn = 0
        self._stop = -1
        self._rest: RawRows | None = None
        self._cuts: deque[tuple[int, device.Event]] = deque()

    def hold(self, low: int, high: int, blocks: Iterator[RawRows]) -> None:
        """Bring rows up to `high` to the device; those before `low` may be overwritten once they have been cut."""
        moved = False
        while self._stop < high:
            if self._rest is None:
                self._rest = next(blocks)
                if self._stop < 0:
                    self._stop = self._rest.start
            moved = True
            raw = self._rest.raw
            count = min(raw.shape[1], self._pinned[0].shape[1], low + self._capacity - self._stop)
            self._copy(raw[:, :count])
            self._rest = RawRows(self._stop, raw[:, count:]) if count < raw.shape[1] else None
        if moved:
            arrived = device.event()
            arrived.record(self._up)
            arrived.wait(self._compute)

    def cut(self, low: int) -> None:
        """The tiles of the tile row that begins at `low` have been cut."""
        event = device.event()
        event.record(self._compute)
        self._cuts.append((low, event))

    def _copy(self, raw: Array) -> None:
        """Rows ``stop:stop + n`` into the ring."""
        count = raw.shape[1]
        self.blanks.note(self._stop, raw)
        # rows that are overwritten: every tile row that sees them must have been cut
        while self._cuts and self._cuts[0][0] < self._stop + count - self._capacity:
            self._cuts.popleft()[1].wait(self._up)
        buffer, copied = self._pinned[self._turn], self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        for c in range(raw.shape[0]):
            done = 0
            while done < count:
                slot = (self._stop + done) % self._capacity
                n = min(count - done, self._capacity - slot)
                part = buffer[c, done : done + n]
                part[...] = raw[c, done : done + n]
                device.upload(part, self.ring[c, slot : slot + n], self._up)
                done += n
        event = device.event()
        event.record(self._up)
        self._copied[self._turn] = event
        self._turn = (self._turn + 1) % len(self._pinned)
        self._stop += count
