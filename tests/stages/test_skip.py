"""Predicting in tissue alone: the same voxels there, zeros elsewhere, and no network where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neurovol.blockwise.ledger import read_ledger
from neurovol.cli import main
from neurovol.geometry import BlockGrid, Box, Zyx, ceil_div, zyx
from neurovol.stages.cover import Cover
from neurovol.stages.skip import Where
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume
from neurovol.volume.phantom import PhantomSource

SHAPE: Zyx = (13, 29, 31)


class Mask:
    """A mask in memory, (z, y, x)."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array

    def read(self, box: Box) -> NDArray[np.uint8]:
        return self.array[box.slices]


class Image:
    """An image in memory, (c, z, y, x)."""

    array = np.random.default_rng(1).integers(1, 1000, (1, *SHAPE)).astype(np.uint16)

    def read(self, box: Box, channels: tuple[int, ...] = (0,)) -> NDArray[np.uint16]:
        return self.array[(slice(None), *box.slices)]


def brightness(raw: NDArray[Any]) -> NDArray[np.float32]:
    """A kernel whose output is known: nowhere 0."""
    return raw[0].astype(np.float32) / 1000


def never(_: NDArray[Any]) -> NDArray[np.float32]:
    raise AssertionError("computed where nothing is wanted")


def _cover(kernel: Any, window: Zyx, where: Where | None, path: str = "") -> Cover:
    whole = (Box.of_shape(SHAPE),)
    return Cover(Image(), kernel, VolumeWriter(path), SHAPE, whole, window, (0, 0, 0), (1, 1, 1), where)  # type: ignore[arg-type]


def _where(mask: NDArray[np.uint8], coarser: Zyx) -> Where:
    return Where(Mask(mask), coarser)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    coarser=st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8)),
    window=st.tuples(st.integers(1, 13), st.integers(3, 29), st.integers(3, 31)),
    block=st.tuples(st.integers(2, 13), st.integers(5, 29), st.integers(5, 31)),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_result_is_the_whole_one_times_the_mask_however_it_is_cut(
    coarser: Zyx, window: Zyx, block: Zyx, share: float, seed: int
) -> None:
    coarse = ceil_div(SHAPE, coarser)
    mask = (np.random.default_rng(seed).random(coarse) < share).astype(np.uint8)
    fine = np.kron(mask, np.ones(coarser, np.uint8))[tuple(slice(n) for n in SHAPE)]
    task, found = _cover(brightness, window, _where(mask, coarser)), np.full(SHAPE, np.nan, np.float32)
    for b in BlockGrid(SHAPE, block, block):
        found[b.write.slices] = task.probabilities(b.write)
    np.testing.assert_array_equal(found, brightness(Image.array) * fine)


def test_a_block_without_tissue_is_zeros_for_a_reason_and_never_computed(tmp_path: Path) -> None:
    shard = (8, 16, 16)
    for name in ("kept", "none"):
        create_volume(tmp_path / name, shape=SHAPE, channels=None, dtype="uint8", voxel_size_um=(2, 1, 1), chunk=shard,
                      shard=shard, factors=[])  # fmt: skip
    mask = np.zeros(ceil_div(SHAPE, (1, 2, 2)), np.uint8)
    mask[0, 0, 0] = 1  # in the first block alone
    blocks = BlockGrid(SHAPE, shard, shard)
    task = _cover(brightness, shard, _where(mask, (1, 2, 2)), str(tmp_path / "kept"))
    assert task(blocks[0]).skipped is None
    idle = _cover(never, shard, _where(mask, (1, 2, 2)), str(tmp_path / "none"))
    plain = _cover(lambda raw: 0 * brightness(raw), shard, None, str(tmp_path / "kept"))
    for block in list(blocks)[1:]:
        receipt = idle(block)
        assert receipt.skipped == "no tissue"
        assert receipt.crc32c == plain(block).crc32c  # of zeros, as everywhere
        assert not VolumeReader(str(tmp_path / "none"), allow_incomplete=True).read(block.write).any()


HALF_EMPTY = """
name = "{name}"
[[samples]]
name = "half"
source = "half.tif"
voxel_size_um = [2.0, 0.88, 0.88]
[convert]
chunk = [8, 16, 16]
shard = [16, 64, 64]
{tissue}
[segment]
checkpoint = "{checkpoint}"
precision = "fp32"
window = [16, 32, 32]
where = "{where}"
[cluster]
workers = 1
"""


@pytest.fixture
def half_empty(finished: Path, tmp_path: Path) -> Path:
    """A folder with a sample of which the right half is empty, and projects with a trained network for it."""
    voxels = PhantomSource((20, 90, 256), 3).read(Box((0, 0, 0), (20, 90, 256)))[0] + 300
    noise = np.random.default_rng(0)
    voxels[..., 128:] = noise.integers(2, 12, voxels[..., 128:].shape)
    tifffile.imwrite(tmp_path / "half.tif", voxels.astype(np.uint16))
    model = next(finished.parent.glob("**/models/unet3d_pseudo-*"))
    for where in ("all", "tissue"):
        text = HALF_EMPTY.format(name=where, where=where, checkpoint=model, tissue="")
        (tmp_path / f"{where}.toml").write_text(text)
    text = HALF_EMPTY.format(name="none", where="tissue", checkpoint=model, tissue="tissue = false")
    (tmp_path / "none.toml").write_text(text)
    return tmp_path


def test_a_half_empty_sample_is_predicted_in_its_tissue_alone(
    half_empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for where in ("all", "tissue"):
        assert main(["run", str(half_empty / f"{where}.toml")]) == 0
    whole, masked = (_probabilities(half_empty, where) for where in ("all", "tissue"))
    mask = _mask(half_empty)
    assert 0.3 < mask.mean() < 0.8
    np.testing.assert_array_equal(masked, whole * mask)
    (ledger,) = half_empty.glob("stores/tissue/**/segment@*.jsonl")
    record = read_ledger(ledger)
    assert record is not None
    skipped = {n for n, row in record.rows.items() if row.get("skipped") == "no tissue"}
    assert {3, 7} <= skipped  # the blocks at the right end, of 2 x 2 x 4
    assert not {0, 1, 4, 5} & skipped
    assert "blocks without tissue skipped" in next(half_empty.glob("stores/tissue/report.html")).read_text()
    capsys.readouterr()
    assert main(["run", str(half_empty / "tissue.toml"), "--dry-run"]) == 0
    assert "in tissue alone (labels/tissue)" in capsys.readouterr().out


def test_a_mask_that_is_not_there_is_asked_for(half_empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", str(half_empty / "none.toml")]) == 2
    assert "needs the mask that convert.tissue = false leaves out" in capsys.readouterr().err
    assert main(["convert", str(half_empty / "all.toml")]) == 0
    assert main(["convert", str(half_empty / "all.toml"), "--set", "convert.tissue=false", "--redo", "convert"]) == 0
    capsys.readouterr()
    assert main(["segment", str(half_empty / "all.toml"), "--set", "segment.where=tissue"]) == 2
    assert "--redo convert` makes it" in capsys.readouterr().err


def _probabilities(folder: Path, project: str) -> NDArray[np.uint8]:
    (path,) = folder.glob(f"stores/{project}/samples/half/unet3d@*.ome.zarr")
    return VolumeReader(str(path)).read(Box((0, 0, 0), (20, 90, 256)))


def _mask(folder: Path) -> NDArray[np.uint8]:
    path = folder / "stores/tissue/samples/half/image.ome.zarr/labels/tissue"
    from neurovol.volume.omezarr import open_volume

    info = open_volume(path)
    coarser = zyx(info.attributes["coarser"])
    mask = VolumeReader(str(path)).read(Box.of_shape(info.shape))
    return np.kron(mask > 0, np.ones(coarser, np.uint8))[:20, :90, :256].astype(np.uint8)
