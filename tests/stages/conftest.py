"""The tiny project, run whole once; and a copy of it for tests that change it."""

import shutil
from pathlib import Path

import pytest

from neurovol.cli import main
from tests.tiny import write_tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a project that ran to its end; not to be changed."""
    file = write_tiny(tmp_path_factory.mktemp("finished"))
    assert main(["run", str(file)]) == 0
    return file


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The file of a copy of that project."""
    shutil.copytree(finished.parent, tmp_path / "project")
    return tmp_path / "project" / finished.name
