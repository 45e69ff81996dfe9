"""A driver to be stopped or killed: covers a volume with blocks that take their time, and says when it begins.

python -m tests.blockwise.driver FOLDER SECONDS [SCHEDULER]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from neurovol.blockwise.cluster import open_client
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.clustersettings import ClusterSettings
from neurovol.geometry import Block, BlockGrid, Numbered, Receipt

GRID = BlockGrid((4, 40, 80), (4, 4, 8), (4, 4, 8))  # 1 x 10 x 10 = 100 blocks
HEADER = Header("count", {}, total=len(GRID))


@dataclass(frozen=True)
class Slow:
    """Writes a file a block, whole or not at all, after some time; counts how often."""

    folder: str
    seconds: float

    def __call__(self, block: Block) -> Receipt:
        time.sleep(self.seconds)
        text = f"block {block.index}".encode()
        partial = Path(self.folder) / f"{block.index}.partial"
        partial.write_bytes(text)
        partial.replace(Path(self.folder) / f"{block.index}.block")
        with (Path(self.folder) / f"{block.index}.runs").open("a") as file:
            file.write("*")
        return Receipt(block.write, google_crc32c.value(text))


def main(folder: Path, seconds: float, scheduler: str | None = None) -> int:
    """130 where it was stopped."""
    settings = ClusterSettings(workers=2, threads=1)
    if scheduler is not None:
        settings = ClusterSettings(kind="address", address=scheduler)
    try:
        with open_client(settings) as client, Ledger(folder / "l.jsonl", HEADER) as ledger:
            print("begins", flush=True)
            run_blocks(client, Slow(str(folder), seconds), Numbered(GRID), Meter(ledger))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]))
