"""Check-blocks: whether blocks or windows show in a finished prediction, by computing some of their faces anew.

    |   block   |   block   |       what the store holds, window by window
            |<----->|               the voxels by a face, in one window around it

Nothing of a window's place shows in a right output (invariant 2), so both agree but for rounding.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from neurovol.blockwise.ledger import read_ledger
from neurovol.errors import Failure
from neurovol.geometry import AXES, BlockGrid, Box, Zyx, round_up, zyx
from neurovol.progress import Progress, Report, silent
from neurovol.stages.cover import Cover, quantised
from neurovol.stages.predict import Prediction, device, predicting
from neurovol.volume.omezarr import VolumeReader, open_volume

ACROSS, ALONG = 8, 64  # voxels looked at on either side of a face, and along it

# Difference in probability beyond the half step of 1/255 that the store rounds by. Sums taken in another order differ
# by up to 5e-5 in fp32, for very confident networks (2e-6 for others; a halo one stride too small: 9e-4). In bf16 they
# differed by nothing on one CPU; another device may differ by as much as bf16 does from fp32, which was 0.012.
ALLOWED = {"fp32": 1e-4, "bf16": 0.012}
HALF_STEP = 0.5 / 255

DRAWS = 50  # for a face, as some boxes have none and some of a sample may be without tissue

Between = Literal["blocks", "windows"]


@dataclass(frozen=True)
class Face:
    """Where two blocks, or two windows of one block, meet: before voxel `at` of an axis."""

    between: Between
    axis: int
    at: int
    box: Box  # the voxels looked at, astride the face

    def __str__(self) -> str:
        return (
            f"{self.between} at {AXES[self.axis]} {self.at}, voxels z, y, x {[list(pair) for pair in self.box.pairs]}"
        )


@dataclass(frozen=True)
class Seam:
    """What came of a face: the largest difference in probability beyond rounding, and where it is."""

    face: Face
    difference: float
    worst: Zyx
    differing: int  # voxels that would be stored as another value
    voxels: int

    def to_json(self) -> dict[str, Any]:
        face = self.face
        return {"between": face.between, "axis": AXES[face.axis], "at": face.at, "box": face.box.pairs,
                "largest_difference": self.difference, "worst": self.worst, "differing": self.differing,
                "voxels": self.voxels}  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """What came of the faces of one prediction."""

    step: str
    precision: str
    seams: tuple[Seam, ...]

    @property
    def worst(self) -> Seam:
        return max(self.seams, key=lambda seam: seam.difference)

    @property
    def is_right(self) -> bool:
        return not self.seams or self.worst.difference <= ALLOWED[self.precision]

    def __str__(self) -> str:
        if not self.seams:
            return f"{self.step}: one window holds it all, so there are no faces to check"
        between = " and ".join(
            f"{count} between {what}"
            for what in ("blocks", "windows")
            if (count := sum(seam.face.between == what for seam in self.seams))
        )
        differing, voxels = sum(s.differing for s in self.seams), sum(s.voxels for s in self.seams)
        return (
            f"{self.step}: {len(self.seams)} faces, {between}: largest difference {self.worst.difference:.2g} in "
            f"probability beyond rounding (up to {ALLOWED[self.precision]:g} is the arithmetic's in {self.precision}), "
            f"{differing:,} of {voxels:,} voxels would be stored as another value"
        )

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "precision": self.precision, "allowed": ALLOWED[self.precision],
                "is_right": self.is_right, "faces": [seam.to_json() for seam in self.seams]}  # fmt: skip


def check_blocks(wanted: Prediction, count: int, seed: int, report: Report = silent) -> Checked:
    """Compute the voxels by `count` faces of a finished prediction anew, in this process, each in a window of its own.

    Half of the faces lie between blocks, half between the windows of a block, where there are any of both. It may run
    where there is no GPU, though the prediction was made on one.
    """
    record, info = read_ledger(wanted.step.ledger), open_volume(wanted.step.output)
    if record is None:
        raise Failure(f"{wanted.step.name}: its ledger {wanted.step.ledger} is gone; build it anew with --redo")
    cover, stored = predicting(wanted, device()), VolumeReader(str(wanted.step.output))
    faces, start = list(some_faces(cover, info.shard(0), count, random.Random(seed))), time.monotonic()
    seams: list[Seam] = []
    for face in faces:
        seams.append(seam_of(cover, stored, face))
        done, voxels = len(seams), sum(seam.voxels for seam in seams)
        said = f"check-blocks {wanted.step.name}"
        report(Progress(said, done, len(faces), "faces", done, time.monotonic() - start, voxels))
    return Checked(wanted.step.name, record.header.chosen["precision"]["dtype"], tuple(seams))


def seam_of(cover: Cover, stored: VolumeReader, face: Face) -> Seam:
    """A face's voxels as the store has them, against the same in one window that has the face in its middle.

    Windows are counted from the corner of what is asked for, so one that is large enough begins there.
    """
    window = zyx(round_up(n + s, s) for n, s in zip(face.box.shape, cover.stride, strict=True))
    anew, there = replace(cover, window=window).probabilities(face.box), stored.read(face.box)
    beyond = np.abs(anew - there.astype(np.float32) / 255) - HALF_STEP
    at = np.unravel_index(int(beyond.argmax()), beyond.shape)
    worst = zyx(a + int(i) for a, i in zip(face.box.start, at, strict=True))
    return Seam(face, max(0.0, float(beyond[at])), worst, int(np.count_nonzero(quantised(anew) != there)), beyond.size)


def some_faces(cover: Cover, shard: Zyx, count: int, chance: random.Random) -> Iterator[Face]:
    """Faces at random places of what a prediction covers: in turn between blocks and between windows."""
    grid = BlockGrid(cover.volume, shard, shard)
    for i in range(count):
        kinds: tuple[Between, ...] = ("blocks", "windows") if i % 2 == 0 else ("windows", "blocks")
        drawn = (_face(cover, grid, kind, chance) for kind in kinds for _ in range(DRAWS))
        face = next((face for face in drawn if face is not None and _is_predicted(cover, face)), None)
        if face is not None:
            yield face


def _is_predicted(cover: Cover, face: Face) -> bool:
    """False where nothing is, as there is no tissue: zeros agree with zeros whatever the windows."""
    return cover.where is None or cover.where.touches(face.box)


def _face(cover: Cover, grid: BlockGrid, between: Between, chance: random.Random) -> Face | None:
    """A face of that kind in one of the boxes covered; None where that box, or the block drawn, has none."""
    box = chance.choices(cover.boxes, weights=[b.size for b in cover.boxes])[0]
    point = zyx(chance.randrange(a, b) for a, b in box.pairs)
    if between == "blocks":
        places = [(axis, at) for axis in range(3) for at in range(0, box.stop[axis], grid.block[axis])]
        whole = box
    else:
        block = Box(point, zyx(p + 1 for p in point)).downsampled(grid.block).upsampled(grid.block)
        whole = block.intersect(box)
        starts = whole.aligned(cover.stride).start
        places = [(axis, at) for axis in range(3) for at in range(starts[axis], whole.stop[axis], cover.window[axis])]
    inside = [(axis, at) for axis, at in places if whole.start[axis] < at < whole.stop[axis]]
    if not inside:
        return None
    axis, at = chance.choice(inside)
    centre = zyx(at if a == axis else p for a, p in enumerate(point))
    shape = zyx(2 * ACROSS if a == axis else ALONG for a in range(3))
    return Face(between, axis, at, Box.centred(centre, shape).intersect(box))
