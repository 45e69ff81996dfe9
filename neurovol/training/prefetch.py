"""Batches made ahead of their step by a few threads, so that reading overlaps arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Batch = TypeVar("Batch")


@contextmanager
def prefetched(
    batch_at: Callable[[int], Batch], first_step: int, last_step: int, ahead: int = 3, threads: int = 1
) -> Iterator[Callable[[int], Batch]]:
    """`batch_at` for the steps `first_step` to `last_step` (excluded), asked for in order, made `ahead` of time.

    Batches are a pure function of their step, so the order in which threads make them does not matter.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    pending: dict[int, Future[Batch]] = {}

    def ready(step: int) -> Batch:
        for later in range(step, min(step + 1 + ahead, last_step)):
            if later not in pending:
                pending[later] = pool.submit(batch_at, later)
        return pending.pop(step).result()

    try:
        yield ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
