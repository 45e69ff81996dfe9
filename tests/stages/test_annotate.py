"""What experts drew becomes labels, with the numbers of single neurons beside them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurovol.cli import main
from neurovol.geometry import Box
from neurovol.volume.omezarr import VolumeReader

PROJECT = """
name = "p"
[[samples]]
name = "s"
source = "raw.tif"
voxel_size_um = [2.0, 1.0, 1.0]
[[annotations]]
sample = "s"
source = "drawn.tif"
values = {neuron = "instances"}
"""


def test_neurons_numbers_are_kept_beside_the_labels(tmp_path: Path) -> None:
    numbers = np.zeros((4, 40, 50), np.uint16)
    numbers[1, 5:9, 5:9], numbers[2, 20:30, 20:30] = 7, 3
    tifffile.imwrite(tmp_path / "raw.tif", np.ones((4, 40, 50), np.uint16), photometric="minisblack")
    tifffile.imwrite(tmp_path / "drawn.tif", numbers, photometric="minisblack")
    file = tmp_path / "project.toml"
    file.write_text(PROJECT)
    assert main(["convert", str(file)]) == 0
    labels = tmp_path / "stores/p/samples/s/image.ome.zarr/labels"
    whole = Box.of_shape(numbers.shape)
    np.testing.assert_array_equal(VolumeReader(str(labels / "train")).read(whole), (numbers > 0) + 1)
    np.testing.assert_array_equal(VolumeReader(str(labels / "train-instances")).read(whole), numbers)
    listed = json.loads((labels / "zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert {"train", "train-instances"} <= set(listed)
    numbers[3, :9, :9] = 9
    tifffile.imwrite(tmp_path / "drawn.tif", numbers, photometric="minisblack")
    assert main(["convert", str(file)]) == 2
    assert main(["convert", str(file), "--redo", "annotate"]) == 0
    np.testing.assert_array_equal(VolumeReader(str(labels / "train-instances")).read(whole), numbers)
    assert sorted(f.name for f in labels.iterdir() if f.name != "tissue") == ["train", "train-instances", "zarr.json"]


def test_labels_that_went_with_the_old_image_are_made_again(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "raw.tif", np.ones((4, 40, 50), np.uint16), photometric="minisblack")
    drawn = np.full((4, 40, 50), 3, np.uint16)
    tifffile.imwrite(tmp_path / "drawn.tif", drawn, photometric="minisblack")
    file = tmp_path / "project.toml"
    file.write_text(PROJECT)
    assert main(["convert", str(file)]) == 0
    labels = tmp_path / "stores/p/samples/s/image.ome.zarr/labels/train"
    shutil.rmtree(labels)  # as where death comes right after a new image took the old one's place
    assert main(["convert", str(file)]) == 0
    np.testing.assert_array_equal(VolumeReader(str(labels)).read(Box.of_shape(drawn.shape)), 2)
    assert main(["convert", str(file), "--redo", "convert"]) == 0
    np.testing.assert_array_equal(VolumeReader(str(labels)).read(Box.of_shape(drawn.shape)), 2)


def test_an_annotation_drawn_on_other_pixels_is_refused_with_the_offset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = np.random.default_rng(0).integers(1, 5000, (12, 60, 70)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "raw.tif", raw, photometric="minisblack")
    tifffile.imwrite(tmp_path / "crop.tif", raw[3:8, 12:40, 20:55], photometric="minisblack")
    tifffile.imwrite(tmp_path / "drawn.tif", np.zeros((5, 28, 35), np.uint8), photometric="minisblack")
    file = tmp_path / "project.toml"
    text = PROJECT.replace('values = {neuron = "instances"}', 'crop = "crop.tif"\nbox = [[2, 7], [10, 38], [25, 60]]')
    file.write_text(text)
    assert main(["convert", str(file)]) == 2
    said = capsys.readouterr().err
    assert "[[3, 8], [12, 40], [20, 55]]" in said
    assert "Traceback" not in said
    file.write_text(text.replace("[[2, 7], [10, 38], [25, 60]]", "[[3, 8], [12, 40], [20, 55]]"))
    assert main(["convert", str(file)]) == 0
