"""Peak memory of driver and workers does not depend on the size of the volume, and is promised before a prediction."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.cli import main
from neurovol.clustersettings import ClusterSettings, JobSettings
from neurovol.errors import UserError
from neurovol.geometry import Box, zyx
from neurovol.networks.cnn2d import CNN2DSpec
from neurovol.networks.precision import Precision, bf16_is_fast
from neurovol.networks.unet3d import UNet3DSpec
from neurovol.project import open_project
from neurovol.stages.memory import (
    Demand,
    Room,
    check_window,
    extent_of,
    fitting_window,
    machine_bytes,
    room_for,
)
from neurovol.stages.predict import window_planned
from neurovol.stages.pseudolabel import pseudolabels
from neurovol.stages.segment import cnn_spec, segmentation, unet_spec
from neurovol.stages.steps import Steps
from tests.stages.predicting import predicted_alone
from tests.tiny import write_tiny

SCRIPT = """
import resource, sys
from pathlib import Path
from neurovol.cli import main

if __name__ == "__main__":
    file = Path(sys.argv[1])
    assert main(["convert", str(file)]) == 0
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    print(*(resource.getrusage(w).ru_maxrss // 1024 for w in who))
"""


def peaks_mb(folder: Path, shape: list[int]) -> list[int]:
    """Peak resident memory of driver and worker while converting a phantom of that shape."""
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "project.toml").write_text(
        f'name = "p"\n[[samples]]\nname = "s"\nphantom = {{shape = {shape}}}\n'
        "[convert]\nchunk = [32, 64, 64]\nshard = [64, 128, 128]\n[cluster]\nworkers = 1\n"
    )
    # by a shell, which is small: ru_maxrss begins with what the process held that started it, and this one holds much
    command = ["sh", "-c", '"$@"; exit', "sh", sys.executable, str(folder / "script.py"), str(folder / "project.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(mb) for mb in done.stdout.split()[-2:]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_converting_sixteen_times_the_voxels_takes_no_more_memory(tmp_path: Path) -> None:
    small = peaks_mb(tmp_path / "small", [64, 512, 512])
    large = peaks_mb(tmp_path / "large", [256, 1024, 1024])  # 537 MB of voxels, 16 times as many
    print(f"peaks of driver and worker in MB: {small}, then {large}")
    for before, after in zip(small, large, strict=True):
        assert after < before + 80, f"peaks in MB: {small} for the small volume, {large} for the large one"


FP32, BF16 = Precision("fp32", True), Precision("bf16", True)
CHUNK = (32, 64, 64)

networks = st.one_of(
    st.builds(CNN2DSpec, channels=st.integers(1, 3)),
    st.builds(
        UNet3DSpec,
        channels=st.integers(1, 3),
        base=st.sampled_from([2, 7, 16]),
        pooling=st.sampled_from([((2, 2, 2), (2, 2, 2)), ((1, 2, 2), (2, 2, 2)), ((1, 3, 3),)]),
    ),
)


def demand_of(network: CNN2DSpec | UNet3DSpec, block: tuple[int, int, int], precision: Precision = FP32) -> Demand:
    return Demand(network, extent_of([Box.of_shape(block)], block, network.stride), block, CHUNK, 2, precision)


def on_stride(network: CNN2DSpec | UNet3DSpec, window: tuple[int, int, int]) -> tuple[int, int, int]:
    return Box.of_shape(window).aligned(network.stride).shape


blocks = st.tuples(st.integers(1, 97), st.integers(1, 293), st.integers(1, 311))


@given(networks, blocks, blocks, st.integers(0, 2), st.integers(1, 60))
def test_a_larger_window_is_promised_no_less_memory(network, block, window, axis, more):
    demand = demand_of(network, block)
    larger = zyx(n + more * (a == axis) for a, n in enumerate(window))
    assert demand.memory(on_stride(network, window)).total <= demand.memory(on_stride(network, larger)).total


@given(networks, blocks, st.integers(330, 3000).map(lambda mb: mb * 10**6), st.data())
@settings(max_examples=50, deadline=None)
def test_the_automatic_window_is_on_the_stride_fits_and_no_other_that_fits_reads_less(network, block, most, data):
    demand = demand_of(network, block)
    chosen = demand.best_window(most)
    sides = [
        st.integers(1, e // s).map(lambda n, s=s: n * s) for e, s in zip(demand.extent, network.stride, strict=True)
    ]
    other = data.draw(st.tuples(*sides), label="another window on the stride, in the block")
    fits = demand.memory(other).total <= most and network.pays(demand.read(other))
    if chosen is None:
        assert not fits
        return
    assert all(c % s == 0 and c <= e for c, s, e in zip(chosen, network.stride, demand.extent, strict=True))
    assert demand.memory(chosen).total <= most
    assert not fits or demand.read_share(chosen) <= demand.read_share(other)


def test_a_block_that_fits_is_one_window_and_a_box_in_it_no_larger_than_itself():
    block = (128, 256, 256)
    assert demand_of(UNet3DSpec(), block).best_window(6 * 10**9) == block
    assert extent_of([Box((3, 5, 9), (13, 50, 70))], block, (4, 4, 4)) == (16, 48, 64)
    assert extent_of([Box.of_shape((500, 500, 500))], (10, 64, 64), (4, 4, 4)) == (16, 64, 64)  # 10 to 20 is 8 to 20


def test_a_window_that_does_not_pay_is_not_chosen_however_much_memory_there_is():
    for network in (UNet3DSpec(), CNN2DSpec()):
        demand = demand_of(network, (512, 1024, 1024))
        chosen = demand.best_window(10**15)
        assert chosen is not None
        assert network.pays(demand.read(chosen))
        assert not network.pays(demand.read((512, 1024, 1024)))


def test_a_window_beyond_the_memory_is_refused_with_its_terms_and_the_largest_that_fits():
    demand, room = demand_of(UNet3DSpec(), (128, 256, 256)), Room(4_000_000_000, 2)
    check_window(demand, room, (64, 128, 128), "segment.window")
    with pytest.raises(UserError) as refused:
        check_window(demand, room, (128, 256, 256), "segment.window")
    assert str(refused.value) == (
        "segment.window [128, 256, 256] needs 5.2 GB a worker: activations 4.55 GB, libraries 0.32 GB, kept 0.28 GB; "
        "2 workers share the 4 GB of cluster.allowed_bytes; the largest window that fits is "
        f"{list(fitting_window(demand, room))}: set that or none, allow more, or take fewer workers"
    )


def test_where_no_window_fits_the_least_that_it_takes_is_told():
    with pytest.raises(UserError, match=r"at least 0\.\d+ GB a worker, in windows of \[4, 4, 4\]: libraries 0\.32 GB"):
        fitting_window(demand_of(UNet3DSpec(), (128, 256, 256)), Room(500_000_000, 2))


def test_the_memory_is_shared_by_the_workers_there_are():
    assert room_for(ClusterSettings(workers=3, allowed_bytes=6_000_000_000)).each == 2_000_000_000
    assert room_for(ClusterSettings(workers=1)) == Room(machine_bytes() // 2, 1, is_set=False)
    elsewhere = ClusterSettings(kind="address", address="tls://10.0.0.1:8786", allowed_bytes=6_000_000_000)
    assert room_for(elsewhere) == Room(6_000_000_000, 1, known=False)
    assert str(room_for(elsewhere)) == (
        "1 worker may use the 6 GB of cluster.allowed_bytes, as reckoned with (cluster.workers)"
    )


def test_jobs_may_use_three_quarters_of_what_they_ask_for_where_they_predict():
    jobs = ClusterSettings(
        kind="slurm", workers=4, job=JobSettings(memory_gb=4), gpu_job=JobSettings(memory_gb=20, gpus=1)
    )
    assert room_for(jobs).each == 15_000_000_000
    assert str(room_for(jobs)) == (
        "4 workers share the 60 GB of three quarters of the jobs' memory (cluster.allowed_bytes)"
    )


def test_on_a_gpu_activations_count_there():
    demand = demand_of(UNet3DSpec(), (128, 256, 256))
    there, here = replace(demand, on_gpu=True).memory((64, 128, 128)), demand.memory((64, 128, 128))
    assert there.gpu > 0.9 * here.activations > 9 * there.activations
    assert "untested" in there.terms


def test_a_plan_tells_the_terms_of_the_window_that_it_chose(tmp_path, capsys):
    file = write_tiny(tmp_path, ("window = [16, 32, 32]\n", ""), ("window = [4, 48, 48]\n", ""))
    assert main(["run", str(file), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "windows   of [16, 64, 64], halo [24, 24, 24]" in told
    assert "GB a worker: libraries 0.32 GB, kept " in told or "MB a worker: libraries 0.32 GB, kept " in told
    assert "of half of this machine's memory (cluster.allowed_bytes)" in told


@pytest.mark.parametrize("how", [["--dry-run"], []])
def test_too_large_a_window_is_refused_before_anything_is_done(tmp_path, capsys, how):
    file = write_tiny(
        tmp_path,
        ("window = [16, 32, 32]", "window = [16, 64, 64]"),
        ("workers = 1", "workers = 1\nallowed_bytes = 500_000_000"),
        ("base_channels = 2", "base_channels = 16"),
    )
    assert main(["run", str(file), *how]) == 2
    assert "segment.window [16, 64, 64] needs " in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ome.zarr"))


def test_neither_window_nor_memory_makes_a_result_stale(tmp_path):
    (tmp_path / "other").mkdir()
    before = Steps(open_project(write_tiny(tmp_path)))
    changed = [("window = [16, 32, 32]\n", ""), ("workers = 1", "allowed_bytes = 700_000_000")]
    after = Steps(open_project(write_tiny(tmp_path / "other", *changed)))
    for steps in ("segment", "pseudolabel", "convert"):
        assert getattr(before, steps)("a").inputs == getattr(after, steps)("a").inputs


def test_what_was_begun_goes_on_with_the_window_it_was_begun_with(tmp_path):
    steps = Steps(open_project(write_tiny(tmp_path)))
    wanted, spec = segmentation(steps, "a"), unet_spec(steps)
    assert window_planned(steps, wanted, spec)[0] == (16, 32, 32)
    chosen = {"window": [8, 16, 24], "precision": BF16.to_json(), "device": "cpu"}
    Ledger(wanted.step.ledger, Header(wanted.step.name, wanted.step.inputs, 4, chosen)).__exit__(None, None, None)
    window, demand = window_planned(steps, replace(wanted, window=None), spec)
    assert (window, demand.precision) == ((8, 16, 24), BF16)


def test_a_pseudo_label_window_is_no_larger_than_its_boxes(tmp_path):
    file = write_tiny(
        tmp_path, ("window = [4, 48, 48]\n", ""), ("every = 4\n", "every = 4\nbox = [[2, 12], [5, 38], [7, 51]]\n")
    )
    steps = Steps(open_project(file))
    assert window_planned(steps, pseudolabels(steps, "a"), cnn_spec(steps))[0] == (10, 33, 44)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("network", "precision", "window", "block"),
    [
        (UNet3DSpec(), FP32, (64, 128, 128), (64, 128, 128)),
        (UNet3DSpec(), BF16, (64, 128, 128), (64, 128, 128)),
        (UNet3DSpec(2), BF16, (32, 64, 64), (64, 128, 128)),
        (UNet3DSpec(1, 8), FP32, (32, 64, 64), (64, 128, 128)),
        (CNN2DSpec(2), FP32, (4, 128, 128), (32, 128, 256)),
        (CNN2DSpec(), FP32, (32, 86, 256), (32, 256, 256)),
    ],
    ids=str,
)
def test_a_worker_keeps_its_promise_of_memory(tmp_path, network, precision, window, block):
    if precision == BF16 and not bf16_is_fast():
        pytest.skip("this processor emulates bf16, in other memory")
    promise = demand_of(network, block, precision).memory(window)
    measured, _ = predicted_alone(tmp_path, network, precision.dtype, window, block)
    print(f"measured {measured / 1e6:.0f} MB, promised {promise.total / 1e6:.0f} MB: {promise.terms}")
    assert measured <= 1.15 * promise.total
    assert promise.total <= 2 * measured
