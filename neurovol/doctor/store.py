"""Whether the disk that results go to does what durable writing asks of it, and has room for what is not done yet."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from neurovol.doctor.finding import Finding
from neurovol.stages.disk import NOTHING, DiskNeed
from neurovol.stages.plan import Plan

TIGHT = 2  # real tissue compresses to half or two thirds: with less than half of the bound free it cannot do

# Exit 3 where the lock is held by another, as it has to be.
TRY_LOCK = """\
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "ab"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)
"""


def existing(folder: Path) -> Path:
    """A folder, or the nearest above it that there is."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_store(folder: Path) -> Iterator[Finding]:
    """Writing, renaming, fsync and locks in a folder as the project uses them; it is left as it was.

    A folder that is not there yet is tried at the nearest above it.
    """
    place = existing(folder)
    trial = place / f".neurovol-doctor-{uuid.uuid4().hex}"
    user = f"user {os.getuid()}"
    try:
        trial.mkdir()
    except OSError as error:
        way_out = "give the right to write there, or set `store` to a folder that has it"
        yield Finding("fail", "store", f"{place}: {user} cannot make a folder there: {error.strerror}", way_out)
        return
    try:
        for what, work in TRIALS.items():
            if fault := _fault(work, trial):
                way_out = "take another disk for `store`: what was written on this one is not safe"
                yield Finding("fail", "store", f"{place}: {what}: {fault}", way_out)
                return
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    yield Finding("ok", "store", f"{place}: {', '.join(TRIALS)} all work")


def _fault(work: Callable[[Path], str], trial: Path) -> str:
    try:
        return work(trial)
    except OSError as error:
        return str(error.strerror or error)


def _write(trial: Path) -> str:
    with (trial / "new").open("wb") as file:
        file.write(b"new" * 1000)
        file.flush()
        os.fsync(file.fileno())
    return ""


def _rename(trial: Path) -> str:
    """Over a file that there is: that is how a half-written one never shows."""
    (trial / "whole").write_bytes(b"old")
    (trial / "new").replace(trial / "whole")
    return "" if (trial / "whole").read_bytes() == b"new" * 1000 else "the old content shows afterwards"


def _sync_folder(trial: Path) -> str:
    handle = os.open(trial, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return ""


def _lock(trial: Path) -> str:
    """A ledger is locked against a second driver, which is another process."""
    with (trial / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        command = [sys.executable, "-c", TRY_LOCK, str(trial / "lock")]
        other = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if other.returncode == 3:
        return ""
    return "two processes get it at once" if other.returncode == 0 else other.stderr.strip()


TRIALS: dict[str, Callable[[Path], str]] = {
    "write with fsync": _write,
    "rename over a file": _rename,
    "fsync of a folder": _sync_folder,
    "exclusive lock": _lock,
}


def check_room(folder: Path, plans: Iterable[Plan]) -> Iterator[Finding]:
    """Free bytes and inodes of each disk against what is not done yet: the store's, and those of scratch."""
    needs: dict[int, tuple[Path, DiskNeed]] = {}
    for place, need in _wanted(folder, plans):
        there = existing(place)
        first, before = needs.get(there.stat().st_dev, (there, NOTHING))
        needs[there.stat().st_dev] = first, before + need
    for place, need in needs.values():
        yield _room_finding(place, need)


def _wanted(folder: Path, plans: Iterable[Plan]) -> Iterator[tuple[Path, DiskNeed]]:
    """What all steps leave together, and the largest scratch of each folder: it is emptied before the next."""
    total, scratch = NOTHING, dict[Path, DiskNeed]()
    for plan in plans:
        total += plan.disk
        if plan.scratch and plan.scratch_folder is not None:
            place = existing(plan.scratch_folder)
            scratch[place] = max(plan.scratch, scratch.get(place, NOTHING), key=lambda need: need.bytes)
    yield folder, total
    yield from scratch.items()


def _room_finding(place: Path, need: DiskNeed) -> Finding:
    if not need:
        return Finding("ok", "room", f"{place}: nothing is left to be written there")
    disk = os.statvfs(place)
    free, inodes = disk.f_bavail * disk.f_frsize, disk.f_favail
    counted = disk.f_files > 0  # some file systems have as many as there is room for
    text = (
        f"{place}: {_gigabytes(free)} free{f' and {inodes:,} files' if counted else ''}; what is not done takes at "
        f"most {_gigabytes(need.bytes)} and {need.inodes:,} files and folders (a quota of your own is not seen here)"
    )
    way_out = "free space, or set `store` or convert.scratch to a larger disk"
    if free < need.bytes // TIGHT or (counted and inodes < need.inodes):
        return Finding("fail", "room", text, way_out)
    if free < need.bytes:
        return Finding("warn", "room", f"{text}: enough only if it compresses", way_out)
    return Finding("ok", "room", text)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.3g} GB" if count < 1e12 else f"{count / 1e12:,.3g} TB"
