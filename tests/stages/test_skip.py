"""Predicting in tissue alone: the same voxels there, zeros elsewhere, and no network where there is none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from neurovol.blockwise.ledger import read_ledger
from neurovol.cli import main
from neurovol.geometry import BlockGrid, Box, Zyx, ceil_div, round_up, zyx
from neurovol.networks.checkpoint import Meta, save_checkpoint
from neurovol.networks.normalise import RULE
from neurovol.networks.unet3d import UNet3D, UNet3DSpec
from neurovol.project import open_project
from neurovol.settings import SegmentSettings
from neurovol.stages.cover import Cover
from neurovol.stages.pseudolabel import pseudolabels
from neurovol.stages.segment import baseline, segmentation
from neurovol.stages.skip import Where, kept_of
from neurovol.stages.steps import BASELINES, Steps
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume, open_volume
from neurovol.volume.phantom import PhantomSource
from tests.tiny import write_tiny

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


STRIDE: Zyx = (1, 2, 4)


def brightest(raw: NDArray[Any]) -> NDArray[np.float32]:
    """A kernel as a network is, with a stride and a reach of it, but exact: nowhere 0."""
    z, y, x = raw.shape[1:]
    pooled = raw[0].reshape(z, y // 2, 2, x // 4, 4).max(axis=(2, 4))
    found = ndimage.maximum_filter(pooled, size=3, mode="nearest").repeat(2, 1).repeat(4, 2)
    return (found + raw[0]).astype(np.float32) / 4000


def never(_: NDArray[Any]) -> NDArray[np.float32]:
    raise AssertionError("computed where nothing is wanted")


def _cover(kernel: Any, window: Zyx, where: Where | None, path: str = "") -> Cover:
    whole = (Box.of_shape(SHAPE),)
    return Cover(Image(), kernel, VolumeWriter(path), SHAPE, whole, window, (1, 4, 8), STRIDE, where)


def _where(mask: NDArray[np.uint8], coarser: Zyx) -> Where:
    return Where(Mask(mask), coarser)


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
    where, found = _where(mask, coarser), np.full(SHAPE, np.nan, np.float32)
    window = zyx(round_up(w, s) for w, s in zip(window, STRIDE, strict=True))
    calls: list[int] = []

    def counted(raw: NDArray[Any]) -> NDArray[np.float32]:
        calls.append(raw.size)
        return brightest(raw)

    task, grid = _cover(counted, window, where), BlockGrid(SHAPE, block, block)
    for b in grid:
        found[b.write.slices] = task.probabilities(b.write)
    whole = _cover(brightest, (16, 32, 32), None).probabilities(Box.of_shape(SHAPE))
    assert whole.all()
    np.testing.assert_array_equal(found, whole * fine)
    wanted = kept_of(where, grid, task.boxes, window, STRIDE)
    assert wanted.windows == len(calls)  # the network saw those with tissue, and no others
    assert wanted.blocks == sum(bool(fine[b.write.slices].any()) for b in grid)
    assert fine.sum() <= wanted.voxels <= fine.size


def test_a_block_without_tissue_is_zeros_for_a_reason_and_never_computed(tmp_path: Path) -> None:
    shard = (8, 16, 16)
    for name in ("kept", "none"):
        create_volume(tmp_path / name, shape=SHAPE, channels=None, dtype="uint8", voxel_size_um=(2, 1, 1), chunk=shard,
                      shard=shard, factors=[])  # fmt: skip
    mask = np.zeros(ceil_div(SHAPE, (1, 2, 2)), np.uint8)
    mask[0, 0, 0] = 1  # in the first block alone
    blocks = BlockGrid(SHAPE, shard, shard)
    task = _cover(brightest, shard, _where(mask, (1, 2, 2)), str(tmp_path / "kept"))
    assert task(blocks[0]).skipped is None
    idle = _cover(never, shard, _where(mask, (1, 2, 2)), str(tmp_path / "none"))
    plain = _cover(lambda raw: 0 * brightest(raw), shard, None, str(tmp_path / "kept"))
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
def half_empty(tmp_path: Path) -> Path:
    """A folder with a sample of which the right half is empty, and projects with a network for it."""
    return _written(tmp_path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder after its projects, `all` and `tissue`, ran; not to be changed."""
    folder = _written(tmp_path_factory.mktemp("ran"))
    for where in ("all", "tissue"):
        assert main(["run", str(folder / f"{where}.toml")]) == 0
    return folder


def _written(tmp_path: Path) -> Path:
    voxels = PhantomSource((20, 90, 256), 3).read(Box((0, 0, 0), (20, 90, 256)))[0] + 300
    noise = np.random.default_rng(0)
    voxels[..., 128:] = noise.integers(2, 12, voxels[..., 128:].shape)
    tifffile.imwrite(tmp_path / "half.tif", voxels.astype(np.uint16))
    model, spec = tmp_path / "unet3d_random", UNet3DSpec(1, 2)
    torch.manual_seed(0)
    meta = Meta((2.0, 0.88, 0.88), 1, RULE, "none")
    save_checkpoint(model, "unet3d", spec.to_json(), UNet3D(spec).eval().state_dict(), meta)
    for where in ("all", "tissue"):
        text = HALF_EMPTY.format(name=where, where=where, checkpoint=model, tissue="")
        (tmp_path / f"{where}.toml").write_text(text)
    text = HALF_EMPTY.format(name="none", where="tissue", checkpoint=model, tissue="tissue = false")
    (tmp_path / "none.toml").write_text(text)
    return tmp_path


@pytest.mark.slow
def test_a_half_empty_sample_is_predicted_in_its_tissue_alone(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, masked = (_probabilities(ran, where) for where in ("all", "tissue"))
    mask = _mask(ran)
    assert 0.3 < mask.mean() < 0.8
    assert whole.all()
    np.testing.assert_array_equal(masked, whole * mask)
    assert _skipped(ran, "tissue") == {3, 7, 11, 15}  # of 2 x 2 x 4 those at the right end; the mask has a margin
    assert not _skipped(ran, "all")
    assert "4 blocks skipped: no tissue" in (ran / "stores/tissue/report.html").read_text()
    capsys.readouterr()
    assert main(["run", str(ran / "tissue.toml"), "--dry-run"]) == 0
    assert "skips     4 of 16 blocks without tissue (labels/tissue)" in capsys.readouterr().out


@pytest.mark.slow
def test_an_intensity_in_place_of_the_mask(ran: Path, half_empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (threshold,) = open_volume(_image(ran, "tissue") / "labels/tissue").attributes["thresholds"]
    above = ["run", str(half_empty / "none.toml"), "--set"]
    assert main([*above, f"segment.above={threshold}", "--dry-run"]) == 0
    assert f"skips     blocks without tissue, which is what exceeds {threshold};" in capsys.readouterr().out
    assert main([*above, f"segment.above={threshold}"]) == 0
    assert not (_image(half_empty, "none") / "labels/tissue").exists()
    np.testing.assert_array_equal(_probabilities(half_empty, "none"), _probabilities(ran, "tissue"))
    assert _skipped(half_empty, "none") == _skipped(ran, "tissue")
    capsys.readouterr()
    assert main([*above, f"segment.above={threshold + 1}"]) == 2
    assert "segment.above" in capsys.readouterr().err  # stale
    assert main([*above, "segment.above=65535", "--redo", "segment"]) == 2
    assert "no voxel exceeds 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [({"above": 120}, 'goes with where = "tissue"'), ({"where": "tissue", "above": -1}, "greater than or equal to 0")],
)
def test_intensities_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SegmentSettings(**given)


def test_what_is_done_everywhere_stays_done(half_empty: Path) -> None:
    """The inputs of samples covered whole are what they were before `where` was a setting."""
    everywhere, in_tissue = (
        Steps(open_project(half_empty / f"{where}.toml")).segment("half").inputs for where in ("all", "tissue")
    )
    assert set(everywhere) == {"image", "weights", "segment.precision", "version"}
    assert in_tissue == everywhere | {"segment.where": "tissue", "tissue.version": 1}


def test_what_is_compared_is_masked_alike_and_pseudo_labels_are_not(tmp_path: Path) -> None:
    steps = Steps(open_project(write_tiny(tmp_path, ("[segment]", '[segment]\nwhere = "tissue"'))))
    scored = [segmentation(steps, "b"), *(baseline(steps, "b", method) for method in BASELINES)]
    assert all(wanted.in_tissue and wanted.step.inputs["segment.where"] == "tissue" for wanted in scored)
    assert not pseudolabels(steps, "a").in_tissue
    assert "segment.where" not in pseudolabels(steps, "a").step.inputs


@pytest.mark.slow
def test_a_mask_that_is_not_there_is_asked_for(half_empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(half_empty / "tissue.toml"), "--dry-run"]) == 0
    assert "blocks without tissue (labels/tissue); how many is known after conversion" in capsys.readouterr().out
    assert main(["segment", str(half_empty / "none.toml")]) == 2
    assert "needs the mask that convert.tissue = false leaves out" in capsys.readouterr().err
    assert main(["convert", str(half_empty / "all.toml")]) == 0
    assert main(["convert", str(half_empty / "all.toml"), "--set", "convert.tissue=false", "--redo", "convert"]) == 0
    capsys.readouterr()
    assert main(["segment", str(half_empty / "all.toml"), "--set", "segment.where=tissue"]) == 2
    assert "--redo convert` makes it" in capsys.readouterr().err
    assert not list(half_empty.glob("stores/all/**/segment@*"))  # refused before anything was begun
    assert main(["run", str(half_empty / "all.toml"), "--set", "segment.where=tissue", "--dry-run"]) == 0
    assert "nothing, for it cannot" in capsys.readouterr().out
    assert main(["run", str(half_empty / "all.toml"), "--set", "segment.where=tissue", "--redo", "convert"]) == 0
    assert _skipped(half_empty, "all")


def test_a_mask_of_another_rule_is_refused(half_empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(half_empty / "tissue.toml")]) == 0
    group = _image(half_empty, "tissue") / "labels/tissue/zarr.json"
    found = json.loads(group.read_text())
    found["attributes"]["neurovol"]["attributes"]["version"] = 0
    group.write_text(json.dumps(found))
    assert main(["segment", str(half_empty / "tissue.toml")]) == 2
    assert "made by version 0 of its rule, and 1 is asked for" in capsys.readouterr().err


def _probabilities(folder: Path, project: str) -> NDArray[np.uint8]:
    (path,) = folder.glob(f"stores/{project}/samples/half/unet3d@*.ome.zarr")
    return VolumeReader(str(path)).read(Box((0, 0, 0), (20, 90, 256)))


def _image(folder: Path, project: str) -> Path:
    return folder / f"stores/{project}/samples/half/image.ome.zarr"


def _skipped(folder: Path, project: str) -> set[int]:
    (ledger,) = folder.glob(f"stores/{project}/**/segment@*.jsonl")
    record = read_ledger(ledger)
    assert record is not None
    return {n for n, row in record.rows.items() if row.get("skipped") == "no tissue"}


def _mask(folder: Path) -> NDArray[np.uint8]:
    path = _image(folder, "tissue") / "labels/tissue"
    info = open_volume(path)
    coarser = zyx(info.attributes["coarser"])
    mask = VolumeReader(str(path)).read(Box.of_shape(info.shape))
    return np.kron(mask > 0, np.ones(coarser, np.uint8))[:20, :90, :256].astype(np.uint8)
