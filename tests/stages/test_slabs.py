"""However deep slabs and chunks are, a level of blocks side by side is stored as it came."""

from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.geometry import Box
from neurovol.stages.slabs import Slabs
from neurovol.volume.histogram import Counter, Histogram
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume
from neurovol.volume.shardstream import ShardStream


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 24), st.integers(1, 6), st.integers(1, 14), st.integers(1, 24), st.integers(0, 99)
)
def test_slabs_of_any_depth_become_shards_of_chunks_of_any_depth(
    tmp_path_factory: pytest.TempPathFactory, channels: int, depth: int, chunk: int, slab: int, x: int, seed: int
) -> None:
    path, shape = tmp_path_factory.mktemp("v") / "v", (depth, 9, x)
    shard = (24 // chunk * chunk or chunk, 12, 10)
    depth = min(depth, shard[0])
    create_volume(
        path, shape=shape, channels=channels, dtype="uint16", voxel_size_um=(2, 1, 1), chunk=(chunk, 4, 5), shard=shard,
        factors=[],
    )  # fmt: skip
    voxels = np.random.default_rng(seed).integers(1, 500, (channels, depth, 9, x)).astype(np.uint16)
    boxes = [Box((0, 0, a), (depth, 9, min(a + 10, x))) for a in range(0, x, 10)]
    counter = Counter(channels, voxels.dtype, blocks=len(boxes))
    with ExitStack() as stack:
        stream = ShardStream([stack.enter_context(VolumeWriter(str(path)).shard(box)) for box in boxes])
        slabs = Slabs("a level", stream, counter, channels, voxels.dtype, slab, receipts=True)
        for z in range(0, depth, slab):
            part = voxels[:, z : z + slab]
            slabs.room(part.shape[1])[...] = part
            slabs.take()
        receipts = slabs.finish()
    reader = VolumeReader(str(path), allow_incomplete=True)
    np.testing.assert_array_equal(reader.read(Box((0, 0, 0), (depth, 9, x))), voxels)
    for k, (box, receipt) in enumerate(zip(boxes, receipts, strict=True)):
        block = voxels[(slice(None), *box.slices)]
        whole = VolumeWriter(str(path)).write(box, block)
        assert receipt == whole
        found, wanted = counter.histogram(k), Histogram.of(block)
        assert [v.tolist() for v in found.values] == [v.tolist() for v in wanted.values]
        assert [n.tolist() for n in found.counts] == [n.tolist() for n in wanted.counts]
