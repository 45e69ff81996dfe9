"""Workers that die come back, whenever they die; a scheduler of its own ends with its driver and may be killed."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from distributed import Client

from neurovol.blockwise.cluster import Workers, open_client
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.reach import kill_worker
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.clustersettings import ClusterSettings
from neurovol.geometry import Numbered
from tests.blockwise.driver import GRID, Slow


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


@pytest.mark.parametrize(("seconds", "after_s"), [(0.05, 1.0), (0.0, 0.25)], ids=["waited for", "results fetched"])
def test_a_run_whose_scheduler_is_killed_goes_on_with_another(tmp_path: Path, seconds: float, after_s: float) -> None:
    header, killed = Header("count", {}, total=len(GRID)), set[int]()

    def work(*, client: Client) -> None:
        with Ledger(tmp_path / "l.jsonl", header) as ledger:
            if not killed:
                (pid,) = _schedulers()
                killed.add(pid)
                threading.Timer(after_s, os.kill, [pid, signal.SIGKILL]).start()
            run_blocks(client, Slow(str(tmp_path), seconds), Numbered(GRID), Meter(ledger))

    settings = ClusterSettings(workers=2, threads=1, scheduler="process")
    with Workers() as workers:
        workers.persevere(settings, "count", work, lambda: len(list(tmp_path.glob("*.block"))))
        assert len(_schedulers()) == 1
        assert not killed & set(_schedulers())
    assert len(list(tmp_path.glob("*.block"))) == len(GRID)
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
