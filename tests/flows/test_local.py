"""The project flow under a real Prefect server: what its page shows, and that the scheduler is alive."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_tiny

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)  # a cold server on two busy cores


def call(address: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        f"{address}/api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def environment(home: Path) -> dict[str, str]:
    """This process's, with a database of its own and no server configured."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return kept | {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project that its flow ran under a server of its own; and what that printed."""
    file = write_tiny(tmp_path_factory.mktemp("flow"))
    done = subprocess.run(
        [sys.executable, "-m", "flows.local", str(file)],
        env=environment(file.parent / "prefect"), cwd=ROOT, capture_output=True, text=True, timeout=560,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return file, done.stdout


@pytest.fixture(scope="module")
def address(ran: tuple[Path, str]) -> Iterator[str]:
    """The server started again over the same database, as `make ui` does."""
    shown = subprocess.Popen(
        [sys.executable, "-u", "-m", "flows.local"],
        env=environment(ran[0].parent / "prefect"), cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert shown.stdout is not None
    try:
        yield re.findall(r"http://127.0.0.1:\d+", shown.stdout.readline())[0]
    finally:
        shown.send_signal(signal.SIGINT)
        shown.communicate(timeout=60)
    assert shown.returncode == 0


def test_the_flow_prints_where_report_and_run_are(ran: tuple[Path, str]) -> None:
    file, out = ran
    assert re.search(r"run: +http://127.0.0.1:\d+/runs/flow-run/[0-9a-f-]{36}", out)
    report = Path(re.findall(r"report: +(\S+)", out)[0])
    assert report.is_relative_to(file.parent)
    assert "U-Net with pseudo-labels" in report.read_text(encoding="utf-8")


def test_every_stage_is_a_flow_run_that_completed(address: str) -> None:
    runs = call(address, "flow_runs/filter", {"sort": "START_TIME_ASC"})[:6]
    assert {r["state_type"] for r in runs} == {"COMPLETED"}
    names = {r["name"].split()[0] for r in runs}
    assert names == {"project", "convert", "pseudolabel", "train", "segment", "evaluate"}


def test_the_sample_flow_covers_one_sample_with_the_projects_model(address: str, ran: tuple[Path, str]) -> None:
    code = f"from pathlib import Path; from flows.sample import sample; sample(Path({str(ran[0])!r}), 'b')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(ran[0].parent / "prefect") | {"PREFECT_API_URL": f"{address}/api"},
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runs = call(address, "flow_runs/filter", {"flows": {"name": {"any_": ["sample"]}}})
    assert [(r["name"], r["state_type"]) for r in runs] == [("sample b", "COMPLETED")]


def test_progress_and_pictures_are_artifacts(address: str) -> None:
    artifacts = call(address, "artifacts/filter", {})
    progress = {a["key"]: a["data"] for a in artifacts if a["type"] == "progress"}
    assert progress["segment-a"] == 100
    assert progress["train-unet3d-pseudo"] == 100
    pages = {a["key"]: a["data"] for a in artifacts if a["type"] == "markdown"}
    assert "![" in pages["project-tiny"]
    assert "data:image/png;base64" in pages["convert-tiny"]
    assert "| 2D CNN |" in pages["evaluate-tiny"]
    assert max(len(page) for page in pages.values()) < 1_000_000  # Prefect refuses events of 1.5 MB


def test_each_flow_logs_its_plan(address: str) -> None:
    messages = [entry["message"] for entry in call(address, "logs/filter", {"limit": 200})]
    assert any(m.startswith("Plan\nconvert a") for m in messages)
    assert any("segment a: 100%" in m or "segment a:" in m for m in messages)


def test_a_cron_deployment_gains_scheduled_runs(address: str) -> None:
    """With SQLAlchemy 2.1 the server runs, but its scheduler silently creates none."""
    flow = call(address, "flows/", {"name": "nightly"})
    schedule = {"schedule": {"cron": "* * * * *"}, "active": True}
    deployment = call(address, "deployments/", {"name": "nightly", "flow_id": flow["id"], "schedules": [schedule]})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}
        if any(r["state_type"] == "SCHEDULED" for r in call(address, "flow_runs/filter", wanted)):
            return
        time.sleep(1)
    raise AssertionError("the scheduler made no run within a minute")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_server_stops_with_what_started_it(tmp_path: Path, ending: signal.Signals) -> None:
    shown = subprocess.Popen(
        [sys.executable, "-u", "-m", "flows.local"],
        env=environment(tmp_path / "prefect"), cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert shown.stdout is not None
    started = re.findall(r"http://127.0.0.1:\d+", shown.stdout.readline())[0]
    call(started, "flow_runs/filter", {})
    shown.send_signal(ending)
    shown.communicate(timeout=60)
    with pytest.raises(urllib.error.URLError):
        call(started, "flow_runs/filter", {})


def test_a_users_mistake_ends_with_a_sentence_and_exit_code_2(tmp_path: Path) -> None:
    file = write_tiny(tmp_path, ("seed = 1", "seed = -1"))
    done = subprocess.run(
        [sys.executable, "-m", "flows.local", str(file)],
        env=environment(tmp_path / "prefect"), cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "samples.0.phantom.seed = -1" in done.stderr
    assert "Traceback" not in done.stderr
