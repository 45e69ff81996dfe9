"""The block engine: how many blocks a second, in how much memory, what a restart and the ledger cost; daisy beside it.

    python tests/bench/bench_blocks.py [--quick] [--json FILE] [--folder FOLDER] [--daisy PYTHON]

1. Blocks that do nothing, on two workers, every one recorded in a durable ledger: 10^4, 10^5 and 10^6 (a million
   small shards are a sample of 100 TB); the memory that the driver, Dask's scheduler within it, gains meanwhile; and
   how long a driver takes to find a million blocks done. daisy's tracking marks a byte for each block, its workers
   are two processes too.
2. A U-Net over a phantom with ledger, checksums and fsync, against the same blocks as plain Dask futures that write
   the same shards without any of them; median of the rounds.

Each run is a process of its own; the start of workers is not timed, of daisy's it is (it is a tenth of a second).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neurovol.blockwise.cluster import open_client
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.clustersettings import ClusterSettings
from neurovol.geometry import Block, BlockGrid, Numbered, Receipt

COUNTS = {"1e4": 10_000, "1e5": 100_000, "1e6": 1_000_000}
WORKERS = ClusterSettings(workers=2, threads=1)
SHAPE, SHARD = (64, 256, 256), (32, 128, 128)


@dataclass(frozen=True)
class Nothing:
    """What every block of the first part does."""

    def __call__(self, block: Block) -> Receipt:
        return Receipt(block.write, block.index)


def row(count: int) -> Numbered:
    return Numbered(BlockGrid((1, 1, count), (1, 1, 1), (1, 1, 1)))


class Growth:
    """How much this process's memory grows during a `with`, looked at every tenth of a second."""

    def __enter__(self) -> Growth:
        self.first = self.most = _rss()
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.most = max(self.most, _rss())

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @property
    def mb(self) -> float:
        return (self.most - self.first) / 1e6


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def nothing(folder: Path, count: int) -> dict[str, float]:
    """Run blocks that do nothing, or find them done."""
    with open_client(WORKERS) as client:
        client.run(_imported)
        start = time.perf_counter()
        with Growth() as growth, Ledger(folder / "l.jsonl", Header("nothing", {}, count)) as ledger:
            run_blocks(client, Nothing(), row(count), Meter(ledger))
            if ledger.finished is None:
                ledger.finish()
        return {"seconds": time.perf_counter() - start, "growth_mb": growth.mb}


def _imported() -> None:
    """On a worker: what blocks import."""
    for module in ("neurovol.blockwise.attempt", "neurovol.stages.cover"):
        importlib.import_module(module)


@dataclass(frozen=True)
class Plain:
    """The same voxels in the same shards, with neither checksum nor fsync."""

    cover: Any

    def __call__(self, block: Block) -> int:
        from neurovol.stages.cover import quantised
        from neurovol.volume.shardfile import codec_for, write_shard

        voxels = quantised(self.cover.probabilities(block.write))
        name = "-".join(map(str, block.write.start))
        file = Path(self.cover.writer.path) / name
        write_shard(file, voxels, (32, 64, 64), SHARD, codec_for(voxels.dtype), durable=False)
        return block.index


def unet(folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of a U-Net over a phantom, with the ledger and without."""
    from distributed import Client, LocalCluster, wait
    from unet_cover import unet_cover

    cover = unet_cover(folder, SHAPE, SHARD)
    blocks = Numbered(BlockGrid(SHAPE, SHARD, SHARD))
    times: dict[str, list[float]] = {"with": [], "without": []}
    with (
        open_client(WORKERS) as client,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, env={"OMP_NUM_THREADS": "1"}) as bare,
        Client(bare) as plain,
    ):
        client.run(_imported)
        plain.run(_imported)
        for turn in range(rounds + 1):
            start = time.perf_counter()
            wait(plain.map(Plain(cover), list(blocks), pure=False))
            times["without"].append(time.perf_counter() - start)
            start = time.perf_counter()
            with Ledger(folder / f"{turn}.jsonl", Header("unet", {}, len(blocks))) as ledger:
                run_blocks(client, cover, blocks, Meter(ledger))
                ledger.finish()
            times["with"].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def run(python: str, script: str, *arguments: str, cwd: Path | None = None) -> dict[str, Any]:
    """One run in a process of its own; the last line it prints."""
    command = [python, str(Path(__file__).parent / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, float]]:
    """Figures by name, and the ratios."""
    figures: dict[str, Any] = {}
    wanted: dict[str, float] = {}
    counts = {name: n for name, n in COUNTS.items() if n <= 10_000 or not options.quick}
    for name, count in counts.items():
        for label, python, script in (("neurovol", sys.executable, "bench_blocks.py"),
                                      ("daisy", options.daisy, "blocks_daisy.py")):  # fmt: skip
            if not python:
                continue
            here = folder / f"{label}{name}"
            here.mkdir(parents=True)
            ours = ["--nothing", str(count), "--folder", str(here)]
            arguments = ours if label == "neurovol" else [str(here), str(count)]
            found = run(python, script, *arguments, cwd=here)  # daisy leaves logs
            figures[f"{label} {name}"] = found | {"blocks_per_s": round(count / found["seconds"])}
            print(f"{label:10}{name}{count / found['seconds']:10.0f} blocks/s", flush=True)
            if label == "neurovol":
                wanted[f"blocks_per_s_{name}"] = count / found["seconds"]
                wanted["driver_growth_mb"] = found["growth_mb"]
                wanted[f"restart_s_{name}"] = run(python, script, *arguments)["seconds"]
                print(f"restart   {name}{wanted[f'restart_s_{name}']:10.1f} s", flush=True)
            else:
                wanted[f"vs_daisy_{name}"] = wanted[f"blocks_per_s_{name}"] * found["seconds"] / count
        shutil.rmtree(folder / f"neurovol{name}")
    if options.daisy:
        wanted["vs_daisy"] = wanted[f"vs_daisy_{list(counts)[-1]}"]
    seconds = run(sys.executable, "bench_blocks.py", "--unet", "1" if options.quick else "5", "--folder", str(folder))
    figures["unet"] = seconds
    wanted["ledger_overhead"] = seconds["with"] / seconds["without"] - 1
    return figures, {name: round(value, 3) for name, value in wanted.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10^4 blocks, one round of the U-Net")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures, ratios, machine and versions")
    parser.add_argument("--folder", type=Path, help="for ledgers and shards; default: temporary")
    parser.add_argument("--daisy", metavar="PYTHON", help="of an environment with daisy and psutil")
    one = parser.add_argument_group("one run of ours, as this script calls itself")
    one.add_argument("--nothing", type=int, metavar="BLOCKS")
    one.add_argument("--unet", type=int, metavar="ROUNDS")
    options = parser.parse_args()
    if options.nothing:
        print(json.dumps(nothing(options.folder, options.nothing)))
        return
    if options.unet:
        print(json.dumps(unet(options.folder, options.unet)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        figures, found = measure(Path(temporary), options)
    if not options.daisy:
        print("not measured: --daisy names no environment")
    result = {
        "figures": figures,
        "ratios": found,
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor() or platform.machine()},
        "versions": {name: version(name) for name in ("dask", "distributed", "torch", "numpy")},
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
