import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from neurovol.errors import UserError
from neurovol.networks.checkpoint import Meta, save_checkpoint
from neurovol.networks.cnn2d import CNN2D, CNN2DKernel, CNN2DSpec
from neurovol.networks.normalise import Normalisation
from neurovol.networks.precision import Precision

NORMALISATION = Normalisation((50.0, 10.0), (900.0, 400.0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return CNN2D(CNN2DSpec(channels=2)).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnn2d")
    meta = Meta((2.0, 2.0, 2.0), 2, "percentile-1-99.8", "f", log_prior_odds=-1.5)
    save_checkpoint(folder, "cnn2d", model.spec.to_json(), model.state_dict(), meta)
    return str(folder)


def raw_window(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, (2, *shape), dtype=np.uint16)


@torch.inference_mode()
def test_dense_equals_the_patch_classifier_on_every_pixel(model):
    image = torch.rand(2, 43, 50)
    dense = model.dense(image[None])[0].softmax(0)
    patches = image.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).reshape(-1, 2, 32, 32)
    one_by_one = model(patches).softmax(1).T.reshape(2, 12, 19)
    assert dense.shape == one_by_one.shape
    assert (dense - one_by_one).abs().max() < 1e-6


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_kernel_classifies_the_pixel_in_the_middle_and_corrects_the_prior(model, folder, channels_last):
    raw = raw_window(2, 45, 37)
    p = CNN2DKernel(folder, NORMALISATION, channels_last=channels_last)(raw)
    z, y, x = 1, 20, 18
    patch = NORMALISATION.apply(raw)[:, z, y - 16 : y + 16, x - 16 : x + 16]
    with torch.inference_mode():
        background, neuron = model(torch.from_numpy(patch)[None])[0].tolist()
    assert p[z, y, x] == pytest.approx(1 / (1 + np.exp(-(neuron - background - 1.5))), abs=1e-6)
    assert p.dtype == np.float32


def test_the_kernel_fills_all_within_the_halo_and_zeroes_the_halo(folder):
    p = CNN2DKernel(folder, NORMALISATION)(raw_window(3, 39, 41))
    assert p.shape == (3, 39, 41)
    assert (p[:, 16:-16, 16:-16] > 0).all()
    assert not p[:, :16].any()
    assert not p[:, :, :16].any()


def test_windows_of_the_cnn_do_not_show(folder):
    kernel, raw = CNN2DKernel(folder, NORMALISATION), raw_window(2, 61, 59)
    whole = kernel(raw)
    part = kernel(raw[:, 1:, 7:54, 5:50])
    np.testing.assert_allclose(part[:, 16:-16, 16:-16], whole[1:, 23:38, 21:34], atol=1e-5)


def test_bf16_is_close(folder):
    raw = raw_window(1, 40, 40)
    fp32 = CNN2DKernel(folder, NORMALISATION)(raw)
    bf16 = CNN2DKernel(folder, NORMALISATION, precision="bf16")(raw)
    assert np.abs(fp32 - bf16).max() < 0.02


def test_the_kernel_travels_by_pickle(folder):
    kernel = CNN2DKernel(folder, NORMALISATION)
    again = pickle.loads(pickle.dumps(kernel))
    assert again == kernel
    np.testing.assert_array_equal(again(raw_window(1, 33, 34)), kernel(raw_window(1, 33, 34)))


def test_a_checkpoint_of_the_other_method_is_refused(folder, tmp_path):
    save_checkpoint(tmp_path, "unet3d", {}, {}, Meta((1.0, 1.0, 1.0), 2, "percentile-1-99.8", "f"))
    with pytest.raises(UserError, match='"unet3d" where a "cnn2d"'):
        CNN2DKernel(str(tmp_path), NORMALISATION)(raw_window(1, 33, 33))


def test_spec_to_json_and_back():
    spec = CNN2DSpec(channels=3, hidden=64, dropout=0.25)
    assert CNN2DSpec.from_json(spec.to_json()) == spec
    assert (spec.halo, spec.stride) == ((0, 16, 16), (1, 1, 1))


PEAK = """
import sys, numpy as np
from neurovol.networks.cnn2d import CNN2DKernel
from neurovol.networks.normalise import Normalisation
def peak():  # not ru_maxrss, which starts from the parent's
    return 1024 * int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])
kernel = CNN2DKernel(sys.argv[1], Normalisation((50.0, 10.0), (900.0, 400.0)))
kernel(np.zeros((2, 1, 40, 40), np.uint16))
before = peak()
kernel(np.zeros((2, 3, 400, 400), np.uint16))
print(peak() - before)
"""


def test_the_kernel_keeps_its_promise_of_memory(folder):
    result = subprocess.run([sys.executable, "-c", PEAK, folder], capture_output=True, text=True, check=True)
    promise = CNN2DSpec(channels=2).working_bytes((3, 400, 400), Precision("fp32", True)) + 2**25  # libraries
    assert promise / 2 < int(result.stdout) < promise
