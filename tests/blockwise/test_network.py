"""The way between processes that live is cut, for a while or for good: a run goes on with others, or ends resumably."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client

from neurovol.blockwise import reach
from neurovol.blockwise.cluster import Workers, open_client
from neurovol.blockwise.hang import TimeLimit
from neurovol.blockwise.ledger import Ledger, read_ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.clustersettings import ClusterSettings
from neurovol.errors import Failure
from neurovol.geometry import Block, Numbered, Receipt
from neurovol.progress import Progress
from tests.blockwise.driver import GRID, HEADER, Slow
from tests.blockwise.proxy import Way

pytestmark = pytest.mark.timeout(120)


class Net:
    """A scheduler and its workers, each a process of its own; the way to the far worker can be cut, both ways."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.port = _free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.ways: list[Way] = []

    def scheduler(self, ttl: str = "5 minutes") -> None:
        """One that holds a worker which has said nothing for so long to be gone."""
        settings = {
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": ttl,
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
        }
        self._start(["dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"], settings)

    def near_worker(self) -> None:
        self._start(["dask_worker", self.address, "--nthreads", "2", "--no-dashboard", "--no-nanny"], {})

    def far_worker(self) -> None:
        port = _free_port()
        here, there = self.way(self.port), self.way(port)
        place = ["--listen-address", f"tcp://127.0.0.1:{port}", "--contact-address", f"tcp://127.0.0.1:{there.port}"]
        command = ["dask_worker", f"tcp://127.0.0.1:{here.port}", "--nthreads", "2", "--no-dashboard", "--no-nanny"]
        self._start([*command, *place], {"FAR": "yes"})

    def way(self, to_port: int) -> Way:
        self.ways.append(Way(to_port))
        self._stack.callback(self.ways[-1].close)
        return self.ways[-1]

    def cut(self) -> None:
        for way in self.ways:
            way.say("cut")

    def mend(self) -> None:
        for way in self.ways:
            way.say("mend")

    def _start(self, command: list[str], environment: dict[str, str]) -> None:
        module, *arguments = command
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def net() -> Iterator[Net]:
    with ExitStack() as stack:
        yield Net(stack)


@dataclass(frozen=True)
class Stuck:
    """As Slow; but what the far worker is at when the way is cut takes a minute more."""

    slow: Slow

    def __call__(self, block: Block) -> Receipt:
        receipt = self.slow(block)
        if "FAR" in os.environ and Path(self.slow.folder, "cut").exists():
            time.sleep(60)
        return receipt


def _run(net: Net, folder: Path, task: Slow | Stuck, mend_after_s: float | None, limit: TimeLimit | None) -> Ledger:
    """Cover the volume with two workers, of which one is cut off when ten blocks are done."""
    cuts: list[threading.Timer] = []

    def report(said: Progress) -> None:
        if said.done >= 10 and not cuts:
            (folder / "cut").touch()
            net.cut()
            cuts.append(threading.Timer(mend_after_s or 0.0, net.mend if mend_after_s else int))
            cuts[0].start()

    with open_client(ClusterSettings(kind="address", address=net.address)) as client:
        client.wait_for_workers(2)
        with Ledger(folder / "l.jsonl", HEADER) as ledger:
            run_blocks(client, task, Numbered(GRID), Meter(ledger, report), limit=limit)
    assert cuts
    assert ledger.done == set(range(len(GRID)))
    assert {int(f.stem): f.read_text() for f in folder.glob("*.block")} == {n: f"block {n}" for n in ledger.done}
    assert not list(folder.glob("*.running"))
    return ledger


def _begin(net: Net, ttl: str = "5 minutes") -> None:
    net.scheduler(ttl)
    net.far_worker()
    net.near_worker()


def test_a_worker_that_is_cut_off_for_some_seconds_goes_on_as_if_nothing_was(net: Net, tmp_path: Path) -> None:
    _begin(net)
    ledger = _run(net, tmp_path, Slow(str(tmp_path), 0.05), mend_after_s=3.0, limit=None)
    assert all(ledger.rows[n]["attempt"] == 1 for n in ledger.done)
    assert all(file.read_text() == "*" for file in tmp_path.glob("*.runs"))  # none was done twice


@pytest.mark.slow
def test_what_a_worker_that_is_cut_off_for_good_was_given_is_done_by_others(net: Net, tmp_path: Path) -> None:
    _begin(net, ttl="8s")
    ledger = _run(net, tmp_path, Slow(str(tmp_path), 0.05), mend_after_s=None, limit=None)
    assert all(ledger.rows[n]["attempt"] == 1 for n in ledger.done)  # none is blamed


def test_what_hangs_on_a_worker_that_cannot_be_reached_is_taken_back(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "WORKER_S", 2.0)
    _begin(net)
    limit = TimeLimit(times=10.0, least_s=1.5, first_s=3.0)
    ledger = _run(net, tmp_path, Stuck(Slow(str(tmp_path), 0.05)), mend_after_s=None, limit=limit)
    assert any(ledger.rows[n]["attempt"] > 1 for n in ledger.done)


@pytest.mark.slow
def test_a_driver_that_is_cut_off_ends_resumably(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "SCHEDULER_S", 3.0)
    net.scheduler()
    net.near_worker()
    with open_client(ClusterSettings(kind="address", address=net.address)) as client:
        client.wait_for_workers(1)
    way = net.way(net.port)

    def drive(port: int, cut: bool) -> None:
        def report(said: Progress) -> None:
            if cut and said.done >= 10:
                monkeypatch.setattr(reach, "CONNECT_S", 2.0)
                way.say("cut")

        def work(*, client: Client) -> None:
            with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
                run_blocks(client, Slow(str(tmp_path), 0.05), Numbered(GRID), Meter(ledger, report))

        with Workers() as workers:
            settings = ClusterSettings(kind="address", address=f"tcp://127.0.0.1:{port}")
            workers.persevere(settings, "count", work, lambda: 0)

    with pytest.raises(Failure, match="no scheduler answers there"):
        drive(way.port, cut=True)
    record = read_ledger(tmp_path / "l.jsonl")
    assert record is not None
    assert 10 <= len(record.done) < 100
    drive(net.port, cut=False)
    record = read_ledger(tmp_path / "l.jsonl")
    assert record is not None
    assert record.done == set(range(100))
    assert {f.read_text() for f in tmp_path.glob("*.block")} == {f"block {n}" for n in range(100)}


def test_a_scheduler_that_stays_without_workers_is_not_waited_for_for_ever(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "NO_WORKER_S", 2.0)
    net.scheduler()
    with (
        open_client(ClusterSettings(kind="address", address=net.address)) as client,
        Ledger(tmp_path / "l.jsonl", HEADER) as ledger,
        pytest.raises(Failure, match=rf"address {net.address}: no worker .* start workers there, and run again"),
    ):
        run_blocks(client, Slow(str(tmp_path), 0.05), Numbered(GRID), Meter(ledger))
