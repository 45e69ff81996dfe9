"""Blocks that do nothing through daisy, which bench_blocks.py runs in an environment that has it.

python blocks_daisy.py FOLDER BLOCKS
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path


def nothing(block: object) -> None:
    """What every block does."""


def main(folder: Path, blocks: int) -> dict[str, float | str]:
    """Seconds that so many blocks take, and memory."""
    import daisy
    import psutil

    total, write = daisy.Roi((0, 0, 0), (1, 1, blocks)), daisy.Roi((0, 0, 0), (1, 1, 1))
    task = daisy.Task(
        task_id="nothing",
        total_roi=total,
        read_roi=write,
        write_roi=write,
        process_function=nothing,
        read_write_conflict=False,
        max_workers=2,
        tracking_path=str(folder / "tracking"),
    )
    start = time.perf_counter()
    if not daisy.run_blockwise(task, progress=False, summary=False, host="127.0.0.1"):
        raise SystemExit("daisy says that not all blocks are done")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rss_mb": psutil.Process().memory_info().rss / 1e6, "version": version("daisy")}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
