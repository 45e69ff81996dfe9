"""The conversion benchmark's peers: a folder of slices to a sharded Zarr pyramid of five levels, each in its own way.

    PEERS_PYTHON tests/bench/convert_peers.py PEER FOLDER DEST [--threads 2]

To be run by the Python of an environment that holds the peers; imports nothing of neurovol:

    pip install tensorstore ngff-zarr "dask[array]" zarr numcodecs tifffile imagecodecs psutil
    pip install stack-to-chunk tifffile psutil          in an environment of its own: it holds numcodecs to 0.15

With `--warm-up` a layer of shards is converted first, untimed, so that the process has its memory.
Prints one line of JSON: seconds without start and imports, processor seconds (of stack-to-chunk without its workers),
the peak memory of the process and its children, the bytes written, versions. convert_check.py compares what was
written with the slices. All write chunks of 64 × 128 × 128, shards of 256 × 512 × 512 (smaller where a level is),
Blosc (lz4 5, or zstd 1 with BENCH_CODEC=zstd; bitshuffle) and crc32c after it, but

- ngff-zarr has no crc32c on chunks (its writer refuses it), and trims levels of odd size where others round them up;
  so does dask.
- stack-to-chunk has shards of one chunk in z and all of y and x, and halves z from the first level on.
- only tensorstore asks the disk to have it all before it returns (fsync); `tensorstore-nosync` does not, like others.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).parent))

from convert_layout import (
    BLOSC,
    CHUNK,
    CODECS,
    FACTORS,
    SHARD,
    SLICES,
    Array,
    Zyx,
    boxes,
    halved,
    level_shapes,
    open_slices,
    shard_of,
)
from convert_peak import Peak, cpu_seconds

MODULES = {
    "tensorstore": ("tensorstore",),
    "tensorstore-nosync": ("tensorstore",),
    "dask": ("dask.array", "zarr"),
    "zarr-python": ("zarr",),
    "ngff-zarr": ("ngff_zarr", "dask.array", "zarr"),
    "stack-to-chunk": ("stack_to_chunk", "pydantic_zarr.v3", "dask.array", "zarr"),
}
PACKAGES = ("tensorstore", "dask", "zarr", "numcodecs", "ngff-zarr", "zarrista", "stack-to-chunk", "tifffile", "numpy")


def by_tensorstore(folder: Path, dest: Path, threads: int, sync: bool = True) -> None:
    """Bands of a shard's depth and height, read while the last one's shards are encoded; levels made on the way.

    A level's voxels wait in memory, a shard deep, until its shards are whole: nothing is read back or written twice.
    """
    import tensorstore as ts

    source = open_slices(folder)
    limit = {"limit": threads}
    context = ts.Context({"data_copy_concurrency": limit, "file_io_concurrency": limit, "file_io_sync": sync})
    shapes = level_shapes(source.shape)
    stores = [_tensorstore_level(ts, dest / str(n), shape, source.dtype, context) for n, shape in enumerate(shapes)]
    waiting = [np.empty((min(SHARD[0], s[0]), *s[1:]), source.dtype) for s in shapes[1:]]
    bands = [np.empty((min(SHARD[0], shapes[0][0]), SHARD[1], shapes[0][2]), source.dtype) for _ in range(2)]
    pending: list[list[Any]] = [[], []]

    def write(level: int, box: tuple[slice, ...], data: Array) -> list[Any]:
        where = range(box[2].start, box[2].stop, SHARD[2])
        return [
            stores[level][box[0], box[1], x : min(x + SHARD[2], box[2].stop)].write(
                data[..., x : x + SHARD[2]], can_reference_source_data_indefinitely=True
            )
            for x in where
        ]

    def push(level: int, box: tuple[slice, ...], data: Array) -> None:
        """Add the voxels that `data` makes of the level above it, and write what of it is a whole shard deep."""
        factors, held, shape = FACTORS[level - 1], waiting[level - 1], shapes[level]
        coarse = halved(data, factors)
        z, y, _ = (slice(b.start // f, -(-b.stop // f)) for b, f in zip(box, factors, strict=True))
        at = z.start % SHARD[0]
        held[at : at + len(coarse), y] = coarse
        if y.stop < shape[1] or (z.stop % SHARD[0] and z.stop < shape[0]):
            return
        full = slice(z.start - at, z.stop)
        now = held[: at + len(coarse)]
        results = []
        for a in range(0, shape[1], SHARD[1]):
            rows = slice(a, min(a + SHARD[1], shape[1]))
            results += write(level, (full, rows, slice(0, shape[2])), now[:, rows])
        if level < len(FACTORS):
            push(level + 1, (full, slice(0, shape[1]), slice(0, shape[2])), now)
        for result in results:  # `held` is filled anew after this
            result.result()

    for turn, box in enumerate(boxes(source.shape, (SHARD[0], SHARD[1], source.shape[2]))):
        for result in pending[turn % 2]:
            result.result()
        band = bands[turn % 2][: box[0].stop - box[0].start, : box[1].stop - box[1].start]
        source.read(band, box[0].start, box[1].start)
        pending[turn % 2] = write(0, box, band)
        push(1, box, band)
    for result in (*pending[0], *pending[1]):
        result.result()


def _tensorstore_level(ts: Any, path: Path, shape: Zyx, dtype: np.dtype[Any], context: Any) -> Any:
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(CHUNK),
            "codecs": CODECS,
            "index_codecs": [CODECS[0], {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    metadata = {
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard_of(shape))}},
        "codecs": [sharding],
    }
    store = {"driver": "file", "path": str(path)}
    spec = {"driver": "zarr3", "kvstore": store, "metadata": metadata}
    return ts.open(spec, create=True, context=context).result()


def _zarr_level(path: Path, shape: Zyx, dtype: np.dtype[Any]) -> Any:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    blosc = BloscCodec(**BLOSC)
    return zarr.create_array(
        str(path), shape=shape, dtype=dtype, chunks=CHUNK, shards=shard_of(shape), compressors=[blosc, Crc32cCodec()],
        fill_value=0, zarr_format=3,
    )  # fmt: skip


def by_zarr_python(folder: Path, dest: Path, threads: int) -> None:
    """Bands of a shard's depth and height, their shards written by threads; each level read back for the next."""
    import zarr

    zarr.config.set({"threading.max_workers": threads})
    source = open_slices(folder)
    shapes = level_shapes(source.shape)
    levels = [_zarr_level(dest / str(n), shape, source.dtype) for n, shape in enumerate(shapes)]
    buffer = np.empty((min(SHARD[0], shapes[0][0]), SHARD[1], shapes[0][2]), source.dtype)

    def write(band: Array, corner: tuple[slice, slice, slice], x: slice) -> None:
        levels[0][corner[0], corner[1], x] = band[..., x]

    def coarser(level: int, box: tuple[slice, slice, slice]) -> None:
        factors = FACTORS[level - 1]
        fine = tuple(slice(b.start * f, b.stop * f) for b, f in zip(box, factors, strict=True))
        levels[level][box] = halved(levels[level - 1][fine], factors)

    with ThreadPoolExecutor(threads) as pool:
        for corner in boxes(source.shape, (SHARD[0], SHARD[1], source.shape[2])):
            band = buffer[: corner[0].stop - corner[0].start, : corner[1].stop - corner[1].start]
            source.read(band, corner[0].start, corner[1].start)
            columns = [slice(x, min(x + SHARD[2], source.shape[2])) for x in range(0, source.shape[2], SHARD[2])]
            list(pool.map(partial(write, band, corner), columns))
        for level in range(1, len(levels)):
            list(pool.map(partial(coarser, level), boxes(shapes[level], shard_of(shapes[level]))))


def _dask_slices(folder: Path, depth: int = 1) -> Any:
    """(z, y, x), chunks of `depth` slices, read by tifffile."""
    import dask.array as da

    source = open_slices(folder)

    def read(block_info: Any = None) -> Array:
        start, stop = block_info[None]["array-location"][0]
        return np.stack([tifffile.imread(file) for file in source.files[start:stop]])

    chunks = da.core.normalize_chunks((depth, -1, -1), source.shape)
    return da.map_blocks(read, chunks=chunks, dtype=source.dtype, meta=np.empty((0, 0, 0), source.dtype))


def by_dask(folder: Path, dest: Path, threads: int) -> None:
    """Slices rechunked to shards and stored, a slab of shards at a time; each level read back and coarsened."""
    import dask
    import dask.array as da

    with dask.config.set(scheduler="threads", num_workers=threads):
        array = _dask_slices(folder, SLICES)
        for level in range(len(FACTORS) + 1):
            target = _zarr_level(dest / str(level), array.shape, array.dtype)
            for z in range(0, array.shape[0], SHARD[0]):
                region = (slice(z, min(z + SHARD[0], array.shape[0])), slice(None), slice(None))
                da.store(array[region].rechunk(target.shards), target, lock=False, regions=region)
            if level < len(FACTORS):
                array = _dask_coarser(da, target, FACTORS[level])


def _dask_coarser(da: Any, level: Any, factors: Zyx) -> Any:
    fine = da.from_array(level, chunks=level.shards, lock=False)
    means = da.coarsen(np.mean, fine, dict(enumerate(factors)), trim_excess=True, dtype=np.float32)
    return (means + np.float32(0.5)).astype(level.dtype)


def by_ngff_zarr(folder: Path, dest: Path, threads: int) -> None:
    """Its own API, with the fastest of its ways to take means (DASK_BIN_SHRINK)."""
    import dask
    import ngff_zarr as nz

    scales, total = [], (1, 1, 1)
    for factors in FACTORS:
        total = tuple(t * f for t, f in zip(total, factors, strict=True))
        scales.append(dict(zip("zyx", total, strict=True)))
    blosc = {"name": "blosc", "configuration": BLOSC}
    with dask.config.set(scheduler="threads", num_workers=threads):
        image = nz.to_ngff_image(_dask_slices(folder, SLICES), dims=["z", "y", "x"], name="image")
        levels = nz.to_multiscales(
            image, scale_factors=scales, method=nz.Methods.DASK_BIN_SHRINK, chunks=dict(zip("zyx", CHUNK, strict=True))
        )
        per_shard = dict(zip("zyx", (s // c for s, c in zip(SHARD, CHUNK, strict=True)), strict=True))
        nz.to_ngff_zarr(dest, levels, version="0.5", chunks_per_shard=per_shard, compressors=[blosc])


def by_stack_to_chunk(folder: Path, dest: Path, threads: int) -> None:
    """Its own API; its arrays are x, y, z."""
    import stack_to_chunk
    from pydantic_zarr.v3 import ArraySpec

    data = _dask_slices(folder).T
    grid = {"name": "regular", "configuration": {"chunk_shape": CHUNK[::-1]}}
    spec = ArraySpec.from_array(data, attributes={}, fill_value=0, chunk_grid=grid, codecs=CODECS)
    group = stack_to_chunk.MultiScaleGroup(
        dest, name="image", voxel_size=(1.0, 1.0, 1.0), spatial_unit="micrometer", array_spec=spec
    )
    group.add_full_res_data(data, n_processes=threads)
    for level in range(1, len(FACTORS) + 1):
        group.add_downsample_level(level, n_processes=threads)


PEERS: dict[str, Callable[[Path, Path, int], None]] = {
    "tensorstore": by_tensorstore,
    "tensorstore-nosync": partial(by_tensorstore, sync=False),
    "dask": by_dask,
    "zarr-python": by_zarr_python,
    "ngff-zarr": by_ngff_zarr,
    "stack-to-chunk": by_stack_to_chunk,
}


def warm_up(peer: str, folder: Path, dest: Path, threads: int) -> None:
    """Convert as many slices as a shard is deep, and remove what came of it."""
    with tempfile.TemporaryDirectory(dir=dest.parent) as temporary:
        some = Path(temporary) / "slices"
        some.mkdir()
        for file in sorted(folder.glob("*.tif"))[: SHARD[0]]:
            (some / file.name).symlink_to(file.resolve())
        PEERS[peer](some, Path(temporary) / "out.zarr", threads)


def measured(peer: str, folder: Path, dest: Path, threads: int, warm: bool) -> dict[str, Any]:
    """Convert once; what is imported beforehand is not timed."""
    for module in MODULES[peer]:
        importlib.import_module(module)
    if warm:
        warm_up(peer, folder, dest, threads)
    with Peak() as peak:
        before, started = cpu_seconds(), time.perf_counter()
        PEERS[peer](folder, dest, threads)
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
    written = sum(file.stat().st_size for file in dest.rglob("*") if file.is_file())
    return {
        "peer": peer,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "peak_mb": peak.mb,
        "written_mb": round(written / 1e6, 3),
        "threads": threads,
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path, help="uncompressed slices")
    parser.add_argument("dest", type=Path, help="must not exist")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", action="store_true", help="convert a layer of shards first, untimed")
    args = parser.parse_args()
    if args.dest.exists():
        parser.error(f"{args.dest}: exists; nothing is overwritten, and overwriting is not what is measured")
    print(json.dumps(measured(args.peer, args.folder, args.dest, args.threads, args.warm_up)))


if __name__ == "__main__":
    main()
