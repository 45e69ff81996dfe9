"""Other people's readers of OME-Zarr find our voxels, sizes and places at every level."""

import numpy as np
import pytest

SCALES = [(5.0, 2.0, 2.0), (5.0, 4.0, 4.0), (10.0, 8.0, 8.0)]
SHIFTS = [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (2.5, 3.0, 3.0)]


def test_ngff_zarr_reads_every_level_of_an_image(written):
    ngff_zarr = pytest.importorskip("ngff_zarr")
    images = ngff_zarr.from_ngff_zarr(written.image, validate=True).images
    assert [image.dims for image in images] == [("c", "z", "y", "x")] * 3
    _check_ngff_zarr(images, written.image_levels)


def test_ngff_zarr_reads_every_level_of_labels(written):
    ngff_zarr = pytest.importorskip("ngff_zarr")
    images = ngff_zarr.from_ngff_zarr(written.image / "labels" / "train").images
    assert [image.dims for image in images] == [("z", "y", "x")] * 3
    _check_ngff_zarr(images, written.label_levels)


def _check_ngff_zarr(images, levels):
    for image, level, scale, shift in zip(images, levels, SCALES, SHIFTS, strict=True):
        assert image.data.dtype == level.dtype
        np.testing.assert_array_equal(image.data.compute(scheduler="synchronous"), level)
        assert tuple(image.scale[axis] for axis in "zyx") == scale
        assert tuple(image.translation[axis] for axis in "zyx") == shift
        assert {image.axes_units[axis] for axis in "zyx"} == {"micrometer"}


def test_ome_zarr_reads_every_level_of_image_and_labels(written):
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Multiscales, Reader

    nodes = [node for node in Reader(parse_url(written.image))() if node.load(Multiscales)]
    image, labels = sorted(nodes, key=lambda node: len(node.zarr.path))
    assert image.metadata["contrast_limits"] == [[100, 41000], [100, 1000]]
    for node, levels in ((image, written.image_levels), (labels, written.label_levels)):
        assert [axis["name"] for axis in node.metadata["axes"]][-3:] == ["z", "y", "x"]
        for read, level in zip(node.data, levels, strict=True):
            assert read.dtype == level.dtype
            np.testing.assert_array_equal(read.compute(scheduler="synchronous"), level)
        steps = [{step["type"]: step[step["type"]] for step in at} for at in node.metadata["coordinateTransformations"]]
        assert [tuple(step["scale"][-3:]) for step in steps] == SCALES
        assert [tuple(step.get("translation", (0.0,) * 3)[-3:]) for step in steps] == SHIFTS


def test_ome_zarr_reads_the_names_and_colours_of_block_states(blocks):
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Multiscales, Reader

    nodes = [node for node in Reader(parse_url(blocks.path))() if node.load(Multiscales)]
    seconds, states = sorted(nodes, key=lambda node: len(node.zarr.path))
    assert seconds.data[0].dtype == np.float32
    assert seconds.metadata["contrast_limits"] == [[0.0, 1.0]]
    assert states.metadata["properties"] == {1: {"name": "done"}, 4: {"name": "set aside"}}
    assert {value: list(rgba) for value, rgba in states.metadata["color"].items()} == {1: [0, 1, 0, 1], 4: [1, 0, 0, 1]}
    assert np.count_nonzero(states.data[0].compute(scheduler="synchronous") == 4) == 1
