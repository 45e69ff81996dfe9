"""`python -m flows.deploy PROJECT [--site FILE] [--webhook URL] [--mail URL] …`: all that a server needs of it.

Work pool, limits, automations, and a deployment of each flow, made or brought up to date in one go; done twice, it
changes nothing. The server is the one that PREFECT_API_URL names.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.deployments.runner import DeploymentApplyError

from flows.automations import make_automations, never_began, zombies
from flows.deployments import make_deployments, make_limits, make_pool
from flows.notices import blocks, notices
from flows.site import DEPLOY, Site, read_site
from neurovol.errors import UserError
from neurovol.project import Project, open_project

IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"


def deploy(project: Project, site: Site, webhook: str | None, mail: str | None, notify: Sequence[str]) -> Iterator[str]:
    """Make all of it; yields what was done, a line each."""
    with get_client(sync_client=True) as client, _refusals_told(client):
        yield from _server(client)
        tell = blocks(client, webhook, mail, notify)
        yield make_pool(client, site.pool)
        yield from make_limits(client, site.limits)
        yield from make_deployments(client, project, site)
        endings = [zombies(), never_began(timedelta(hours=site.never_began_h))]
        yield from make_automations(client, [*endings, *(notices(tell) if tell else ())])
        if not tell:
            yield "nobody is told of runs that fail or do not start: give --webhook, --mail or --notify"
    yield f"start a worker where flows are to run: prefect worker start --pool {site.pool}"


@contextmanager
def _refusals_told(client: SyncPrefectClient) -> Iterator[None]:
    """What the server does not take, or does not answer, as a UserError."""
    try:
        yield
    except (httpx.HTTPError, DeploymentApplyError) as error:
        what = str(error).partition(" - For more information")[0] or type(error).__name__
        raise UserError(
            f"{client.api_url}: the server did not take it: {what}; its own log says why (PostgreSQL's database has to "
            "be in UTF8). What was made until then stays; the same command makes the rest"
        ) from error


def _server(client: SyncPrefectClient) -> Iterator[str]:
    """What server this is; a warning where it forgets who holds a slot as it is started anew."""
    try:
        answer = client.request("GET", "/admin/settings")
    except httpx.HTTPError as error:
        raise UserError(
            f"PREFECT_API_URL={client.api_url}: no Prefect server answers there ({error or type(error).__name__}); "
            "start it, or correct the variable; with basic authentication set PREFECT_API_AUTH_STRING as well"
        ) from None
    yield f"server {client.api_url}"
    storage = answer.json().get("server", {}).get("concurrency", {}).get("lease_storage")
    if storage == IN_MEMORY:
        yield (
            "warning: this server forgets who holds a slot of a limit as it is started anew, and such a slot is never "
            f"free again: give it PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={IN_MEMORY.replace('memory', 'filesystem')}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.deploy",
        description=(__doc__ or "").split("\n\n")[1],
        epilog="@FILE stands for options in a file, a line each, as --webhook=URL: for those that hold a password.",
        fromfile_prefix_chars="@",
    )
    parser.add_argument("project", type=Path, metavar="PROJECT", help="project file (TOML), as workers see it")
    parser.add_argument("--site", type=Path, default=DEPLOY / "sites" / "local.yaml", help="default: %(default)s")
    parser.add_argument("--webhook", metavar="URL", help='called with {"text": …} where a run fails or does not start')
    parser.add_argument("--mail", metavar="URL", help="e-mail then: mailto://mail.lab.example:25/?from=…&to=…,…")
    parser.add_argument(
        "--notify", action="append", default=[], metavar="TYPE/NAME", help="a notification block of the server's"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if not os.environ.get("PREFECT_API_URL"):
            raise UserError("PREFECT_API_URL is not set: name the server, as http://127.0.0.1:4200/api")
        tell = options.webhook, options.mail, options.notify
        for line in deploy(open_project(options.project), read_site(options.site), *tell):
            print(line)
    except UserError as error:
        print(f"neurovol: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
