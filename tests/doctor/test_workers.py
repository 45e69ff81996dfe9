"""Workers that come, that do not, and that differ from the driver."""

from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from neurovol.blockwise import reach
from neurovol.blockwise.probe import Gpu, Seen, versions_here
from neurovol.clustersettings import ClusterSettings, JobSettings
from neurovol.doctor.finding import Finding, examined
from neurovol.doctor.workers import check_workers, clusters, judged

SEEN = Seen("tcp://n1:1", "n1", versions_here(), Gpu(), 0.001, 0.002, "")
CUDA = Gpu("H200", 140_000_000_000)


def found_of(seen: Seen, *, needs_gpu: bool = False) -> list[Finding]:
    return list(judged("workers", [SEEN, seen], needs_gpu=needs_gpu))


def bad(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.level in ("warn", "fail")]


def test_workers_of_this_machine_come_and_fit(tmp_path: Path) -> None:
    settings = ClusterSettings(workers=5, threads=1)
    found = list(check_workers("workers", settings, tmp_path / "stores", 60))
    assert not bad(found)
    assert found[0].text.startswith("2 came and answered")  # not all five
    assert not list(tmp_path.iterdir())


def test_a_scheduler_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "CONNECT_S", 1)
    settings = ClusterSettings(kind="address", address="tcp://127.0.0.1:9")
    (found,) = examined("workers", 60, lambda: check_workers("workers", settings, tmp_path, 5))
    assert found.level == "fail"
    assert "tcp://127.0.0.1:9: no scheduler answers there" in found.text


def test_a_scheduler_without_workers_fails_when_none_came(tmp_path: Path) -> None:
    with LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as empty, Client(empty):
        settings = ClusterSettings(kind="address", address=empty.scheduler_address)
        (found,) = check_workers("workers", settings, tmp_path, 2)
    assert (found.level, found.text) == ("fail", "none came within 2 s")


def test_equal_workers_are_ok() -> None:
    assert [one.level for one in found_of(SEEN)] == ["ok", "ok", "ok", "skipped"]


def test_a_disk_of_its_own_fails() -> None:
    (found,) = bad(found_of(replace(SEEN, host="n2", unshared="the worker does not see in /data what …")))
    assert found.level == "fail"
    assert found.text.startswith("n2: the worker does not see in /data")


def test_another_version_fails_with_both() -> None:
    (found,) = bad(found_of(replace(SEEN, host="n2", versions={**SEEN.versions, "zarr": "2.0"})))
    assert found.level == "fail"
    assert "n2 has zarr 2.0 (here 3." in found.text


@pytest.mark.parametrize(("ahead", "level"), [(2.0, "ok"), (-30.0, "warn"), (100.0, "fail")])
def test_a_clock_is_judged_by_what_is_certain(ahead: float, level: str) -> None:
    (found,) = [one for one in found_of(replace(SEEN, host="n2", clock_s=ahead)) if "clock" in one.text]
    assert found.level == level
    assert f"n2 is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}" in found.text


def test_a_clock_that_may_be_right_is_not_called_wrong() -> None:
    assert not bad(found_of(replace(SEEN, clock_s=50.0, clock_within_s=49.0)))


def test_a_job_that_asks_for_a_gpu_has_to_have_it() -> None:
    (found,) = bad(found_of(SEEN, needs_gpu=True))
    assert found.level == "fail"
    assert "the job asks for a GPU, and torch sees none" in found.text
    both = [replace(SEEN, gpu=CUDA)] * 2
    assert list(judged("w", both, needs_gpu=True))[-1] == Finding("ok", "w", "compute on H200 of 140 GB")


def test_a_gpu_that_cannot_be_computed_on_fails() -> None:
    (found,) = bad(found_of(replace(SEEN, gpu=replace(CUDA, fault="no kernel image is available"))))
    assert "H200 cannot be computed on: no kernel image" in found.text


def test_both_kinds_of_job_are_tried() -> None:
    job, gpu_job = JobSettings(partition="cpu"), JobSettings(partition="gpu", gpus=1)
    found = clusters(ClusterSettings(kind="slurm", job=job, gpu_job=gpu_job))
    assert {name: one.job for name, one in found.items()} == {"workers": job, "gpu workers": gpu_job}
    assert list(clusters(ClusterSettings())) == ["workers"]
