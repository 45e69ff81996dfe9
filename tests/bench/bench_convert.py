"""Conversion side by side with its peers, with its codec's bound, and with itself on other sources, in one run.

    python tests/bench/bench_convert.py [--quick] [--json FILE] [--folder FOLDER] [--codec lz4]
        [--peers PYTHON] [--stack-to-chunk PYTHON]

2.5 GB of uint16 in a folder of uncompressed slices, page cache warm; chunk 64 × 128 × 128, shard 256 × 512 × 512, the
same codec for all, five levels. Everything is run in turn, round by round, and the first round thrown away; figures
are medians of the others, in MB of voxels (level 0) per second. Each run is a process of its own; its start, its
imports and the start of its workers are not timed; nor that it first touches its memory, which can take as long as
the work itself, and happens once in a conversion of a day: each converts a first layer of shards untimed, in ours each
worker three rows of blocks before. The peers are those of convert_peers.py, where an environment with them is named;
what is missing is said. Ratios are taken within a round, and are medians too: a machine that is slower in one round
than in the next shows in figures, and hardly in ratios.

Rows of ours: `neurovol` is what `neurovol convert` does: pyramid, exact histogram, fsync before the ledger says done;
the others leave one thing out or change the source. `long` is the stack four times over (10 GB, by links), of which how
a conversion begins and ends is a fourth as much. `plain copy` reads, encodes, sums and writes the same bytes and
nothing else, through the page cache, as peers write. `on its own` is the whole conversion in one process without Dask,
`two, each on its own` two such at once, which share nothing but the machine. `codec bound` is that of Blosc's own
library, which the peers call, for level 0, and with the coarser levels; `own encoder bound` that of our way to the same
format.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from itertools import accumulate, islice, product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np

if TYPE_CHECKING:
    from distributed import Client, Worker

    from neurovol.geometry import Block
    from neurovol.geometry.blocks import Numbered
    from neurovol.stages.blockcopy import Convert

sys.path.insert(0, str(Path(__file__).parent))

from convert_data import FULL, QUICK, stack_folder, stack_lzw
from convert_layout import CHUNK, CODEC, FACTORS, SHARD

Figures = dict[str, dict[str, float]]

OURS = {
    "neurovol": [],
    "neurovol no fsync": ["--no-fsync"],
    "neurovol level 0": ["--levels", "0"],
    "neurovol level 0 no fsync": ["--levels", "0", "--no-fsync"],
    "neurovol level 0 no fsync no histogram": ["--levels", "0", "--no-fsync", "--no-histogram"],
    "neurovol one worker": ["--workers", "1"],
    "neurovol long": ["--source", "long"],
    "neurovol long level 0": ["--source", "long", "--levels", "0"],
    "neurovol long one worker": ["--source", "long", "--workers", "1"],
    "neurovol LZW": ["--source", "lzw.tif"],
    "neurovol ZetaStitcher": ["--source", "mosaic"],
}
PLAIN = {"plain copy": 2, "plain copy one process": 1}
ALONE = {"neurovol on its own": 1, "neurovol two, each on its own": 2}
LONG = 4  # times the stack, one after the other
WARM = 3  # groups of blocks
TOGETHER = 3  # blocks at once: as most_together says of this layout
ROUNDS = 4  # of which the first is thrown away
PEERS = ("tensorstore", "tensorstore-nosync", "dask", "zarr-python", "ngff-zarr")


def mosaic(folder: Path, stack: Path, shape: tuple[int, int, int], overlap: int = 100) -> Path:
    """The same voxels as a ZetaStitcher project of 2 × 2 tiles, each a multi-page file."""
    import tifffile
    import yaml

    folder.mkdir()
    planes = [tifffile.imread(file) for file in sorted(stack.glob("*.tif"))]
    z, y, x = shape
    tiles = []
    for i, j in product(range(2), range(2)):
        ys, xs = i * (y // 2 - overlap // 2), j * (x // 2 - overlap // 2)
        ny, nx = y // 2 + overlap // 2, x // 2 + overlap // 2
        name = f"{j}_{i}.tif"
        with tifffile.TiffWriter(folder / name, bigtiff=True) as file:
            file.write((p[ys : ys + ny, xs : xs + nx] for p in planes), shape=(z, ny, nx), dtype="uint16")
        tiles.append({"X": j, "Y": i, "Z": 0, "Xs": xs, "Ys": ys, "Zs": 0, "nfrms": z, "ysize": ny, "xsize": nx,
                      "filename": name})  # fmt: skip
    (folder / "stitch.yml").write_text(yaml.safe_dump({"filematrix": tiles}))
    return folder


def linked(folder: Path, files: Sequence[Path]) -> Path:
    """A folder of slices that are links to these, in their order."""
    folder.mkdir()
    for z, file in enumerate(files):
        (folder / f"z{z:06}.tif").symlink_to(file.absolute())
    return folder


def bounds(folder: Path, threads: int) -> dict[str, float]:
    """MB/s of Blosc alone (each chunk copied, encoded, summed), of our way to the same bytes, of LZW and then Blosc.

    Whole chunks of level 0. What coarser levels add is of all chunks, also those that reach beyond the volume, beside
    level 0's: chunks of which a part is 0 take longer than whole ones, and coarser levels have more of them. Theirs are
    those that can be made of the first slices, and stand for as many as the levels have.
    """
    import google_crc32c
    import tifffile
    from convert_layout import BLOSC, halved

    from neurovol.volume.shardfile import codec_for
    from neurovol.volume.workspace import reused

    files = sorted((folder / "slices").glob("*.tif"))[: 2 * CHUNK[0]]
    slices = np.stack([tifffile.imread(file) for file in files])
    layer = slices[: CHUNK[0]]
    coarser = list(accumulate(FACTORS[:2], halved, initial=slices))[1:]  # the others are a hundredth of level 0
    kept = threading.local()  # memory of each thread

    def by_blosc(chunk: np.ndarray) -> Any:
        if not hasattr(kept, "chunk"):
            kept.chunk = np.empty(CHUNK, layer.dtype)
            kept.out = bytearray(kept.chunk.nbytes * 9 // 8 + 1024)
        if chunk.shape != CHUNK:
            kept.chunk[...] = 0
        kept.chunk[tuple(map(slice, chunk.shape))] = chunk
        return imagecodecs.blosc_encode(
            kept.chunk, level=BLOSC["clevel"], compressor=CODEC, shuffle="bitshuffle", typesize=2,
            blocksize=BLOSC["blocksize"], numthreads=1, out=kept.out,
        )  # fmt: skip

    def by_ours(y: int) -> int:
        if not hasattr(kept, "packer"):
            kept.packer = codec_for(layer.dtype, CODEC).packer(CHUNK, layer.dtype)
            kept.out = memoryview(bytearray(kept.packer.most_bytes))
            kept.chunks = reused("chunks", (1, layer.shape[2] // CHUNK[2], prod(CHUNK) * 2), np.dtype(np.uint8))
        whole = kept.chunks.shape[1] * CHUNK[2]
        kept.packer.place(layer[:, y : y + CHUNK[1], :whole], kept.chunks, 0)
        for chunk in kept.chunks[0]:
            kept.packer.compress(chunk[None], kept.out)
        return int(kept.chunks.nbytes)

    def encode(chunk: np.ndarray) -> int:
        google_crc32c.value(np.frombuffer(by_blosc(chunk), np.uint8))
        return chunk.nbytes

    def chunks(array: np.ndarray, all_of_them: bool = True) -> list[np.ndarray]:
        ends = array.shape if all_of_them else [n - c + 1 for n, c in zip(array.shape, CHUNK, strict=True)]
        corners = product(*(range(0, end, c) for end, c in zip(ends, CHUNK, strict=True)))
        return [array[tuple(slice(a, a + c) for a, c in zip(at, CHUNK, strict=True))] for at in corners]

    def decode(page: tifffile.TiffPage) -> int:
        return int(page.asarray(maxworkers=1).nbytes)

    with ThreadPoolExecutor(threads) as pool, tifffile.TiffFile(folder / "lzw.tif") as tif:
        tif.filehandle.set_lock(True)  # pages are read by all threads

        def rate(work: Callable[[Any], int], things: Sequence[Any]) -> float:
            list(pool.map(work, things))
            start = time.perf_counter()
            return sum(pool.map(work, things)) / (time.perf_counter() - start) / 1e6

        codec, layers = rate(encode, chunks(layer, all_of_them=False) * 3), rate(encode, chunks(layer) * 3)
        extra = sum(level.size / slices.size * layers / rate(encode, chunks(level) * 12) for level in coarser)
        own = rate(by_ours, list(range(0, layer.shape[1] - CHUNK[1] + 1, CHUNK[1])) * 3)
        lzw = rate(decode, list(tif.pages[: CHUNK[0]]))
    return {
        "codec bound": codec,
        "codec bound with pyramid": codec / (1 + extra),
        "own encoder bound": own,
        "LZW bound": 1 / (1 / lzw + 1 / codec),
    }


def plain_copy(folder: Path, dest: Path, processes: int) -> dict[str, float]:
    """The least that a conversion of level 0 has to do: read, encode, sum, write; nothing is waited for.

    Each process has slices and files of its own, which are of no use to a reader.
    """
    dest.mkdir()
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(_warm, range(processes)))
        list(pool.map(_copy_part, [(folder, dest, part, 4 * processes) for part in range(processes)]))
        start = time.perf_counter()
        list(pool.map(_copy_part, [(folder, dest, part, processes) for part in range(processes)]))
    return {"seconds": time.perf_counter() - start, "peak_mb": 0.0}


def _warm(_: int) -> None:
    for module in ("google_crc32c", "convert_layout", "neurovol.volume.shardfile"):
        importlib.import_module(module)
    time.sleep(0.5)  # so that each process gets one


def _copy_part(what: tuple[Path, Path, int, int]) -> None:
    from convert_layout import open_slices

    from neurovol.stages.blockcopy import SLAB
    from neurovol.volume.shardfile import codec_for
    from neurovol.volume.workspace import reused

    folder, dest, part, parts = what
    slices = open_slices(folder / "slices")
    packer = codec_for(slices.dtype, CODEC).packer(CHUNK, slices.dtype)
    depth, rows, width = CHUNK[0], CHUNK[1], slices.shape[2]
    slab, out = np.empty((SLAB, rows, width), slices.dtype), memoryview(bytearray(packer.most_bytes))
    chunks = reused("chunks", (1, -(-width // CHUNK[2]), prod(CHUNK) * 2), np.dtype(np.uint8))
    bands = list(product(range(0, slices.shape[0], depth), range(0, slices.shape[1], rows)))
    for z, y in bands[part::parts]:
        with (dest / f"{z}-{y}").open("wb") as file:
            there = min(depth, slices.shape[0] - z)
            for above in range(0, there, SLAB):
                held = slab[: there - above, : min(rows, slices.shape[1] - y)]
                for k, plane in enumerate(held):
                    slices.read(plane[None], z + above + k, y)
                packer.place(held, chunks, above)
            packer.blank(chunks, there)
            for chunk in chunks[0]:
                (n,) = packer.compress(chunk[None], out)
                file.write(out[:n])


def on_its_own(folder: Path, dest: Path, options: argparse.Namespace) -> dict[str, float]:
    """Convert in processes that know nothing of each other, the whole in each; what they take at once is one's time."""
    barrier = multiprocessing.Barrier(options.workers)
    with ProcessPoolExecutor(options.workers, initializer=_meet_at, initargs=(barrier,)) as pool:
        tasks = [(folder, dest.with_name(f"out.own-{n}.zarr"), options) for n in range(options.workers)]
        seconds = max(pool.map(_convert_alone, tasks))
    return {"seconds": seconds / options.workers, "peak_mb": 0.0}


def _meet_at(barrier: Any) -> None:
    global _met
    _met = barrier


def _convert_alone(what: tuple[Path, Path, argparse.Namespace]) -> float:
    """Seconds; level 0 with what is made of its blocks, which is all but a hundredth of the voxels."""
    from neurovol.geometry import side_by_side

    folder, dest, options = what
    _warm_up(folder, dest, options)
    _met.wait()
    start = time.perf_counter()
    task, blocks = begun(folder / options.source, dest, options)
    _converted(task, side_by_side(blocks[0], lambda: TOGETHER))
    return time.perf_counter() - start


def _converted(task: Convert, groups: Iterable[Sequence[Block]]) -> None:
    with ThreadPoolExecutor(1) as landing:  # as a worker has a thread that waits for the disk
        for landed in [landing.submit(task.begin(group).wait) for group in groups]:
            landed.result()


def ours(folder: Path, dest: Path, options: argparse.Namespace) -> dict[str, float]:
    """Convert once in this process and its workers."""
    from convert_peak import Peak

    from neurovol.blockwise.cluster import open_client
    from neurovol.clustersettings import ClusterSettings

    first = linked(dest.with_name("out.first"), sorted((folder / "slices").glob("*.tif"))[: SHARD[0]])
    with open_client(ClusterSettings(workers=options.workers, threads=1)) as client, Peak() as peak:
        client.run(_warmed_up, folder, dest, options)
        warm = dest.with_name("out.warm.zarr")
        _driven(client, first, warm, options)
        shutil.rmtree(warm)
        start = time.perf_counter()
        _driven(client, folder / options.source, dest, options)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak.mb}


def _driven(client: Client, source: Path, dest: Path, options: argparse.Namespace) -> None:
    """As `neurovol convert` does it."""
    from neurovol.blockwise.ledger import Header, Ledger
    from neurovol.blockwise.runner import Meter
    from neurovol.stages.convert import level_histograms
    from neurovol.stages.copying import copy_levels
    from neurovol.volume.omezarr import finish_volume
    from neurovol.volume.unpacked import needs_scratch

    task, blocks = begun(source, dest, options)
    with Ledger(dest.with_suffix(".jsonl"), Header("convert", {}, sum(map(len, blocks)))) as ledger:
        meter = Meter(ledger)
        wanted = needs_scratch(task.source.shape[1:], task.source.grain, SHARD)
        scratch = dest.with_suffix(".scratch") if wanted else None
        copy_levels(client, task, blocks, meter, retries=0, most=TOGETHER, scratch=scratch)
        if not options.no_histogram:
            level_histograms(Path(task.notes), blocks, len(task.fused), 1)[0].constants()
        finish_volume(dest, name="image", attributes={})
        ledger.finish()


def begun(path: Path, dest: Path, options: argparse.Namespace) -> tuple[Convert, list[Numbered]]:
    """An empty store, the task that fills it, and its blocks by level."""
    from neurovol.levels import fused_levels, parted_levels
    from neurovol.stages.blockcopy import Convert
    from neurovol.stages.cover import level_blocks
    from neurovol.volume.omezarr import create_volume, open_volume
    from neurovol.volume.source import open_path

    source = open_path(path)
    shape = source.shape[1:]
    factors = FACTORS[: options.levels]
    fused = fused_levels(shape, CHUNK, SHARD, factors)
    create_volume(dest, shape=shape, channels=1, dtype=source.dtype, voxel_size_um=(2, 0.88, 0.88), chunk=CHUNK,
                  shard=SHARD, factors=factors, fused=fused, codec=CODEC)  # fmt: skip
    notes = dest.with_suffix(".notes")
    notes.mkdir()
    parted = factors[fused : parted_levels(shape, SHARD, factors)]
    task = Convert(source, (0,), str(dest), factors[:fused], str(notes), parted, durable=not options.no_fsync,
                   histogram=not options.no_histogram)  # fmt: skip
    return task, level_blocks(open_volume(dest, allow_incomplete=True))


def _warmed_up(folder: Path, dest: Path, options: argparse.Namespace, dask_worker: Worker) -> None:
    """On a worker: all is imported, and its memory touched, as peers have it before the clock starts."""
    from neurovol.blockwise.attempt import _computing

    importlib.import_module("neurovol.stages.copying")
    _computing(dask_worker).submit(_warm_up, folder, dest, options).result()  # memory is each thread's own


def _warm_up(folder: Path, dest: Path, options: argparse.Namespace) -> None:
    from neurovol.geometry import side_by_side

    own = dest.with_name(f"out.warm-{os.getpid()}.zarr")
    task, blocks = begun(folder / "slices", own, options)
    _converted(task, islice(side_by_side(blocks[0], lambda: TOGETHER), WARM))
    shutil.rmtree(own)
    shutil.rmtree(task.notes)


def run(python: str, script: str, arguments: list[str]) -> dict[str, float]:
    """One conversion in a process of its own; the last line it prints."""
    command = [python, str(Path(__file__).parent / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(folder: Path, options: argparse.Namespace) -> list[Figures]:
    """Of each round but the first, by name: MB/s and peak memory in MB."""
    shape = QUICK if options.quick else FULL
    volume = prod(shape) * 2 / 1e6
    if not (folder / "mosaic").exists():
        stack_folder(folder / "slices", shape)
        stack_lzw(folder / "lzw.tif", shape)
        mosaic(folder / "mosaic", folder / "slices", shape)
    if not (folder / "long").exists():
        linked(folder / "long", sorted((folder / "slices").glob("*.tif")) * LONG)
    dest = folder / "out.zarr"
    commands = {
        name: (sys.executable, "bench_convert.py", ["--ours", str(folder), "--dest", str(dest), *how])
        for name, how in OURS.items()
    }
    pythons = dict.fromkeys(PEERS, options.peers) | {"stack-to-chunk": options.stack_to_chunk}
    for peer, python in pythons.items():
        if python:
            commands[peer] = (python, "convert_peers.py", [peer, str(folder / "slices"), str(dest), "--warm-up"])
    for name, processes in ALONE.items():
        commands[name] = (sys.executable, "bench_convert.py", ["--on-its-own", str(folder), "--dest", str(dest),
                          "--workers", str(processes)])  # fmt: skip
    for name, processes in PLAIN.items():
        commands[name] = (sys.executable, "bench_convert.py", ["--plain-copy", str(folder), "--dest", str(dest),
                          "--workers", str(processes)])  # fmt: skip
    rounds: list[Figures] = []
    for turn in range(2 if options.quick else ROUNDS):
        figures: Figures = {}
        for name, (python, script, arguments) in commands.items():
            found = run(python, script, arguments)
            rate = volume * (LONG if "long" in arguments else 1) / found["seconds"]
            figures[name] = {"MB/s": rate, "peak MB": found["peak_mb"]}
            print(f"round {turn}  {name:40}{rate:8.0f} MB/s{found['peak_mb']:8.0f} MB", flush=True)
            for leftover in folder.glob("out.*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            os.sync()  # no run pays for what the one before left unwritten
        rounds.append(figures | {name: {"MB/s": rate} for name, rate in bounds(folder, 2).items()})
    return rounds[1:]


def medians(found: Sequence[Mapping[str, float]], digits: int) -> dict[str, float]:
    return {name: round(statistics.median(one[name] for one in found), digits) for name in found[0]}


def ratios(found: Figures) -> dict[str, float]:
    """Of one round."""
    rate = {name: figures["MB/s"] for name, figures in found.items()}
    peak = {name: figures.get("peak MB", 0.0) for name, figures in found.items()}
    wanted = {
        "of_codec_bound": rate["neurovol level 0"] / rate["codec bound"],
        "of_own_encoder_bound": rate["neurovol level 0"] / rate["own encoder bound"],
        "of_codec_bound_no_fsync_no_histogram": rate["neurovol level 0 no fsync no histogram"] / rate["codec bound"],
        "of_plain_copy": rate["neurovol level 0 no fsync no histogram"] / rate["plain copy"],
        "two_on_their_own_vs_one": rate["neurovol two, each on its own"] / rate["neurovol on its own"],
        "plain_copy_two_vs_one": rate["plain copy"] / rate["plain copy one process"],
        "pyramid_extra": rate["neurovol level 0"] / rate["neurovol"] - 1,
        "pyramid_extra_of_codec": rate["codec bound"] / rate["codec bound with pyramid"] - 1,
        "pyramid_extra_no_fsync": rate["neurovol level 0 no fsync"] / rate["neurovol no fsync"] - 1,
        "fsync_costs": 1 - rate["neurovol"] / rate["neurovol no fsync"],
        "lzw_of_bound": rate["neurovol LZW"] / rate["LZW bound"],
        "zetastitcher_vs_stack": rate["neurovol ZetaStitcher"] / rate["neurovol"],
        "two_workers_vs_one": rate["neurovol"] / rate["neurovol one worker"],
        "pyramid_extra_long": rate["neurovol long level 0"] / rate["neurovol long"] - 1,
        "two_workers_vs_one_long": rate["neurovol long"] / rate["neurovol long one worker"],
        "peak_mb": peak["neurovol"],
    }
    for name, peer in (("vs_ngff_zarr", "ngff-zarr"), ("vs_dask", "dask"), ("vs_tensorstore", "tensorstore"),
                       ("vs_zarr_python", "zarr-python"), ("vs_stack_to_chunk", "stack-to-chunk")):  # fmt: skip
        if peer in rate:
            wanted[name] = rate["neurovol"] / rate[peer]
    if "tensorstore-nosync" in rate:
        wanted["vs_tensorstore_no_fsync"] = rate["neurovol no fsync"] / rate["tensorstore-nosync"]
        wanted["peak_vs_tensorstore"] = peak["neurovol"] / peak["tensorstore"]
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", choices=("lz4", "zstd"), default="lz4", help="Blosc's, for all")
    parser.add_argument("--quick", action="store_true", help="0.16 GB, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures, ratios, machine and versions")
    parser.add_argument("--folder", type=Path, help="for the stacks (7 GB), which are kept there; default: temporary")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with the peers (see convert_peers.py)")
    parser.add_argument("--stack-to-chunk", metavar="PYTHON", help="of an environment with stack-to-chunk")
    one = parser.add_argument_group("one conversion of ours, as this script calls itself")
    one.add_argument("--ours", type=Path, metavar="FOLDER")
    one.add_argument("--on-its-own", type=Path, metavar="FOLDER")
    one.add_argument("--plain-copy", type=Path, metavar="FOLDER")
    one.add_argument("--dest", type=Path)
    one.add_argument("--source", default="slices")
    one.add_argument("--levels", type=int, default=len(FACTORS))
    one.add_argument("--workers", type=int, default=2)
    one.add_argument("--no-fsync", action="store_true")
    one.add_argument("--no-histogram", action="store_true")
    options = parser.parse_args()
    itself = options.ours or options.on_its_own or options.plain_copy  # called by this script, which set the codec
    if not itself and options.codec != CODEC:  # convert_layout.py has read it by now
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"BENCH_CODEC": options.codec})
    if options.ours:
        print(json.dumps(ours(options.ours, options.dest, options)))
        return
    if options.on_its_own:
        print(json.dumps(on_its_own(options.on_its_own, options.dest, options)))
        return
    if options.plain_copy:
        print(json.dumps(plain_copy(options.plain_copy, options.dest, options.workers)))
        return
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        rounds = measure(options.folder or Path(temporary), options)
    for name in ("peers", "stack_to_chunk"):
        if not getattr(options, name):
            print(f"not measured: --{name.replace('_', '-')} names no environment")
    from neurovol.volume.compiled import library

    result = {
        "figures": {name: medians([one[name] for one in rounds], 1) for name in rounds[0]},
        "ratios": medians([ratios(one) for one in rounds], 3),
        "compiled": library() is not None,
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor() or platform.machine()},
        "codec": CODEC,
        "versions": {name: version(name) for name in ("zarr", "numcodecs", "numpy", "distributed", "tifffile")},
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
