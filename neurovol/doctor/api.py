"""Prefect's server over plain HTTP: its address, and how it is asked."""

from __future__ import annotations

import base64
import json
import os
import ssl
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

ANSWER_S = 20.0
# What Prefect's own client asks again after: a server on SQLite says 503 to who finds the database locked.
BUSY = (429, 502, 503)
WAITS_S = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Clock:
    """How far a clock is ahead of this machine's, and how far off that may be; seconds."""

    ahead_s: float
    within_s: float


@dataclass
class Api:
    """A server at `url`, which ends in /api; `settings` are Prefect's, by the names of environment variables."""

    url: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        self._csrf: dict[str, str] = {}

    def get(self, path: str) -> Any:
        """The JSON at a path; OSError where there is none (urllib.error.HTTPError where the server refuses)."""
        return self._asked(path, None)[0]

    def clock(self) -> Clock:
        """The server's, which tells whole seconds, and (uvicorn) looks at its clock about once a second."""
        asked = time.time()
        _, said = self._asked("health", None)
        took = time.time() - asked
        there = parsedate_to_datetime(said).timestamp() + 1.0
        return Clock(there - asked - took / 2, 1.5 + took / 2)

    def filter(self, path: str, **wanted: Any) -> list[dict[str, Any]]:
        """What the server has of a kind."""
        found: list[dict[str, Any]] = self.post(f"{path}/filter", wanted)
        return found

    def post(self, path: str, told: Any) -> Any:
        """The JSON that a path answers to `told`, None where it answers nothing; OSError as `get`."""
        try:
            return self._asked(path, told)[0]
        except urllib.error.HTTPError as error:
            if error.code != 403 or self._csrf:
                raise
        self._take_csrf()
        return self._asked(path, told)[0]

    def _take_csrf(self) -> None:
        """What a server that guards against forged requests wants to see of one that tells it something."""
        client = uuid.uuid4().hex
        token = self.get(f"csrf-token?client={client}")["token"]
        self._csrf = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}

    def _asked(self, path: str, told: Any) -> tuple[Any, str]:
        """The answer, and the date that it came with; a server that is busy for a moment is asked again."""
        for wait_s in WAITS_S:
            try:
                return self._answer(path, told)
            except urllib.error.HTTPError as error:
                if error.code not in BUSY:
                    raise
            time.sleep(wait_s)
        return self._answer(path, told)

    def _answer(self, path: str, told: Any) -> tuple[Any, str]:
        body = None if told is None else json.dumps(told).encode()
        headers = {"Content-Type": "application/json", **self._authorization(), **self._csrf}
        request = urllib.request.Request(f"{self.url}/{path}", body, headers)
        with urllib.request.urlopen(request, timeout=ANSWER_S, context=self._tls()) as answer:
            return json.loads(answer.read() or b"null"), str(answer.headers["Date"])

    def _authorization(self) -> dict[str, str]:
        if basic := self.settings.get("PREFECT_API_AUTH_STRING"):
            return {"Authorization": f"Basic {base64.b64encode(basic.encode()).decode()}"}
        key = self.settings.get("PREFECT_API_KEY")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _tls(self) -> ssl.SSLContext | None:
        if not self.url.startswith("https:"):
            return None
        return ssl.create_default_context(cafile=self.settings.get("PREFECT_API_SSL_CERT_FILE") or None)


def prefect_settings() -> dict[str, str]:
    """Prefect's settings as its own commands find them: the active profile's, and over these the environment's."""
    here = {key: value for key, value in os.environ.items() if key.startswith("PREFECT_")}
    home = Path(here.get("PREFECT_HOME") or "~/.prefect").expanduser()
    file = Path(here.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    if not file.exists():
        return here
    profiles = tomllib.loads(file.read_text(encoding="utf-8"))
    active = here.get("PREFECT_PROFILE") or profiles.get("active", "")
    values = profiles.get("profiles", {}).get(active, {})
    return {key: str(value) for key, value in values.items()} | here
