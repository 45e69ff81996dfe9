"""A coarse OME-Zarr image over a sample, one voxel per block: a number of each, and labels of what became of it.

Viewers lay it over the image it tells of. It is rewritten while it is looked at: each array is one chunk, so that a
reader sees it as it was or as it is.

    image    |0 1 2 3 4 5|6 7 8 9 . .|    voxels of level 0; the last block may be cut
    blocks   |     0     |     1     |    the centre of block 0 lies at 2.5 voxels
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from neurovol.geometry import BlockGrid
from neurovol.volume import omemeta
from neurovol.volume.omezarr import register_label
from neurovol.volume.stored import VoxelSize, write_group

LABELS = "states"
SHOWN = 99.0  # percentile of the numbers at which a viewer shows full brightness: one block of hours hides no other


@dataclass(frozen=True)
class BlockImage:
    """Where such an image lies, and the blocks it tells of."""

    path: Path
    name: str
    grid: BlockGrid
    voxel_size_um: VoxelSize  # of level 0 of the image that the blocks cut
    meanings: Sequence[tuple[int, str, str]]  # value, name and colour (RRGGBBAA) of each label
    measured: str = "seconds"  # what is told of each block

    def create(self, values: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        """Write the image anew in place of an earlier one; values and labels are one for each block, in their order."""
        beside = replace(self, path=self.path.with_name(f"{self.path.name}.partial"))
        shutil.rmtree(beside.path, ignore_errors=True)
        for folder, dtype in ((beside.path, "float32"), (beside._labels, "uint8")):
            folder.mkdir(parents=True)
            zarr.create_array(
                store=str(folder / "0"),
                shape=self.grid.counts,
                chunks=self.grid.counts,
                dtype=dtype,
                filters=None,
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
                fill_value=0,
                dimension_names=("z", "y", "x"),
                zarr_format=3,
            )
        register_label(beside.path, LABELS)
        marked = omemeta.image_label(self.meanings)
        write_group(beside._labels, {"ome": {**self._ome(LABELS), "image-label": marked}})
        beside.update(values, labels)
        shutil.rmtree(self.path, ignore_errors=True)
        beside.path.rename(self.path)

    def update(self, values: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        """Write other values and labels into the image that `create` made."""
        for folder, flat in ((self.path, values), (self._labels, labels)):
            array = zarr.open_array(str(folder / "0"), mode="r+", zarr_format=3)
            array[...] = flat.reshape(self.grid.counts)
        known = values[values > 0]
        end = float(np.percentile(known, SHOWN)) if known.size else 1.0
        display = omemeta.omero([(0.0, end)], max(end, float(values.max(initial=0.0))))
        display["channels"][0] |= {"label": self.measured}
        display["channels"][0]["window"]["end"] = end
        write_group(self.path, {"ome": {**self._ome(self.name), "omero": display}})

    @property
    def _labels(self) -> Path:
        return self.path / "labels" / LABELS

    def _ome(self, name: str) -> dict[str, Any]:
        block = self.grid.block
        z, y, x = (s * b for s, b in zip(self.voxel_size_um, block, strict=True))
        oz, oy, ox = (s * (b - 1) / 2 for s, b in zip(self.voxel_size_um, block, strict=True))
        images = omemeta.multiscales(name, (z, y, x), (), False, "mean", (oz, oy, ox))
        return {"version": omemeta.VERSION, "multiscales": images}
