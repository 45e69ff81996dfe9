"""Where a phantom's tissue ends: a wavy surface across the sample's low y, nothing but noise above it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box
from neurovol.volume.phantom_lattice import Floats, noise_2d, noise_2d_at
from neurovol.volume.phantom_traits import Traits, VoxelSize


@dataclass(frozen=True)
class Surface:
    """The surface of a sample of that extent along y; its height and waves scale with the extent."""

    seed: int
    extent_um: float
    voxel_size_um: VoxelSize
    traits: Traits

    def depth(self, box: Box) -> Floats:
        """How far in µm each voxel lies below the surface, (z, y, x); negative in the empty surround."""
        height = np.full((box.shape[0], box.shape[2]), self.traits.surround_share * self.extent_um, np.float32)
        for trait, spacing, amplitude in self._waves():
            height += noise_2d(self.seed, trait, (box.pairs[0], box.pairs[2]), spacing) * np.float32(amplitude)
        y = ((np.arange(*box.pairs[1]) + 0.5) * self.voxel_size_um[1]).astype(np.float32)
        return np.asarray(y[None, :, None] - height[:, None, :])

    def depth_at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far points (n, 3), z, y, x in µm, lie below the surface: (n,) in µm."""
        z, x = (np.floor(points[:, a] / self.voxel_size_um[a]).astype(np.int64) for a in (0, 2))
        depth = points[:, 1] - self.traits.surround_share * self.extent_um
        for trait, spacing, amplitude in self._waves():
            depth -= noise_2d_at(self.seed, trait, z, x, spacing) * amplitude
        return depth

    def crowding(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of neurons found at points: few in layer one (thinner in small samples), all below it."""
        layer_one_um = min(self.traits.layer_one_um, 0.15 * self.extent_um)
        return np.clip(self.depth_at(points) / layer_one_um, 0, 1)

    def _waves(self) -> list[tuple[str, tuple[int, int], float]]:
        """Name, spacing in voxels along z and x, amplitude in µm: long waves, and a roughness upon them."""
        wave_um = self.traits.surround_wave * self.extent_um
        waves = (("outline", max(60.0, self.extent_um / 5), wave_um), ("roughness", 22.0, min(2.5, wave_um)))
        vz, _, vx = self.voxel_size_um
        return [(name, (max(1, round(um / vz)), max(1, round(um / vx))), amplitude) for name, um, amplitude in waves]
