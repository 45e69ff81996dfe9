"""Invariant 2: windows and blocks never show."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.geometry import Block, BlockGrid, Box, Receipt, Zyx, round_up, zyx
from neurovol.networks.checkpoint import Meta, save_checkpoint
from neurovol.networks.cnn2d import CNN2D, CNN2DKernel, CNN2DSpec
from neurovol.networks.normalise import RULE, Normalisation
from neurovol.networks.unet3d import UNet3D, UNet3DKernel, UNet3DSpec
from neurovol.stages.cover import Cover, level_blocks, quantised, write_levels
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume, open_volume
from tests.tiny import contents

NORMALISATION = Normalisation((100.0,), (900.0,))
SPECS = {"4": UNet3DSpec(1, 2, ((2, 2, 2), (2, 2, 2))), "1, 2, 2": UNet3DSpec(1, 3, ((1, 2, 2),))}


@dataclass(frozen=True, eq=False)
class Held:
    """A reader of an array in memory, (c, z, y, x)."""

    array: NDArray[Any]

    def read(self, box: Box, channels: tuple[int, ...] = (0,)) -> NDArray[Any]:
        return self.array[(slice(None), *box.slices)]


@lru_cache
def unet(which: str) -> str:
    """A checkpoint of a network with random weights and batch-norm statistics; kept for the whole session."""
    folder = _folder()
    torch.manual_seed(7)
    model = UNet3D(SPECS[which])
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running_mean" in name:
                value.uniform_(-0.3, 0.3)
            elif "running_var" in name:
                value.uniform_(0.02, 0.2)  # as small as what comes in, or every ReLU is 0 and nothing could show
    save_checkpoint(Path(folder), "unet3d", SPECS[which].to_json(), model.state_dict(), META)
    return folder


META = Meta((2.0, 1.0, 1.0), 1, RULE, "0" * 16)
_keep: list[TemporaryDirectory[str]] = []


def _folder() -> str:
    _keep.append(TemporaryDirectory(ignore_cleanup_errors=True))
    return _keep[-1].name


def one_pass(kernel: UNet3DKernel, spec: UNet3DSpec, image: NDArray[Any]) -> NDArray[np.float32]:
    """The reference: reflect-padded by the halo and, on the far side, to the stride; then cropped."""
    shape, halo = image.shape[1:], spec.halo
    far = [h + round_up(n, s) - n for h, n, s in zip(halo, shape, spec.stride, strict=True)]
    padded = np.pad(image, [(0, 0), *zip(halo, far, strict=True)], mode="reflect")
    return kernel(padded)[tuple(slice(h, h + n) for h, n in zip(halo, shape, strict=True))]


def test_the_network_of_these_tests_sees_its_input() -> None:
    image = np.random.default_rng(0).integers(0, 1000, (1, 8, 32, 32)).astype(np.uint16)
    for which in SPECS:
        assert UNet3DKernel(unet(which), NORMALISATION, "fp32", True)(image).std() > 0.01


def cover(kernel: Any, spec: Any, image: NDArray[Any], boxes: tuple[Box, ...], window: Zyx) -> Cover:
    volume = zyx(image.shape[1:])
    return Cover(Held(image), kernel, VolumeWriter(""), volume, boxes, window, spec.halo, spec.stride)


@settings(deadline=None, max_examples=20)
@given(
    which=st.sampled_from(sorted(SPECS)),
    shape=st.tuples(st.integers(1, 13), st.integers(1, 31), st.integers(1, 31)),
    multiples=st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(2, 7)),
    block=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_windows_and_blocks_never_show(which: str, shape: Zyx, multiples: Zyx, block: Zyx, seed: int) -> None:
    spec, kernel = SPECS[which], UNet3DKernel(unet(which), NORMALISATION, "fp32", True)
    image = np.random.default_rng(seed).integers(0, 1000, (1, *shape)).astype(np.uint16)
    window = zyx(m * s for m, s in zip(multiples, spec.stride, strict=True))
    task = cover(kernel, spec, image, (Box.of_shape(shape),), window)
    blockwise = np.full(shape, np.nan, np.float32)
    shard = (8, 8, 8)
    for b in BlockGrid(shape, zyx(m * 8 for m in block), shard):
        blockwise[b.write.slices] = task.probabilities(b.write)
    np.testing.assert_allclose(blockwise, one_pass(kernel, spec, image), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_a_box_anywhere_has_the_same_values_as_the_whole(data: st.DataObject) -> None:
    spec, kernel = SPECS["4"], UNet3DKernel(unet("4"), NORMALISATION, "fp32", True)
    image = np.random.default_rng(0).integers(0, 1000, (1, 13, 29, 31)).astype(np.uint16)
    starts = [data.draw(st.integers(0, n - 1)) for n in image.shape[1:]]
    box = Box(zyx(starts), zyx(data.draw(st.integers(a + 1, n)) for a, n in zip(starts, image.shape[1:], strict=True)))
    part = cover(kernel, spec, image, (box,), (8, 16, 16)).probabilities(Box.of_shape(zyx(image.shape[1:])))
    whole = one_pass(kernel, spec, image)
    np.testing.assert_allclose(part[box.slices], whole[box.slices], atol=1e-5, rtol=0)
    part[box.slices] = 0
    assert not part.any()


def test_the_2d_network_shows_no_windows_either() -> None:
    folder, spec = _folder(), CNN2DSpec()
    torch.manual_seed(1)
    save_checkpoint(Path(folder), "cnn2d", spec.to_json(), CNN2D(spec).state_dict(), META)
    kernel = CNN2DKernel(folder, NORMALISATION)
    image = np.random.default_rng(0).integers(0, 1000, (1, 3, 31, 29)).astype(np.uint16)
    whole = Box.of_shape((3, 31, 29))
    padded = np.pad(image, [(0, 0), (0, 0), (16, 16), (16, 16)], mode="reflect")
    expected = kernel(padded)[:, 16:47, 16:45]
    for window in ((1, 7, 13), (2, 31, 5), (3, 64, 64)):
        got = cover(kernel, spec, image, (whole,), window).probabilities(whole)
        np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)


def test_windows_are_counted_as_they_are_made() -> None:
    calls: list[Zyx] = []

    def kernel(raw: NDArray[Any]) -> NDArray[np.float32]:
        calls.append(zyx(raw.shape[1:]))
        return np.zeros(raw.shape[1:], np.float32)

    image = np.zeros((1, 13, 29, 31), np.uint16)
    boxes = (Box((0, 3, 0), (13, 20, 31)), Box((5, 20, 7), (9, 29, 31)))
    task = cover(kernel, SPECS["4"], image, boxes, (8, 12, 16))
    blocks = BlockGrid((13, 29, 31), (8, 16, 16), (8, 16, 16)).meeting(boxes)
    for b in blocks:
        task.probabilities(b.write)
    assert task.window_count(blocks) == len(calls)
    assert max(calls) <= (56, 60, 64)


def test_probabilities_are_stored_to_the_nearest_of_256(tmp_path: Path) -> None:
    create_volume(
        tmp_path / "v",
        shape=(5, 7, 11),
        channels=None,
        dtype="uint8",
        voxel_size_um=(1, 1, 1),
        chunk=(8, 8, 8),
        shard=(8, 8, 16),
        factors=[],
    )
    p = np.random.default_rng(0).random((5, 7, 11)).astype(np.float32)
    whole = Box.of_shape((5, 7, 11))
    task = Cover(
        Held(p[None]),
        lambda raw: raw[0],
        VolumeWriter(str(tmp_path / "v")),
        (5, 7, 11),
        (whole,),
        (4, 4, 4),
        (0, 0, 0),
        (1, 1, 1),
    )
    task(Block(0, whole))
    stored = VolumeReader(str(tmp_path / "v"), allow_incomplete=True).read(whole)
    assert np.abs(stored / 255 - p).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("p", [0.0, 0.4999, 0.5, 1.0])
def test_rounding_keeps_which_side_of_one_half_a_value_lies(p: float) -> None:
    assert (quantised(np.array([p], np.float32))[0] / 255 >= 0.5) == (p >= 0.5)


@dataclass(frozen=True)
class WriteNumber:
    """Fills each block with its number, and one more."""

    writer: VolumeWriter

    def __call__(self, block: Block) -> Receipt:
        return self.writer.write(block.write, np.full(block.write.shape, block.index + 1, np.uint8))


def test_a_run_begun_row_by_row_is_finished_in_morton_order_to_the_same_bytes(client: Client, tmp_path: Path) -> None:
    def written(name: str, begun: int, near: bool) -> dict[str, bytes]:
        path = tmp_path / name
        create_volume(
            path, shape=(7, 13, 31), channels=None, dtype="uint8", voxel_size_um=(2.0, 1.0, 1.0), chunk=(2, 4, 4),
            shard=(4, 4, 8), factors=[(2, 2, 2)],
        )  # fmt: skip
        blocks = level_blocks(open_volume(path, allow_incomplete=True))
        header = Header("segment a", {}, sum(map(len, blocks)))
        with Ledger(tmp_path / f"{name}.jsonl", header) as ledger:
            run_blocks(client, WriteNumber(VolumeWriter(str(path))), blocks[0][:begun], Meter(ledger))
        with Ledger(tmp_path / f"{name}.jsonl", header) as ledger:
            write_levels(client, path, WriteNumber(VolumeWriter(str(path))), ledger, near=near)
            assert all(row["attempt"] == 1 for row in ledger.rows.values())
            assert len(ledger.done) == header.total
        return contents(path)

    undisturbed = written("undisturbed", 0, near=False)
    assert len(undisturbed) == 32 + 4
    assert written("in two runs", 13, near=True) == undisturbed
