"""What a conversion leaves for looking at: a mask that lies over the image, and a picture of it."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from PIL import Image

from neurovol.errors import Failure
from neurovol.geometry import BlockGrid, Box
from neurovol.settings import StoreSettings
from neurovol.stages.glance import glance_level, middle_slice
from neurovol.stages.overview import make_overview, preview_level
from neurovol.stages.tissue import MaskTissue, tissue_in
from neurovol.volume.omezarr import VolumeInfo, VolumeReader, VolumeWriter, create_volume, finish_volume, open_volume
from neurovol.volume.pyramid import downsample

SHAPE = (23, 130, 190)
SIZE = (5.0, 2.0, 4.0)
FACTORS = [(1, 2, 1), (2, 2, 2)]  # the mask is made at level 2, of 10 × 8 × 8 µm
BALL = (11, 61, 120)
CONSTANTS = ([100, 100], [900, 900])


def volume() -> np.ndarray:
    """Two channels: noise, in the first with tissue from row 60 on, in the second with a bright ball in it."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 4, (2, *SHAPE))
    image[0, :, 60:] = rng.normal(300, 60, image[0, :, 60:].shape)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    distance = np.sqrt(((z - BALL[0]) * 5) ** 2 + ((y - BALL[1]) * 2) ** 2 + ((x - BALL[2]) * 4) ** 2)
    image[1][distance < 15] = 5000
    return np.asarray(image.clip(0).round(), np.uint16)


def write_levels(path: Path, array: np.ndarray, **changed: Any) -> Path:
    """All levels of an image, not yet marked complete."""
    layout = {"shape": SHAPE, "voxel_size_um": SIZE, "chunk": (8, 16, 32), "shard": (16, 64, 64), "factors": FACTORS}
    create_volume(path, channels=len(array), dtype=array.dtype, **(layout | changed))
    info = open_volume(path, allow_incomplete=True)
    for level in range(info.levels):
        if level:
            array = downsample(array, info.factors[level - 1], "mean")
        for block in BlockGrid(info.level_shape(level), info.shard(level), info.shard(level)):
            VolumeWriter(str(path), level).write(block.write, array[(..., *block.write.slices)])
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def positions(store: Path, dataset: int, axis: int, indices: np.ndarray) -> np.ndarray:
    """Where the voxels of a level lie along an axis, in µm, by the metadata alone."""
    ome = json.loads((store / "zarr.json").read_text())["attributes"]["ome"]
    steps = ome["multiscales"][0]["datasets"][dataset]["coordinateTransformations"]
    found = {step["type"]: step[step["type"]][axis - 3] for step in steps}  # there may be a channel axis
    return indices * found["scale"] + found.get("translation", 0.0)


@pytest.fixture(scope="module")
def made(client: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished image with its overview, only to be read; and what was recorded."""
    store = write_levels(tmp_path_factory.mktemp("overview") / "image.ome.zarr", volume())
    attributes = make_overview(store, client, StoreSettings(), CONSTANTS, store.with_name("preview.png"))
    finish_volume(store, name="image", attributes=attributes, omero=[(100, 900), (100, 900)])
    return store, attributes


def test_the_mask_lies_over_the_level_it_was_made_from(made: tuple[Path, dict[str, Any]]) -> None:
    store, _ = made
    mask = store / "labels" / "tissue"
    shape = open_volume(mask).shape
    assert shape == open_volume(store).level_shape(2)
    for axis, n in enumerate(shape):
        indices = np.arange(n)
        np.testing.assert_allclose(positions(mask, 0, axis, indices), positions(store, 2, axis, indices))


def test_the_mask_begins_a_margin_before_the_tissue_does(made: tuple[Path, dict[str, Any]]) -> None:
    store, attributes = made
    info = open_volume(store / "labels" / "tissue")
    mask = VolumeReader(str(info.path)).read(Box.of_shape(info.shape))
    rows = positions(info.path, 0, 1, np.flatnonzero(mask[..., :30].any(axis=(0, 2))))  # beside the ball
    assert 60 * 2.0 - 3 * 8 <= rows.min() <= 60 * 2.0 - 8
    assert mask[:, 15:].all()
    assert set(np.unique(mask)) == {0, 1}
    assert attributes == {"tissue": {"level": 2, "share": info.attributes["share"]}}
    assert info.attributes["coarser"] == [2, 4, 2]
    assert 100 < info.attributes["thresholds"][0] < 120


def test_few_bright_cells_in_a_channel_of_noise_are_tissue_and_its_noise_is_not(client: Client, tmp_path: Path) -> None:
    image = volume()
    image[1, 8:12, 20:24, 20:24] = 5000  # in the surroundings of the other channel's tissue
    store = write_levels(tmp_path / "v", image)
    make_overview(store, client, StoreSettings(preview=False), CONSTANTS, tmp_path / "p.png")
    assert tissue_in(store, Box((8, 20, 20), (12, 24, 24))) == 1
    assert tissue_in(store, Box((0, 0, 60), (23, 40, 190))) == 0


def test_a_box_is_empty_only_where_no_tissue_touches_it(made: tuple[Path, dict[str, Any]]) -> None:
    store, attributes = made
    assert tissue_in(store, Box((0, 0, 0), (23, 40, 190))) == 0
    assert tissue_in(store, Box((0, 100, 0), (23, 130, 190))) == 1
    assert 0 < tissue_in(store, Box((0, 0, 0), (23, 64, 190))) < 0.5
    assert tissue_in(store, Box.of_shape(SHAPE)) == pytest.approx(attributes["tissue"]["share"], abs=1e-6)


def test_the_mask_is_valid_ome_zarr(made: tuple[Path, dict[str, Any]]) -> None:
    from ome_zarr_models.v05.image_label import ImageLabel
    from ome_zarr_models.v05.labels import Labels

    store, _ = made
    with warnings.catch_warnings():  # of pydantic, about the models themselves
        warnings.simplefilter("ignore")
        assert Labels.from_zarr(zarr.open_group(store / "labels", mode="r")).label_paths == ["tissue"]
        label = ImageLabel.from_zarr(zarr.open_group(store / "labels" / "tissue", mode="r"))
    assert [axis.name for axis in label.attributes.ome.multiscales[0].axes] == ["z", "y", "x"]


def test_the_preview_shows_the_ball_in_its_place_and_colour(made: tuple[Path, dict[str, Any]]) -> None:
    store, _ = made
    picture = np.asarray(Image.open(store.with_name("preview.png"))).astype(int)
    assert picture.shape == (260, 760, 3)  # pixels of 2 × 4 µm made square, and enlarged to be seen
    red = (picture[..., 0] > 200) & (picture[..., 1] < 150)
    rows, cols = np.nonzero(red)
    um_per_px = 1.0
    assert (rows.mean() + 0.5) * um_per_px == pytest.approx((BALL[1] + 0.5) * 2, abs=2)
    assert (cols.mean() + 0.5) * um_per_px == pytest.approx((BALL[2] + 0.5) * 4, abs=2)
    assert picture[:100, :200].mean() < picture[140:220, :200].mean() / 3
    assert picture[140:220, :200, 1].mean() > 100  # the first channel is green


def test_one_channel_is_grey_with_a_white_scale_bar(client: Client, tmp_path: Path) -> None:
    store = write_levels(tmp_path / "v", volume()[:1])
    make_overview(store, client, StoreSettings(tissue=False), ([100], [900]), tmp_path / "p.png")
    image = Image.open(tmp_path / "p.png")
    assert image.mode == "L"
    assert (np.asarray(image)[-12:, -60:] == 255).any()
    assert not (store / "labels").exists()


def test_made_twice_or_after_being_killed_the_bytes_are_the_same(client: Client, tmp_path: Path) -> None:
    store, preview = write_levels(tmp_path / "v", volume()), tmp_path / "p.png"
    first = make_overview(store, client, StoreSettings(), CONSTANTS, preview)
    before = files(tmp_path)
    (tmp_path / "p.png.1.partial").write_bytes(b"torn")
    shard = open_volume(store / "labels" / "tissue").shard_file(0, (0, 0, 0))
    shard.write_bytes(b"torn")
    (store / "labels" / "tissue" / "zarr.json").unlink()
    assert make_overview(store, client, StoreSettings(), CONSTANTS, preview) == first
    assert files(tmp_path) == before


def test_what_is_not_asked_for_is_not_there(client: Client, tmp_path: Path) -> None:
    store, preview = write_levels(tmp_path / "v", volume()), tmp_path / "p.png"
    make_overview(store, client, StoreSettings(), CONSTANTS, preview)
    assert make_overview(store, client, StoreSettings(tissue=False, preview=False), CONSTANTS, preview) == {}
    assert not (store / "labels" / "tissue").exists()
    assert not preview.exists()


def test_a_sample_that_is_tissue_throughout_needs_no_surroundings(client: Client, tmp_path: Path) -> None:
    store = write_levels(tmp_path / "v", volume()[:1, :, 60:], shape=(23, 70, 190))
    found = make_overview(store, client, StoreSettings(preview=False), ([100], [900]), tmp_path / "p.png")
    assert found["tissue"]["share"] == 1


def test_blocks_never_show(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = volume()
    stores = [write_levels(tmp_path / name, array) for name in ("whole", "cut")]
    make_overview(stores[0], client, StoreSettings(preview=False), CONSTANTS, tmp_path / "p.png")
    monkeypatch.setattr("neurovol.stages.tissue.CHUNK", (2, 4, 8))
    monkeypatch.setattr("neurovol.stages.tissue.SHARD", (2, 8, 8))
    make_overview(stores[1], client, StoreSettings(preview=False), CONSTANTS, tmp_path / "p.png")
    masks = [store / "labels" / "tissue" for store in stores]
    assert len(BlockGrid(open_volume(masks[1]).shape, (2, 8, 8), (2, 8, 8))) > 100
    whole, cut = (VolumeReader(str(mask)).read(Box.of_shape(open_volume(mask).shape)) for mask in masks)
    np.testing.assert_array_equal(whole, cut)


def test_a_block_that_fails_is_named(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_levels(tmp_path / "v", volume())

    class Broken(MaskTissue):
        def __call__(self, block: Any) -> Any:
            raise Failure("the disk is on fire")

    monkeypatch.setattr("neurovol.stages.tissue.MaskTissue", Broken)
    with pytest.raises(Failure, match=r"block 0 at z, y, x .* failed: .*on fire; run again .* convert\.tissue = false"):
        make_overview(store, client, StoreSettings(), CONSTANTS, tmp_path / "p.png", retries=0)


def test_no_read_is_larger_than_a_piece(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_levels(tmp_path / "v", volume())
    monkeypatch.setattr("neurovol.stages.overview.PIECE", (4, 32, 32))
    monkeypatch.setattr("neurovol.stages.tissue.PIECE", (4, 32, 32))
    monkeypatch.setattr("neurovol.volume.tissue.PIECE", (4, 32, 32))
    sizes: list[int] = []
    read = VolumeReader.read

    def counted(self: VolumeReader, box: Box, channels: Any = None) -> Any:
        sizes.append(box.size * len(channels or (0,)))
        return read(self, box, channels)

    monkeypatch.setattr(VolumeReader, "read", counted)  # in this process; workers have their own
    make_overview(store, client, StoreSettings(), CONSTANTS, tmp_path / "p.png")
    assert len(sizes) > 100
    assert max(sizes) <= 4 * 32 * 32


def test_the_preview_is_of_a_level_that_is_quickly_read() -> None:
    def level(shape: tuple[int, int, int], factors: list[tuple[int, int, int]]) -> int:
        sizes = {"voxel_size_um": (1.0, 1.0, 1.0), "chunk": (32, 64, 64), "full_shard": (32, 64, 64)}
        flags = {"fused": 0, "sparse": False, "complete": True, "attributes": {}, "channels": 1}
        info = VolumeInfo(path=Path(), shape=shape, dtype=np.dtype("uint16"), factors=tuple(factors), **sizes, **flags)
        return preview_level(info)

    halved = [(2, 2, 2)] * 6
    assert level((64, 2048, 2048), halved) == 0
    assert level((65, 2048, 2048), halved) == 1  # 0.27 billion voxels are not read twice
    assert level((2000, 20000, 20000), halved) == 4
    assert level((1, 9000, 9000), [(1, 2, 2)]) == 1


def test_the_picture_is_a_png_as_wide_as_its_level(made: tuple[Path, dict[str, Any]]) -> None:
    store, _ = made
    content = store.with_name("preview.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert Image.open(io.BytesIO(content)).size == (760, 260)


def test_a_glance_takes_the_coarsest_level_that_fills_it_and_its_middle_slice(tmp_path: Path) -> None:
    array = np.broadcast_to(np.arange(23, dtype=np.uint16)[:, None, None], (23, 130, 850))[None]
    store = write_levels(tmp_path / "image.ome.zarr", array, shape=(23, 130, 850), factors=[(1, 2, 2), (2, 2, 2)])
    finish_volume(store, name="a", attributes={})
    info = open_volume(store)
    assert glance_level(info) == 1  # 425 voxels along x, and 213 at the next
    assert [plane.shape for plane in (middle_slice(info, 1), middle_slice(info, 2))] == [(1, 65, 425), (1, 33, 213)]
    assert set(middle_slice(info, 0).flat) == {11}
