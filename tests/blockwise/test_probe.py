"""What workers are asked, and what they answer."""

import platform
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client

from neurovol.blockwise import probe as probing
from neurovol.blockwise.probe import Gpu, Seen, gpu_here, probe, versions_here


@pytest.fixture(scope="module")
def seen(client: Client, tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    folder = tmp_path_factory.mktemp("store")
    found = probe(client, folder)
    assert not list(folder.iterdir())  # left as it was
    return found


def test_every_worker_answers_for_itself(client: Client, seen: list[Seen]) -> None:
    assert [one.worker for one in seen] == sorted(client.nthreads())
    assert {one.host for one in seen} == {socket.gethostname()}


def test_workers_of_this_machine_have_the_versions_of_the_driver(seen: list[Seen]) -> None:
    assert [one.unlike(versions_here()) for one in seen] == [[], []]
    assert seen[0].versions["python"] == platform.python_version()
    assert set(seen[0].versions) >= {"dask", "distributed", "zarr", "numpy", "torch", "neurovol"}


def test_what_differs_is_named_with_both_versions(seen: list[Seen]) -> None:
    other = replace(seen[0], versions={**seen[0].versions, "zarr": "3.0.0"})
    assert other.unlike(versions_here()) == [f"zarr 3.0.0 (here {seen[0].versions['zarr']})"]


def test_one_clock_is_not_told_from_itself(seen: list[Seen]) -> None:
    for one in seen:
        assert abs(one.clock_s) <= one.clock_within_s + 0.01
        assert one.clock_within_s < 60


def test_a_clock_that_is_ahead_is_seen_to_be() -> None:
    ahead, within = probing._clock(lambda: time.time() + 100)
    assert ahead == pytest.approx(100, abs=within + 0.01)


def test_the_quickest_answer_tells_the_time() -> None:
    waits = iter([0.2, 0.1, 0.0, 0.1, 0.2])

    def slowly() -> float:
        there = time.time()
        time.sleep(next(waits))
        return there

    ahead, within = probing._clock(slowly)
    assert within < 0.05
    assert abs(ahead) <= within + 0.01


def test_what_the_driver_and_workers_write_reaches_each_other(seen: list[Seen]) -> None:
    assert [one.unshared for one in seen] == ["", ""]


def test_a_folder_that_workers_do_not_see_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "SEEN_S", 0.3)
    fault = probing._fault(tmp_path / "never", "t", "the worker", "the driver")
    assert fault == f"the worker does not see in {tmp_path} what the driver wrote there: No such file or directory"
    (tmp_path / "other").write_text("something")
    assert probing._fault(tmp_path / "other", "t", "the worker", "the driver").endswith("reads as something else")


def test_a_folder_that_a_worker_cannot_write_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("t")
    *_, fault = probing._look(str(tmp_path / "driver"), "/proc/nothing", "t")
    assert fault.startswith("the worker cannot write to /proc: ")


def test_a_gpu_is_told_as_torch_sees_it(seen: list[Seen]) -> None:
    assert gpu_here() == seen[0].gpu
    assert bool(seen[0].gpu.name) == bool(seen[0].gpu.bytes)
    assert seen[0].gpu.fault == ""
    assert not Gpu().name
