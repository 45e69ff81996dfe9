"""In which order of blocks a prediction reads its image least often: volumes read, by order and size of the cache.

    python tests/bench/bench_order.py [--quick] [--json FILE]

A block (one shard of what is written) is predicted from its voxels and a halo around them, so that chunks near a
block's faces are read for up to eight blocks. Those that are still in the system's cache cost nothing. What is
counted is what has to be fetched: chunks of the image that a cache which drops the least recently used does not
hold, as a multiple of the volume. 1 is what no order can beat.

    rows     block after block along x, row after row along y, layer after layer along z
    slabs    4 × 4 blocks along z and y at a time, through x
    Morton   eight neighbours, then the next eight: whatever the scale, blocks that follow each other lie together

Four nodes have a cache each, and take the next block as they come to it: at random, seeded. Nothing is timed: the
figures are the same on any machine. Stored voxels are 2 bytes; that they are compressed makes a
cache of so many GB hold about 1.6 times as much as here.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import product
from math import prod
from pathlib import Path
from random import Random

from neurovol.geometry import BlockGrid, Box, Zyx, ceil_div
from neurovol.levels import chosen_shard, fitted_shard

CHUNK: Zyx = (32, 64, 64)
HALO: Zyx = (24, 24, 24)  # of the default U-Net
VOXEL_BYTES = 2
VOLUMES: dict[str, Zyx] = {"slab": (400, 8000, 20000), "cube": (4000, 4000, 4000)}
QUICK: dict[str, Zyx] = {"slab": (400, 4000, 10000)}
CACHES_GB = (1, 4, 16)
NODES = (1, 4)

Order = Callable[[Zyx], Iterable[Zyx]]  # of a grid's counts: the places of its blocks, one after the other


def rows(counts: Zyx) -> Iterable[Zyx]:
    """As blocks are numbered."""
    return product(*map(range, counts))


def slabs(counts: Zyx) -> Iterable[Zyx]:
    return sorted(rows(counts), key=lambda p: (p[0] // 4, p[1] // 4, p[2], p[0], p[1]))


def morton(counts: Zyx) -> Iterable[Zyx]:
    every = list(rows(counts))
    return (every[place] for place in BlockGrid(counts, (1, 1, 1), (1, 1, 1)).morton_places())


ORDERS: dict[str, Order] = {"rows": rows, "slabs": slabs, "Morton": morton}


def volumes_read(volume: Zyx, order: Order, cache_bytes: float, nodes: int = 1) -> float:
    """How many times the chunks of a volume are fetched, on average, for blocks in that order."""
    shard = fitted_shard(volume, CHUNK, chosen_shard(volume, CHUNK, VOXEL_BYTES))
    grid, taking = BlockGrid(volume, shard, shard), Random(0)
    caches = [OrderedDict[int, None]() for _ in range(nodes)]  # the least recently used chunk first
    whole, (_, ny, nx) = Box.of_shape(volume), ceil_div(volume, CHUNK)
    room, fetched = int(cache_bytes // (prod(CHUNK) * VOXEL_BYTES)), 0
    for z, y, x in order(grid.counts):
        held = taking.choice(caches)
        block = grid[(z * grid.counts[1] + y) * grid.counts[2] + x]
        read = block.write.grown(HALO).intersect(whole).downsampled(CHUNK)
        for i, j, k in product(*(range(a, b) for a, b in read.pairs)):
            chunk = (i * ny + j) * nx + k
            if chunk in held:
                held.move_to_end(chunk)
                continue
            fetched += 1
            if len(held) >= room:
                held.popitem(last=False)
            held[chunk] = None
    return fetched / prod(ceil_div(volume, CHUNK))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller slab, and no cube")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, volume in (QUICK if options.quick else VOLUMES).items():
        gigabytes = prod(volume) * VOXEL_BYTES / 1e9
        print(f"{name} of {' × '.join(map(str, volume))} voxels (z, y, x), {gigabytes:.0f} GB, read so many times:")
        print(f"{'cache':>10}{''.join(f'{order:>10}' for order in ORDERS)}", flush=True)
        for nodes, cache in product(NODES, CACHES_GB):
            figures = {order: round(volumes_read(volume, ORDERS[order], cache * 1e9, nodes), 3) for order in ORDERS}
            caches = f"{nodes} × {cache} GB"
            found.setdefault(name, {})[caches] = figures
            print(f"{caches:>10}{''.join(f'{figure:>10.3f}' for figure in figures.values())}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"volumes_read": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
