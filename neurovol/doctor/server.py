"""Whether Prefect's server answers, fits what is installed here, keeps time, schedules, and has workers."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from neurovol.doctor.api import Api
from neurovol.doctor.finding import Finding

# Prefect takes a run for lost whose heartbeats are minutes late, and starts runs by the clock.
CLOCK_WARN_S, CLOCK_FAIL_S = 5.0, 60.0
PATIENCE_S = 20.0  # in which a scheduler that is alive makes runs of a deployment that was just changed
FRESH_S = 180.0  # since a deployment was changed: a busy scheduler may not have come to it yet
MOST_LOOKED_AT = 20  # of deployments with a schedule


def check_server(settings: Mapping[str, str]) -> Iterator[Finding]:
    """Whether it answers, of which version, and what time it has; the first finding fails where it does not answer."""
    api = Api(settings["PREFECT_API_URL"], settings)
    try:
        api.get("health")
        version = str(api.get("admin/version"))
        clock = api.clock()
    except urllib.error.HTTPError as error:
        yield _refused(api.url, error)
        return
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        way_out = "start it (prefect server start), or correct PREFECT_API_URL, which has to end in /api"
        yield Finding("fail", "server", f"{api.url} does not answer as a Prefect server: {why}", way_out)
        return
    yield Finding("ok", "server", f"{api.url} answers, Prefect {version}")
    yield version_finding(version)
    yield clock_finding("server clock", "the server's clock", clock.ahead_s, clock.within_s)


def _refused(url: str, error: urllib.error.HTTPError) -> Finding:
    if error.code in (401, 403):
        way_out = "set PREFECT_API_AUTH_STRING to the server's user:password"
        return Finding("fail", "server", f"{url} wants to know who asks ({error.code} {error.reason})", way_out)
    way_out = "correct PREFECT_API_URL, which has to end in /api, or see the server's log"
    return Finding("fail", "server", f"{url} answers {error.code} {error.reason}", way_out)


def version_finding(server: str) -> Finding:
    """A server's version against the Prefect that is installed here: a newer client asks for what it does not have."""
    try:
        here = metadata.version("prefect")
    except metadata.PackageNotFoundError:
        return Finding("skipped", "prefect", "is not installed here, so there is no version to compare")
    if server == here:
        return Finding("ok", "prefect", f"{here} here and on the server")
    way_out = f'pip install "prefect=={server}" here, or {here} on the server'
    alike = server.split(".")[:2] == here.split(".")[:2]
    return Finding("warn" if alike else "fail", "prefect", f"{here} here, {server} on the server", way_out)


def clock_finding(name: str, whose: str, ahead_s: float, within_s: float) -> Finding:
    """A clock against this machine's, by no more than is certain."""
    certain = max(0.0, abs(ahead_s) - within_s)
    off = f"{whose} is {abs(ahead_s):.1f} s {'ahead' if ahead_s > 0 else 'behind'}, within {within_s:.1f} s"
    if certain <= CLOCK_WARN_S:
        return Finding("ok", name, off)
    way_out = "keep the time of both machines by NTP (chrony, systemd-timesyncd)"
    return Finding("fail" if certain > CLOCK_FAIL_S else "warn", name, off, way_out)


def check_scheduler(api: Api, patience_s: float = PATIENCE_S, fresh_s: float = FRESH_S) -> Iterator[Finding]:
    """Whether deployments with an active schedule have runs to come: a scheduler that is dead says nothing."""
    scheduled = [one for one in api.filter("deployments", limit=200) if _is_scheduled(one)]
    if not scheduled:
        yield Finding("skipped", "scheduler", "no deployment has an active schedule, by which it could be seen to work")
        return
    end = time.monotonic() + patience_s
    idle = [one for one in scheduled[:MOST_LOOKED_AT] if not _runs_to_come(api, one)]
    while idle and time.monotonic() < end:
        time.sleep(1)
        idle = [one for one in idle if not _runs_to_come(api, one)]
    if not idle:
        many = min(len(scheduled), MOST_LOOKED_AT)
        yield Finding("ok", "scheduler", f"of {many} deployments with a schedule each has runs to come")
        return
    names = ", ".join(f'"{one["name"]}"' for one in idle)
    if all(_age_s(one) < fresh_s for one in idle):
        text = f"{names} has no runs to come yet, but was changed within the last {fresh_s:.0f} s"
        yield Finding("warn", "scheduler", text, "look again in some minutes")
        return
    way_out = (
        "restart the server with its services on (PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED) and sqlalchemy below 2.1; "
        "its log says what the scheduler does"
    )
    yield Finding("fail", "scheduler", f"is not alive: {names} has an active schedule, but no runs to come", way_out)


def _is_scheduled(deployment: Mapping[str, Any]) -> bool:
    schedules = deployment.get("schedules") or ()
    return not deployment.get("paused") and any(one.get("active") for one in schedules)


def _runs_to_come(api: Api, deployment: Mapping[str, Any]) -> bool:
    now = datetime.now(UTC).isoformat()
    wanted = {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"after_": now}}
    of = {"id": {"any_": [deployment["id"]]}}
    return bool(api.filter("flow_runs", deployments=of, flow_runs=wanted, limit=1))


def _age_s(deployment: Mapping[str, Any]) -> float:
    changed = datetime.fromisoformat(deployment["updated"])
    return (datetime.now(UTC) - changed).total_seconds()


def check_pools(api: Api) -> Iterator[Finding]:
    """Whether someone is there to begin the runs of each work pool."""
    pools = api.filter("work_pools", limit=200)
    if not pools:
        yield Finding("skipped", "work pool", "there is none, so runs are begun by hand")
    for pool in pools:
        yield _pool_finding(api, str(pool["name"]), bool(pool.get("is_paused")))


def _pool_finding(api: Api, name: str, paused: bool) -> Finding:
    online = [one for one in api.filter(f"work_pools/{name}/workers") if one.get("status") == "ONLINE"]
    if paused:
        way_out = f"prefect work-pool resume {name}"
        return Finding("warn", "work pool", f'"{name}" is paused, so none of its runs begins', way_out)
    if not online:
        way_out = f"prefect worker start --pool {name}"
        return Finding("warn", "work pool", f'"{name}" has no worker online, so none of its runs begins', way_out)
    return Finding("ok", "work pool", f'"{name}" has {len(online)} workers online')
