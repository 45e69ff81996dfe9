"""Workers that die come back, whenever they die."""

import os
import time

import pytest
from distributed import Client

from neurovol.blockwise.cluster import kill_worker, open_client
from neurovol.settings import ClusterSettings


def _kill(client: Client) -> None:
    ((address, pid),) = client.run(os.getpid).items()
    kill_worker(client, address, pid)


def _is_back(client: Client, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not client.nthreads() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(client.nthreads())


@pytest.mark.slow
def test_a_worker_that_dies_again_a_quarter_of_a_minute_later_comes_back() -> None:
    with open_client(ClusterSettings(workers=1, threads=1)) as client:
        died_at = time.monotonic()
        _kill(client)
        time.sleep(2)
        assert _is_back(client, 20)
        time.sleep(max(0.0, died_at + 14.9 - time.monotonic()))  # just before Dask looks
        _kill(client)
        time.sleep(2)
        assert _is_back(client, 20)
