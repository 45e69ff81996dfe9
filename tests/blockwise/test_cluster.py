"""Workers that die come back, whenever they die; a scheduler of its own ends with its driver and may be killed."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from distributed import CancelledError, Client, Future
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError

from neurovol.blockwise import scheduler
from neurovol.blockwise.cluster import Workers, on_worker, open_client
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.reach import ClusterLost, kill_worker
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.clustersettings import ClusterSettings
from neurovol.errors import Failure
from neurovol.geometry import Numbered
from tests.blockwise.driver import GRID, HEADER, Slow


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


def _schedulers() -> dict[int, psutil.Process]:
    """Schedulers that are processes of their own, and children of this one."""
    ours = psutil.Process().children(recursive=True)
    return {p.pid: p for p in ours if "neurovol.blockwise.scheduler" in p.cmdline()}


def test_a_run_whose_scheduler_is_killed_goes_on_with_another(tmp_path: Path) -> None:
    header, killed = Header("count", {}, total=len(GRID)), set[int]()

    def work(*, client: Client) -> None:
        with Ledger(tmp_path / "l.jsonl", header) as ledger:
            if not killed:
                (pid,) = _schedulers()
                killed.add(pid)
                threading.Timer(1.0, os.kill, [pid, signal.SIGKILL]).start()
            run_blocks(client, Slow(str(tmp_path), 0.05), Numbered(GRID), Meter(ledger))

    settings = ClusterSettings(workers=2, threads=1, scheduler="process")
    with Workers() as workers:
        workers.persevere(settings, "count", work, lambda: len(list(tmp_path.glob("*.block"))))
        assert len(_schedulers()) == 1
        assert not killed & set(_schedulers())
    assert len(list(tmp_path.glob("*.block"))) == len(GRID)
    assert not _schedulers()


@pytest.mark.parametrize("error", [CommClosedError("closed"), CancelledError("cancelled"), ClosedClientError("closed")])
def test_a_result_that_cannot_be_fetched_is_a_cluster_lost(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As Dask says by the moment at which its scheduler is killed."""

    def lost(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Future, "result", lost)
    with Ledger(tmp_path / "l.jsonl", HEADER) as ledger, pytest.raises(ClusterLost):
        run_blocks(client, Slow(str(tmp_path), 0.0), Numbered(GRID), Meter(ledger))


def test_a_client_that_was_closed_between_two_steps_is_a_cluster_lost(tmp_path: Path) -> None:
    """As Dask closes one whose scheduler went while the driver was busy with something else."""
    asked: list[str] = []

    def work(*, client: Client) -> None:
        asked.append(client.id)
        if len(asked) == 1:
            client.close()
            with pytest.raises(ClusterLost):
                on_worker(client, os.getpid)
        with Ledger(tmp_path / "l.jsonl", HEADER) as ledger:
            run_blocks(client, Slow(str(tmp_path), 0.0), Numbered(GRID), Meter(ledger))

    with Workers() as workers:
        workers.persevere(ClusterSettings(workers=1, threads=1), "count", work, lambda: len(asked))
    assert len(set(asked)) == 2
    assert len(list(tmp_path.glob("*.block"))) == len(GRID)


def test_workers_that_cannot_be_started_end_a_step_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with (
        Workers() as workers,
        pytest.raises(Failure, match=r"^count: workers .* scheduler ended as it started.*again to"),
    ):
        workers.persevere(ClusterSettings(workers=1, threads=1, scheduler="process"), "count", _nothing, int)


def _nothing(*, client: Client) -> None:
    """Of a step."""


def test_a_worker_that_a_trial_kills_ends_in_a_sentence(client: Client) -> None:
    assert on_worker(client, os.getpid) != os.getpid()
    with pytest.raises(Failure, match="3 workers died of a trial"):
        on_worker(client, _die)


def _die() -> None:
    os._exit(1)


def test_a_cluster_whose_scheduler_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "CLOSE_S", 3.0)
    with open_client(ClusterSettings(workers=1, threads=1, scheduler="process")):
        (pid,) = _schedulers()
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
    assert time.monotonic() - start < 60
    assert not _schedulers()


def test_each_worker_sees_one_gpu_of_those_that_are_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(**settings: int) -> set[str | None]:
        with open_client(ClusterSettings(threads=1, **settings)) as client:
            client.wait_for_workers(2)
            return set(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values())

    assert seen(gpus=2) == {"0", "1"}
    assert seen(gpus=0, workers=2) == {""}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert seen(gpus=2) == {"GPU-a", "GPU-b"}
