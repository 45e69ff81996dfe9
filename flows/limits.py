"""How many runs do one thing at once: conversions of a file system, trainings of a GPU partition.

A stage holds a slot of a limit of the whole server while it works. A slot that is lost, as a server that is started
anew may lose it, never ends a run: the stage goes on, and ends by itself. A run that dies gives its slot back within
LEASE_S. (Limits of a deployment end their runs instead, https://github.com/PrefectHQ/prefect/pull/21925.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger
from prefect.concurrency.sync import concurrency

LEASE_S = 120.0
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
    with concurrency(name, lease_duration=LEASE_S, strict=False, raise_on_lease_renewal_failure=False):
        logger.info('Holding a slot of "%s"', name)
        yield
