"""Site files: what is wrong in one is named, and what every run needs is in the job variables of every flow."""

from pathlib import Path

import pytest

from flows.site import DEPLOY, read_manifest, read_site
from neurovol.errors import UserError


@pytest.mark.parametrize("file", sorted((DEPLOY / "sites").glob("*.yaml")), ids=lambda path: path.name)
def test_every_site_file_that_comes_with_it_is_right(file: Path) -> None:
    site = read_site(file)
    for deployment in read_manifest().deployments:
        env = site.variables(deployment.flow, deployment.stage_retries)["env"]
        assert env["NEUROVOL_CONVERSION_LIMIT"] in site.limits
        assert env["NEUROVOL_TRAINING_LIMIT"] in site.limits
        assert env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert all(isinstance(value, str) for value in env.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("conversions: 0", "conversions = 0: Input should be greater than or equal to 1"),
        ("conversion: 2", "conversion = 2: there is no such key"),
        ("deployments: {trian: {}}", "deployments.trian: there is no such flow; flows are convert, evaluate, inbox"),
        ("inbox_cron: hourly", "inbox_cron = 'hourly': is no cron schedule; write five fields"),
        ("a: [", "not valid YAML"),
        ("- a", "holds a list where `key: value` lines are expected"),
    ],
)
def test_a_wrong_site_file_is_named_with_its_rule(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_site(file)
    assert said in str(error.value)
    assert str(file) in str(error.value)


def test_a_site_file_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read: .*; site files are .*local\.yaml"):
        read_site(tmp_path / "none.yaml")
