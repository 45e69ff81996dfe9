"""Processes die, the network is cut, blocks raise, hang and crash: the output is that of an undisturbed run.

The long form (`slow`) ends only after forty deaths; the short one is the same with fewer.
"""

import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from neurovol.blockwise.ledger import read_ledger
from tests.blockwise.chaos import FAULTS, Cluster, done, start_driver


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = Cluster(free.getsockname()[1])
    found.keep()
    yield found
    found.close()


@pytest.mark.chaos
@pytest.mark.parametrize("deaths", [pytest.param(6, id="short"), pytest.param(40, id="long", marks=pytest.mark.slow)])
@pytest.mark.timeout(1500)
def test_after_any_deaths_the_output_is_that_of_an_undisturbed_run(
    cluster: Cluster, tmp_path: Path, deaths: int
) -> None:
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    for folder in (calm, wild):
        (folder / "faults").mkdir(parents=True)
    driver = start_driver(calm, cluster, 0.0)
    while driver.poll() is None:
        cluster.keep()  # a worker that finds no scheduler yet ends
        time.sleep(0.2)
    assert driver.returncode == 0
    killed = _until_done(wild, cluster, deaths, random.Random(deaths))
    assert killed["network"] >= deaths // 4
    assert sum(killed.values()) - killed["network"] >= deaths
    assert set(killed) == {"worker", "driver", "scheduler", "network"}
    assert _files(wild / "v") == _files(calm / "v")
    record = read_ledger(wild / "l.jsonl")
    assert record is not None
    assert record.finished is not None
    assert record.done == set(range(600))  # every block is accounted for, and none set aside
    assert {f.name for f in (wild / "faults").iterdir()} == {str(n) for ns in FAULTS.values() for n in ns}
    assert not [path for path in wild.rglob("*") if path.suffix in (".partial", ".running")]
    print(f"deaths: {dict(killed)}, and those of {len(FAULTS['dies'])} blocks that crash and {len(FAULTS['hangs'])} "
          f"that hang")  # fmt: skip


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _until_done(folder: Path, cluster: Cluster, deaths: int, chance: random.Random) -> Counter[str]:
    """Kill one process after the other, or cut the network for a while; restart what died, until the driver is done."""
    killed: Counter[str] = Counter()
    seconds = deaths / 80  # a block takes so long that most are still to be done when the last one dies
    driver = start_driver(folder, cluster, seconds)
    plan = [kind for kind in ("worker", "worker", "driver", "scheduler", "network") for _ in range(-(-deaths // 4))]
    chance.shuffle(plan)
    next_at = time.monotonic() + 4.0
    while driver.poll() is None or driver.returncode != 0:
        if driver.poll() is not None:
            driver = start_driver(folder, cluster, seconds)
        cluster.keep()
        if plan and time.monotonic() > next_at and done(folder) > 0:
            cluster.way.say("mend")
            if plan[-1] == "network":
                cluster.way.say("cut")
                killed[plan.pop()] += 1
                next_at = time.monotonic() + chance.uniform(0.2, 4.0)
                continue
            victims = cluster.victims() | {"driver": [psutil.Process(driver.pid)]}
            if victims[plan[-1]]:
                kind = plan.pop()
                chance.choice(victims[kind]).kill()
                killed[kind] += 1
                next_at = time.monotonic() + chance.uniform(0.2, 4.0)
        elif not plan and time.monotonic() > next_at:
            cluster.way.say("mend")
        time.sleep(0.1)
    return killed
