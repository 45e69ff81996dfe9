"""What the microscope does to phantom tissue: blur, loss of light with depth, tiles, noise."""

from __future__ import annotations

from math import ceil, exp

import numpy as np
from numpy.typing import NDArray

from neurovol.geometry import Box, Zyx, zyx
from neurovol.volume.phantom_lattice import Floats, hashes, row_keys, uniforms, voxel_normals
from neurovol.volume.phantom_traits import Traits, VoxelSize


def blur_kernels(traits: Traits, voxel_size_um: VoxelSize) -> list[list[float]]:
    """Half kernels per axis, centre first, cut at 2.5 sigma; the whole kernel sums to 1."""
    kernels = []
    for sigma_um, size in zip(traits.blur_um, voxel_size_um, strict=True):
        sigma = sigma_um / size
        half = [exp(-0.5 * (i / sigma) ** 2) for i in range(ceil(2.5 * sigma) + 1)]
        whole = half[0] + 2 * sum(half[1:])
        kernels.append([w / whole for w in half])
    return kernels


def blur_halo(kernels: list[list[float]]) -> Zyx:
    """How many voxels beyond a box its blur reaches."""
    return zyx(len(k) - 1 for k in kernels)


def blurred(image: Floats, kernels: list[list[float]]) -> Floats:
    """Blurred and cropped by the kernels' reach; sums run in one order, so a voxel does not depend on the box."""
    depth = len(kernels[0]) - 1
    planes = [_blurred_plane(plane, kernels[1], kernels[2]) for plane in image]
    out = np.empty((image.shape[0] - 2 * depth, *planes[0].shape), np.float32)
    spare = np.empty_like(planes[0])
    for z in range(len(out)):
        np.multiply(planes[z + depth], np.float32(kernels[0][0]), out=out[z])
        for i, weight in enumerate(kernels[0][1:], start=1):
            np.add(planes[z + depth - i], planes[z + depth + i], out=spare)
            spare *= np.float32(weight)
            out[z] += spare
    return out


def _blurred_plane(plane: Floats, along_y: list[float], along_x: list[float]) -> Floats:
    return _blurred_rows(_blurred_rows(plane, along_y).T, along_x).T


def _blurred_rows(plane: Floats, kernel: list[float]) -> Floats:
    reach = len(kernel) - 1
    rows = plane.shape[0] - 2 * reach
    out = plane[reach : reach + rows] * np.float32(kernel[0])
    for i, weight in enumerate(kernel[1:], start=1):
        out += (plane[reach - i : reach - i + rows] + plane[reach + i : reach + i + rows]) * np.float32(weight)
    return out


def depth_gain(box: Box, traits: Traits, voxel_size_um: VoxelSize) -> list[float]:
    """The share of light left in each slice: falls within a slab of tissue, starts anew with the next one.

    Blocks are cut into slabs and each is imaged from its surface, so a thick sample does not go black.
    """
    depths = (z * voxel_size_um[0] % traits.slab_um for z in range(box.start[0], box.stop[0]))
    return [traits.decay_floor + (1 - traits.decay_floor) * exp(-d / traits.decay_um) for d in depths]


def _along_tiles(start: int, stop: int, offset: int, tile: int) -> tuple[NDArray[np.int64], Floats]:
    """Which tile each voxel of an axis lies in, and the square of its distance from the tile's middle (0 to 1)."""
    i = np.arange(start, stop) + offset
    u = ((2 * (i % tile) + 1) / tile - 1).astype(np.float32)
    return i // tile, u * u


def tile_gain(box: Box, slab: int, seed: int, traits: Traits) -> Floats:
    """Brightness over a slice, (y, x): tiles of differing gain, each darker towards its corners."""
    tile = traits.tile_px
    shifts = uniforms(hashes(seed, "tile offset", (np.zeros(1, np.int64),)), 2)[0]
    # offsets of half to 0.8 of a tile: even a small sample has a border
    y, x = (
        _along_tiles(a, b, int(tile * (0.5 + 0.3 * s)), tile) for (a, b), s in zip(box.pairs[1:], shifts, strict=True)
    )
    ys, at_y = np.unique(y[0], return_inverse=True)
    xs, at_x = np.unique(x[0], return_inverse=True)
    u = uniforms(hashes(seed, "tile gain", (np.array([slab]), ys, xs)), 1).reshape(len(ys), len(xs))
    gain = (1 + traits.tile_gain_spread * (2 * u - 1)).astype(np.float32)
    vignette = np.float32(1) - np.float32(traits.vignetting / 2) * (y[1][:, None] + x[1][None])
    return np.asarray(gain[at_y][:, at_x] * vignette, np.float32)


def detected(light: Floats, box: Box, seed: int, traits: Traits, voxel_size_um: VoxelSize) -> NDArray[np.uint16]:
    """The counts that a camera would give for `light` (1 = neuropil at the surface), uint16.

    Shot noise is Gaussian with the variance and the skewness of Poisson's (Cornish and Fisher's first term),
    together with read noise; each voxel's random number is keyed by its absolute position.
    """
    out = np.empty(box.shape, np.uint16)
    keys = row_keys(seed, "noise", box)
    gains = depth_gain(box, traits, voxel_size_um)
    tiles: dict[int, Floats] = {}
    gain, read_variance = np.float32(traits.shot_gain), np.float32(traits.read_noise_counts**2)
    for i, z in enumerate(range(box.start[0], box.stop[0])):
        slab = int(z * voxel_size_um[0] // traits.slab_um)
        if slab not in tiles:
            tiles[slab] = tile_gain(box, slab, seed, traits)
        counts = light[i] * (tiles[slab] * np.float32(traits.neuropil_counts * gains[i]))
        normals = voxel_normals(keys[i], box.start[2], box.shape[2])
        shot = counts * gain
        variance = shot + read_variance
        counts += np.sqrt(variance) * normals
        shot /= variance
        shot *= gain / np.float32(6)
        normals *= normals
        normals -= np.float32(1)
        normals *= shot
        counts += normals
        counts += np.float32(traits.offset_counts)
        np.rint(counts, out=counts)
        out[i] = np.clip(counts, 0, 65535, out=counts)
    return out
