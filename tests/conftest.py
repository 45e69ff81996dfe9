"""One real Dask cluster for all tests: two worker processes on this machine."""

from collections.abc import Iterator

import pytest
from distributed import Client

from neurovol.blockwise.cluster import open_client
from neurovol.settings import ClusterSettings


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    with open_client(ClusterSettings(workers=2, threads=1)) as client:
        yield client
