"""What goes to the workers: attempts, as tasks of Dask."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilelab.run.cluster.attempt import Attempt
from tilelab.run.cluster.order import Errand, Order

RunUnit = Callable[[str, bytes, Errand], None]


class _PerKey:
    """A Dask annotation that differs from task to task; the scheduler asks it."""

    def __init__(self, values: dict[Any, Any]) -> None:
        self._values = values

    def __call__(self, key: Any) -> Any:
        return self._values.get(key)


class Outbox:
    """Sends attempts at the units of one order, and takes them back."""

    def __init__(self, client: Any, order: Order, task: RunUnit, complain: Callable[[Mapping[str, Any]], None]) -> None:
        """Get ready.

        Args:
            client: a connected `distributed.Client`.
            order: what the workers are sent.
            task: what a worker does.
            complain: called, in a thread of Dask's, with a message about an attempt that Dask could not run.
        """
        self._client, self._topic, self._task, self._complain = client, order.topic, task, complain
        self._parcel = pickle.dumps(order)  # once, not for every unit
        self._futures: dict[int, Any] = {}

    def send(self, attempts: Sequence[Attempt], **annotations: Any) -> None:
        """Send attempts to their workers, in one message however many."""
        if not attempts:
            return
        import dask

        keys = [(f"segment-unit-{self._topic}", attempt.unit, attempt.number) for attempt in attempts]
        places = {key: [attempt.worker] for key, attempt in zip(keys, attempts, strict=True)}
        with (
            dask.annotate(workers=_PerKey(places), **annotations),
            dask.config.set({"distributed.diagnostics.computations.nframes": 0}),  # else it sends our source code along
        ):
            futures = self._client.map(
                self._task,
                [self._topic] * len(attempts),
                [self._parcel] * len(attempts),
                [Errand(a.number, a.unit, a.start, a.stop, a.eager) for a in attempts],
                key=keys,
                pure=False,
            )
        for attempt, future in zip(attempts, futures, strict=True):
            self._futures[attempt.number] = future

            def over(finished: Any, number: int = attempt.number) -> None:
                if finished.status == "error":
                    error = finished.exception()
                    self._complain({"what": "lost", "attempt": number, "cause": f"{type(error).__name__}: {error}"})

            future.add_done_callback(over)

    def take_back(self, attempt: Attempt) -> None:
        """Let Dask cancel an attempt; its worker is still to confirm."""
        if attempt.number in self._futures:
            self._futures[attempt.number].release()

    def forget(self, attempt: Attempt) -> None:
        """Let go of an attempt that is over."""
        self.take_back(attempt)
        self._futures.pop(attempt.number, None)

    def close(self) -> None:
        """Take back whatever was sent."""
        for future in self._futures.values():
            future.release()
