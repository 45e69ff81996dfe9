"""Real pixels through every stage: deploy/examples/mouse_cortex.toml, with trainings cut short."""

import json
import os
import shutil
from pathlib import Path

import pytest

from neurovol.cli import main
from neurovol.project import open_project

EXAMPLE = Path(__file__).parents[1] / "deploy/examples/mouse_cortex.toml"
SHORT = ("pseudolabel.steps=40", "train.steps=6", "train.batch=2")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    "MOUSE_CORTEX" not in os.environ, reason="MOUSE_CORTEX names no folder with signal.tif and somata.tif"
)
def test_real_images_go_through_every_stage(tmp_path: Path) -> None:
    file = Path(shutil.copy(EXAMPLE, tmp_path / "project.toml"))
    overrides = [part for text in SHORT for part in ("--set", text)]
    assert main(["run", str(file), *overrides]) == 0
    project = open_project(file)
    metrics = json.loads(project.metrics.read_text())
    for values in metrics["methods"].values():
        assert sum(values["confusion"].values()) == 30 * 510 * 267
    assert "machine-made reference" in project.report.read_text(encoding="utf-8")
