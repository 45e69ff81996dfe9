"""What Prefect adds to a sample: seconds on top of the same stages by the command line, and bytes of its database.

    python tests/bench/bench_flow.py [--quick] [--json FILE]

A phantom of 1,000 blocks (100 with --quick) that arrived in an inbox is converted, covered with a tiny U-Net and
reported: by `neurovol run --sample`, and by the flow `sample` under a Prefect server on SQLite that runs already; in
turn, each from nothing, whole processes by the wall clock. `--rounds` of each; medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from neurovol.geometry import BlockGrid, Zyx

sys.path.insert(0, str(Path(__file__).parents[2]))  # tests import each other by name
from tests.arriving import arrive, write_project
from tests.flows.served import Served
from tests.free import free_port

SHARD: Zyx = (8, 16, 16)  # a chunk: blocks are what Prefect hears of, whatever their size
SHAPES: dict[bool, Zyx] = {False: (80, 160, 160), True: (40, 80, 64)}  # quick or not
SMALL = ("chunk = [8, 16, 16]\nshard = [16, 64, 64]", f"chunk = [8, 16, 16]\nshard = {list(SHARD)}")
WINDOW = ("window = [16, 64, 64]", f"window = {list(SHARD)}")
FLOW = "import sys; from pathlib import Path; from flows.sample import sample; sample(Path(sys.argv[1]), 'm1')"


def new_project(folder: Path, shape: Zyx) -> Path:
    folder.mkdir()
    file = write_project(folder, SMALL, WINDOW)
    arrive(file, "m1", shape)
    time.sleep(1.5)  # settle_s
    return file


def seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def database_bytes(home: Path) -> int:
    """SQLite's file and its log."""
    return sum(file.stat().st_size for file in home.glob("prefect.db*"))


def by_flow(served: Served, folder: Path, shape: Zyx) -> tuple[float, int]:
    """A new sample done by the flow: seconds, and bytes that the server's database grew by."""
    file = new_project(folder, shape)
    before = database_bytes(served.home)
    took_s = seconds([sys.executable, "-c", FLOW, str(file)], served.environment)
    time.sleep(3)  # the server writes logs a little later
    return took_s, database_bytes(served.home) - before


def measure(folder: Path, shape: Zyx, rounds: int) -> dict[str, float]:
    served = Served(folder / "prefect", free_port())
    served.start()
    took: dict[str, list[float]] = {"cli": [], "flow": []}
    grown: list[int] = []
    try:
        for turn in range(rounds):
            file = new_project(folder / f"cli-{turn}", shape)
            cli = [sys.executable, "-m", "neurovol.cli", "run", str(file), "--sample", "m1"]
            took["cli"].append(seconds(cli, served.environment))
            flow_s, more = by_flow(served, folder / f"flow-{turn}", shape)
            took["flow"].append(flow_s)
            grown.append(more)
    finally:
        served.stop()
    cli_s, flow_s = (statistics.median(took[how]) for how in ("cli", "flow"))
    return {
        "cli_s": cli_s,
        "flow_s": flow_s,
        "overhead_s": flow_s - cli_s,
        "flow_to_cli": flow_s / cli_s,
        "database_mb_per_sample": statistics.median(grown) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="100 blocks, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    shape = SHAPES[options.quick]
    blocks = len(BlockGrid(shape, SHARD, SHARD))
    with tempfile.TemporaryDirectory(prefix="neurovol-bench-") as folder:
        figures = measure(Path(folder), shape, 1 if options.quick else options.rounds)
    print(f"{blocks} blocks: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    if options.json:
        about = {
            "machine": f"{platform.processor() or platform.machine()}, {platform.python_implementation()}",
            "versions": {name: version(name) for name in ("prefect", "dask", "zarr", "torch")},
        }
        options.json.write_text(json.dumps({"blocks": blocks, **figures, **about}, indent=1))


if __name__ == "__main__":
    main()
