"""Which block a worker died at, how often, and why: Dask blames every task that was waiting on it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

from distributed import Client

from neurovol.blockwise.marker import Marker, read_markers
from neurovol.blockwise.reach import reaching

TOO_LARGE = "worker-restart-memory"  # Dask's topic of workers that their nannies ended, at 95 % of their memory
NEWS_S = 0.5  # that such news may come later than the death


class Blame:
    """Counts what workers died at; `markers` is a folder that driver and workers share, None where there is none."""

    def __init__(self, client: Client, markers: Path | None) -> None:
        self.deaths: Counter[int] = Counter()  # by the block that was being computed
        self.losses: Counter[int] = Counter()  # by a block that was not begun yet
        self._client, self._folder = client, markers
        self._used: dict[tuple[str, int], float] = {}  # bytes, by address and pid of a worker that used too many
        with reaching():  # the scheduler may have gone since the last step
            client.subscribe_topic(TOO_LARGE, self._note)

    def markers(self) -> list[Marker]:
        return read_markers(self._folder) if self._folder is not None else []

    def died_at(self, token: str) -> dict[int, Marker]:
        """The markers of what was being computed for a future, by block."""
        return {m.block: m for m in self.markers() if m.token == token and m.block is not None}

    def death(self, marker: Marker, block: int, hung: Container[int], alone_bytes: float | None) -> str:
        """Count a worker's death at a block, and tell it.

        `alone_bytes` is what the worker was allowed, where it had all that its cluster has.
        """
        self.deaths[block] += 1
        if block in hung:
            why = "it hung"
        elif (used := self._used_at_the_end(marker)) is not None:
            why = f"out of memory: it was ended when it used {used / 1e9:.2f} GB"
        else:
            why = "out of memory, the end of a job's walltime, or a crash of a library"
        alone = "" if alone_bytes is None else f", the last time alone, with {alone_bytes / 1e9:.2f} GB of memory"
        return f"its worker died while computing it, {self.deaths[block]} times so far{alone} ({why})"

    def _used_at_the_end(self, marker: Marker) -> float | None:
        """Bytes that a worker used when its nanny ended it; None where it died otherwise."""
        end = time.monotonic() + NEWS_S
        while (key := (marker.worker, marker.pid)) not in self._used and time.monotonic() < end:
            time.sleep(0.02)
        return self._used.get(key)

    def _note(self, event: tuple[float, dict[str, Any]]) -> None:
        said = event[1]
        self._used[said["worker"], said["pid"]] = float(said["rss"])

    def close(self) -> None:
        self._client.unsubscribe_topic(TOO_LARGE)
