"""The files for the server: settings that Prefect knows, images of a fixed version, nothing open, nothing secret."""

import re
from pathlib import Path

import httpx
import prefect.settings
import pytest
import yaml

from tests.doctor.prefects import prefect_server

SERVER = Path(__file__).parents[2] / "deploy" / "server"
COMPOSE = yaml.safe_load((SERVER / "compose.yaml").read_text(encoding="utf-8"))
OURS = {"PREFECT_AUTH", "PREFECT_PUBLIC_URL"}  # of compose.yaml's own
FILES = sorted(path for path in SERVER.iterdir() if path.suffix != ".md")


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_prefect_knows_every_setting_that_is_named(file: Path) -> None:
    for name in set(re.findall(r"PREFECT_[A-Z_]+", file.read_text(encoding="utf-8"))) - OURS:
        assert hasattr(prefect.settings, name), name


def test_images_are_pinned_watched_and_started_again() -> None:
    for service in COMPOSE["services"].values():
        assert re.search(r":\d+\.\d+", service["image"])
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
        assert all(volume.partition(":")[0] in COMPOSE["volumes"] for volume in service["volumes"])


def test_the_server_is_of_the_version_that_workers_have() -> None:
    pins = (SERVER.parent / "constraints.txt").read_text(encoding="utf-8")
    version = re.findall(r"^prefect==(\S+)$", pins, re.MULTILINE)[0]
    assert COMPOSE["services"]["prefect"]["image"].startswith(f"prefecthq/prefect:{version}-")


def test_the_server_listens_to_this_machine_alone_and_wants_a_password() -> None:
    server = COMPOSE["services"]["prefect"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert "ports" not in COMPOSE["services"]["postgres"]
    assert server["environment"]["PREFECT_SERVER_API_AUTH_STRING"].startswith("${PREFECT_AUTH:?")
    assert server["environment"]["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert server["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")


def test_the_example_of_secrets_holds_none() -> None:
    for line in (SERVER / "env.example").read_text(encoding="utf-8").splitlines():
        if re.match(r"\w*(PASSWORD|AUTH)\w*=", line):
            assert line.endswith("="), line


def test_units_and_their_environment_set_whatever_containers_do() -> None:
    files = [(SERVER / name).read_text(encoding="utf-8") for name in ("prefect-server.service", "env.example")]
    missing = [name for name in COMPOSE["services"]["prefect"]["environment"] if f"{name}=" not in "".join(files)]
    assert missing == []


def test_browsers_are_sent_to_the_public_address(tmp_path: Path) -> None:
    """With the addresses that env.example has for systemd: without, the server names the one it listens on."""
    example = (SERVER / "env.example").read_text(encoding="utf-8")
    named = dict(re.findall(r"^# (PREFECT_(?:SERVER_UI_API|UI)_URL)=(\S+)$", example, re.MULTILINE))
    with prefect_server(tmp_path, **named) as api:
        told = httpx.get(api.removesuffix("api") + "ui-settings", follow_redirects=True).json()
    assert told["api_url"] == "https://prefect.lab.example/api"
