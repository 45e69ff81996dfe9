"""What conversion does with blocks: the same alone or side by side, and all levels from what was read once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter
from neurovol.geometry import Block, BlockGrid, Receipt, side_by_side
from neurovol.levels import fused_levels, level_factors, parted_levels
from neurovol.stages.blockcopy import Convert
from neurovol.stages.convert import level_histograms, percentiles
from neurovol.stages.copying import copy_levels
from neurovol.stages.cover import level_blocks
from neurovol.volume.histogram import Histogram
from neurovol.volume.omezarr import VolumeReader, create_volume, open_volume
from neurovol.volume.phantom import PhantomSource
from neurovol.volume.pyramid import downsample
from tests.tiny import contents

SHAPE, CHUNK, SHARD = (37, 83, 130), (8, 16, 16), (16, 32, 32)
FACTORS = level_factors(SHAPE, (2.0, 0.88, 0.88), smallest=2)
FUSED, PARTED = fused_levels(SHAPE, CHUNK, SHARD, FACTORS), parted_levels(SHAPE, SHARD, FACTORS)
SOURCE = PhantomSource(SHAPE, seed=5)


def _task(folder: Path) -> Convert:
    folder.mkdir()
    create_volume(folder / "v", shape=SHAPE, channels=1, dtype="uint16", voxel_size_um=(2.0, 0.88, 0.88), chunk=CHUNK,
                  shard=SHARD, factors=FACTORS, fused=FUSED)  # fmt: skip
    return Convert(SOURCE, (0,), str(folder / "v"), tuple(FACTORS[:FUSED]), str(folder), tuple(FACTORS[FUSED:PARTED]))


def test_there_are_levels_of_each_kind() -> None:
    assert 0 < FUSED < PARTED - 1 < len(FACTORS) - 1


def landed(task: Convert, blocks: Sequence[Block]) -> list[Receipt]:
    landing = task.begin(blocks)
    landing.wait()
    return list(landing.receipts)


@pytest.mark.parametrize("most", [2, 3, 5])
def test_blocks_copied_side_by_side_are_the_blocks_copied_one_by_one(tmp_path: Path, most: int) -> None:
    alone, beside = _task(tmp_path / "alone"), _task(tmp_path / "beside")
    blocks = list(BlockGrid(SHAPE, SHARD, SHARD))
    wanted = [alone(block) for block in reversed(blocks)][::-1]
    assert [r for group in side_by_side(blocks, lambda: most) for r in landed(beside, group)] == wanted
    assert contents(tmp_path / "alone") == contents(tmp_path / "beside")


@pytest.mark.parametrize("parted", [True, False])
def test_every_level_and_its_histogram_are_those_of_the_whole_volume(
    client: Client, tmp_path: Path, parted: bool
) -> None:
    task = _task(tmp_path / "f")
    if not parted:  # then each is made from the level below
        task = replace(task, parted=())
    blocks = level_blocks(open_volume(tmp_path / "f" / "v", allow_incomplete=True))
    with Ledger(tmp_path / "l.jsonl", Header("convert", {}, sum(map(len, blocks)))) as ledger:
        copy_levels(client, task, blocks, Meter(ledger), retries=0, most=2, scratch=None)
        assert ledger.done == {b.index for level in blocks for b in level}
    histograms = level_histograms(tmp_path / "f", blocks, FUSED, 1)
    wanted = SOURCE.read(task_box())
    for level, histogram in enumerate(histograms):
        if level:
            wanted = downsample(wanted, FACTORS[level - 1], "mean")
        found = VolumeReader(str(tmp_path / "f" / "v"), level, allow_incomplete=True).read(task_box(wanted.shape[1:]))
        np.testing.assert_array_equal(found, wanted)
        whole = Histogram.of(wanted)
        assert [v.tolist() for v in histogram.values] == [v.tolist() for v in whole.values]
        assert [n.tolist() for n in histogram.counts] == [n.tolist() for n in whole.counts]
    told = percentiles(histograms)
    assert len(told["levels"]) == len(FACTORS) + 1
    assert told["levels"][0][0][told["of"].index(99.8)] == histograms[0].percentile(99.8)[0]


def task_box(shape=SHAPE):
    from neurovol.geometry import Box

    return Box.of_shape(shape)
