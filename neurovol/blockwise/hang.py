"""Blocks that take much longer than others: the workers that compute them are killed."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

from neurovol.blockwise.attempt import Order
from neurovol.blockwise.marker import Marker
from neurovol.blockwise.reach import kill_worker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TimeLimit:
    """When a block is held to hang: `times` the running median, at least `least_s`; `first_s` before there is one."""

    times: float = 10.0
    least_s: float = 120.0
    first_s: float = 7200.0

    def seconds(self, recent: Iterable[float]) -> float:
        """That a block may take, where recent ones took so long.

        >>> TimeLimit().seconds([]), TimeLimit().seconds([1.0, 2.0, 3.0]), TimeLimit().seconds([40.0])
        (7200.0, 120.0, 400.0)
        """
        seconds = list(recent)
        return max(self.least_s, self.times * statistics.median(seconds)) if seconds else self.first_s


class Hangs:
    """Watches by their markers how long blocks take."""

    def __init__(self, client: Client, limit: TimeLimit) -> None:
        self.client, self.limit = client, limit
        self.blocks: set[int] = set()  # that were held to hang
        self._seen: dict[tuple[Path, int], float] = {}  # when a start was first seen

    def kill(
        self,
        markers: Iterable[Marker],
        orders: Iterable[Order],
        recent: Iterable[float],
        seen: Callable[[Marker], object] = id,
    ) -> None:
        """Kill the workers of blocks of these orders that take too long; what they died at is told by their futures.

        `seen` is told of each start as it is first seen.
        """
        now, allowed_s = time.monotonic(), self.limit.seconds(recent)
        sizes = {(order.token, group[0].index): len(group) for order in orders for group in order.groups}
        for marker in markers:
            if marker.block is None or (marker.token, marker.block) not in sizes:
                continue
            if (marker.file, marker.count) not in self._seen:
                seen(marker)
            since = self._seen.setdefault((marker.file, marker.count), now)
            allowed = allowed_s * sizes[marker.token, marker.block]
            if now - since > allowed:
                log.warning("block %d takes longer than %.0f s: its worker is killed", marker.block, allowed)
                self.blocks.add(marker.block)
                self._seen[marker.file, marker.count] = now  # once in a while again, should it not have died
                kill_worker(self.client, marker.worker, marker.pid)
