"""`make deploy` against a real server: all is made at once, called from anywhere, and done twice it changes nothing."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.events.schemas.automations import AutomationCore

from flows.automations import never_began, zombies
from flows.leaving import LEFT
from tests.arriving import write_project
from tests.flows.served import Served, eventually
from tests.free import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
thrice = pytest.mark.timeout(900)  # see tried
SHORT = timedelta(seconds=10)  # in place of minutes and days; the least that a server takes
HOOK = "http://127.0.0.1:9/told"
FLOWS = {"inbox", "sample", "project", "convert", "pseudolabel", "train", "segment", "evaluate"}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """A server, and a project deployed to it from a folder that has nothing to do with either."""
    folder = tmp_path_factory.mktemp("deploy")
    file = write_project(folder)
    served = Served(folder / "prefect", free_port())
    served.start()
    try:
        done = served.deploy(file, "--webhook", HOOK, cwd=folder)
        assert done.returncode == 0, done.stderr
        yield served, file
    finally:
        served.stop()


def lasting(found: Any) -> Any:
    """What the server says, without the times at which it was last looked at or written."""
    if isinstance(found, list):
        return [lasting(item) for item in found]
    if not isinstance(found, dict):
        return found
    passing = {"updated", "last_polled", "estimated_run_time", "estimated_start_time_delta"}
    return {key: lasting(value) for key, value in found.items() if key not in passing}


def everything(served: Served) -> dict[str, Any]:
    """All that a deployment leaves on the server."""
    kinds = ["deployments", "automations", "work_pools", "v2/concurrency_limits", "block_documents"]
    return {kind: sorted(lasting(served.call(f"{kind}/filter", {})), key=lambda row: row["id"]) for kind in kinds}


def ids(served: Served, kind: str) -> set[str]:
    return {found["id"] for found in served.call(f"{kind}/filter", {})}


def test_every_flow_has_a_deployment_with_a_described_form(deployed: tuple[Served, Path]) -> None:
    served, file = deployed
    by_entrypoint = {d["entrypoint"].rpartition(".")[2]: d for d in served.call("deployments/filter", {})}
    assert set(by_entrypoint) == FLOWS
    for deployment in by_entrypoint.values():
        assert deployment["name"] == "lab"
        assert deployment["parameters"] == {"project_file": str(file)}
        assert "neurovol" in deployment["tags"]
        assert deployment["work_pool_name"] == "neurovol"
        assert deployment["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        for name, field in deployment["parameter_openapi_schema"]["properties"].items():
            assert field.get("description"), f"{deployment['entrypoint']}: {name}"
    assert by_entrypoint["train"]["job_variables"]["env"]["NEUROVOL_TRAINING_LIMIT"] == "trainings@local"


def test_only_the_inbox_is_scheduled_and_its_runs_are(deployed: tuple[Served, Path]) -> None:
    served, _ = deployed
    scheduled = {
        d["entrypoint"]: [s["schedule"]["cron"] for s in d["schedules"]]
        for d in served.call("deployments/filter", {})
        if d["schedules"]
    }
    assert scheduled == {"flows.inbox.inbox": ["*/15 * * * *"]}


def test_done_twice_it_changes_nothing(deployed: tuple[Served, Path]) -> None:
    served, file = deployed
    before, scheduled = everything(served), ids(served, "flow_runs")
    again = served.deploy(file, "--webhook", HOOK)
    assert again.returncode == 0
    assert again.stdout.count(": is there") == len(FLOWS) + 4 + 1  # deployments, automations, the pool
    after = everything(served)
    for kind in before:
        assert json.dumps(after[kind], indent=1) == json.dumps(before[kind], indent=1)
    assert scheduled <= ids(served, "flow_runs")  # at a quarter of an hour the server adds another


def test_a_schedule_and_an_automation_that_a_person_turned_off_stay_off(deployed: tuple[Served, Path]) -> None:
    served, file = deployed
    (inbox,) = [d for d in served.call("deployments/filter", {}) if d["schedules"]]
    schedule = f"deployments/{inbox['id']}/schedules/{inbox['schedules'][0]['id']}"
    (failed,) = [a for a in served.call("automations/filter", {}) if "tell of failed" in a["name"]]
    served.call(schedule, {"active": False}, "PATCH")
    served.call(f"automations/{failed['id']}", {"enabled": False}, "PATCH")
    assert served.deploy(file, "--webhook", HOOK).returncode == 0
    assert not served.call(f"automations/{failed['id']}", method="GET")["enabled"]
    assert not served.call(f"deployments/{inbox['id']}", method="GET")["schedules"][0]["active"]
    served.call(schedule, {"active": True}, "PATCH")
    served.call(f"automations/{failed['id']}", {"enabled": True}, "PATCH")


def test_a_site_changes_limits_and_job_variables(deployed: tuple[Served, Path], tmp_path: Path) -> None:
    served, file = deployed
    site = tmp_path / "site.yaml"
    site.write_text(
        "conversions: 3\nfile_system: scratch\nnever_began_h: 72\n"
        "job_variables: {env: {A: '1'}}\ndeployments: {train: {env: {A: '2'}}}"
    )
    assert served.deploy(file, "--site", str(site)).returncode == 0
    assert "submitted 72 h ago" in str(served.call("automations/filter", {}))
    limits = {limit["name"]: limit["limit"] for limit in served.call("v2/concurrency_limits/filter", {})}
    assert limits["conversions@scratch"] == 3
    env = {
        d["entrypoint"].rpartition(".")[2]: d["job_variables"]["env"]["A"]
        for d in served.call("deployments/filter", {})
    }
    assert (env["train"], env["convert"]) == ("2", "1")


def test_a_block_that_is_not_there_is_named(deployed: tuple[Served, Path]) -> None:
    served, file = deployed
    refused = served.deploy(file, "--notify", "sendgrid-email/lab")
    assert refused.returncode == 2
    assert "--notify sendgrid-email/lab: the server has no such block" in refused.stderr


@pytest.mark.parametrize(
    "address",
    ["me@lab.example", "mailto://u:secret@mail.lab.example/?from=n@lab.example&to=a@lab.example,nonsense"],
)
def test_a_mail_address_that_would_reach_no_one_is_refused_with_the_form_it_should_have(
    deployed: tuple[Served, Path], address: str
) -> None:
    served, file = deployed
    refused = served.deploy(file, "--mail", address)
    assert refused.returncode == 2, refused.stdout
    assert "--mail: this names no mail server, or someone to whom it could not write" in refused.stderr
    assert "secret" not in refused.stderr


def test_options_with_a_password_may_stand_in_a_file(deployed: tuple[Served, Path], tmp_path: Path) -> None:
    served, file = deployed
    options = tmp_path / "options"
    options.write_text("--mail=mailtos://u:hush-hush@mail.lab.example:587/?from=n@lab.example&to=a@lab.example\n")
    assert served.deploy(file, f"@{options}").returncode == 0
    (block,) = served.call("block_documents/filter", {"block_documents": {"name": {"any_": ["neurovol-mail"]}}})
    assert "hush-hush" not in json.dumps(block)
    assert served.deploy(file, "--webhook", HOOK).returncode == 0  # as it was


def test_without_a_server_the_variable_is_named(tmp_path: Path) -> None:
    file = write_project(tmp_path)
    served = Served(tmp_path / "prefect", free_port())
    refused = served.deploy(file)
    assert refused.returncode == 2, refused.stderr
    assert f"PREFECT_API_URL={served.api}" in refused.stderr
    assert "no Prefect server answers there" in refused.stderr
    command = [sys.executable, "-m", "flows.deploy", str(file)]
    env = {k: v for k, v in served.environment.items() if k != "PREFECT_API_URL"}
    unset = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (unset.returncode, "PREFECT_API_URL is not set" in unset.stderr) == (2, True)


class Broken(BaseHTTPRequestHandler):
    """As a server whose database takes nothing."""

    def do_GET(self) -> None:
        self._answered(200 if self.path.endswith("/admin/settings") else 500)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answered(500)

    def _answered(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """It says nothing."""


def test_what_a_server_does_not_take_is_told_without_a_traceback(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        refused = Served(tmp_path / "prefect", server.server_port).deploy(write_project(tmp_path))
        server.shutdown()
    assert refused.returncode == 2, refused.stderr
    assert "the server did not take it: Server error '500" in refused.stderr
    assert "Traceback" not in refused.stderr


@contextmanager
def automation(served: Served, wanted: AutomationCore) -> Iterator[None]:
    """An automation on the server beside those that are deployed, under a name of its own."""
    made = served.call("automations/", wanted.model_copy(update={"name": "of a test"}).model_dump(mode="json"))
    try:
        yield
    finally:
        served.call(f"automations/{made['id']}", method="DELETE")


def went(served: Served, *states: str) -> str:
    """A run, by its id, that came into these states one after another, or said these events."""
    run = served.start_run("sample/lab", sample="m1")
    for state in states:
        if event := {"beat": "prefect.flow-run.heartbeat", "left": LEFT}.get(state):
            tag = {"prefect.resource.id": "prefect.tag.neurovol", "prefect.resource.role": "tag"}
            now = datetime.now(UTC).isoformat()
            said = {"event": event, "occurred": now, "id": str(uuid4()), "related": [tag]}
            served.call("events", [said | {"resource": {"prefect.resource.id": f"prefect.flow-run.{run}"}}])
        else:
            kind = "SCHEDULED" if state == "AwaitingRetry" else state.upper()
            served.call(f"flow_runs/{run}/set_state", {"state": {"type": kind, "name": state}})
        time.sleep(0.5)  # see tried
    return run


def tried(scenario: Callable[[Served], None], served: Served) -> None:
    """Three times at most, where the server lost events of it: on SQLite those whose transaction meets another's."""
    undelivered = served.home / "dlq"  # where it puts them, a minute later
    for left in (2, 1, 0):
        before = set(undelivered.glob("*"))
        try:
            scenario(served)
            return
        except AssertionError:
            if not left or not _more(undelivered, before):
                raise


def _more(folder: Path, before: set[Path]) -> bool:
    with suppress(AssertionError):
        return eventually(lambda: set(folder.glob("*")) > before, 120)
    return False


def state_of(served: Served, run: str) -> str:
    return str(served.call(f"flow_runs/{run}", method="GET")["state"]["name"])


@thrice
def test_a_run_that_waits_is_not_expected_to_beat_and_one_that_fell_silent_is_ended(
    deployed: tuple[Served, Path],
) -> None:
    served, _ = deployed
    tried(_silent_ones_end, served)


def _silent_ones_end(served: Served) -> None:
    with automation(served, zombies(SHORT)):
        walltime = went(served, "Pending", "Running", "beat", "AwaitingRetry")
        queued = went(served, "Pending", "Running", "beat", "AwaitingRetry", "Pending")
        slow = went(served, "Pending", "Running", "beat", "AwaitingRetry", "Pending", "beat", "left")
        on = went(served, "Pending", "Running", "beat", "AwaitingRetry", "Pending", "Running", "beat")
        lost_leaving = went(served, "Pending", "Running", "beat", "AwaitingRetry", "Pending", "beat")
        silent = went(served, "Pending", "Running", "beat")
        silent_at_once = went(served, "Pending", "Running")
        for run in (silent, silent_at_once, lost_leaving, on):
            assert "no heartbeat for 10 s" in served.ended(run, 30)["state"]["message"]
        assert [state_of(served, run) for run in (walltime, queued, slow)] == ["AwaitingRetry", "Pending", "Pending"]


@thrice
def test_a_run_that_was_submitted_and_never_began_is_ended(deployed: tuple[Served, Path]) -> None:
    served, _ = deployed
    tried(_those_that_never_began_end, served)


def _those_that_never_began_end(served: Served) -> None:
    with automation(served, never_began(SHORT)):
        began = [
            went(served, "Pending", "Running"),
            went(served, "Pending", "Running", "AwaitingRetry", "Running"),  # in its process
            went(served, "Pending", "Running", "AwaitingRetry", "Pending", "Running"),  # in another
        ]
        lost = went(served, "Pending")
        assert "and never begun" in served.ended(lost, 30)["state"]["message"]
        assert {state_of(served, run) for run in began} == {"Running"}
