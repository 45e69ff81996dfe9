"""Prefect's server as the doctor sees it: real ones, and what is no such server."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError

import pytest

import neurovol.doctor.api as asked
from neurovol.doctor.api import Api, prefect_settings
from neurovol.doctor.checks import examine
from neurovol.doctor.server import check_pools, check_scheduler, check_server, version_finding
from tests.doctor.prefects import prefect_server

AUTH = {"PREFECT_API_AUTH_STRING": "lab:mouse"}
GUARDED = {"PREFECT_SERVER_API_AUTH_STRING": "lab:mouse", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"}
IDLE = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_DEPLOYMENT_SCHEDULE_MAX_SCHEDULED_RUNS": "1",
}
SCHEDULE = {"schedule": {"cron": "* * * * *"}, "active": True}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with basic authentication and protection against forged requests."""
    with prefect_server(tmp_path_factory.mktemp("guarded"), **GUARDED) as url:
        yield Api(url, AUTH)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server that schedules nothing, as one with SQLAlchemy 2.1 does."""
    with prefect_server(tmp_path_factory.mktemp("idle"), **IDLE) as url:
        yield Api(url)


def deploy(api: Api, name: str) -> None:
    flow = api.post("flows/", {"name": "nightly"})
    api.post("deployments/", {"name": name, "flow_id": flow["id"], "schedules": [SCHEDULE]})


@contextmanager
def busy(answers: list[int]) -> Iterator[Api]:
    """A server that answers each of these in turn, and all is well once there are no more."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop(0) if answers else 200)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *told: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield Api(f"http://127.0.0.1:{server.server_port}/api")
        server.shutdown()


@pytest.mark.slow
def test_a_guarded_server_answers_who_knows_the_password(guarded: Api) -> None:
    found = list(check_server({"PREFECT_API_URL": guarded.url, **AUTH}))
    assert [(one.level, one.name) for one in found] == [("ok", "server"), ("ok", "prefect"), ("ok", "server clock")]
    assert f"{guarded.url} answers, Prefect {version('prefect')}" == found[0].text
    assert abs(guarded.clock().ahead_s) <= guarded.clock().within_s


@pytest.mark.slow
def test_a_guarded_server_refuses_others_and_the_way_out_is_said(guarded: Api) -> None:
    for settings in ({}, {"PREFECT_API_AUTH_STRING": "lab:rat"}):
        (found,) = check_server({"PREFECT_API_URL": guarded.url, **settings})
        assert found.level == "fail"
        assert "401" in found.text
        assert "PREFECT_API_AUTH_STRING" in found.way_out


@pytest.mark.slow
def test_a_pool_has_to_have_a_worker_online(guarded: Api) -> None:
    guarded.post("work_pools/", {"name": "night", "type": "process"})
    (found,) = check_pools(guarded)
    assert (found.level, found.way_out) == ("warn", "prefect worker start --pool night")
    guarded.post("work_pools/night/workers/heartbeat", {"name": "w1"})
    (found,) = check_pools(guarded)
    assert (found.level, found.text) == ("ok", '"night" has 1 workers online')


@pytest.mark.slow
def test_a_scheduler_that_makes_runs_is_alive(guarded: Api) -> None:
    (before,) = check_scheduler(guarded)
    assert before.level == "skipped"
    deploy(guarded, "inbox")
    (found,) = check_scheduler(guarded, patience_s=90)
    assert (found.level, found.name) == ("ok", "scheduler")


@pytest.mark.slow
def test_a_scheduler_that_makes_none_is_not(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.level for one in check_pools(idle)] == ["skipped"]
    deploy(idle, "inbox")
    (young,) = check_scheduler(idle, patience_s=2)
    assert young.level == "warn"
    (found,) = check_scheduler(idle, patience_s=2, fresh_s=0)
    assert found.level == "fail"
    assert '"inbox" has an active schedule, but no runs to come' in found.text
    assert "sqlalchemy" in found.way_out
    monkeypatch.setenv("PREFECT_API_URL", idle.url)
    levels = {one.name: one.level for one in examine()}
    assert levels["server"] == "ok"
    assert levels["scheduler"] in ("warn", "fail")


def test_a_server_that_is_busy_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "WAITS_S", (0.01, 0.01, 0.01))
    with busy([503, 429, 502]) as api:
        assert api.get("health") is True


def test_a_server_that_stays_busy_is_refused_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "WAITS_S", (0.01, 0.01, 0.01))
    with busy([503] * 5) as api:
        (found,) = check_server({"PREFECT_API_URL": api.url})
    assert found.level == "fail"
    assert "answers 503" in found.text


def test_what_is_refused_for_good_is_asked_once() -> None:
    answers = [404, 200]
    with busy(answers) as api, pytest.raises(HTTPError, match="404"):
        api.get("health")
    assert answers == [200]


def test_no_server_at_an_address_fails() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/api"
        (found,) = check_server({"PREFECT_API_URL": url})
    assert found.level == "fail"
    assert f"{url} does not answer as a Prefect server" in found.text
    assert "prefect server start" in found.way_out


def test_another_server_is_no_prefect_server(tmp_path: Path) -> None:
    with ExitStack() as stack:
        handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        (found,) = check_server({"PREFECT_API_URL": f"http://127.0.0.1:{server.server_port}"})
    assert found.level == "fail"
    assert "answers 404" in found.text
    assert "/api" in found.way_out


def test_versions_that_differ_are_told_by_how_much() -> None:
    here = version("prefect")
    minor = ".".join(here.split(".")[:2])
    levels = {told: version_finding(told).level for told in (here, f"{minor}.999", "2.20.0")}
    assert levels == {here: "ok", f"{minor}.999": "warn", "2.20.0": "fail"}
    assert f"{here} here, 2.20.0 on the server" in version_finding("2.20.0").text


def test_the_address_is_the_active_profiles_unless_the_environment_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert "PREFECT_API_URL" not in prefect_settings()
    profile = '[profiles.lab]\nPREFECT_API_URL = "http://lab/api"\n[profiles.other]\n'
    (tmp_path / "profiles.toml").write_text(f'active = "lab"\n{profile}')
    assert prefect_settings()["PREFECT_API_URL"] == "http://lab/api"
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert "PREFECT_API_URL" not in prefect_settings()
    monkeypatch.setenv("PREFECT_API_URL", "http://here/api")
    assert prefect_settings()["PREFECT_API_URL"] == "http://here/api"
