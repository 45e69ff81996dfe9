"""A slot of a limit, on a real server: one holds it at a time, and neither it nor its run is lost with the server."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.served import ROOT, Served, eventually
from tests.free import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
LIMIT = "conversions@local"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "prefect", free_port())
    served.start()
    served.call("v2/concurrency_limits/", {"name": LIMIT, "limit": 1})
    yield served
    served.stop()


def started(served: Served, folder: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.flows.holder", str(folder), name],
        env=served.environment | {"NEUROVOL_CONVERSION_LIMIT": LIMIT}, cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def taken(served: Served) -> int:
    return int(served.call(f"v2/concurrency_limits/{LIMIT}", method="GET")["active_slots"])


def test_one_waits_for_the_other_also_while_the_server_is_started_anew(served: Served, tmp_path: Path) -> None:
    first = started(served, tmp_path, "first")
    eventually((tmp_path / "first.holds").exists, 60)
    second = started(served, tmp_path, "second")
    eventually((tmp_path / "second.wants").exists, 60)
    served.stop()
    served.start()
    assert taken(served) == 1
    assert not (tmp_path / "second.holds").exists()
    (tmp_path / "first.go").touch()
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 0, said
    eventually((tmp_path / "second.holds").exists, 90)
    assert (tmp_path / "first.left").exists()
    (tmp_path / "second.go").touch()
    said = second.communicate(timeout=60)[1]
    assert second.returncode == 0, said
    assert taken(served) == 0
