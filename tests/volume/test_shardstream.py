"""A shard written layer by layer is the shard written at once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.geometry import Box
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume
from neurovol.volume.shards import codec_of

CHUNK, SHARD, SHAPE = (4, 8, 8), (8, 16, 16), (13, 19, 31)


def _volume(path: Path, channels: int = 1, codec: str = "auto", dtype: str = "uint16") -> VolumeWriter:
    create_volume(path, shape=SHAPE, channels=channels, dtype=dtype, voxel_size_um=(2, 1, 1), chunk=CHUNK, shard=SHARD,
                  factors=[], codec=codec)  # fmt: skip
    return VolumeWriter(str(path))


def _streamed(writer: VolumeWriter, box: Box, voxels: np.ndarray, cuts: list[int]) -> object:
    """Summed up in slabs that end at `cuts`, written in layers of chunks."""
    with writer.stream(box) as stream:
        for slab in np.split(voxels, cuts, axis=1):
            stream.sum_up(slab)
        for z in range(0, voxels.shape[1], CHUNK[0]):
            stream.write(voxels[:, z : z + CHUNK[0]])
        return stream.finish()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([Box((0, 0, 0), (8, 16, 16)), Box((8, 16, 16), (13, 19, 31)), Box((8, 0, 16), (13, 16, 31))]),
    st.lists(st.integers(1, 12), max_size=3).map(sorted),
    st.sampled_from(["uint8", "uint16"]),
    st.integers(0, 99),
)
def test_however_a_shard_is_cut_into_slabs_its_file_and_receipt_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, channels: int, box: Box, cuts: list[int], dtype: str, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("v")
    voxels = np.random.default_rng(seed).integers(0, 250, (channels, *box.shape)).astype(dtype)
    voxels[..., : box.shape[2] // 2] = 0
    cuts = [min(cut, box.shape[0]) for cut in cuts]
    whole, slabs = _volume(folder / "a", channels, dtype=dtype), _volume(folder / "b", channels, dtype=dtype)
    whole.write(box.__class__((0, 0, 0), SHARD), np.full((channels, *SHARD), 9, dtype))  # memory that is not fresh
    assert _streamed(slabs, box, voxels, cuts) == whole.write(box, voxels)
    np.testing.assert_array_equal(VolumeReader(str(folder / "b"), allow_incomplete=True).read(box), voxels)
    name = Path("0", "c", "0", *(str(a // s) for a, s in zip(box.start, SHARD, strict=True)))
    assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()


def test_a_shard_that_lacks_slices_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    writer, box = _volume(tmp_path / "v"), Box((0, 0, 0), SHARD)
    with pytest.raises(ValueError, match=r"\(1, 1, 16, 16\) .* is no layer of chunks \(4, 8, 8\); 4 slices left"):
        _streamed(writer, box, np.ones((1, 5, 16, 16), np.uint16), [])
    with pytest.raises(ValueError, match="of 8 slices of a shard 4 were summed up, 4 written"):
        _streamed(writer, box, np.ones((1, 4, 16, 16), np.uint16), [])
    assert not list((tmp_path / "v").rglob("*.partial"))
    assert not (tmp_path / "v" / "0" / "c" / "0" / "0" / "0" / "0").exists()


def test_only_one_whole_shard_can_be_streamed(tmp_path: Path) -> None:
    writer = _volume(tmp_path / "v")
    with pytest.raises(ValueError, match="is not one shard"), writer.stream(Box((0, 0, 0), (8, 16, 31))):
        pass
    with pytest.raises(ValueError, match="two blocks would write one shard"), writer.stream(Box((0, 0, 0), (8, 8, 16))):
        pass


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_volume_is_continued_with_the_codec_it_was_begun_with(tmp_path: Path, codec: str, dtype: str) -> None:
    import zarr

    writer = _volume(tmp_path / "v", codec=codec, dtype=dtype)
    create_volume(tmp_path / "v", shape=SHAPE, channels=1, dtype=dtype, voxel_size_um=(2, 1, 1), chunk=CHUNK,
                  shard=SHARD, factors=[])  # fmt: skip
    box, voxels = Box((0, 0, 0), SHARD), np.arange(8 * 16 * 16).reshape(1, *SHARD).astype(dtype)
    writer.write(box, voxels)
    array = zarr.open_array(str(tmp_path / "v" / "0"), mode="r")
    found = codec_of(array)
    assert "lz4" in (found.name, found.within) if codec == "lz4" else "lz4" not in (found.name, found.within)
    np.testing.assert_array_equal(np.asarray(array[(slice(None), *box.slices)]), voxels)
