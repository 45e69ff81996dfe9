"""Slices of full size that are one compressed strip each, as the lab's fused stacks are, through scratch to the store.

    python tests/bench/bench_strips.py [--quick] [--json FILE] [--folder FOLDER]

Eight slices of 20,000 × 20,000 uint16 (6.4 GB), one zlib strip each, by `neurovol convert` as it is called by hand,
with `allowed_bytes` as it is by default (3 GB). No part of such a slice can be read without decoding it whole, and
neither a shard's depth of whole slices nor many of them fit in memory. Seconds are those of the whole command, overview
and start included; the bound is decoding each slice once and nothing else, on as many threads as there are cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import tifffile

DEPTH, FULL, QUICK = 8, 20_000, 4_000  # slices; voxels along x and y
VOXEL_SIZE = ("2", "0.88", "0.88")
NOISE = 48  # counts, so that zlib leaves two thirds, as of the microscope's images


def strips(folder: Path, side: int) -> None:
    """A ramp with noise, which no slice shares with another."""
    folder.mkdir(parents=True)
    for z in range(DEPTH):  # one at a time, for each takes three slices' memory
        random = np.random.default_rng(z)
        ramp = (np.arange(side, dtype=np.uint16) // 16 + 40 * z)[:, None]
        plane = ramp + random.integers(0, NOISE, (side, side), np.uint16)
        tifffile.imwrite(
            folder / f"{z:03}.tif", plane, compression="zlib", compressionargs={"level": 1}, rowsperstrip=side
        )


def decoding(folder: Path, threads: int) -> float:
    """Seconds to decode every slice once."""

    def decode(file: Path) -> int:
        with tifffile.TiffFile(file) as tif:
            offset, count = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
        with file.open("rb") as handle:
            handle.seek(offset)
            return len(imagecodecs.deflate_decode(handle.read(count)))

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, sorted(folder.glob("*.tif"))))
    return time.perf_counter() - start


def converting(folder: Path, dest: Path) -> dict[str, float]:
    """Seconds, and peak memory in MB of the largest process and of all together."""
    program = Path(sys.executable).with_name("neurovol")
    command = [str(program), "convert", str(folder), str(dest), "--voxel-size", *VOXEL_SIZE]
    start, largest, together = time.perf_counter(), 0, 0
    running = subprocess.Popen(command)
    driver = psutil.Process(running.pid)
    while running.poll() is None:
        with suppress(psutil.Error):  # a process that ended meanwhile
            held = [p.memory_info().rss for p in (driver, *driver.children(recursive=True))]
            largest, together = max(largest, *held), max(together, sum(held))
        time.sleep(0.1)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {running.returncode}")
    return {
        "seconds": time.perf_counter() - start,
        "largest_process_mb": largest / 1e6,
        "all_processes_mb": together / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"slices of {QUICK:,} × {QUICK:,}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures, ratios, machine and versions")
    parser.add_argument("--folder", type=Path, help="for slices and store (10 GB); default: temporary")
    options = parser.parse_args()
    side, cores = QUICK if options.quick else FULL, len(os.sched_getaffinity(0))
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        slices, dest = Path(temporary) / "slices", Path(temporary) / "image.zarr"
        strips(slices, side)
        decoding(slices, cores)  # fresh memory is touched
        alone = decoding(slices, cores)
        found = converting(slices, dest)
        shutil.rmtree(dest)
    found = {name: round(value, 2) for name, value in found.items()}
    result = {
        "figures": found
        | {"decoding_seconds": round(alone, 2), "MB/s": round(DEPTH * side**2 * 2 / 1e6 / found["seconds"], 1)},
        "ratios": {"of_decoding_bound": round(alone / found["seconds"], 3)},
        "machine": {"cores": cores, "processor": platform.processor() or platform.machine()},
        "versions": {name: version(name) for name in ("imagecodecs", "tifffile", "zarr", "distributed")},
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
