"""How a volume lies on disk: its pyramid's levels, and the shards and files each is cut into. Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from neurovol.geometry import Zyx, ceil_div, round_up, zyx


def fitted_shard(volume: Zyx, chunk: Zyx, shard: Zyx) -> Zyx:
    """A shard of whole chunks, no larger than a small volume needs.

    >>> fitted_shard((30, 510, 667), (32, 64, 64), (128, 256, 256))
    (32, 256, 256)
    """
    if any(s % c for s, c in zip(shard, chunk, strict=True)):
        raise ValueError(f"shard {shard} is not a whole number of chunks {chunk}")
    return zyx(min(s, round_up(n, c)) for n, c, s in zip(volume, chunk, shard, strict=True))


def files_of(volume: Zyx, shard: Zyx) -> int:
    """How many files the shards of a level come to."""
    return prod(ceil_div(volume, shard))


def chosen_shard(volume: Zyx, chunk: Zyx, voxel_bytes: int, most_files: int = 10_000) -> Zyx:
    """The smallest shard of 4 × 4 × 4 chunks, doubled along x, y, z in turn, that keeps level 0 to `most_files` files.

    Beyond a terabyte it may be `most_files` per terabyte. Small shards make small blocks: little is lost
    when one fails, and all workers have some; few files please the filesystem, whose quotas count them.
    `voxel_bytes` are those of all channels.

    >>> chosen_shard((2000, 10000, 10000), (32, 64, 64), 2)
    (128, 512, 512)
    """
    shard = zyx(4 * c for c in chunk)
    allowed = most_files * max(1.0, prod(volume) * voxel_bytes / 1e12)
    axis = 2
    while files_of(volume, shard) > allowed:
        shard = zyx(s * 2 if a == axis else s for a, s in enumerate(shard))
        axis = (axis - 1) % 3
    return shard


def coarsening(factors: Sequence[Zyx]) -> Zyx:
    """By what a level is coarser than level 0, from the steps that lead to it.

    >>> coarsening([(1, 2, 2), (2, 2, 2)])
    (2, 4, 4)
    """
    z, y, x = 1, 1, 1
    for step in factors:
        z, y, x = z * step[0], y * step[1], x * step[2]
    return z, y, x


def fused_levels(volume: Zyx, chunk: Zyx, shard: Zyx, factors: Sequence[Zyx]) -> int:
    """How many pyramid levels can be made of one level-0 shard alone, each part of it being whole chunks of its level.

    Along an axis that one shard covers, its part is all there is, and always whole.

    >>> fused_levels((1000, 2000, 2000), (32, 64, 64), (256, 512, 512), [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)])
    3
    """
    for level in range(len(factors)):
        total = coarsening(factors[: level + 1])
        if any(n > s and s % (t * c) for n, s, t, c in zip(volume, shard, total, chunk, strict=True)):
            return level
    return len(factors)


def parted_levels(volume: Zyx, shard: Zyx, factors: Sequence[Zyx]) -> int:
    """How many pyramid levels have each of their voxels made of one level-0 shard alone.

    >>> parted_levels((1000, 2000, 2000), (256, 512, 512), [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)])
    4
    """
    return fused_levels(volume, (1, 1, 1), shard, factors)


def level_shard(volume: Zyx, chunk: Zyx, shard: Zyx, factors: Sequence[Zyx], level: int, fused: int) -> Zyx:
    """The shard of a level: of the first `fused` levels what becomes of one shard of level 0, of others as fits.

    So whoever writes a shard of level 0 can write its part of those levels too, without a lock.
    """
    total = coarsening(factors[:level])
    shape = ceil_div(volume, total)
    if level > fused:
        return fitted_shard(shape, chunk, shard)
    whole = fitted_shard(volume, chunk, shard)
    return zyx(
        s // t if n > s else round_up(m, c) for n, s, t, m, c in zip(volume, whole, total, shape, chunk, strict=True)
    )


def level_factors(shape: Zyx, voxel_size_um: tuple[float, float, float], smallest: int = 64) -> list[Zyx]:
    """By what each pyramid level is coarser than the one below, from level 1 on.

    An axis is halved only while its voxels are not clearly larger than the finest axis', so that
    anisotropic voxels become near isotropic first; levels end once no axis exceeds `smallest`.

    >>> level_factors((30, 510, 667), (5.0, 2.0, 2.0))
    [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    """
    factors: list[Zyx] = []
    sizes = list(voxel_size_um)
    while max(shape) > smallest:
        # sqrt(2): halving an axis already larger than this times the finest would worsen anisotropy
        limit = min(s for s, n in zip(sizes, shape, strict=True) if n > 1) * 2**0.5
        step = zyx(2 if s <= limit and n > 1 else 1 for s, n in zip(sizes, shape, strict=True))
        factors.append(step)
        sizes = [s * f for s, f in zip(sizes, step, strict=True)]
        shape = ceil_div(shape, step)
    return factors
