"""How many runs do one thing at once: conversions of a file system, trainings of a GPU partition.

A stage holds a slot of a limit of the whole server while it works. A slot that is lost, as a server that is started
anew may lose it, never ends a run: the stage goes on, and ends by itself. A run that dies gives its slot back within
LEASE_S. (Limits of a deployment end their runs instead, https://github.com/PrefectHQ/prefect/pull/21925.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
from prefect import get_run_logger
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

LEASE_S = 120.0
TRY_S, MOST_TRIES = 10, 90  # a server may be away for a quarter of an hour
# the variables in which a deployment hands on the name of the limit that a stage is under
VARIABLES = {
    "convert": "NEUROVOL_CONVERSION_LIMIT",
    "pseudolabel": "NEUROVOL_TRAINING_LIMIT",
    "train": "NEUROVOL_TRAINING_LIMIT",
}


@contextmanager
def slot(stage: str) -> Iterator[None]:
    """Wait for a slot of the limit that a stage is under, if it is under one, and hold it meanwhile."""
    name = os.environ.get(VARIABLES.get(stage, ""))
    if not name:
        yield
        return
    logger = get_run_logger()
    logger.info('Waiting for one of the slots of "%s"', name)
    with ExitStack() as held:
        _take(name, held)
        logger.info('Holding a slot of "%s"', name)
        yield


def _take(name: str, held: ExitStack) -> None:
    """Wait for a slot, also while the server is away for a while."""
    for tries_left in reversed(range(MOST_TRIES)):
        try:
            held.enter_context(
                concurrency(name, lease_duration=LEASE_S, strict=False, raise_on_lease_renewal_failure=False)
            )
            return
        except (httpx.HTTPError, ConcurrencySlotAcquisitionError) as error:
            if not tries_left:
                raise
            get_run_logger().warning('Asking again for a slot of "%s" in %d s: %s', name, TRY_S, error)
            time.sleep(TRY_S)
