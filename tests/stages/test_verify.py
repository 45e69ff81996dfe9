"""Damage is found wherever it is, and mended without touching the rest."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurovol.cli import main
from neurovol.geometry import Box
from neurovol.volume.omezarr import VolumeWriter, open_volume
from tests.tiny import contents

STACK = np.random.default_rng(0).integers(1, 60000, (40, 150, 170)).astype(np.uint16)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A converted volume of several shards at three levels, its source in raw/s.tif."""
    (tmp_path / "raw").mkdir()
    tifffile.imwrite(tmp_path / "raw/s.tif", STACK, photometric="minisblack")
    dest = tmp_path / "v.ome.zarr"
    settings = ["--voxel-size", "2", "0.88", "0.88", "--set", "convert.shard=[32, 64, 64]"]
    assert main(["convert", str(tmp_path / "raw/s.tif"), str(dest), *settings]) == 0
    return dest


def verify(store: Path, *arguments: str) -> int:
    return main(["verify", str(store), *arguments])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


SPOILS = {"a flipped byte": flip, "a deleted shard": Path.unlink, "a truncated shard": cut,
          "an empty shard": lambda file: file.write_bytes(b"")}  # fmt: skip


def test_a_whole_volume_is_called_whole(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(store, "--source", str(store.parent / "raw/s.tif")) == 0
    assert "all 27 shards are whole and equal to the source (27 as the ledger recorded)" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", SPOILS)
def test_damage_is_found_and_repaired_to_the_same_bytes(
    store: Path, spoil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, info = contents(store), open_volume(store)
    files = [info.shard_file(0, (1, 0, 2)), info.shard_file(1, (0, 1, 0)), info.shard_file(2, (0, 0, 0))]
    for file in files:
        SPOILS[spoil](file)
    untouched = info.shard_file(0, (0, 0, 0)).stat().st_mtime_ns
    assert verify(store) == 1
    said = capsys.readouterr()
    for file in files:
        assert f"damaged: {file} (level" in said.out
    assert "3 of 27 shards are damaged" in said.err
    assert "Traceback" not in said.err + said.out
    assert verify(store, "--repair") == 2  # level 0 needs its source
    assert "give it as --source" in capsys.readouterr().err
    assert verify(store, "--repair", "--source", str(store.parent / "raw/s.tif")) == 0
    assert contents(store) == before
    assert info.shard_file(0, (0, 0, 0)).stat().st_mtime_ns == untouched


def test_coarser_levels_are_repaired_without_the_source(store: Path) -> None:
    before, info = contents(store), open_volume(store)
    flip(info.shard_file(1, (0, 0, 0)))
    info.shard_file(2, (0, 0, 0)).unlink()
    assert verify(store, "--repair") == 0
    assert contents(store) == before


def test_whole_but_foreign_voxels_are_told_by_the_ledger_and_by_the_source(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = open_volume(store)
    box_shape = info.shard(0)
    foreign = np.ones((1, *box_shape), np.uint16)
    VolumeWriter(str(store)).write(Box.of_shape(box_shape), foreign)
    assert verify(store) == 1
    assert "the ledger recorded" in capsys.readouterr().out
    assert verify(store, "--source", str(store.parent / "raw/s.tif")) == 1
    assert "voxels differ from the source's" in capsys.readouterr().out


def test_another_source_is_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = store.parent / "other.tif"
    tifffile.imwrite(other, STACK[:, :, ::-1].copy(), photometric="minisblack")
    assert verify(store, "--source", str(other)) == 2
    assert "was converted from another source" in capsys.readouterr().err
    tifffile.imwrite(other, STACK[1:], photometric="minisblack")
    assert verify(store, "--source", str(other)) == 2
    assert "(39, 150, 170)" in capsys.readouterr().err


def test_labels_and_probabilities_are_verified_too(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = copied.parent / "stores/tiny/samples/a"
    stores = [sample / "image.ome.zarr/labels/train", *sample.glob("*@*.ome.zarr")]
    for volume in stores:
        assert verify(volume) == 0
    info = open_volume(stores[0])
    before = contents(stores[0])
    flip(info.shard_file(1, (0, 0, 0)))
    assert verify(stores[0], "--repair") == 0
    assert contents(stores[0]) == before
    file = info.shard_file(0, (0, 0, 0))
    file.unlink()
    assert verify(stores[0]) == 1
    assert verify(stores[0], "--source", "x.tif") == 2
    assert "labels or probabilities" in capsys.readouterr().err


@pytest.mark.slow
def test_a_project_is_verified_whole_and_repaired_by_the_steps_that_made_it(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = copied.parent / "stores/tiny/samples/a"
    assert verify(copied) == 0
    said = capsys.readouterr().out
    volumes = [sample / "image.ome.zarr", sample / "image.ome.zarr/labels/train", *sample.glob("*@*.ome.zarr")]
    assert all(f"{volume}: all" in said for volume in volumes)
    assert said.count("whole (0 as the ledger recorded)") == 2  # the tissue masks have no ledgers
    before = {volume: contents(volume) for volume in volumes}
    for volume in volumes:
        flip(open_volume(volume).shard_file(0, (0, 0, 0)))
    assert verify(copied) == 1
    told = capsys.readouterr()
    assert all(f"{volume}: 1 of" in told.err for volume in volumes)
    assert verify(copied, "--repair") == 0
    assert {volume: contents(volume) for volume in volumes} == before


def test_foreign_probabilities_are_told_by_the_ledger_at_every_level(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (volume,) = copied.parent.glob("stores/tiny/samples/a/unet3d@*.ome.zarr")
    info = open_volume(volume)
    level = info.fused + 1  # the first whose blocks are of its own
    box = Box.of_shape(info.level_shape(level)).intersect(Box.of_shape(info.shard(level)))
    VolumeWriter(str(volume), level).write(box, np.full(box.shape, 7, np.uint8))
    assert verify(volume) == 1
    assert "the ledger recorded" in capsys.readouterr().out
    assert verify(volume, "--repair") == 0


def test_a_volume_that_is_lost_keeps_no_other_from_being_read(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = copied.parent / "stores/tiny/samples"
    lost = [samples / "a/image.ome.zarr/zarr.json", *samples.glob("a/unet3d@*.ome.zarr/zarr.json")]
    for file in lost:
        file.unlink()
    (damaged,) = samples.glob("b/unet3d@unet3d_pseudo*.ome.zarr")
    flip(open_volume(damaged).shard_file(0, (0, 0, 0)))
    assert verify(copied) == 1
    told = capsys.readouterr()
    assert all(str(file.parent) in told.err for file in lost)
    assert f"{damaged}: 1 of" in told.err
    assert f"{samples / 'b/image.ome.zarr'}: all 16 shards are whole (8 as the ledger recorded)" in told.out
