"""A drop folder: what arrived completely is told from what is still being copied, with nothing remembered."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neurovol.errors import UserError
from neurovol.samplesettings import InboxSettings
from neurovol.stages.arrivals import LOOK_AGAIN_S, Look, look

HOUR = 3600.0


def inbox(folder: Path, **settings: object) -> InboxSettings:
    return InboxSettings.model_validate({"folder": folder, "model": "m", **settings})


def looked(
    folder: Path, later_s: float = HOUR, meanwhile: Callable[[], object] = lambda: None, **settings: object
) -> Look:
    """A look so many seconds from now, `meanwhile` between its two halves."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        meanwhile()

    found = look(folder, inbox(folder, **settings), now=lambda: time.time() + later_s, pause=pause)
    assert set(pauses) <= {LOOK_AGAIN_S}
    return found


def names(found: Look) -> list[str]:
    return [arrival.name for arrival in found.complete]


def slices(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for z in range(count):
        (folder / f"z{z}.tif").write_bytes(b"slice")
    return folder


def test_files_and_folders_that_nothing_changed_in_are_samples(tmp_path: Path) -> None:
    (tmp_path / "m1.ome.tif").write_bytes(b"stack")
    slices(tmp_path / "m2")
    assert names(looked(tmp_path)) == ["m1", "m2"]


def test_what_changed_a_short_while_ago_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "m1.tif").write_bytes(b"stack")
    found = looked(tmp_path, later_s=10, settle_s=60)
    assert names(found) == []
    assert found.waiting["m1.tif"] == "changed 10 s ago; complete when nothing has for 60 s"


def test_a_copy_that_keeps_an_old_time_of_change_is_still_new(tmp_path: Path) -> None:
    (tmp_path / "m1.tif").write_bytes(b"stack")
    os.utime(tmp_path / "m1.tif", (1e9, 1e9))
    assert names(looked(tmp_path, later_s=10, settle_s=60)) == []
    assert names(looked(tmp_path, later_s=61, settle_s=60)) == ["m1"]


def test_one_new_slice_holds_back_its_whole_folder(tmp_path: Path) -> None:
    slices(tmp_path / "m2")
    deep = tmp_path / "m2" / "tiles"
    deep.mkdir()
    (deep / "t.tif").write_bytes(b"tile")
    changed_s = time.time() + HOUR - 5
    os.utime(deep / "t.tif", (changed_s, changed_s))
    assert looked(tmp_path).waiting["m2"].startswith("changed 5 s ago")


def test_a_sample_that_grows_between_the_looks_is_left_alone(tmp_path: Path) -> None:
    slices(tmp_path / "m2")
    (tmp_path / "m3.tif").write_bytes(b"whole")
    found = looked(tmp_path, meanwhile=lambda: (tmp_path / "m2" / "z9.tif").write_bytes(b"slice"))
    assert names(found) == ["m3"]
    assert found.waiting == {"m2": "changes while it is looked at"}


def test_a_sample_that_vanishes_between_the_looks_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "m1.tif").write_bytes(b"stack")
    assert names(looked(tmp_path, meanwhile=(tmp_path / "m1.tif").unlink)) == []


@pytest.mark.parametrize("name", ["z3.tif.part", ".z3.tif.Xa81bQ", "z3.tif.filepart", "z3.tif~"])
def test_a_temporary_name_in_a_folder_says_that_it_is_still_copied(tmp_path: Path, name: str) -> None:
    slices(tmp_path / "m2").joinpath(name).write_bytes(b"")
    assert looked(tmp_path).waiting == {"m2": f"is still being copied: {name}"}


@pytest.mark.parametrize("name", [".m1.tif.Xa81bQ", "m1.tif.part", "notes.txt", "Thumbs.db", ".DS_Store"])
def test_hidden_and_temporary_files_and_other_things_are_no_samples(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    found = looked(tmp_path)
    assert (found.complete, found.waiting) == ((), {})


def test_hidden_files_of_a_folder_do_not_hold_it_back(tmp_path: Path) -> None:
    for name in (".zgroup", ".DS_Store", "._z0.tif"):
        slices(tmp_path / name.strip("._")).joinpath(name).write_bytes(b"")
    assert len(looked(tmp_path).complete) == 3


def test_with_a_marker_it_alone_decides(tmp_path: Path) -> None:
    slices(tmp_path / "m2")
    (tmp_path / "m1.tif").write_bytes(b"stack")
    found = looked(tmp_path, later_s=0, marker="COMPLETE")
    assert names(found) == []
    assert found.waiting["m2"] == f"waits for {tmp_path / 'm2' / 'COMPLETE'}"
    (tmp_path / "m2" / "COMPLETE").touch()
    (tmp_path / "m1.tif.COMPLETE").touch()
    assert names(looked(tmp_path, later_s=0, marker="COMPLETE")) == ["m1", "m2"]


def test_an_empty_folder_has_not_arrived(tmp_path: Path) -> None:
    (tmp_path / "m2").mkdir()
    assert looked(tmp_path).waiting == {"m2": "is empty"}


def test_a_clock_ahead_is_named(tmp_path: Path) -> None:
    (tmp_path / "m1.tif").write_bytes(b"stack")
    assert "in the future; set the clock" in looked(tmp_path, later_s=-HOUR).waiting["m1.tif"]


def test_two_that_make_the_same_sample_are_both_left_alone(tmp_path: Path) -> None:
    (tmp_path / "m 1.tif").write_bytes(b"stack")
    slices(tmp_path / "m-1")
    found = looked(tmp_path)
    assert found.complete == ()
    assert found.waiting["m-1"] == 'is one of 2 that make a sample "m-1"; rename it'


def test_a_name_that_is_declared_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "m1.tif").write_bytes(b"stack")
    found = look(tmp_path, inbox(tmp_path), ["m1"], lambda: time.time() + HOUR, lambda _: None)
    assert found.waiting == {"m1.tif": 'is called as the declared sample "m1"; rename it'}


def test_a_missing_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: the inbox cannot be read: No such file .*; create the folder"):
        looked(tmp_path / "none")


def test_what_may_not_be_read_is_left_alone_and_holds_up_nothing_else() -> None:
    with tempfile.TemporaryDirectory() as folder:
        drop, me = Path(folder), os.geteuid()
        (drop / "m1").mkdir()
        (drop / "m1" / "z1.tif").write_bytes(b"some")
        (drop / "m2.tif").write_bytes(b"some")
        (drop / "m1").chmod(0o000)
        drop.chmod(0o755)
        if me == 0:
            os.seteuid(65534)  # root may read anything
        try:
            seen = looked(drop)
        finally:
            os.seteuid(me)
            (drop / "m1").chmod(0o755)
    assert seen.waiting == {"m1": f"{drop / 'm1'} may not be read; give the right to (chmod a+rX)"}
    assert [arrival.name for arrival in seen.complete] == ["m2"]
