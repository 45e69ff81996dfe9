"""One real Dask cluster for all tests: two worker processes on this machine."""

from collections.abc import Iterator

import pytest
from distributed import Client
from hypothesis import settings

from neurovol.blockwise.cluster import open_client
from neurovol.clustersettings import ClusterSettings

settings.register_profile("neurovol", deadline=None)  # a busy machine makes no test wrong
settings.load_profile("neurovol")


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    with open_client(ClusterSettings(workers=2, threads=1)) as client:
        yield client
