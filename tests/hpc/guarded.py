"""Prefect's server as deploy/server sets it up: on PostgreSQL, with a name and password, against forged requests."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.flows.served import Served, eventually

WHO = ("lab", "some-password")


@dataclass
class Guarded(Served):
    """Takes requests of those who know the password."""

    home: Path
    port: int
    database: str

    def __post_init__(self) -> None:
        super().__init__(self.home, self.port)

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database,
            "PREFECT_SERVER_API_AUTH_STRING": ":".join(WHO),
            "PREFECT_API_AUTH_STRING": ":".join(WHO),
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }

    def call(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """What the server answers; asked again while it is away."""
        client = str(uuid.uuid4())

        def asked() -> httpx.Response | None:
            try:
                token = httpx.get(f"{self.api}/csrf-token", params={"client": client}, auth=WHO, timeout=30)
                headers = {"Prefect-Csrf-Token": token.json()["token"], "Prefect-Csrf-Client": client}
                url = f"{self.api}/{path}"
                answer = httpx.request(method, url, json=body, auth=WHO, headers=headers, timeout=30)
            except httpx.TransportError:
                return None
            return None if answer.status_code == 503 else answer

        answer = eventually(asked, 120)
        answer.raise_for_status()
        return answer.json() if answer.content else None
