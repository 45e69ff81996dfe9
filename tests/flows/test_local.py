"""The project flow under a real Prefect server: what its page shows, and that the scheduler is alive."""

import base64
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from PIL import Image

from neurovol.doctor.api import Api
from tests.tiny import write_tiny

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a cold server on two busy cores


def call(address: str, path: str, body: Any) -> Any:
    return Api(f"{address}/api").post(path, body)


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


@pytest.fixture(scope="module")
def shown(address: str) -> dict[str, dict[str, Any]]:
    """The artifacts of the project's run by their keys; of several versions the last."""
    return {a["key"]: a for a in call(address, "artifacts/filter", {"sort": "CREATED_DESC"})[::-1]}


def pictures(page: str) -> list[Image.Image]:
    """Those of a Markdown page."""
    found = re.findall(r"\(data:image/(?:jpeg|png);base64,([^)]+)\)", page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def test_progress_of_each_step_is_an_artifact(shown: dict[str, dict[str, Any]]) -> None:
    progress = {key: a for key, a in shown.items() if a["type"] == "progress"}
    assert {key: progress[key]["data"] for key in ("convert-a", "train-unet3d-pseudo", "segment-a")} == {
        "convert-a": 100, "train-unet3d-pseudo": 100, "segment-a": 100,
    }  # fmt: skip
    assert re.fullmatch(r"10 of 10 blocks · .* million voxels/s · .*", progress["segment-a"]["description"])


@pytest.mark.parametrize(
    ("page", "count", "outlined"),
    [("convert-tiny", 4, ""), ("pseudolabel-tiny", 2, "neurons by the 2D CNN"), ("segment-tiny", 4, "by the U-Net")],
)
def test_each_stage_leaves_small_pictures(
    shown: dict[str, dict[str, Any]], page: str, count: int, outlined: str
) -> None:
    """Middle slice and maximum along z of each sample, with what the stage found."""
    text = shown[page]["data"]
    assert len(text) < 200_000
    jpegs = [picture for picture in pictures(text) if picture.format == "JPEG"]
    assert len(jpegs) == count
    assert max(jpegs[0].size) == 400
    captions = re.findall(r"^\*\*(\w+)\*\*: (.*)$", text, re.MULTILINE)
    assert [caption.split(",")[0].split(" over")[0] for _, caption in captions[:2]] == [
        "slice in the middle", "maximum along z",
    ]  # fmt: skip
    assert all(outlined in caption and ("outlined" in caption) == bool(outlined) for _, caption in captions)


def test_a_table_tells_of_all_steps(shown: dict[str, dict[str, Any]]) -> None:
    rows = json.loads(shown["steps-tiny"]["data"])
    assert {row["state"] for row in rows} == {"done"}
    assert [row["step"] for row in rows][:2] == ["convert a", "annotate a train"]
    (segment,) = (row for row in rows if row["step"] == "segment a")
    assert segment["done"] == "10 of 10 blocks"
    assert float(segment["million voxels/s"]) > 0
    assert segment["set aside"] == ""


def test_a_training_shows_its_loss(shown: dict[str, dict[str, Any]]) -> None:
    text = shown["curve-train-unet3d-pseudo"]["data"]
    assert "step 6 of 6" in text
    assert "learning rate 0.001" in text
    assert [picture.format for picture in pictures(text)] == ["PNG"]


def test_the_report_is_linked(shown: dict[str, dict[str, Any]], ran: tuple[Path, str]) -> None:
    (link,) = re.findall(r"\((file://[^)]+)\)", shown["report-tiny"]["data"])
    report = Path(url2pathname(urlsplit(link).path))
    assert report.is_relative_to(ran[0].parent)
    assert report.exists()


def test_the_scores_are_shown(shown: dict[str, dict[str, Any]]) -> None:
    assert "| 2D CNN |" in shown["evaluate-tiny"]["data"]
    assert "![" in shown["project-tiny"]["data"]


def test_a_run_leaves_little_in_the_database(shown: dict[str, dict[str, Any]], ran: tuple[Path, str]) -> None:
    """Artifacts twice, as Prefect keeps the last of each key once more; events hold none of their content."""
    assert shown
    with closing(sqlite3.connect(f"file:{ran[0].parent / 'prefect' / 'prefect.db'}?mode=ro", uri=True)) as database:
        size = "SELECT sum(length({})) FROM {}"
        artifacts, last, events = (
            database.execute(size.format(column, table)).fetchone()[0]
            for column, table in (("data", "artifact"), ("data", "artifact_collection"), ("payload", "events"))
        )
    assert artifacts + last < 2 * 1_000_000  # two samples
    assert events < 50_000


def test_each_flow_logs_its_plan(address: str) -> None:
    messages = [entry["message"] for entry in call(address, "logs/filter", {"limit": 200})]
    assert any(m.startswith("Plan\nconvert a") for m in messages)
    assert "segment a: starting" in messages
    assert any(re.match(r"segment a: 10 of 10 blocks done in ", m) for m in messages)


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
