"""One block predicted by one worker in processes of their own, for the memory that it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from neurovol.geometry import Zyx
from neurovol.networks.cnn2d import CNN2DSpec
from neurovol.networks.unet3d import UNet3DSpec

ROOT = Path(__file__).parents[2]
PREDICTING = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from neurovol.blockwise.cluster import open_client
from neurovol.blockwise.runner import settled
from neurovol.geometry import BlockGrid, Box
from neurovol.networks.checkpoint import Meta, save_checkpoint
from neurovol.networks.cnn2d import CNN2D, CNN2DKernel, CNN2DSpec
from neurovol.networks.normalise import RULE, Normalisation
from neurovol.networks.unet3d import UNet3D, UNet3DKernel, UNet3DSpec
from neurovol.clustersettings import ClusterSettings
from neurovol.stages.cover import Cover
from neurovol.volume.omezarr import VolumeReader, VolumeWriter, create_volume


def peak_bytes():
    here = 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return here, torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


if __name__ == "__main__":
    folder, method, fields, dtype, window, block, device = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
    window, block = tuple(window), tuple(block)
    Spec, Net, Kernel = (CNN2DSpec, CNN2D, CNN2DKernel) if method == "cnn2d" else (UNet3DSpec, UNet3D, UNet3DKernel)
    spec = Spec(**fields)
    volume, box = str(folder / "image"), Box.of_shape(block)
    layout = dict(shape=block, voxel_size_um=(1.0, 1.0, 1.0), chunk=(32, 64, 64), shard=block, factors=[])
    create_volume(folder / "image", channels=spec.channels, dtype="uint16", **layout)
    create_volume(folder / "out", channels=None, dtype="uint8", **layout)
    image = np.random.default_rng(0).integers(0, 1000, (spec.channels, *block), np.uint16)
    VolumeWriter(volume).write(box, image)
    meta = Meta((1.0, 1.0, 1.0), spec.channels, RULE, "0" * 16)
    save_checkpoint(folder / "model", method, spec.to_json(), Net(spec).state_dict(), meta)
    normalisation = Normalisation((0.0,) * spec.channels, (1000.0,) * spec.channels)
    kernel = Kernel(str(folder / "model"), normalisation, dtype, True, device)
    reader, writer = VolumeReader(volume, allow_incomplete=True), VolumeWriter(str(folder / "out"))
    cover = Cover(reader, kernel, writer, block, (box,), window, spec.halo, spec.stride)
    with open_client(ClusterSettings(workers=1)) as client:
        (result,) = settled(client, cover, list(BlockGrid(block, block, block)), 0)
        assert result.receipt, result.error
        print(*next(iter(client.run(peak_bytes).values())))
"""


def predicted_alone(
    folder: Path, network: CNN2DSpec | UNet3DSpec, dtype: str, window: Zyx, block: Zyx, device: str = "cpu"
) -> tuple[int, int]:
    """The worker's peak bytes in the machine's memory, and what torch reserved on the GPU."""
    (folder / "script.py").write_text(PREDICTING)
    method = "cnn2d" if isinstance(network, CNN2DSpec) else "unet3d"
    words = (json.dumps(word) for word in (method, vars(network), dtype, window, block, device))
    command = [sys.executable, str(folder / "script.py"), str(folder), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here, there = map(int, done.stdout.split())
    return here, there
