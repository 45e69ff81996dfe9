"""A phantom: human cortex as two-photon microscopy shows it, of any size, with known truth.

Every random number is keyed by (seed, trait, place), so any box of a phantom equals the crop of a larger
one byte for byte, and a box deep in a sample of terabytes costs what one at its origin does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import UserError
from neurovol.geometry import BlockGrid, Box, Zyx
from neurovol.volume.phantom_anatomy import glia, loose_grains, neurons
from neurovol.volume.phantom_drawing import Canvas, draw_bodies, draw_grains, draw_tubes, mark_bodies, tube_distances
from neurovol.volume.phantom_lattice import Floats, noise
from neurovol.volume.phantom_optics import blur_halo, blur_kernels, blurred, detected
from neurovol.volume.phantom_shapes import Region
from neurovol.volume.phantom_surface import Surface
from neurovol.volume.phantom_traits import Traits, VoxelSize
from neurovol.volume.phantom_vessels import vessels

VERSION = 1  # raise it with any change to what a phantom holds
PART = (64, 256, 256)  # a larger box is made in such parts: bounded memory, and fewer cache misses


def _parts(box: Box) -> Iterator[Box]:
    """The box cut into parts of PART; none where it is empty."""
    if box.size:
        for block in BlockGrid(box.shape, block=PART, shard=PART):
            yield block.write.shifted(box.start)


@dataclass(frozen=True)
class PhantomSource:
    """A made-up sample: a reader like any other, beside it `truth`.

    `contrast` scales how much brighter neurons are than the tissue around them.
    """

    shape_zyx: Zyx = (64, 256, 256)
    seed: int = 0
    contrast: float = 1.0
    voxel_size_um: VoxelSize = (2.0, 0.88, 0.88)
    traits: Traits = field(default_factory=Traits)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channel, z, y, x."""
        return (1, *self.shape_zyx)

    @property
    def dtype(self) -> np.dtype[np.uint16]:
        return np.dtype(np.uint16)

    def identity(self) -> dict[str, object]:
        """All that determines the content, ready for JSON."""
        return {"kind": "phantom", "version": VERSION, **asdict(self)}

    @property
    def grain(self) -> Zyx:
        """Any voxel can be computed by itself."""
        return 1, 1, 1

    def read(
        self, box: Box, channels: tuple[int, ...] = (0,), out: NDArray[np.uint16] | None = None
    ) -> NDArray[np.uint16]:
        """The counts of a box: (channels, z, y, x). A UserError for any channel but 0."""
        if any(c != 0 for c in channels):
            raise UserError(f"channels {channels} of a phantom were asked for; it has one channel, 0")
        self._check(box)
        counts = np.empty((len(channels), *box.shape), np.uint16) if out is None else out
        for part in _parts(box):
            counts[:, *part.within(box)] = self._counts(part)
        return counts

    def truth(self, box: Box) -> NDArray[np.uint8]:
        """1 inside a neuron's soma, 0 elsewhere: (z, y, x).

        As annotators draw it: the body with its hillock, without dendrites; a voxel counts if its centre
        lies inside. Somata behind the sample's surface or in a vessel's lumen do not exist.
        """
        self._check(box)
        labels = np.zeros(box.shape, np.uint8)
        for part in _parts(box):
            labels[part.within(box)] = self._labels(part)
        return labels

    def _counts(self, box: Box) -> NDArray[np.uint16]:
        kernels = blur_kernels(self.traits, self.voxel_size_um)
        light = blurred(self._light(box.grown(blur_halo(kernels))), kernels)
        return detected(light, box, self.seed, self.traits, self.voxel_size_um)

    def _labels(self, box: Box) -> NDArray[np.uint8]:
        region, canvas = self._region(box), Canvas(box, self.voxel_size_um)
        labels = np.zeros(box.shape, np.uint8)
        bodies = neurons(self.seed, region, self.traits, self.contrast).bodies
        mark_bodies(canvas, labels, bodies, self._noise("wobble", box, 6.0))
        labels &= tube_distances(canvas, vessels(self.seed, region, self.traits)) > 0
        labels &= self._surface.depth(box) > 0
        return labels

    def _check(self, box: Box) -> None:
        if not Box.of_shape(self.shape_zyx).contains(box):
            raise ValueError(f"{box} does not lie within a phantom of {self.shape_zyx}")

    @property
    def _surface(self) -> Surface:
        return Surface(self.seed, self.shape_zyx[1] * self.voxel_size_um[1], self.voxel_size_um, self.traits)

    def _region(self, box: Box) -> Region:
        z, y, x = ((a * s, b * s) for (a, b), s in zip(box.pairs, self.voxel_size_um, strict=True))
        return Region((z[0], y[0], x[0]), (z[1], y[1], x[1]), self._surface)

    def _noise(self, trait: str, box: Box, spacing_um: float) -> Floats:
        z, y, x = (max(1, round(spacing_um / s)) for s in self.voxel_size_um)
        return noise(self.seed, trait, box, (z, y, x))

    def _light(self, box: Box) -> Floats:
        """What the tissue sends out before the optics blur it; 1 = neuropil. The box may leave the sample."""
        traits, canvas, region = self.traits, Canvas(box, self.voxel_size_um), self._region(box)
        wobble, grainy = self._noise("wobble", box, 6.0), self._noise("grainy", box, 1.9)
        cells = neurons(self.seed, region, traits, self.contrast)
        image = self._neuropil(box, wobble, grainy)
        draw_tubes(canvas, image, cells.dendrites)
        draw_bodies(canvas, image, glia(self.seed, region, traits), wobble, grainy)
        draw_bodies(canvas, image, cells.bodies, wobble, grainy)
        self._cut_vessels(image, tube_distances(canvas, vessels(self.seed, region, traits)), wobble)
        draw_grains(canvas, image, cells.grains)
        draw_grains(canvas, image, loose_grains(self.seed, region, traits))
        depth = self._surface.depth(box)
        if depth.min() < 4:
            image *= np.clip(depth / np.float32(4), 0, 1)
        return image

    def _neuropil(self, box: Box, wobble: Floats, grainy: Floats) -> Floats:
        """Clouds, granules, and fibres where two smooth noises both vanish (curves in space)."""
        other = self._noise("fibre", box, 6.0)
        image = self._noise("cloud", box, 28.0)
        image *= np.float32(self.traits.cloudiness)
        image += grainy * np.float32(self.traits.granularity)
        other *= other
        other += wobble * wobble
        other *= np.float32(-1 / 0.12)
        other += 1
        np.maximum(other, 0, out=other)
        other *= np.float32(self.traits.fibre_brightness)
        image += other
        image += 1
        return np.maximum(image, np.float32(0.2), out=image)

    def _cut_vessels(self, image: Floats, distance: Floats, patches: Floats) -> None:
        """Dark lumina, and walls that glow in patches."""
        wall = np.clip(1 - np.abs(distance - 1) / 1.6, 0, 1)
        wall *= np.maximum(patches, 0)
        image += wall * np.float32(0.6)
        image *= np.clip(distance + np.float32(0.6), np.float32(0.2), 1)
