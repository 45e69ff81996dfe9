"""Reading boxes from, and writing whole shards to, the volumes of the store."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from neurovol.errors import DiskFull, Failure
from neurovol.geometry import AXES, Box, Receipt, Zyx, ceil_div, shard_keys, zyx
from neurovol.volume.shardfile import Codec, ShardEncoder, checksum, shard_file, write_shard
from neurovol.volume.shardstream import OpenShard
from neurovol.volume.stored import VolumeInfo, open_volume, shard_size, sync_folders

# Folders whose own names are on disk, by the version of their volume; each fsync of a folder waits for the disk.
_durable: set[tuple[Path, tuple[tuple[int, int], ...]]] = set()

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class VolumeReader:
    """Reads boxes of one level; refuses an incomplete volume unless asked."""

    path: str
    level: int = 0
    allow_incomplete: bool = False

    def read(self, box: Box, channels: tuple[int, ...] | None = None) -> NDArray[Any]:
        """(c, z, y, x), all channels by default; (z, y, x) of a volume without a channel axis.

        Failure where a shard is missing or damaged; never zeros in its place.
        """
        info, array = _opened(self.path, self.level, _version(self.path, self.level), self.allow_incomplete)
        volume = info.level_shape(self.level)
        if not Box.of_shape(volume).contains(box):
            raise ValueError(f"box {box.pairs} leaves level {self.level} of {self.path}, which has the shape {volume}")
        _check_shards(info, self.level, box)
        try:
            if channels is None or info.channels is None:
                return np.asarray(array[(..., *box.slices)])
            return np.stack([np.asarray(array[(c, *box.slices)]) for c in channels])
        except MemoryError:
            raise
        except Exception as error:  # codecs have errors of their own
            raise Failure(
                f"{self.path}: level {self.level}, box {box.pairs} (z, y, x) could not be read: {error}; "
                f"the volume is damaged there: make it again with --redo, or restore it"
            ) from error


@dataclass(frozen=True)
class VolumeWriter:
    """Writes whole shards of one level, all channels at once; no locks, for no shard is written by two blocks."""

    path: str
    level: int = 0
    durable: bool = True  # False only to measure what durability costs

    def write(self, box: Box, array: NDArray[Any]) -> Receipt:
        """Write a box, (c, z, y, x) or (z, y, x), and return once it is durably on disk.

        ValueError where the box is not whole shards or the array is not of its shape and dtype;
        Failure where the disk is full.
        """
        info, codec = self._checked(box)
        shard = info.shard(self.level)
        shape = box.shape if info.channels is None else (info.channels, *box.shape)
        if array.shape != shape or array.dtype != info.dtype:
            raise ValueError(f"{self.path}: {array.dtype} of shape {array.shape} is not {info.dtype} of shape {shape}")
        files = []
        with self._errors_told(box):
            for key in shard_keys(box, shard):
                part = Box(key, zyx(k + 1 for k in key)).upsampled(shard).intersect(box)
                files.append(info.shard_file(self.level, key))
                write_shard(files[-1], array[(..., *part.within(box))], info.chunk, shard, codec, self.durable)
            if self.durable:
                self._sync_names(info, files)
        return Receipt(box, checksum(array))

    @contextmanager
    def shard(self, box: Box) -> Iterator[OpenShard]:
        """One whole shard of an image, to be written by a ShardStream; on disk after the `with`, but for its name.

        That `keep_names` makes durable: of several in the time of one.
        """
        info, codec = self._checked(box)
        shard = info.shard(self.level)
        if info.channels is None or len(shard_keys(box, shard)) != 1:
            raise ValueError(f"{self.path}: {box.pairs} is not one shard {shard} of an image with channels")
        file = info.shard_file(self.level, shard_keys(box, shard)[0])
        with self._errors_told(box), shard_file(file, self.durable) as handle:
            packer = codec.packer(info.chunk, info.dtype)
            encoder = ShardEncoder(handle, (info.channels, *ceil_div(shard, info.chunk)), packer)
            yield OpenShard(box, handle, encoder, packer, info.chunk, info.channels, info.dtype)

    def keep_names(self, boxes: Sequence[Box]) -> None:
        """What was written of these boxes, each of whole shards, is found after a power cut too."""
        if not self.durable:
            return
        info, _ = self._checked(boxes[0])
        keys = (key for box in boxes for key in shard_keys(box, info.shard(self.level)))
        with self._errors_told(boxes[0]):
            self._sync_names(info, [info.shard_file(self.level, key) for key in keys])

    def _sync_names(self, info: VolumeInfo, files: Sequence[Path]) -> None:
        """Make the files' names durable, and once per process and volume those of the folders they lie in."""
        top, version = info.path / str(self.level), _version(self.path, self.level)
        folders = {file.parent for file in files}
        fresh = {(f, version) for leaf in folders for f in (leaf, *leaf.parents) if top in f.parents} - _durable
        sync_folders(folders | {folder.parent for folder, _ in fresh})
        _durable.update(fresh)

    def _checked(self, box: Box) -> tuple[VolumeInfo, Codec]:
        version = _version(self.path, self.level)
        info, _ = _opened(self.path, self.level, version, True)
        _check_whole_shards(box, info.shard(self.level), info.level_shape(self.level))
        return info, _codec(self.path, self.level, version)

    @contextmanager
    def _errors_told(self, box: Box) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFull(
                    f"{self.path}: disk full: {error.strerror}; free space and run again, finished blocks are kept"
                ) from error
            raise Failure(f"{self.path}: box {box.pairs} could not be written: {error}") from error


def codec_of(array: zarr.Array[Any]) -> Codec:
    """What the chunks of a stored array are compressed with: a volume is continued as it was begun."""
    (sharding,) = cast("list[dict[str, Any]]", array.metadata.to_dict()["codecs"])
    _, codec, _ = sharding["configuration"]["codecs"]  # bytes, compressor, crc32c
    found = codec["configuration"]
    if codec["name"] == "zstd":
        return Codec("zstd", found["level"])
    return Codec("blosc", found["clevel"], found["cname"], found["shuffle"], found["typesize"], found["blocksize"])


def _check_whole_shards(box: Box, shard: Zyx, volume: Zyx) -> None:
    for axis, (start, stop), step, end in zip(AXES, box.pairs, shard, volume, strict=True):
        if start % step or (stop % step and stop != end) or stop > end or start == stop:
            raise ValueError(
                f"axis {axis}: {start} to {stop} is not a whole number of shards of {step} "
                f"in a volume of {end}, so two blocks would write one shard"
            )


def _check_shards(info: VolumeInfo, level: int, box: Box) -> None:
    """Refuse what zarr would read as zeros: shards that are missing, or empty after a torn write."""
    for key in shard_keys(box, info.shard(level)) if box.size else ():
        file = info.shard_file(level, key)
        if shard_size(file) == 0 and (info.must_exist(level, key) or file.exists()):
            raise Failure(
                f"{file}: the shard is {'empty' if file.exists() else 'missing'}, though it was written; "
                f"the volume is damaged there: make it again with --redo, or restore it"
            )


def _version(path: str, level: int) -> tuple[tuple[int, int], ...]:
    """Changes when the volume at that path is another one, or has been finished meanwhile."""
    files = (Path(path) / "zarr.json", Path(path) / str(level) / "zarr.json")
    try:
        return tuple((found.st_ino, found.st_mtime_ns) for found in (file.stat() for file in files))
    except (FileNotFoundError, NotADirectoryError):
        open_volume(Path(path), allow_incomplete=True)  # says what is wrong
        raise ValueError(f"{path}: the volume has no level {level}") from None


@lru_cache(maxsize=32)
def _opened(
    path: str, level: int, version: tuple[tuple[int, int], ...], allow_incomplete: bool
) -> tuple[VolumeInfo, zarr.Array[Any]]:
    info = open_volume(Path(path), allow_incomplete)
    return info, zarr.open_array(str(Path(path) / str(level)), mode="r", zarr_format=3)


@lru_cache(maxsize=32)
def _codec(path: str, level: int, version: tuple[tuple[int, int], ...]) -> Codec:
    return codec_of(_opened(path, level, version, True)[1])
