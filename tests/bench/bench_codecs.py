"""Size against speed of codecs on the store's chunks: what neurovol.volume.shardfile.codec_for chooses by.

    MOUSE_CORTEX=FOLDER python tests/bench/bench_codecs.py [--quick] [--json FILE]

Chunks of 32 × 64 × 64 of a phantom and, where its folder is given, of mouse cortex, as uint16 and scaled to uint8; one
thread, MB of voxels per second encoded and decoded, medians of three rounds after a warm-up; the ratio is encoded size
by size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from neurovol.geometry import Box
from neurovol.volume.packing import CRC_BYTES
from neurovol.volume.phantom import PhantomSource
from neurovol.volume.shardfile import Codec
from neurovol.volume.workspace import reused

CHUNK = (32, 64, 64)


def codecs(itemsize: int) -> dict[str, Codec]:
    found = {f"zstd {level}": Codec("zstd", level) for level in (1, 3)}
    within = (("zstd", 1), ("zstd", 3), ("lz4", 1), ("lz4", 5), ("lz4", 9))
    for (name, level), shuffle, blocksize in product(within, ("shuffle", "bitshuffle"), (0, 2**19)):
        title = f"blosc {name} {level} {shuffle}{' 512 kB' if blocksize else ''}"
        found[title] = Codec("blosc", level, name, shuffle, itemsize, blocksize)
    return found


def volumes(quick: bool) -> dict[str, np.ndarray]:
    shape = (32, 128, 128) if quick else (64, 512, 512)
    found = {"phantom": PhantomSource(shape, seed=1).read(Box.of_shape(shape))[0]}
    if "MOUSE_CORTEX" in os.environ:
        mouse = tifffile.imread(Path(os.environ["MOUSE_CORTEX"]) / "signal.tif")[:, :448, :640]
        found["mouse cortex"] = np.pad(mouse, ((0, 2), (0, 0), (0, 0)), mode="reflect")
    eight = {f"{name} uint8": (v // max(1, -(-int(v.max()) // 255))).astype(np.uint8) for name, v in found.items()}
    return {f"{name} uint16": v for name, v in found.items()} | eight


def chunks(volume: np.ndarray) -> list[np.ndarray]:
    corners = product(*(range(0, n - c + 1, c) for n, c in zip(volume.shape, CHUNK, strict=True)))
    return [volume[tuple(slice(a, a + c) for a, c in zip(k, CHUNK, strict=True))].copy() for k in corners]


def measured(pieces: list[np.ndarray], codec: Codec, rounds: int) -> dict[str, float]:
    packer = codec.packer(pieces[0].shape, pieces[0].dtype)
    memory = reused("chunk", (1, 1, pieces[0].nbytes), np.dtype(np.uint8))

    room = memoryview(bytearray(packer.most_bytes))

    def encode(piece: np.ndarray) -> memoryview:
        packer.place(piece, memory, 0)
        (n,) = packer.compress(memory[0], room)
        return room[: n - CRC_BYTES]

    encoding, decoding = [], []
    decode = imagecodecs.zstd_decode if codec.name == "zstd" else partial(imagecodecs.blosc_decode, numthreads=1)
    encoded = [bytes(encode(piece)) for piece in pieces]
    out = bytearray(pieces[0].nbytes)
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for piece in pieces:
            encode(piece)
        between = time.perf_counter()
        for data in encoded:
            decode(data, out=out)
        encoding.append(between - start)
        decoding.append(time.perf_counter() - between)
    total = sum(piece.nbytes for piece in pieces)
    return {
        "MB/s": round(total / statistics.median(encoding[1:]) / 1e6),
        "decode MB/s": round(total / statistics.median(decoding[1:]) / 1e6),
        "ratio": round(sum(map(len, encoded)) / total, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller phantom, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures, machine and versions")
    options = parser.parse_args()
    figures = {
        name: {c: measured(chunks(v), codec, 1 if options.quick else 3) for c, codec in codecs(v.itemsize).items()}
        for name, v in volumes(options.quick).items()
    }
    result = {
        "figures": figures,
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor() or platform.machine()},
        "versions": {name: version(name) for name in ("imagecodecs", "numcodecs", "numpy")},
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, row in figures.items():
        for codec, f in row.items():
            print(f"{name:22}{codec:36}{f['MB/s']:6.0f}, {f['decode MB/s']:6.0f} MB/s   {f['ratio']:.3f}")


if __name__ == "__main__":
    main()
