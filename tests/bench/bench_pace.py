"""The pace of each stage's kernel on this machine, beside a bound measured in the same run.

    python tests/bench/bench_pace.py [--quick] [--json FILE]

Rounds are interleaved and the median is taken. Ratios: a U-Net over a volume in windows against one forward
pass of the same network over the voxels written (what is lost to halos, reading and rounding); bf16 against fp32;
the dense 2D CNN against sliding it over every pixel.
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

import numpy as np
import torch

from neurovol.geometry import Block, Box
from neurovol.networks.checkpoint import Meta, save_checkpoint
from neurovol.networks.cnn2d import CNN2D, CNN2DKernel, CNN2DSpec
from neurovol.networks.normalise import RULE, Normalisation
from neurovol.networks.precision import Precision, bf16_is_fast
from neurovol.networks.unet3d import UNet3D, UNet3DKernel, UNet3DSpec, fused
from neurovol.stages.cover import Cover
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume
from neurovol.volume.phantom import PhantomSource

NORMALISATION = Normalisation((100.0,), (1000.0,))
META = Meta((2.0, 0.88, 0.88), 1, RULE, "0" * 16)


def phantom(quick: bool) -> tuple[int, Callable[[], object]]:
    source = PhantomSource((64, 512, 512), 1)
    box = Box((0, 128, 128), (64, 256, 256) if quick else (64, 384, 384))
    return box.size, lambda: source.read(box)


def convert(quick: bool, folder: Path) -> tuple[int, Callable[[], object]]:
    """One shard of the store from memory: encode, checksum, write, fsync."""
    shape = (64, 128, 128) if quick else (128, 256, 256)
    path = folder / "image.ome.zarr"
    create_volume(
        path, shape=shape, channels=1, dtype="uint16", voxel_size_um=(2.0, 0.88, 0.88),
        chunk=(32, 64, 64), shard=(128, 256, 256), factors=[],
    )  # fmt: skip
    box = Box.of_shape(shape)
    array = PhantomSource(shape, 1).read(box)
    return box.size, lambda: VolumeWriter(str(path)).write(box, array)


def cnn2d(quick: bool, folder: Path) -> dict[str, tuple[int, Callable[[], object]]]:
    spec = CNN2DSpec()
    model = CNN2D(spec)
    save_checkpoint(folder / "cnn2d", "cnn2d", spec.to_json(), model.state_dict(), META)
    side = 64 if quick else 128
    kernel, raw = CNN2DKernel(str(folder / "cnn2d"), NORMALISATION), _raw((1, 2, side + 32, side + 32))
    patches = torch.rand(256, 1, 32, 32)

    def slide() -> object:
        with torch.inference_mode():
            return model.eval()(patches)

    return {"cnn2d dense": (2 * side * side, lambda: kernel(raw)), "cnn2d sliding": (256, slide)}


def unet3d(quick: bool, folder: Path, dtype: str) -> dict[str, tuple[int, Callable[[], object]]]:
    spec = UNet3DSpec()
    if not (folder / "unet3d").exists():
        save_checkpoint(folder / "unet3d", "unet3d", spec.to_json(), UNet3D(spec).state_dict(), META)
    kernel = UNet3DKernel(str(folder / "unet3d"), NORMALISATION, dtype, True)
    shape = (64, 128, 128) if quick else (128, 256, 256)
    reader = VolumeReader(str(folder / "image.ome.zarr"), allow_incomplete=True)
    whole, window = Box.of_shape(shape), (64, 128, 128)
    cover = Cover(reader, kernel, VolumeWriter(""), shape, (whole,), window, spec.halo, spec.stride)
    layout = Precision(dtype, True)
    model, tile = layout.for_inference(fused(UNet3D(spec))), layout.input(torch.rand(1, 1, 64, 128, 128))

    def forward() -> object:
        with torch.inference_mode():
            return model(tile)

    return {
        f"unet3d {dtype}": (whole.size, lambda: cover.probabilities(Block(0, whole).write)),
        f"unet3d {dtype} forward alone": (tile.numel(), forward),
    }


def _raw(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, shape).astype(np.uint16)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(quick: bool) -> dict[str, float]:
    """Million voxels per second by name; the first round warms up and is thrown away."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = {"phantom": phantom(quick), "convert": convert(quick, folder), **cnn2d(quick, folder)}
        for dtype in ("fp32", "bf16") if bf16_is_fast() else ("fp32",):
            tasks |= unet3d(quick, folder, dtype)
        times: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(2 if quick else 4):
            for task, (_, run) in tasks.items():
                times[task].append(seconds(run))
        return {task: tasks[task][0] / statistics.median(times[task][1:]) / 1e6 for task in tasks}


def ratios(pace: dict[str, float]) -> dict[str, float]:
    found = {"cnn2d_dense_vs_sliding": pace["cnn2d dense"] / pace["cnn2d sliding"]}
    for dtype in ("fp32", "bf16"):
        if f"unet3d {dtype}" in pace:
            found[f"unet3d_{dtype}_of_forward_bound"] = pace[f"unet3d {dtype}"] / pace[f"unet3d {dtype} forward alone"]
    if "unet3d bf16" in pace:
        found["unet3d_bf16_vs_fp32"] = pace["unet3d bf16"] / pace["unet3d fp32"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller volumes, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures, ratios, machine and versions")
    options = parser.parse_args()
    pace = measure(options.quick)
    result = {
        "million_voxels_per_s": {name: round(value, 4) for name, value in pace.items()},
        "ratios": {name: round(value, 3) for name, value in ratios(pace).items()},
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor() or platform.machine(),
                    "capability": torch.backends.cpu.get_cpu_capability(), "bf16": bf16_is_fast()},
        "versions": {name: version(name) for name in ("torch", "numpy", "zarr", "numcodecs")},
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
