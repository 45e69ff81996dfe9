"""What lies in a drop folder, and which of it arrived completely; nothing is remembered from look to look.

A sample still being copied is told by its files: one of a temporary name, one that changed a short while
ago, or between two looks. A copy that keeps the time of last change (rsync -t, cp -p) cannot keep the time
at which the file itself was last touched (ctime), so the later of the two counts.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from neurovol.errors import UserError
from neurovol.samplesettings import InboxSettings

LOOK_AGAIN_S = 3.0  # between the two looks; what is copied at all changes within it
MOST_SHIFT_S = 60.0  # by which the clock of a file server may be ahead of this machine's

_IMAGE = re.compile(r"\.(tiff?|ims|h5|hdf5)$", re.IGNORECASE)
_SUFFIXES = re.compile(r"(\.ome)?\.(tiff?|ims|h5|hdf5|zarr)$", re.IGNORECASE)
# what browsers, rsync --partial and file managers call a file that they are still writing
_TEMPORARY = re.compile(r"(\.(part|partial|filepart|crdownload|tmp|temp|swp)|~)$", re.IGNORECASE)
_RSYNC = re.compile(r"^\..+\.[A-Za-z0-9]{6}$")  # rsync writes .NAME.XXXXXX and renames it

Listing = tuple[tuple[str, int, int], ...]  # path within the sample, bytes, time of last change in ns


@dataclass(frozen=True)
class Arrival:
    """A file or folder directly in the drop folder, as it was when looked at."""

    path: Path
    name: str  # of the sample
    files: Listing
    newest_s: float  # when the last of them changed, by the file system's clock
    unfinished: str | None = None  # the file in it that is still written under a temporary name
    closed: str | None = None  # what of it may not be read


@dataclass(frozen=True)
class Look:
    """A drop folder looked at twice: what is complete, and why anything else is left alone."""

    complete: tuple[Arrival, ...]
    waiting: dict[str, str]  # by file or folder, the reason in words


def sample_name(entry: str) -> str:
    """What a sample is called that arrives under this name; empty where nothing is left of it.

    >>> sample_name("m12 left.ome.tif"), sample_name("_m12"), sample_name("µ.tif")
    ('m12-left', 'm12', '')
    """
    stem = _SUFFIXES.sub("", entry)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:80]


def arrivals(folder: Path, marker: str | None = None) -> list[Arrival]:
    """Every file and folder in a drop folder that can be a sample, by name; a UserError where there is no folder."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{folder}: the inbox cannot be read: {error.strerror}; create the folder, or correct inbox.folder"
        ) from None
    return [_arrival(entry) for entry in entries if _can_be_sample(entry, marker)]


def _can_be_sample(entry: os.DirEntry[str], marker: str | None) -> bool:
    if entry.name.startswith((".", "~")) or _TEMPORARY.search(entry.name):
        return False
    if marker is not None and entry.name.endswith(f".{marker}"):
        return False
    return entry.is_dir() or bool(_IMAGE.search(entry.name))


def _arrival(entry: os.DirEntry[str]) -> Arrival:
    try:
        found = list(_files(Path(entry.path)))
    except PermissionError as error:  # the others are none the worse for it
        why = f"{error.filename} may not be read; give the right to (chmod a+rX)"
        return Arrival(Path(entry.path), sample_name(entry.name), (), 0.0, closed=why)
    inside = sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)
    newest = max((max(stat.st_mtime, stat.st_ctime) for _, stat in found), default=0.0)
    unfinished = (path for path, _, _ in inside if _is_temporary(Path(path).name))
    return Arrival(Path(entry.path), sample_name(entry.name), tuple(inside), newest, next(unfinished, None))


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file of a sample by its path within it; what vanishes meanwhile was renamed, which the next look sees."""
    if path.is_file():
        yield path.name, path.stat()
        return
    for folder, _, names in os.walk(path, onerror=_heed):
        for name in names:
            file = Path(folder, name)
            try:
                yield str(file.relative_to(path)), file.stat()
            except FileNotFoundError:
                continue


def _heed(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise error


def _is_temporary(name: str) -> bool:
    """Whether a file is still being written under another name.

    >>> _is_temporary("z001.tif.part"), _is_temporary(".z001.tif.Xa81bQ"), _is_temporary(".zarray")
    (True, True, False)
    """
    return bool(_TEMPORARY.search(name) or _RSYNC.search(name))


def look(
    folder: Path,
    settings: InboxSettings,
    declared: Iterable[str] = (),
    now: Callable[[], float] = time.time,
    pause: Callable[[float], None] = time.sleep,
) -> Look:
    """Look at a drop folder twice, and tell what arrived completely; `declared` are names that are taken.

    `now` and `pause` are the clock's.
    """
    first = arrivals(folder, settings.marker)
    waiting = {a.path.name: why for a in first if (why := _incomplete(a, settings, now()))}
    settled = [a for a in first if a.path.name not in waiting]
    if settled:
        pause(LOOK_AGAIN_S)
        second = {a.path: a for a in arrivals(folder, settings.marker)}
        waiting |= {a.path.name: "changes while it is looked at" for a in settled if second.get(a.path) != a}
    waiting |= misnamed(first, set(declared))
    return Look(tuple(a for a in settled if a.path.name not in waiting), waiting)


def _incomplete(arrival: Arrival, settings: InboxSettings, now_s: float) -> str | None:
    """Why a sample is not complete, or nothing if it is."""
    if arrival.closed is not None:
        return arrival.closed
    if not arrival.files:
        return "is empty"
    if arrival.unfinished is not None:
        return f"is still being copied: {arrival.unfinished}"
    if settings.marker is not None:
        marker = _marker(arrival.path, settings.marker)
        return None if marker.is_file() else f"waits for {marker}"
    age_s = now_s - arrival.newest_s
    if age_s < -MOST_SHIFT_S:
        return f"last changed {-age_s:.0f} s in the future; set the clock of this machine or of the file server"
    if age_s < settings.settle_s:
        return f"changed {max(0.0, age_s):.0f} s ago; complete when nothing has for {settings.settle_s} s"
    return None


def _marker(path: Path, marker: str) -> Path:
    return path / marker if path.is_dir() else path.with_name(f"{path.name}.{marker}")


def misnamed(found: list[Arrival], declared: set[str]) -> dict[str, str]:
    """Of arrivals those that cannot be told from another sample by their name: why, by file or folder."""
    count = Counter(a.name for a in found)
    wrong = {}
    for arrival in found:
        if not arrival.name:
            wrong[arrival.path.name] = "has a name without any letter or digit of a-z, 0-9; rename it"
        elif arrival.name in declared:
            wrong[arrival.path.name] = f'is called as the declared sample "{arrival.name}"; rename it'
        elif count[arrival.name] > 1:
            wrong[arrival.path.name] = f'is one of {count[arrival.name]} that make a sample "{arrival.name}"; rename it'
    return wrong
