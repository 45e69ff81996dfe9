"""On a machine with a GPU: networks use it, come to what they come to on the CPU, and keep promises of memory."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from neurovol.blockwise.ledger import read_ledger
from neurovol.cli import main
from neurovol.geometry import Box
from neurovol.networks.checkpoint import TRAINING
from neurovol.networks.cnn2d import CNN2DSpec
from neurovol.networks.precision import Precision
from neurovol.networks.unet3d import UNet3DSpec
from neurovol.project import open_project
from neurovol.stages.memory import Demand, extent_of
from neurovol.stages.steps import Steps
from neurovol.volume.omezarr import VolumeReader, open_volume
from tests.stages.predicting import predicted_alone
from tests.tiny import contents, write_tiny

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine"),
    pytest.mark.timeout(300),
]
AUTO = ('precision = "fp32"\n', "")  # whatever is quickest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a project that was done on the GPU, from conversion to report."""
    file = write_tiny(tmp_path_factory.mktemp("gpu"), AUTO, ("steps = 6", "steps = 24"))
    assert main(["run", str(file)]) == 0
    return file


@pytest.fixture
def unseen() -> dict[str, str]:
    """The environment of a process that sees no GPU."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": ""}


def neurovol(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "neurovol.cli", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def segmented(file: Path) -> np.ndarray:
    path = Steps(open_project(file)).segment("b").output
    return VolumeReader(str(path)).read(Box.of_shape(open_volume(path).shape)).astype(int)


def test_every_network_of_a_project_runs_on_the_gpu(trained: Path) -> None:
    steps = Steps(open_project(trained))
    for step in (steps.learn_cnn2d(), steps.pseudolabel("a"), steps.learn_unet3d("unet3d_pseudo"), steps.segment("b")):
        record = read_ledger(step.ledger)
        assert record is not None
        assert record.header.chosen["device"] == "cuda", step.name
        print(step.name, record.header.chosen)
    assert open_project(trained).report.is_file()


def test_training_on_the_gpu_learns(trained: Path) -> None:
    record = read_ledger(Steps(open_project(trained)).learn_unet3d("unet3d_pseudo").ledger)
    assert record is not None
    losses = [row["loss"] for row in record.rows.values()]
    assert losses[-1] < losses[0]


def test_the_gpu_segments_as_the_cpu_does(trained: Path, unseen: dict[str, str]) -> None:
    there = segmented(trained)
    text = trained.read_text()
    on_cpu = trained.with_name("cpu.toml")
    on_cpu.write_text(text.replace("workers = 1\n", "workers = 1\ngpus = 0\n"))
    done = neurovol("segment", on_cpu, "--sample", "b", "--redo", "segment", env=unseen)
    assert done.returncode == 0, done.stderr
    difference = np.abs(segmented(on_cpu) - there)
    print(f"largest difference {difference.max()} of 255, mean {difference.mean():.4f}")
    assert difference.max() <= 4  # bf16's 0.012, rounded
    assert difference.mean() < 0.5
    assert neurovol("segment", trained, "--sample", "b", "--redo", "segment").returncode == 0


def test_twice_on_the_gpu_comes_to_the_same_bytes(trained: Path) -> None:
    before = contents(Steps(open_project(trained)).segment("b").output)
    assert before
    assert main(["segment", str(trained), "--sample", "b", "--redo", "segment"]) == 0
    assert contents(Steps(open_project(trained)).segment("b").output) == before


def test_windows_do_not_show_on_the_gpu(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-blocks", str(trained)]) == 0
    print(capsys.readouterr().out)


def test_training_that_was_killed_goes_on_on_the_gpu_and_there_alone(tmp_path: Path, unseen: dict[str, str]) -> None:
    file = write_tiny(tmp_path, AUTO, ("steps = 6", "steps = 600"))
    driver = subprocess.Popen([sys.executable, "-m", "neurovol.cli", "run", str(file)], stdout=subprocess.DEVNULL)
    while not list(tmp_path.rglob(TRAINING)):
        assert driver.poll() is None, "it ended before it saved anything"
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    lost = neurovol("run", file, env=unseen)
    print(lost.stderr)
    assert lost.returncode == 2
    assert "Traceback" not in lost.stderr
    assert "torch sees none" in lost.stderr
    assert neurovol("run", file).returncode == 0


def test_doctor_sees_the_gpu(trained: Path) -> None:
    told = neurovol("doctor", trained).stdout
    assert re.search(r"ok +workers +compute on .* of \d+ GB", told), told


@pytest.mark.parametrize(
    ("network", "window", "dtype"),
    [
        (UNet3DSpec(), (64, 128, 128), "fp32"),
        (UNet3DSpec(), (64, 128, 128), "bf16"),
        (UNet3DSpec(), (128, 256, 256), "fp32"),
        (UNet3DSpec(), (128, 256, 256), "bf16"),
        (UNet3DSpec(2), (64, 128, 128), "fp32"),
        (UNet3DSpec(2), (64, 128, 128), "bf16"),
        (CNN2DSpec(), (32, 256, 256), "fp32"),
    ],
    ids=str,
)
def test_a_worker_keeps_its_promise_of_memory_on_the_gpu_and_beside_it(tmp_path, network, window, dtype):
    precision = Precision(dtype, True)
    demand = Demand(network, extent_of([Box.of_shape(window)], window, network.stride), window, (32, 64, 64), 2,
                    precision, True)  # fmt: skip
    promise = demand.memory(window)
    here, there = predicted_alone(tmp_path, network, dtype, window, window, "cuda")
    print(
        f"here {here / 1e6:.0f} MB of {promise.total / 1e6:.0f}, there {there / 1e6:.0f} MB of {promise.gpu / 1e6:.0f}"
    )
    assert here <= 1.15 * promise.total
    assert there <= 1.15 * promise.gpu
    assert promise.gpu <= 2 * there
