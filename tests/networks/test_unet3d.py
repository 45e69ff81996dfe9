import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurovol.errors import UserError
from neurovol.geometry import Box, check_halo, zyx
from neurovol.networks.checkpoint import Meta, save_checkpoint
from neurovol.networks.normalise import Normalisation
from neurovol.networks.precision import Precision
from neurovol.networks.unet3d import UNet3D, UNet3DKernel, UNet3DSpec, fused, reach_along

NORMALISATION = Normalisation((50.0,), (900.0,))
META = Meta((2.0, 2.0, 2.0), 1, "percentile-1-99.8", "f")


def model_of(spec: UNet3DSpec) -> UNet3D:
    """All positive, so that what reaches an output is not lost in a ReLU; batch norms as after some training."""
    torch.manual_seed(0)
    model = UNet3D(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.uniform_(-0.2, -0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for weight in model.parameters():
        weight.data.abs_()
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(1)
    spec = UNet3DSpec(base=4)
    folder = tmp_path_factory.mktemp("unet3d")
    save_checkpoint(folder, "unet3d", spec.to_json(), UNet3D(spec).state_dict(), META)
    return str(folder)


def test_the_default_has_stride_4_reach_23_halo_24_and_94_kflop():
    spec = UNet3DSpec()
    assert (spec.stride, spec.reach, spec.halo) == ((4, 4, 4), (23, 23, 23), (24, 24, 24))
    assert round(spec.flops_per_voxel / 1000) == 94
    check_halo(spec.halo, spec.reach, spec.stride)


@pytest.mark.parametrize("pooling", [((2,), (2,)), ((1,), (2,)), ((3,), (2,)), ((2,),)])
@torch.inference_mode()
def test_the_reach_is_what_perturbed_planes_show(pooling):
    factors = [p for (p,) in pooling]
    stride = int(np.prod(factors))
    spec = UNet3DSpec(base=1, pooling=tuple((1, 1, p) for p in factors))
    reach = reach_along(factors)
    assert spec.reach[2] == reach
    length = 3 * stride * (reach // stride + 1)
    model, image = model_of(spec).double(), torch.rand(1, 1, 1, 1, length).double()
    before = model(image)[0, 0, 0, 0]
    seen = set()
    for place in range(length // 3, length // 3 * 2):
        changed = image.clone()
        changed[..., place] += 100
        seen.update((torch.nonzero(model(changed)[0, 0, 0, 0] != before).flatten() - place).abs().tolist())
    assert max(seen) == reach


def test_more_flops_in_a_wider_or_deeper_network():
    wide = UNet3DSpec(base=32).flops_per_voxel / UNet3DSpec(base=16).flops_per_voxel
    assert 3.9 < wide < 4
    assert UNet3DSpec(pooling=((2, 2, 2),) * 3).flops_per_voxel > UNet3DSpec().flops_per_voxel


@torch.inference_mode()
def test_logits_have_the_shape_of_the_image():
    spec = UNet3DSpec(channels=2, base=2, pooling=((1, 2, 2), (2, 2, 2)))
    assert UNet3D(spec)(torch.rand(3, 2, 6, 8, 12)).shape == (3, 1, 6, 8, 12)


@torch.inference_mode()
def test_folding_batch_norm_changes_nothing():
    model, image = model_of(UNet3DSpec(base=2)), torch.rand(1, 1, 8, 8, 12)
    before = model(image)
    folded = fused(model)
    assert not any(isinstance(m, nn.BatchNorm3d) for m in folded.modules())
    torch.testing.assert_close(folded(image), before, rtol=1e-4, atol=1e-4)


@settings(max_examples=6, deadline=None)
@given(st.tuples(*[st.integers(0, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3))
def test_windows_of_the_unet_do_not_show(folder, place, size):
    kernel = UNet3DKernel(folder, NORMALISATION)
    halo, stride = UNet3DSpec().halo, 4
    raw = np.random.default_rng(0).integers(0, 1000, (1, 72, 72, 72), dtype=np.uint16)
    start = zyx(24 + stride * p for p in place)
    write = Box(start, zyx(a + stride * s for a, s in zip(start, size, strict=True)))
    read = write.grown(halo)
    part = kernel(raw[(slice(None), *read.slices)])[write.within(read)]
    np.testing.assert_allclose(part, whole(folder)[write.slices], atol=1e-5)


_WHOLE: dict[str, np.ndarray] = {}


def whole(folder: str) -> np.ndarray:
    if folder not in _WHOLE:
        raw = np.random.default_rng(0).integers(0, 1000, (1, 72, 72, 72), dtype=np.uint16)
        _WHOLE[folder] = UNet3DKernel(folder, NORMALISATION)(raw)
    return _WHOLE[folder]


def test_the_kernel_gives_probabilities_of_the_read_box(folder):
    raw = np.random.default_rng(0).integers(0, 1000, (1, 8, 12, 16), dtype=np.uint16)
    p = UNet3DKernel(folder, NORMALISATION)(raw)
    assert (p.shape, p.dtype) == ((8, 12, 16), np.float32)
    assert ((p >= 0) & (p <= 1)).all()
    bf16 = UNet3DKernel(folder, NORMALISATION, precision="bf16")(raw)
    assert bf16.dtype == np.float32
    assert np.abs(bf16 - p).max() < 0.03


def test_the_kernel_travels_by_pickle(folder):
    kernel = UNet3DKernel(folder, NORMALISATION)
    raw = np.full((1, 4, 8, 8), 500, np.uint16)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(kernel))(raw), kernel(raw))


def test_a_new_checkpoint_in_the_same_folder_is_noticed(tmp_path):
    spec, raw = UNet3DSpec(base=2), np.full((1, 4, 8, 8), 500, np.uint16)
    kernel = UNet3DKernel(str(tmp_path), NORMALISATION)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path, "unet3d", spec.to_json(), UNet3D(spec).state_dict(), META)
        os.utime(tmp_path / "checkpoint.json", (seed, seed))
        results.append(kernel(raw))
    assert not np.array_equal(*results)


def test_a_kernel_without_a_model_folder_says_so(tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        UNet3DKernel(str(tmp_path / "none"), NORMALISATION)(np.zeros((1, 4, 4, 4), np.uint16))


def test_spec_to_json_and_back():
    spec = UNet3DSpec(channels=2, base=8, pooling=((1, 2, 2), (2, 2, 2), (2, 2, 2)))
    assert UNet3DSpec.from_json(spec.to_json()) == spec
    assert spec.stride == (4, 8, 8)


PEAK = """
import sys, numpy as np
from neurovol.networks.unet3d import UNet3DKernel
from neurovol.networks.normalise import Normalisation
def peak():  # not ru_maxrss, which starts from the parent's
    return 1024 * int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])
kernel = UNet3DKernel(sys.argv[1], Normalisation((50.0,), (900.0,)), sys.argv[2], sys.argv[3] == "True")
kernel(np.zeros((1, 32, 32, 32), np.uint16))
before = peak()
kernel(np.zeros((1, 64, 96, 96), np.uint16))
print(peak() - before)
"""


@pytest.mark.parametrize(("dtype", "channels_last"), [("fp32", "False"), ("bf16", "True")])
def test_the_kernel_keeps_its_promise_of_memory(tmp_path, dtype, channels_last):
    spec = UNet3DSpec()
    save_checkpoint(tmp_path, "unet3d", spec.to_json(), UNet3D(spec).state_dict(), META)
    command = [sys.executable, "-c", PEAK, str(tmp_path), dtype, channels_last]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    promise = spec.working_bytes((64, 96, 96), Precision(dtype, channels_last == "True")) + 2**26  # libraries
    assert promise / 2 < peak < promise
