"""A night on a cluster: everything deployed, a sample arrives slowly, and whatever can be lost is lost meanwhile."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.site import DEPLOY
from neurovol.cli import main
from tests.arriving import arrive, write_project
from tests.browser import browser
from tests.flows.postgres import postgres
from tests.flows.served import eventually, kill_all, worker
from tests.free import free_port
from tests.hpc.conftest import jobs, said
from tests.hpc.guarded import WHO, Guarded
from tests.tiny import contents

pytestmark = [pytest.mark.hpc, pytest.mark.timeout(1200)]
POOL = "neurovol-slurm"
CLUSTER = """[cluster]
kind = "slurm"
workers = 1
job = {cores = 1, memory_gb = 2, interface = "lo"}
"""
SHAPE = (40, 200, 200)
LIMIT = "conversions@scratch"
TWO = ("m2", "m3")


@dataclass
class Night:
    """What was seen, to be asserted on."""

    served: Guarded
    file: Path
    lost: list[str] = field(default_factory=list)
    drivers: set[int] = field(default_factory=set)
    pages: dict[str, str] = field(default_factory=dict)  # of Prefect's UI, as Chromium shows them
    looked_while_copying: list[dict[str, str]] = field(default_factory=list)
    held_while_full: list[str] = field(default_factory=list)  # what conversions said while another had the only slot

    def attempts(self, sample: str) -> list[dict[str, Any]]:
        return [run for run in self.served.runs("sample") if run["parameters"]["sample"] == sample]

    def completed(self, sample: str) -> bool:
        return any(run["state_type"] == "COMPLETED" for run in self.attempts(sample))

    def job(self, name: str) -> int | None:
        """The newest job of that name which Slurm has."""
        found = [number for number, called in jobs().items() if called.startswith(name)]
        return max(found, default=None)

    def blocks(self) -> int:
        """Blocks of the sample's prediction that are done."""
        return sum(len(file.read_bytes().splitlines()) for file in self.file.parent.rglob("*unet3d*.jsonl"))

    def said_by_conversion(self, sample: str) -> list[tuple[str, str]]:
        """When, and what."""
        (run,) = [run for run in self.served.runs("convert") if run["parameters"]["sample"] == sample] or [None]
        if run is None:
            return []
        logs = self.served.call("logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
        return sorted((entry["timestamp"], entry["message"]) for entry in logs)

    def when(self, sample: str, begins: str) -> str:
        """The last moment at which a sample's conversion said something that begins like this; "" if it never did."""
        return max((at for at, message in self.said_by_conversion(sample) if message.startswith(begins)), default="")

    def said_by_inbox(self) -> list[dict[str, str]]:
        tables = self.served.call("artifacts/filter", {"artifacts": {"key": {"any_": ["inbox-lab"]}}})
        return [{row["arrived"]: row["what of it"] for row in json.loads(table["data"])} for table in tables]


def site_file(folder: Path) -> Path:
    """deploy/sites/slurm.yaml for this machine: its paths, less memory, an inbox that is looked into each minute."""
    site = yaml.safe_load((DEPLOY / "sites" / "slurm.yaml").read_text())
    submit = f"sbatch --wait --chdir={folder} --cpus-per-task=1 --mem=2G {DEPLOY / 'slurm' / 'flow-run.sbatch'}"
    python = sys.executable
    site |= {"inbox_cron": "* * * * *", "deployments": {"inbox": {"command": None}}}
    site["job_variables"] = {"command": submit, "env": {"NEUROVOL_PYTHON": python}}
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump(site))
    return file


@pytest.fixture(scope="module")
def night(slurm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    file = write_project(folder, ("[cluster]\nworkers = 1\nthreads = 2\n", CLUSTER), ("settle_s = 1", "settle_s = 20"))
    with postgres() as database:
        served = Guarded(folder / "prefect", free_port(), database)
        served.start()
        try:
            deployed = served.deploy(file, "--site", str(site_file(folder)))
            assert deployed.returncode == 0, deployed.stderr
            night = Night(served, file)
            _happens(night, folder)
            _looked_at(night, folder)
            yield night
        finally:
            served.stop()


def _happens(night: Night, folder: Path) -> None:
    """The sample is copied slowly; then workers, drivers, the Prefect worker and the server are lost in turn."""
    with worker(night.served, folder / "worker-1.log", POOL) as first:
        _copied_slowly(arrive(night.file, "hidden", SHAPE), night.file.parent / "arrivals" / "m1.tif", night)
        driver = eventually(lambda: night.job("neurovol-driver"), 300)
        eventually(lambda: night.blocks() > 3, 300)
        said("scancel", str(night.job("neurovol-segment")))
        night.lost.append("a worker's job")
        before = night.blocks()
        eventually(lambda: night.blocks() > before + 2, 200)
        said("scancel", "--signal=TERM", "--batch", str(driver))  # as Slurm does when its walltime is about to end
        night.lost.append("the driver's time")
        driver = _goes_on_as_another(night, driver)
        said("scancel", str(driver))  # whose it is may have meant it; the inbox tries the sample again
        night.lost.append("the driver's job")
        driver = _goes_on_as_another(night, driver)
        _killed("flow-run execute")  # as where its node is lost
        night.lost.append("the driver")
        _goes_on_as_another(night, driver)
        kill_all(first.pid)
        night.lost.append("the Prefect worker")
    with worker(night.served, folder / "worker-2.log", POOL):
        night.served.stop()
        night.served.start()
        night.lost.append("the server")
        eventually(lambda: night.completed("m1"), 600)
        _two_at_once(night)
        eventually(lambda: jobs() == {}, 120)


def _goes_on_as_another(night: Night, driver: int) -> int:
    """The job of the next driver, once blocks were done by it."""
    another = eventually(lambda: (job := night.job("neurovol-driver")) != driver and job, 400)
    before = night.blocks()
    eventually(lambda: night.blocks() > before + 1, 200)
    return another


def _two_at_once(night: Night) -> None:
    """Two samples arrive while something else has the only slot for conversions; once both wait, it is given back."""
    slot = {"names": [LIMIT], "slots": 1, "mode": "concurrency"}
    night.served.call("v2/concurrency_limits/increment", slot)
    for sample in TWO:
        arrive(night.file, sample)
    eventually(lambda: all(night.when(sample, "Waiting for") for sample in TWO), 400)
    time.sleep(5)
    night.held_while_full += [sample for sample in TWO if night.when(sample, "Holding")]
    night.served.call("v2/concurrency_limits/decrement", slot | {"occupancy_seconds": 60.0})
    eventually(lambda: all(night.completed(sample) for sample in TWO), 400)


def _killed(command: str) -> None:
    """Kill -9 of all processes whose command line has this, with all that they started."""
    for process in psutil.process_iter(["cmdline"]):
        if command in " ".join(process.info["cmdline"] or ()):
            kill_all(process.pid)


def _looked_at(night: Night, folder: Path) -> None:
    """The pages that people look at, in a browser; their pictures are left in the folder."""
    place = night.served.api.removesuffix("/api")
    form = night.served.call("deployments/name/sample/lab", method="GET")["id"]
    pages = {
        "run": (f"runs/flow-run/{night.attempts('m1')[-1]['id']}", "Completed"),
        "artifacts": ("artifacts", "inbox-lab"),
        "form": (f"deployments/deployment/{form}/run", "The sample to do"),
    }
    with browser(folder / "chromium") as page:
        page.open(place, "Login")
        page.run(f"localStorage.setItem('prefect-password', btoa('{':'.join(WHO)}'))")
        for name, (path, until) in pages.items():
            night.pages[name] = page.open(f"{place}/{path}", until)
            page.photograph(folder / f"{name}.png")


def _copied_slowly(whole: Path, there: Path, night: Night) -> None:
    """As over a network, in half a minute; the inbox looks meanwhile."""
    data = whole.read_bytes()
    whole.unlink()
    with there.open("wb") as file:
        for part in range(40):
            file.write(data[part * len(data) // 40 : (part + 1) * len(data) // 40])
            file.flush()
            time.sleep(2)
    night.looked_while_copying = night.said_by_inbox()


def test_a_sample_that_is_being_copied_is_left_alone(night: Night) -> None:
    said_then = [told for told in night.looked_while_copying if "m1.tif" in told]
    assert said_then, "the cron made no look while it was copied"
    assert all(told["m1.tif"].startswith("left alone") for told in said_then)


def test_whatever_was_lost_the_sample_is_complete_and_as_undisturbed(night: Night, tmp_path: Path) -> None:
    assert len(night.lost) == 6
    undisturbed = write_project(tmp_path, ("folder", "folder"))
    shutil.copy(night.file.parent / "arrivals" / "m1.tif", tmp_path / "arrivals" / "m1.tif")
    assert main(["run", str(undisturbed), "--sample", "m1"]) == 0
    there, here = (contents(f.parent / "stores" / "lab" / "samples" / "m1") for f in (night.file, undisturbed))
    assert there.keys() == here.keys()
    assert there == here


def test_no_run_is_left_running_and_each_attempt_was_made_once(night: Night) -> None:
    for flow in ("inbox", "sample", "convert", "segment"):
        states = {run["state_type"] for run in night.served.runs(flow)}
        assert "RUNNING" not in states, flow
    *before, last = [run["state_type"] for run in night.attempts("m1")]
    assert last == "COMPLETED"
    assert set(before) == {"CRASHED"}
    # a driver whose time is up goes on as the same run; so does one whose job is cancelled, if that leaves it the time
    assert len(before) in (1, 2)


def test_two_samples_at_once_convert_one_after_the_other(night: Night) -> None:
    assert not night.held_while_full
    first, second = sorted(TWO, key=lambda sample: night.when(sample, "Holding"))
    assert night.when(second, "Waiting for") < night.when(first, f"convert {first}: ") < night.when(second, "Holding")


def test_no_job_and_no_process_is_left(night: Night) -> None:
    assert jobs() == {}
    ours = [p for p in psutil.process_iter(["cmdline"]) if str(night.file) in " ".join(p.info["cmdline"] or ())]
    assert not ours
    commands = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in commands.splitlines() if "dask_worker tls://" in line or "flow-run execute" in line]


def test_the_browser_shows_the_run_its_artifacts_and_a_form_of_described_fields(night: Night) -> None:
    assert "sample m1" in night.pages["run"]
    assert "segment-m1" in night.pages["artifacts"]
    assert "The sample to do" in night.pages["form"]


def test_no_slot_of_a_limit_is_left_taken(night: Night) -> None:
    limits = night.served.call("v2/concurrency_limits/filter", {})
    assert {limit["active_slots"] for limit in limits} == {0}
