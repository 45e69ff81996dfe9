"""Imaris and plain HDF5 files, written by h5py, read back in parts."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.errors import Failure, UserError
from neurovol.geometry import Box
from neurovol.volume.imaris import open_imaris

h5py = pytest.importorskip("h5py")

STACK = np.random.default_rng(0).integers(0, 60000, (2, 7, 13, 31)).astype(np.uint16)  # c, z, y, x
IMAGE = {"Z": 7, "Y": 13, "X": 31, "Unit": "um", "ExtMin0": -2, "ExtMax0": 13.5, "ExtMin1": 0, "ExtMax1": 13}
IMAGE |= {"ExtMin2": 100, "ExtMax2": 114}  # so voxels of 2 × 1 × 0.5 µm

boxes = st.builds(
    lambda *pairs: Box.from_pairs(sorted(p) for p in pairs),
    *(st.tuples(st.integers(0, n), st.integers(0, n)) for n in STACK.shape[1:]),
)

WAYS = {
    "chunks": {"chunks": (4, 8, 8)},
    "gzip": {"chunks": (4, 8, 8), "compression": "gzip", "shuffle": True},
    "LZF": {"chunks": (4, 8, 8), "compression": "lzf", "fletcher32": True},
    "contiguous": {},
    "big-endian": {"dtype": ">u2"},
}


def write_imaris(file: Path, stack: np.ndarray = STACK, *, pad: int = 5, times: int = 1, **image: object) -> Path:
    """As Imaris writes: data padded, attributes as arrays of single characters, a coarser level beside the finest."""
    with h5py.File(file, "w") as hdf:
        info = hdf.create_group("DataSetInfo/Image")
        for name, value in (IMAGE | image).items():
            if value is not None:
                info.attrs[name] = np.array([c.encode("latin-1") for c in str(value)], "S1")
        for level, step in enumerate((1, 2)):
            for t in range(times):
                for c, channel in enumerate(stack):
                    data = np.pad(channel[:, ::step, ::step], ((0, pad), (0, pad), (0, pad)))
                    name = f"DataSet/ResolutionLevel {level}/TimePoint {t}/Channel {c}/Data"
                    hdf.create_dataset(name, data=data, chunks=(4, 8, 8), compression="gzip")
        hdf.create_dataset("Thumbnail/Data", data=np.zeros((64, 256), np.uint8))
    return file


def write_hdf(file: Path, **datasets: object) -> Path:
    with h5py.File(file, "w") as hdf:
        for name, data in datasets.items():
            hdf[name] = data
    return file


def whole(source) -> np.ndarray:
    return source.read(Box.of_shape(source.shape[1:]), tuple(range(source.shape[0])))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes, wanted=st.lists(st.integers(0, 1), min_size=1, max_size=3).map(tuple))
def test_any_box_of_an_imaris_file_is_the_same_crop_of_the_whole(tmp_path, box, wanted):
    if not (tmp_path / "a.ims").exists():
        write_imaris(tmp_path / "a.ims")
    source = open_imaris(tmp_path / "a.ims")
    assert (source.shape, source.dtype) == (STACK.shape, np.uint16)
    assert source.voxel_size_um == pytest.approx((2, 1, 0.5))
    assert source.grain == (4, 8, 8)
    np.testing.assert_array_equal(source.read(box, wanted), STACK[list(wanted)][(..., *box.slices)])


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes)
def test_any_box_of_a_plain_stack_is_the_same_crop_of_the_whole(tmp_path, way, box):
    if not (tmp_path / "a.h5").exists():
        with h5py.File(tmp_path / "a.h5", "w") as hdf:
            hdf.create_dataset("exported/data", data=STACK[0], **WAYS[way])
    source = open_imaris(tmp_path / "a.h5")
    assert (source.shape, source.dtype, source.voxel_size_um) == ((1, 7, 13, 31), np.dtype("=u2"), None)
    assert source.grain == WAYS[way].get("chunks", (1, 1, 1))
    np.testing.assert_array_equal(source.read(box, (0,))[0], STACK[0][box.slices])


def test_four_axes_are_c_z_y_x_and_uint8_stays_uint8(tmp_path):
    stack = (STACK >> 8).astype(np.uint8)
    source = open_imaris(write_hdf(tmp_path / "a.hdf5", stack=stack, picture=stack[0, 0], table=np.zeros(9)))
    assert (source.shape, source.dtype) == (STACK.shape, np.uint8)
    np.testing.assert_array_equal(source.read(Box((1, 2, 3), (6, 9, 30)), (1, 0)), stack[::-1, 1:6, 2:9, 3:30])


def test_labels_of_the_dimensions_name_the_axes(tmp_path):
    file = write_hdf(tmp_path / "a.h5", stack=STACK.transpose(3, 2, 1, 0)[None])
    with h5py.File(file, "a") as hdf:
        hdf["stack2"] = hdf["stack"][0]
        del hdf["stack"]
        for dim, label in zip(hdf["stack2"].dims, "xyzc", strict=True):
            dim.label = label
    np.testing.assert_array_equal(whole(open_imaris(file)), STACK)


def test_fijis_element_size_is_the_voxel_size(tmp_path):
    file = write_hdf(tmp_path / "a.h5", stack=STACK[0])
    with h5py.File(file, "a") as hdf:
        hdf["stack"].attrs["element_size_um"] = [2.0, 0.5, 0.5]
    assert open_imaris(file).voxel_size_um == (2, 0.5, 0.5)


@pytest.mark.parametrize("name", ["a.ims", "a.h5"])
def test_a_box_is_read_into_the_array_given(tmp_path, name):
    file = write_imaris(tmp_path / name)
    box = Box((1, 2, 3), (6, 11, 30))
    room = np.zeros((2, 5, 9, 40), np.uint16)
    for out in (room[..., :27], np.zeros((2, 5, 9, 27), np.uint16)):
        assert open_imaris(file).read(box, (1, 0), out) is out
        np.testing.assert_array_equal(out, STACK[::-1][(..., *box.slices)])
    assert not room[..., 27:].any()


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ({"Unit": "nm"}, (2e-3, 1e-3, 0.5e-3)),
        ({"Unit": "µm"}, (2, 1, 0.5)),
        ({"Unit": None}, None),
        ({"Unit": "parsec"}, None),
        ({"ExtMax1": None}, None),
        ({"ExtMax2": 100}, None),
    ],
)
def test_the_voxel_size_is_told_only_with_its_unit(tmp_path, image, told):
    source = open_imaris(write_imaris(tmp_path / "a.ims", **image))
    assert source.voxel_size_um == (None if told is None else pytest.approx(told))


def test_of_several_stacks_one_is_picked_by_its_path(tmp_path):
    file = write_hdf(tmp_path / "a.h5", raw=STACK[0], mask=STACK[1])
    with pytest.raises(UserError, match=r"a\.h5: holds 2 stacks: /mask \(7, 13, 31\), /raw .* as .*a\.h5:/mask"):
        open_imaris(file)
    for name in ("raw", "/raw"):
        np.testing.assert_array_equal(whole(open_imaris(Path(f"{file}:{name}")))[0], STACK[0])
    with pytest.raises(UserError, match=r"a\.h5:/row: there is no such dataset"):
        open_imaris(Path(f"{file}:/row"))


def test_a_source_is_picklable_and_small(tmp_path):
    pickled = pickle.dumps(open_imaris(write_imaris(tmp_path / "a.ims")))
    assert len(pickled) < 1000
    np.testing.assert_array_equal(whole(pickle.loads(pickled)), STACK)


def test_identity_names_the_file_with_size_and_time(tmp_path):
    file = write_hdf(tmp_path / "a.h5", raw=STACK[0])
    found = open_imaris(file).identity()
    wanted = {"a.h5": [file.stat().st_size, file.stat().st_mtime_ns]}
    assert found == {"kind": "HDF5", "files": wanted, "datasets": ["raw"], "axes": "zyx"}
    assert json.loads(json.dumps(found)) == found
    assert open_imaris(write_imaris(tmp_path / "a.ims")).identity()["kind"] == "Imaris"


def test_a_file_that_changes_or_goes_is_a_failure(tmp_path):
    file = write_imaris(tmp_path / "a.ims")
    source = open_imaris(file)
    write_imaris(file, STACK[:, ::-1])
    with pytest.raises(Failure, match=r"a\.ims: box .* could not be read: it has changed since it was opened"):
        whole(source)
    file.unlink()
    with pytest.raises(Failure, match=r"a\.ims: box .* could not be read: .*No such file"):
        whole(source)


def test_a_damaged_chunk_is_a_failure_that_names_the_box(tmp_path):
    file = tmp_path / "a.h5"
    with h5py.File(file, "w") as hdf:
        hdf.create_dataset("raw", data=STACK[0], chunks=(4, 8, 8), compression="gzip", fletcher32=True)
        last = hdf["raw"].id.get_chunk_info_by_coord((4, 8, 24))
    with file.open("r+b") as handle:
        handle.seek(last.byte_offset + last.size // 2)
        handle.write(b"spoilt")
    source = open_imaris(file)
    np.testing.assert_array_equal(source.read(Box((0, 0, 0), (7, 8, 31)), (0,))[0], STACK[0, :, :8])
    with pytest.raises(Failure, match=r"a\.h5: box \(\(4, 5\), \(8, 9\), \(0, 25\)\) \(z, y, x\) could not be read: "):
        source.read(Box((4, 8, 0), (5, 9, 25)), (0,))


def _truncated(file: Path) -> None:
    content = write_imaris(file).read_bytes()
    file.write_bytes(content[: len(content) // 2])


def _uneven_channels(file: Path) -> None:
    write_imaris(file)
    with h5py.File(file, "a") as hdf:
        name = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 1/Data"
        del hdf[name]
        hdf[name] = STACK[1]


def _virtual(file: Path) -> None:
    other = write_hdf(file.with_name("other.h5"), raw=STACK[0])
    layout = h5py.VirtualLayout(STACK[0].shape, STACK.dtype)
    layout[:] = h5py.VirtualSource(other, "raw", STACK[0].shape)
    with h5py.File(file, "w") as hdf:
        hdf.create_virtual_dataset("raw", layout)


REFUSED = {
    "nothing": (lambda f: None, "there is no such file"),
    "a folder": (lambda f: f.mkdir(), "not a readable HDF5 file"),
    "text": (lambda f: f.write_text("no HDF5"), "not a readable HDF5 file: .*copy or export it again"),
    "a truncated file": (_truncated, "not a readable HDF5 file: .*truncated"),
    "no stack": (lambda f: write_hdf(f, a=STACK[0, 0]), r"is no Imaris file|holds no dataset of 3"),
    "time points": (lambda f: write_imaris(f, times=3), "holds 3 time points"),
    "another size": (lambda f: write_imaris(f, X=40), r"tells the size \(7, 13, 40\).*its data of \(12, 18, 36\)"),
    "no size": (lambda f: write_imaris(f, Y=None), r"tells the size \(7, 0, 31\)"),
    "floats": (lambda f: write_imaris(f, STACK.astype("f4")), "Channel 0/Data: its voxels are float32"),
    "channels that differ": (_uneven_channels, r"Channel 1/Data: uint16 of shape \(7, 13, 31\), but channel 0 is"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_sample_is_refused(tmp_path, what):
    make, said = REFUSED[what]
    make(tmp_path / "a.ims")
    with pytest.raises(UserError, match=said) as caught:
        open_imaris(tmp_path / "a.ims")
    assert str(tmp_path / "a.ims") in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: write_hdf(f, a=np.zeros((2, 3))), r"holds no dataset of 3 \(z, y, x\) or 4 axes"),
        (lambda f: write_hdf(f, a=STACK[0].astype("i4")), r"a\.h5:/a: its voxels are int32"),
        (lambda f: write_hdf(f, a=STACK.transpose(2, 1, 3, 0)), r"a\.h5:/a: its axes have no names"),
        (lambda f: write_hdf(f, a=STACK[:, :0]), r"a\.h5:/a: is no stack, its shape is \(2, 0, 13, 31\)"),
        (_virtual, r"a\.h5:/raw: its voxels lie in other files; copy it"),
    ],
)
def test_a_plain_file_that_is_no_sample_is_refused(tmp_path, make, said):
    make(tmp_path / "a.h5")
    with pytest.raises(UserError, match=said):
        open_imaris(tmp_path / "a.h5")


def test_without_h5py_the_way_to_install_it_is_told(tmp_path):
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "from pathlib import Path; from neurovol.volume.imaris import open_imaris\n"
        "try: open_imaris(Path('a.ims'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UserError a.ims: ")
    assert "pip install 'neurovol[hdf5]'" in done.stdout
