"""What the server tells people, and by which block: runs that fail, and runs that do not start."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from apprise import Apprise
from apprise.plugins.email.base import NotifyEmail
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import ActionTypes, CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore, Posture
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from flows.automations import ENDED, trigger_on
from flows.stage import TAG
from neurovol.errors import UserError

WEBHOOK, MAIL = "neurovol-webhook", "neurovol-mail"  # names of blocks
NOT_STARTED_S = 600  # a run that is late, or submitted, for so long has no worker to run it
SAID = '"neurovol: " ~ flow_run.name ~ " is " ~ flow_run.state.name ~ ": " ~ (flow_run.state.message or "")'
LATE = '"neurovol: " ~ flow_run.name ~ " does not start: is a worker running?"'


def notices(tell: list[tuple[str, UUID]]) -> Iterator[AutomationCore]:
    """Tells people of runs that failed or crashed (so of those that were stuck as well), and of those that are late."""
    yield AutomationCore(
        name="neurovol: tell of failed and crashed runs",
        trigger=trigger_on(
            [TAG],
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            within=timedelta(0),
        ),
        actions=[_telling(kind, block, SAID) for kind, block in tell],
    )
    yield AutomationCore(
        name="neurovol: tell of runs that do not start",
        trigger=trigger_on(
            [TAG],
            after={"prefect.flow-run.Late", "prefect.flow-run.Pending"},
            expect={"prefect.flow-run.Running", *ENDED},
            posture=Posture.Proactive,
            within=timedelta(seconds=NOT_STARTED_S),
        ),
        actions=[_telling(kind, block, LATE) for kind, block in tell],
    )


def _telling(kind: str, block: UUID, text: str) -> ActionTypes:
    text = f'{text} ~ " " ~ (flow_run|ui_url)'
    if kind == "webhook":  # JSON, as chat tools take it
        return CallWebhook(block_document_id=block, payload=f'{{"text": {{{{ ({text}) | tojson }}}}}}')
    return SendNotification(block_document_id=block, subject="neurovol", body=f"{{{{ {text} }}}}")


def blocks(
    client: SyncPrefectClient, webhook: str | None, mail: str | None, named: Sequence[str]
) -> list[tuple[str, UUID]]:
    """What tells people, and how it is called: `webhook` or `block`."""
    found = [("block", block_named(client, name)) for name in named]
    found += [("block", make_mail(mail))] if mail else []
    return found + ([("webhook", make_webhook(webhook))] if webhook else [])


def make_webhook(url: str) -> UUID:
    """The block that calls an address when there is something to tell."""
    saved = Webhook(method="POST", url=url).save(WEBHOOK, overwrite=True)
    assert isinstance(saved, UUID)  # Prefect returns a coroutine where a loop runs; none does here
    return saved


def make_mail(url: str) -> UUID:
    """The block that sends e-mail by a mail server of one's own, as Apprise names it; a UserError where it cannot.

    Prefect has no block for that. Its block for Slack hands addresses that are not Slack's to Apprise as they are, and
    is known to every server, which one of our own would have to be installed on.
    """
    mail = Apprise.instantiate(url)
    wanted = re.split(r"[,;\s]+", ",".join(parse_qs(urlsplit(url).query).get("to", [])))
    reached = {address for _, address in mail.targets} if isinstance(mail, NotifyEmail) else set()
    if not reached or not reached.issuperset(filter(None, wanted)):
        raise UserError(
            "--mail: this names no mail server, or someone to whom it could not write; it has to be like "
            "mailto://mail.lab.example:25/?from=neurovol@lab.example&to=a@lab.example,b@lab.example, where the server "
            "wants a password mailtos://user:password@mail.lab.example:587/?from=…&to=…"
        )
    as_text = f"{url}{'&' if '?' in url else '?'}format=text"  # else a < in a message is taken for HTML
    saved = SlackWebhook(url=SecretStr(as_text)).save(MAIL, overwrite=True)
    assert isinstance(saved, UUID)
    return saved


def block_named(client: SyncPrefectClient, name: str) -> UUID:
    """An existing notification block as TYPE/NAME; a UserError where there is none."""
    kind, _, own = name.rpartition("/")
    try:
        return client.read_block_document_by_name(own, kind).id
    except ObjectNotFound:
        raise UserError(
            f'--notify {name}: the server has no such block; make one in the UI under "Blocks", and give it as '
            "TYPE/NAME, as sendgrid-email/lab or slack-webhook/lab"
        ) from None
