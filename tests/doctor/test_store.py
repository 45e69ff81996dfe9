"""The disk that results go to: what it can do, and the room on it."""

import fcntl
import os
from pathlib import Path

import pytest

from neurovol.doctor.store import TRIALS, check_room, check_store, existing
from neurovol.stages.disk import DiskNeed
from neurovol.stages.plan import Plan


def free(place: Path) -> int:
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize


def test_a_disk_that_does_all_is_ok_and_left_as_it_was(tmp_path: Path) -> None:
    (found,) = check_store(tmp_path / "stores" / "not" / "there" / "yet")
    assert found.level == "ok"
    assert found.text == f"{tmp_path}: write with fsync, rename over a file, fsync of a folder, exclusive lock all work"
    assert not list(tmp_path.iterdir())


def test_a_folder_where_nothing_can_be_made_is_named() -> None:
    (found,) = check_store(Path("/proc/stores"))
    assert found.level == "fail"
    assert found.text.startswith("/proc: user ")
    assert "cannot make a folder there" in found.text
    assert "`store`" in found.way_out


def test_a_lock_that_another_holds_is_no_lock(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            TRIALS["exclusive lock"](tmp_path)
    assert TRIALS["exclusive lock"](tmp_path) == ""


def test_a_failing_disk_is_told_by_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRIALS, "write with fsync", lambda _: Path("/dev/full").write_bytes(b"x" * 10**5) and "")
    (found,) = check_store(tmp_path)
    assert found.level == "fail"
    assert "write with fsync: No space left on device" in found.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("share", "inodes", "level"),
    [(0.1, 1, "ok"), (1.5, 1, "warn"), (2.5, 1, "fail"), (0.1, 10**15, "fail")],
)
def test_room_is_judged_by_bytes_and_by_files(tmp_path: Path, share: float, inodes: int, level: str) -> None:
    need = DiskNeed(int(free(tmp_path) * share / 2), inodes // 2 + 1)
    plans = [Plan("convert a", "missing", disk=need), Plan("convert b", "missing", disk=need)]
    (found,) = check_room(tmp_path / "stores", plans)
    assert found.level == level
    assert str(tmp_path) in found.text
    assert bool(found.way_out) == (level != "ok")


def test_scratch_is_reckoned_with_once_as_it_is_emptied_in_between(tmp_path: Path) -> None:
    scratch = DiskNeed(int(free(tmp_path) * 0.8), 1)
    plans = [Plan(f"convert {n}", "missing", scratch=scratch, scratch_folder=tmp_path / "s") for n in range(3)]
    assert [found.level for found in check_room(tmp_path, plans)] == ["ok"]
    more = Plan("convert more", "missing", disk=scratch)
    assert [found.level for found in check_room(tmp_path, [*plans, more])] == ["warn"]


def test_scratch_on_another_disk_is_a_line_of_its_own(tmp_path: Path) -> None:
    need = DiskNeed(1000, 1)
    plan = Plan("convert a", "missing", disk=need, scratch=need, scratch_folder=Path("/proc/scratch"))
    assert [found.text.partition(":")[0] for found in check_room(tmp_path, [plan])] == [str(tmp_path), "/proc"]


def test_where_nothing_is_left_to_write_there_is_room(tmp_path: Path) -> None:
    (found,) = check_room(tmp_path, [Plan("convert a", "done")])
    assert (found.level, found.text) == ("ok", f"{tmp_path}: nothing is left to be written there")


def test_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(tmp_path) == tmp_path
