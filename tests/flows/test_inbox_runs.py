"""A night at the inbox: real server, real workers, two samples; one worker is killed, the server is started anew.

The first sample is done in two attempts, the second cannot be read and is given up after three. The server is on
PostgreSQL as deploy/ has it, where there is one: on SQLite it loses events while it is busy, and what it would tell of.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from neurovol.blockwise.ledger import Header, Ledger
from tests.arriving import arrive, write_project
from tests.flows.postgres import installed, postgres
from tests.flows.served import Served, eventually, kill_all, worker
from tests.free import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # 200 s on two idle cores
telling = pytest.mark.skipif(not installed(), reason="no PostgreSQL: on SQLite Prefect's server loses events")
CRASHED_WITHIN_S = 150  # three heartbeats of 30 s, and some for a busy machine


@dataclass
class Night:
    """What was seen, to be asserted on."""

    served: Served
    file: Path
    told: list[str] = field(default_factory=list)
    mailed: list[EmailMessage] = field(default_factory=list)
    said: list[dict[str, str]] = field(default_factory=list)  # of every look into the inbox: what of each arrival
    crashed: dict[str, Any] = field(default_factory=dict)

    def look(self) -> None:
        """One run of the inbox, and what it said."""
        self.looked(self.served.start_run("inbox/lab"))

    def looked(self, run: str) -> None:
        assert self.served.ended(run)["state_type"] == "COMPLETED"
        tables = self.served.call("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        self.said.append({row["arrived"]: row["what of it"] for t in tables for row in json.loads(t["data"])})

    def look_here(self) -> None:
        """One run of the inbox in a process of its own, without a worker; what it starts waits for one."""
        command = [sys.executable, "-c", f"from flows.inbox import inbox; inbox({str(self.file)!r})"]
        subprocess.run(command, env=self.served.environment, check=True, capture_output=True, timeout=120)
        self.looked(self.served.runs("inbox")[-1]["id"])

    def attempts(self, sample: str) -> list[dict[str, Any]]:
        return [run for run in self.served.runs("sample") if run["parameters"]["sample"] == sample]

    def running(self, flow: str) -> bool:
        return any(run["state_type"] == "RUNNING" for run in self.served.runs(flow))

    def running_part_of(self, sample: str) -> bool:
        return self.attempts(sample)[-1]["state_type"] == "RUNNING" and self.running("segment")


@contextmanager
def receiver(told: list[str]) -> Iterator[str]:
    """The address of a server that keeps what it is told, as a chat tool would."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """It says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@dataclass
class Mailbox:
    """Keeps what a mail server is given."""

    mails: list[EmailMessage]

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, EmailMessage, policy=default)
        assert envelope.rcpt_tos == [mail["To"]]
        self.mails.append(mail)
        return "250 OK"


@contextmanager
def mail_server(mails: list[EmailMessage]) -> Iterator[str]:
    """The address of a mail server, with two people to write to."""
    controller = Controller(Mailbox(mails), hostname="127.0.0.1", port=free_port())
    controller.start()
    yield f"mailto://127.0.0.1:{controller.port}/?from=neurovol@lab.example&to=a@lab.example,b@lab.example"
    controller.stop()


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    with postgres() if installed() else nullcontext() as database:
        yield from _whole_night(folder, Served(folder / "prefect", free_port(), database))


def _whole_night(folder: Path, served: Served) -> Iterator[Night]:
    night = Night(served, write_project(folder))
    arrive(night.file, "m1", (24, 300, 300))
    (folder / "arrivals" / "m2.tif").write_bytes(b"no picture")
    served.start()
    try:
        with receiver(night.told) as hook, mail_server(night.mailed) as mail:
            deployed = served.deploy(night.file, "--webhook", hook, "--mail", mail)
            assert deployed.returncode == 0, deployed.stderr
            _first_worker(night, folder / "worker-1.log")
            with worker(served, folder / "worker-2.log"):
                _second_worker(night)
            yield night
    finally:
        served.stop()


def _first_worker(night: Night, log: Path) -> None:
    """Two looks at once start both samples; the worker is lost while the first is being segmented."""
    with worker(night.served, log) as process:
        for run in [night.served.start_run("inbox/lab") for _ in range(2)]:
            night.looked(run)
        eventually(lambda: night.running_part_of("m1"), 180)
        night.served.ended(night.attempts("m2")[0]["id"])
        kill_all(process.pid)


def _second_worker(night: Night) -> None:
    """The lost run is ended by the server, and the next goes on, while the server is started anew."""
    night.look()
    night.crashed = night.served.ended(night.attempts("m1")[0]["id"], CRASHED_WITHIN_S)
    night.served.ended(night.attempts("m2")[1]["id"])
    night.look()
    eventually(lambda: night.running_part_of("m1"), 180)
    night.served.stop()
    night.served.start()
    for sample in ("m1", "m2"):
        night.served.ended(night.attempts(sample)[-1]["id"])
    night.look()


def test_two_looks_at_once_start_a_sample_once(night: Night) -> None:
    keys = [run["idempotency_key"] for run in night.attempts("m1") + night.attempts("m2")]
    assert len(set(keys)) == len(keys)
    assert [key.rpartition("#")[2] for key in keys] == ["1", "2", "1", "2", "3"]


def test_a_killed_run_is_ended_by_the_server_and_the_next_attempt_completes(night: Night) -> None:
    assert night.crashed["state_type"] == "CRASHED"
    assert "no heartbeat for 90 s" in night.crashed["state"]["message"]
    assert [run["state_type"] for run in night.attempts("m1")] == ["CRASHED", "COMPLETED"]
    assert (night.file.parent / "stores/lab/samples/m1/report.html").is_file()


def test_no_run_is_left_running(night: Night) -> None:
    for flow in ("inbox", "sample", "convert", "segment"):
        assert {run["state_type"] for run in night.served.runs(flow)} <= {"COMPLETED", "FAILED", "CRASHED"}, flow


def test_while_a_lost_run_is_not_ended_no_other_is_started(night: Night) -> None:
    assert night.said[2]["m1.tif"] == "is being done"


def test_the_next_attempt_goes_on_where_the_lost_one_ended(night: Night) -> None:
    """Told by files: of the logs some are lost with the server."""
    ledger = night.file.parent / "stores/lab/samples/m1/ledgers/convert.jsonl"
    began = datetime.fromisoformat(night.attempts("m1")[1]["start_time"])
    assert ledger.stat().st_mtime < began.timestamp()  # it converted nothing


def test_a_sample_that_fails_is_tried_three_times_and_then_said_to_be_given_up(night: Night) -> None:
    attempts = night.attempts("m2")
    assert len(attempts) == 3
    assert {run["state_type"] for run in attempts} <= {"FAILED", "CRASHED"}
    assert night.said[-1] == {"m2.tif": night.said[-1]["m2.tif"]}  # the first is done
    assert night.said[-1]["m2.tif"].startswith("failed 3 times")


@telling
def test_people_are_told_of_each_run_that_failed_or_crashed(night: Night) -> None:
    assert any("sample m1 is Crashed: no heartbeat" in text for text in night.told)
    assert any("sample m2 is Failed" in text and "m2.tif" in text for text in night.told)
    assert not any("segment" in text for text in night.told)  # a stage within a run is told of by its run


@telling
def test_people_are_mailed_the_same_with_a_link_to_the_run(night: Night) -> None:
    for person in ("a@lab.example", "b@lab.example"):
        mails = [mail for mail in night.mailed if mail["To"] == person]
        assert {(mail["From"], mail["Subject"]) for mail in mails} == {("neurovol@lab.example", "neurovol")}
        texts = [mail.get_content() for mail in mails]
        assert any("sample m1 is Crashed: no heartbeat" in text for text in texts)
        assert any("sample m2 is Failed" in text and "m2.tif" in text for text in texts)
        lost = night.attempts("m1")[0]["id"]
        assert any(f"/runs/flow-run/{lost}" in text for text in texts)


def test_no_slot_is_left_taken(night: Night) -> None:
    limits = night.served.call("v2/concurrency_limits/filter", {})
    assert {limit["name"]: limit["active_slots"] for limit in limits} == {"conversions@local": 0, "trainings@local": 0}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Night, Night]]:
    """A project, and a trial of it with a store of its own, which is fed from the same drop folder; no worker."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "lab").mkdir()
    (folder / "trial").mkdir()
    lab = write_project(folder / "lab")
    trial = write_project(
        folder / "trial",
        ('name = "lab"', 'name = "trial"'),
        ('folder = "arrivals"', 'folder = "../lab/arrivals"'),
        ('model = "unet3d-1"', 'model = "stores/lab/models/unet3d-1"'),
    )
    arrive(lab)
    served = Served(folder / "prefect", free_port())
    served.start()
    try:
        for file in (lab, trial):
            deployed = served.deploy(file)
            assert deployed.returncode == 0, deployed.stderr
        time.sleep(1)  # the drop folder's settle_s
        yield Night(served, lab), Night(served, trial)
    finally:
        served.stop()


def test_what_a_driver_is_writing_is_not_started_though_the_server_knows_of_no_run(two: tuple[Night, Night]) -> None:
    lab, _ = two
    with Ledger(lab.file.parent / "stores/lab/samples/m1/ledgers/report.jsonl", Header("report", {}, 1)):
        lab.look_here()
    assert lab.said[-1]["m1.tif"].startswith("is being done, by a run that the server has lost sight of")
    assert not lab.attempts("m1")


def test_each_of_two_projects_that_share_a_drop_folder_starts_its_run(two: tuple[Night, Night]) -> None:
    for night in two:
        night.look_here()
        assert night.said[-1]["m1.tif"] == "started, attempt 1 of 3"
    runs = two[0].attempts("m1")
    assert [run["parameters"]["project_file"] for run in runs] == [str(night.file) for night in two]
    two[0].look_here()
    assert two[0].said[-1]["m1.tif"] == "is being done"
