"""Whether a peer of the conversion benchmark wrote what it should: voxels, levels, codecs.

    PEERS_PYTHON tests/bench/convert_check.py FOLDER DEST

Every voxel of level 0 is compared with the slices, every level with means of the one below it (within 1, for
roundings differ), as far as both go. Prints one line of JSON per level: shape, chunk, shard, codecs, bytes on disk.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

STEP = 64


def levels(dest: Path) -> list[tuple[Path, Any]]:
    """Each level's folder and array, from fine to coarse, wherever the peer put them; not the group's own folder."""
    folders = [file.parent for file in dest.rglob("zarr.json") if json.loads(file.read_text())["node_type"] == "array"]
    return [(folder, zarr.open_array(str(folder), mode="r")) for folder in sorted(folders)]


def axes_zyx(array: Any) -> tuple[int, int, int]:
    return (2, 1, 0) if array.metadata.dimension_names == ("x", "y", "z") else (0, 1, 2)


def read(array: Any, z: int, depth: int) -> np.ndarray[Any, Any]:
    """(z, y, x) of `depth` slices from `z` on, whatever the order of the array's axes."""
    if axes_zyx(array) == (2, 1, 0):
        return np.asarray(array[:, :, z : z + depth]).T
    return np.asarray(array[z : z + depth])


def check_finest(array: Any, folder: Path) -> None:
    files = sorted(folder.glob("*.tif"))
    assert [array.shape[a] for a in axes_zyx(array)] == [len(files), *tifffile.imread(files[0]).shape], array.shape
    for z in range(0, len(files), STEP):
        there = read(array, z, STEP)
        for file, plane in zip(files[z : z + STEP], there, strict=True):
            np.testing.assert_array_equal(plane, tifffile.imread(file), str(file))


def check_means(fine: Any, coarse: Any) -> None:
    shapes = [[a.shape[i] for i in axes_zyx(a)] for a in (fine, coarse)]
    fz, fy, fx = (round(a / b) for a, b in zip(*shapes, strict=True))
    depth, height, width = (min(a // f, b) for a, b, f in zip(*shapes, (fz, fy, fx), strict=True))
    for z in range(0, depth, STEP):
        n = min(STEP, depth - z)
        below = read(fine, z * fz, n * fz)[:, : height * fy, : width * fx].reshape(n, fz, height, fy, width, fx)
        there = read(coarse, z, n)[:, :height, :width]
        difference = np.abs(below.mean((1, 3, 5)) - there).max()
        assert difference <= 1, f"z {z}: a level differs by {difference} from the means of the one below"


def codecs(metadata: dict[str, Any]) -> str:
    (sharding,) = metadata["codecs"]
    inner = sharding["configuration"]["codecs"]
    return ", ".join(" ".join(map(str, (c["name"], *c.get("configuration", {}).values()))) for c in inner)


def main() -> None:
    folder, dest = map(Path, sys.argv[1:])
    found = levels(dest)
    assert len(found) == 5, found
    check_finest(found[0][1], folder)
    for (_, fine), (_, coarse) in pairwise(found):
        check_means(fine, coarse)
    for path, array in found:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        said = {
            "level": str(path.relative_to(dest)),
            "shape": array.shape,
            "chunk": array.chunks,
            "shard": array.shards,
        }
        inner = codecs(json.loads((path / "zarr.json").read_text()))
        print(json.dumps(said | {"bytes": size, "codecs": inner}))


if __name__ == "__main__":
    main()
