"""Prefect's server as deploy/server sets it up: on PostgreSQL, with a name and password, against forged requests."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from tests.flows.served import Served

WHO = ("lab", "some-password")


class Guarded(Served):
    """Takes requests of those who know the password."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "PREFECT_SERVER_API_AUTH_STRING": ":".join(WHO),
            "PREFECT_API_AUTH_STRING": ":".join(WHO),
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }

    def known(self) -> dict[str, Any]:
        client = str(uuid.uuid4())
        token = httpx.get(f"{self.api}/csrf-token", params={"client": client}, auth=WHO, timeout=30).json()["token"]
        return {"auth": WHO, "headers": {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}}
