"""Predicting and training on a GPU, beside what the same network does there with its voxels at hand.

    python tests/bench/bench_gpu.py [--quick] [--json FILE] [--device cpu]

`bound` is one forward pass of the U-Net (or one training step) on the device, its input already there; `kernel` is the
same window from the raw voxels in memory to probabilities in memory; `engine` covers a volume, block by block, with so
many workers on one GPU: reading, halos, rounding, writing, checksums, fsync and ledger included. Rates are of voxels
written, in million per second; the bound's are divided by what halos add. Medians of interleaved rounds, after one that
warms up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from unet_cover import image_of, unet_cover

from neurovol.blockwise.cluster import open_client
from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.clustersettings import ClusterSettings
from neurovol.geometry import BlockGrid, Box, Numbered, Zyx, zyx
from neurovol.networks.precision import Precision, choose_precision
from neurovol.networks.unet3d import UNet3D, UNet3DSpec, fused
from neurovol.training.loop import train
from neurovol.training.loss import voxel_loss
from neurovol.training.patches import Batch
from neurovol.training.prefetch import prefetched

SHAPE, QUICK_SHAPE = (512, 1024, 1024), (128, 256, 256)
SHARD, QUICK_SHARD = (128, 256, 256), (64, 128, 128)
WORKERS, QUICK_WORKERS = (1, 2, 4, 8), (1, 2)
PATCH, BATCH, STEPS, QUICK_STEPS = (32, 64, 64), 8, 60, 3
SPEC = UNet3DSpec()


def seconds_of(run: Callable[[], object], rounds: int) -> float:
    """The median, after a first that warms up; each ends when the device is done."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def forward(precision: Precision, read: Zyx, device: str) -> Callable[[], object]:
    """A pass over a read box that lies on the device."""
    model = precision.for_inference(fused(UNet3D(SPEC)), device)
    image = precision.input(torch.rand((1, SPEC.channels, *read)), device)

    def run() -> object:
        with torch.inference_mode():
            return model(image)

    return run


def engine(cover: Any, shape: Zyx, shard: Zyx, workers: int, folder: Path, rounds: int, gpus: int | None) -> float:
    """Seconds to cover the volume, workers running and warm."""
    blocks = Numbered(BlockGrid(shape, shard, shard))
    settings = ClusterSettings(workers=workers, gpus=gpus)
    with open_client(settings) as client:
        turns = iter(range(rounds + 1))

        def run() -> None:
            with Ledger(folder / f"{workers}-{next(turns)}.jsonl", Header("unet", {}, len(blocks))) as ledger:
                run_blocks(client, cover, blocks, Meter(ledger))
                ledger.finish()

        return seconds_of(run, rounds)


def training(precision: Precision, device: str, steps: int, fresh: bool) -> float:
    """Seconds of a step; batches are made anew in memory, or are one that lies on the device."""
    torch.manual_seed(0)
    model = UNet3D(SPEC).to(device)
    precision.lay_out_weights(model)
    optimizer = torch.optim.Adam(model.parameters())
    rng = np.random.default_rng(0)

    def made(_: int) -> Batch:
        shape = (BATCH, *PATCH)
        arrays = (rng.random((BATCH, 1, *PATCH), np.float32), rng.random(shape, np.float32), np.ones(shape, np.float32))
        return Batch(*map(torch.from_numpy, arrays))

    there = Batch(*(tensor.to(device) for tensor in made(0)))
    with prefetched(made if fresh else lambda _: there, 0, steps + 3) as batch_at:
        done = list(train(model, optimizer, batch_at, voxel_loss, 0, steps + 3, precision, 0))
    return statistics.median(step.seconds for step in done[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small volume, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    shape, shard = (QUICK_SHAPE, QUICK_SHARD) if options.quick else (SHAPE, SHARD)
    rounds, device = (1 if options.quick else 3), options.device
    voxels, window = Box.of_shape(shape).size, shard
    read = zyx(side + 2 * halo for side, halo in zip(window, SPEC.halo, strict=True))
    written = Box.of_shape(window).size
    figures: dict[str, float] = {}

    def told(name: str, value: float) -> None:
        figures[name] = round(value, 4)
        print(f"{name:28} {value:10.3f}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = choose_precision(lambda: fused(UNet3D(SPEC)), (1, 1, 32, 64, 64), "auto", False, device)
        print("chosen for predicting:", chosen, flush=True)
        for precision in (Precision("bf16", True), Precision("bf16"), Precision("fp32", True), Precision("fp32")):
            told(f"bound {precision.name}", written / seconds_of(forward(precision, read, device), rounds) / 1e6)
        cover = unet_cover(folder, shape, shard, device=device, precision=chosen)
        kernel = cover.kernel
        raw = image_of(read)
        told("kernel", written / seconds_of(lambda: kernel(raw), rounds) / 1e6)
        for workers in QUICK_WORKERS if options.quick else WORKERS:
            seconds = engine(cover, shape, shard, workers, folder, rounds, None if device == "cpu" else 1)
            told(f"engine {workers} workers", voxels / seconds / 1e6)
        steps = QUICK_STEPS if options.quick else STEPS
        learning = choose_precision(lambda: UNet3D(SPEC), (BATCH, 1, *PATCH), "auto", True, device)
        print("chosen for training:", learning, flush=True)
        told("training bound steps/s", 1 / training(learning, device, steps, fresh=False))
        told("training steps/s", 1 / training(learning, device, steps, fresh=True))
    best = max(value for name, value in figures.items() if name.startswith("engine"))
    ratios = {
        "kernel_of_bound": figures["kernel"] / figures[f"bound {chosen.name}"],
        "engine_of_kernel": best / figures["kernel"],
        "training_of_bound": figures["training steps/s"] / figures["training bound steps/s"],
    }
    result = {
        "figures": figures,
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
                    "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"},
        "versions": {name: version(name) for name in ("torch", "numpy", "zarr", "numcodecs", "dask")},
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["ratios"], indent=1))


if __name__ == "__main__":
    main()
