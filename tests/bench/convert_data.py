"""The stacks of the conversion benchmark: voxels as a microscope delivers them, in the files it delivers them in.

    python tests/bench/convert_data.py FOLDER [--quick]

A phantom is too slow for gigabytes, so one block of it is repeated: mirrored from tile to tile, so that no edge
shows, shifted from slice to slice beyond its depth, and with some noise on top. `--ratio` shows that codecs take
the result for the phantom it is made of.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

Zyx = tuple[int, int, int]
Slices = Iterator[NDArray[np.uint16]]

BLOCK = (64, 512, 512)
FULL = (640, 1400, 1400)  # 2.5 GB; x and y are no multiples of 512
QUICK = (160, 700, 700)  # 0.16 GB
NOISE = 2  # counts to either side


def slices(shape: Zyx, seed: int = 1) -> Slices:
    """The stack slice by slice, (y, x) of uint16; the same every time."""
    from neurovol.geometry import Box
    from neurovol.volume.phantom import PhantomSource

    block = PhantomSource(BLOCK, seed=seed).read(Box.of_shape(BLOCK))[0]
    random = np.random.default_rng(seed)
    noise = random.integers(0, 2 * NOISE + 1, (shape[1] + 127, shape[2] + 127), np.uint16)
    for z in range(shape[0]):
        turn, depth = divmod(z, BLOCK[0])
        plane = block[depth if turn % 2 == 0 else BLOCK[0] - 1 - depth]  # there and back again
        dy, dx = random.integers(0, 128, 2)
        yield _tiled(plane, 101 * turn, shape[1:]) + noise[dy : dy + shape[1], dx : dx + shape[2]]


def _tiled(plane: NDArray[np.uint16], shift: int, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """The plane and its mirror images side by side, from `shift` on."""
    y, x = (_mirrored(n, shift, side) for n, side in zip(shape, plane.shape, strict=True))
    return plane[y][:, x]


def _mirrored(n: int, shift: int, side: int) -> NDArray[np.intp]:
    """n indices into an axis of `side`: 0 1 2 2 1 0 0 1 2 …"""
    place = (np.arange(n) + shift) % (2 * side)
    return np.minimum(place, 2 * side - 1 - place)


def stack_folder(dest: Path, shape: Zyx) -> Path:
    """A folder of uncompressed slices, one file each."""
    dest.mkdir(parents=True)
    for z, plane in enumerate(slices(shape)):
        tifffile.imwrite(dest / f"{z:05}.tif", plane, photometric="minisblack")
    return dest


def stack_lzw(dest: Path, shape: Zyx) -> Path:
    """One multi-page file, LZW, in tifffile's own strips of 256 kB."""
    return _pages(dest, shape, compression="lzw")


def stack_strips(dest: Path, shape: Zyx) -> Path:
    """One multi-page file, deflate, each page a single strip, as ZetaStitcher writes it."""
    return _pages(dest, shape, compression="zlib", rowsperstrip=shape[1])


def _pages(dest: Path, shape: Zyx, **how: object) -> Path:
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(dest, bigtiff=2 * prod(shape) > 2**31) as file:
        for plane in slices(shape):
            file.write(plane, photometric="minisblack", metadata=None, contiguous=False, maxworkers=2, **how)
    return dest


def ratios() -> tuple[float, float]:
    """By how much Blosc (zstd 1, bitshuffle) shrinks the untouched phantom, and what is made of it, in whole chunks."""
    from neurovol.geometry import Box
    from neurovol.volume.phantom import PhantomSource

    phantom = PhantomSource(BLOCK, seed=1).read(Box.of_shape(BLOCK))[0]
    return _ratio(phantom), _ratio(np.stack(list(slices((192, 700, 700)))))


def _ratio(stack: NDArray[np.uint16], chunk: Zyx = (64, 128, 128)) -> float:
    from numcodecs import Blosc

    codec = Blosc("zstd", 1, Blosc.BITSHUFFLE, typesize=2)
    starts = product(*(range(0, n - c + 1, c) for n, c in zip(stack.shape, chunk, strict=True)))
    corners = (tuple(slice(a, a + c) for a, c in zip(start, chunk, strict=True)) for start in starts)
    sizes = [len(codec.encode(np.ascontiguousarray(stack[corner]))) for corner in corners]
    return 2 * prod(chunk) * len(sizes) / sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="the stacks are written here, where they are not yet")
    parser.add_argument("--quick", action="store_true", help=f"a stack of {QUICK} instead of {FULL}")
    parser.add_argument("--ratio", action="store_true", help="compare the entropy with a phantom's")
    args = parser.parse_args()
    if args.ratio:
        print("compression ratio of the phantom {:.3f}, of the stack {:.3f}".format(*ratios()))
    if args.folder:
        shape = QUICK if args.quick else FULL
        for write, name in ((stack_folder, "slices"), (stack_lzw, "lzw.tif"), (stack_strips, "strips.tif")):
            if not (args.folder / name).exists():
                print(write(args.folder / name, shape))


if __name__ == "__main__":
    main()
