"""A volume to be written while workers, driver and scheduler die: the driver, and the processes it leans on.

python -m tests.blockwise.chaos FOLDER SCHEDULER SECONDS
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client

from neurovol.blockwise.cluster import Workers
from neurovol.blockwise.hang import TimeLimit
from neurovol.blockwise.ledger import Header, Ledger, read_ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.clustersettings import ClusterSettings
from neurovol.geometry import Block, BlockGrid, Numbered, Receipt
from neurovol.volume.omezarr import VolumeWriter, create_volume, finish_volume, sweep_partial
from tests.blockwise.proxy import Way

SHAPE, SHARD = (16, 120, 160), (8, 8, 8)
BLOCKS = Numbered(BlockGrid(SHAPE, SHARD, SHARD))  # 2 x 15 x 20 = 600
HEADER = Header("chaos", {}, len(BLOCKS))
LIMIT = TimeLimit(times=10.0, least_s=2.0, first_s=10.0)
FAULTS = {"raises": range(7, 600, 97), "hangs": (123, 400), "dies": range(31, 600, 151)}  # each at its first attempt


@dataclass(frozen=True)
class Noise:
    """Writes a block of noise that only its number determines, after some time; some go wrong once."""

    folder: str
    seconds: float

    def __call__(self, block: Block) -> Receipt:
        self._go_wrong(block.index)
        time.sleep(self.seconds)
        voxels = np.random.default_rng(block.index).integers(0, 9, block.write.shape).astype(np.uint8)
        return VolumeWriter(f"{self.folder}/v").write(block.write, voxels)

    def _go_wrong(self, index: int) -> None:
        fault = next((how for how, indices in FAULTS.items() if index in indices), None)
        once = Path(self.folder, "faults", str(index))
        if fault is None or self.seconds == 0 or once.exists():
            return
        once.touch()
        if fault == "raises":
            raise OSError("a fault that was put in")
        if fault == "hangs":
            time.sleep(3600)
        os.kill(os.getpid(), signal.SIGKILL)


def drive(folder: Path, scheduler: str, seconds: float) -> None:
    """Write the volume, from where an earlier driver was killed."""
    create_volume(folder / "v", shape=SHAPE, channels=None, dtype="uint8", voxel_size_um=(2, 1, 1), chunk=SHARD,
                  shard=SHARD, factors=[])  # fmt: skip
    sweep_partial(folder / "v")

    def work(*, client: Client) -> None:
        with Ledger(folder / "l.jsonl", HEADER) as ledger:
            run_blocks(client, Noise(str(folder), seconds), BLOCKS, Meter(ledger), retries=3, limit=LIMIT)
            finish_volume(folder / "v", name="noise", attributes={})
            ledger.finish()

    with Workers() as workers:
        workers.persevere(ClusterSettings(kind="address", address=scheduler), "chaos", work, lambda: done(folder))


def done(folder: Path) -> int:
    """How many blocks the ledger calls done."""
    record = read_ledger(folder / "l.jsonl")
    return 0 if record is None else len(record.done)


class Cluster:
    """A scheduler and two workers with their nannies, each a process of its own, kept going.

    The way from the workers to the scheduler can be cut.
    """

    def __init__(self, port: int) -> None:
        self.address = f"tcp://127.0.0.1:{port}"
        self.port = str(port)
        self.way = Way(port)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def keep(self) -> None:
        """Start whatever is not running."""
        scheduler = ("dask_scheduler", "--host", "127.0.0.1", "--port", self.port, "--no-dashboard")
        worker = (
            "dask_worker",
            f"tcp://127.0.0.1:{self.way.port}",
            "--nthreads",
            "2",
            "--no-dashboard",
            "--death-timeout",
            "10",
        )
        for name, command in {"scheduler": scheduler, "worker 0": worker, "worker 1": worker}.items():
            running = self.processes.get(name)
            if running is None or running.poll() is not None:
                module, *arguments = command
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"},
                )

    def victims(self) -> dict[str, list[psutil.Process]]:
        """What may be killed: the workers proper (their nannies start others), and the scheduler."""
        nannies = [p for name, p in self.processes.items() if name.startswith("worker") and p.poll() is None]
        workers = [child for nanny in nannies for child in _children(nanny.pid)]
        return {"worker": workers, "scheduler": [psutil.Process(self.processes["scheduler"].pid)]}

    def close(self) -> None:
        for process in self.processes.values():
            for child in _children(process.pid):
                child.kill()
            process.kill()
            process.wait()
        self.way.close()


def _children(pid: int) -> list[psutil.Process]:
    """Of a process, those that compute."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def start_driver(folder: Path, cluster: Cluster, seconds: float) -> subprocess.Popen[Any]:
    command = [sys.executable, "-m", "tests.blockwise.chaos", str(folder), cluster.address, str(seconds)]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, stderr=log)


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
