"""Artifacts of a run on a real server, which goes away meanwhile."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.served import ROOT, Served, eventually
from tests.free import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "prefect", free_port())
    served.start()
    yield served
    served.stop()


def artifacts(served: Served) -> dict[str, dict[str, Any]]:
    found = served.call("artifacts/filter", {})
    assert len({a["key"] for a in found}) == len(found)  # none was made twice
    return {a["key"]: a for a in found}


def test_a_server_that_is_away_holds_up_no_work_and_is_told_when_it_is_back(served: Served, tmp_path: Path) -> None:
    shower = subprocess.Popen(
        [sys.executable, "-m", "tests.flows.shower", str(tmp_path)],
        env=served.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: artifacts(served).get("segment-a-1", {}).get("description") == "before", 90)
    served.stop()
    (tmp_path / "away").touch()
    eventually((tmp_path / "showed").exists, 10)
    served.start()
    eventually(lambda: artifacts(served).get("page", {}).get("data") == "# Found", 90)
    (tmp_path / "back").touch()
    said = shower.communicate(timeout=90)[1]
    assert shower.returncode == 0, said
    progress = artifacts(served)["segment-a-1"]
    assert (progress["data"], progress["description"]) == (89.0, "away")
