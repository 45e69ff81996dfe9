"""What memory a worker needs to predict, promised before it starts; and the window that fits, where none is set.

|<------------------------------ a worker's peak ------------------------------>|
| libraries | weights | window, activations | reading | block | what malloc keeps |
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Protocol

from neurovol.blockwise.cluster import worker_count
from neurovol.clustersettings import ClusterSettings
from neurovol.errors import UserError
from neurovol.geometry import Box, Zyx, ceil_div, round_up, zyx
from neurovol.networks.precision import Precision

# Measured of a worker that has predicted one tiny window, with torch 2.13 for CPU alone: 310 to 320 MB.
LIBRARIES_BYTES = 320_000_000
CUDA_BYTES = 1_500_000_000  # what CUDA's libraries and context add; not measured

# malloc gives large allocations back at once; smaller ones that are freed, and the holes between them, it keeps (MALLOC
# in blockwise/cluster.py). Measured beside the sums below: up to 1.9 of a small window's bytes, and 270 MB.
KEPT_SHARE, KEPT_BYTES = 2, 280_000_000


class Network(Protocol):
    """What a network's spec says of its memory."""

    @property
    def halo(self) -> Zyx: ...
    @property
    def stride(self) -> Zyx: ...
    @property
    def channels(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def working_bytes(self, read: Zyx, precision: Precision) -> int: ...
    def pays(self, read: Zyx) -> bool: ...


@dataclass(frozen=True)
class Memory:
    """Peak resident bytes of one worker process while it predicts, by what holds them; `gpu` is the device's own."""

    libraries: int
    weights: int
    window: int  # its voxels as read
    activations: int  # the kernel's, and the window normalised
    reading: int  # of chunks, decoded and not, and of the window once more where it is reflected
    block: int  # the result as uint8, and a chunk being encoded
    kept: int  # by malloc
    gpu: int = 0

    @property
    def total(self) -> int:
        """The promise: the peak in the machine's own memory, bytes."""
        held: dict[str, int] = asdict(self)
        return sum(held.values()) - self.gpu

    @property
    def terms(self) -> str:
        """What is worth telling, the largest first.

        >>> Memory(320_000_000, 1_000_000, 7_000_000, 977_000_000, 15_000_000, 8_000_000, 200_000_000).terms
        'activations 0.977 GB, libraries 0.32 GB, kept 0.2 GB'
        """
        held = sorted(((n, name) for name, n in asdict(self).items() if name != "gpu"), reverse=True)
        told = [f"{name} {gigabytes(n)}" for n, name in held if n > 0.02 * self.total]
        return ", ".join(told) + (f"; on the GPU {gigabytes(self.gpu)}, an untested estimate" if self.gpu else "")


@dataclass(frozen=True)
class Demand:
    """All that the memory of a worker that predicts depends on but its window; all shapes are z, y, x in voxels."""

    network: Network
    extent: Zyx  # what of a block may be computed, on the stride: no window is larger
    block: Zyx
    chunk: Zyx  # of the image that is read
    voxel_bytes: int  # of the image, one channel
    precision: Precision
    on_gpu: bool = False

    def read(self, window: Zyx) -> Zyx:
        """The largest read box of that window."""
        sides = zip(window, self.extent, self.network.halo, strict=True)
        return zyx(min(side, most) + 2 * halo for side, most, halo in sides)

    def memory(self, window: Zyx) -> Memory:
        """What one worker needs, which computes one window at a time."""
        read, network = self.read(window), self.network
        voxel = self.voxel_bytes * network.channels
        chunks = zyx(round_up(n, c) + c for n, c in zip(read, self.chunk, strict=True))
        raw, working = prod(read) * voxel, network.working_bytes(read, self.precision)
        here = prod(read) * (4 * network.channels + 4) if self.on_gpu else working
        return Memory(
            libraries=LIBRARIES_BYTES + self.on_gpu * CUDA_BYTES,
            weights=network.weight_bytes,
            window=raw,
            activations=here,
            # arrays come after the compressed chunks that they were made of, and before all that is computed
            reading=max(0, raw + prod(chunks) * voxel - here),
            block=prod(self.block) + 3 * prod(self.chunk),
            kept=min(KEPT_BYTES, KEPT_SHARE * (raw + here)),
            gpu=self.on_gpu * (network.weight_bytes + working),
        )

    def best_window(self, most_bytes: int) -> Zyx | None:
        """The window that reads least to compute a block, of those that `most_bytes` do for and that pay; None if none.

        Of equals the largest. The smallest of all pays, where no other fits.
        """
        least = zyx(self.network.stride)
        for _, _, window in sorted(self._ranked()):
            pays = window == least or self.network.pays(self.read(window))
            if pays and self.memory(window).total <= most_bytes:
                return window
        return None

    def _ranked(self) -> Iterator[tuple[int, int, Zyx]]:
        """What a block's windows read, what they write (negative), and the windows worth choosing from, unordered."""
        axes = zip(self.extent, self.network.halo, self.network.stride, strict=True)
        for sides in product(*(_sides(*axis) for axis in axes)):
            yield prod(read for _, read in sides), -prod(side for side, _ in sides), zyx(side for side, _ in sides)

    def read_share(self, window: Zyx) -> float:
        """Voxels read per voxel written, where a whole block is computed."""
        counts = ceil_div(self.extent, window)
        read = prod(e + 2 * h * n for e, h, n in zip(self.extent, self.network.halo, counts, strict=True))
        return read / prod(self.extent)


def _sides(extent: int, halo: int, stride: int) -> list[tuple[int, int]]:
    """Along one axis the smallest side for every number of windows, and what these windows read together.

    >>> _sides(32, 4, 8)
    [(8, 64), (16, 48), (32, 40)]
    """
    sides = {round_up(-(-extent // count), stride) for count in range(1, extent // stride + 1)}
    return sorted((side, extent + 2 * halo * -(-extent // side)) for side in sides)


def extent_of(boxes: Sequence[Box], block: Zyx, stride: Zyx) -> Zyx:
    """The largest shape, on the stride, that the part of any box in a block may have.

    >>> extent_of([Box((0, 0, 0), (30, 510, 667))], (32, 256, 250), (4, 4, 4))
    (32, 256, 256)
    """
    parts = [box.aligned(stride).shape for box in boxes]
    most = zyx(max(sides) for sides in zip(*parts, strict=True))
    # a block that begins off the stride has a voxel more at either end
    whole = zyx(round_up(b, s) + (b % s > 0) * s for b, s in zip(block, stride, strict=True))
    return zyx(min(pair) for pair in zip(most, whole, strict=True))


@dataclass(frozen=True)
class Room:
    """The memory that some workers share."""

    allowed_bytes: int
    workers: int
    is_set: bool = True  # as cluster.allowed_bytes
    known: bool = True  # how many workers there are; elsewhere they are reckoned with
    whose: str = "half of this machine's memory"

    @property
    def each(self) -> int:
        """Bytes that one worker may use."""
        return self.allowed_bytes // self.workers

    def __str__(self) -> str:
        what = "cluster.allowed_bytes" if self.is_set else f"{self.whose} (cluster.allowed_bytes)"
        reckoned = "" if self.known else ", as reckoned with (cluster.workers)"
        share = "1 worker may use" if self.workers == 1 else f"{self.workers} workers share"
        return f"{share} the {gigabytes(self.allowed_bytes)} of {what}{reckoned}"


def room_for(settings: ClusterSettings) -> Room:
    """What workers may use: as set, else three quarters of the memory of jobs, else half of this machine's.

    Half of this machine's also where workers are on others that are not known.
    """
    settings = settings.predicting
    counted = settings.kind != "address"
    workers = worker_count(settings) if counted else settings.workers or 1
    known = counted or settings.workers is not None
    if settings.allowed_bytes is not None:
        return Room(settings.allowed_bytes, workers, True, known)
    if settings.queued:
        theirs = int(settings.job.memory_gb * 1e9) * 3 // 4 * workers
        return Room(theirs, workers, False, whose="three quarters of the jobs' memory")
    return Room(machine_bytes() // 2, workers, False, known)


def fitting_window(demand: Demand, room: Room) -> Zyx:
    """The window to predict with where none is set; UserError where none fits."""
    window = demand.best_window(room.each)
    if window is None:
        least = demand.memory(demand.network.stride)
        raise UserError(
            f"predicting takes at least {gigabytes(least.total)} a worker, in windows of "
            f"{list(demand.network.stride)}: {least.terms}; {room}: allow more, or take fewer workers (cluster.workers)"
        )
    return window


def check_window(demand: Demand, room: Room, window: Zyx, name: str) -> None:
    """Refuse a window that takes more memory than a worker has; `name` says whose it is, as `segment.window`."""
    memory = demand.memory(window)
    if memory.total > room.each:
        largest = fitting_window(demand, room)
        raise UserError(
            f"{name} {list(window)} needs {gigabytes(memory.total)} a worker: {memory.terms}; {room}; the largest "
            f"window that fits is {list(largest)}: set that or none, allow more, or take fewer workers"
        )


def machine_bytes() -> int:
    """Memory that this process may use: the machine's, or what its control group (a job, a container) has of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _limit_files():
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # no such group here, or "max"
            continue
    return min(limits)


def _limit_files() -> Iterable[Path]:
    """Where Linux tells the limits of this process's groups and those above them: of version 2, and of version 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers in ("", "memory"):
            top = Path("/sys/fs/cgroup") / controllers
            group = top / place.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(top):
                    yield folder / ("memory.limit_in_bytes" if controllers else "memory.max")


def gigabytes(count: int) -> str:
    """
    >>> gigabytes(2_514_000_000)
    '2.51 GB'
    """
    return f"{count / 1e9:.3g} GB"
