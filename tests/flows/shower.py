"""`python -m tests.flows.shower FOLDER`: a flow that shows artifacts, also while its server is away."""

import sys
import time
from pathlib import Path

from prefect import flow

from flows.artifacts import Artifacts


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)


@flow(name="shower")
def show(folder: Path) -> None:
    with Artifacts() as artifacts:
        artifacts.show("progress", "Segment A_1", 1.0, "before")
        wait_for(folder / "away")
        for percent in range(2, 90):  # none of these waits for the server
            artifacts.show("progress", "Segment A_1", float(percent), "away")
        artifacts.show("markdown", "page", "# Found", "a page")
        (folder / "showed").touch()
        wait_for(folder / "back")


if __name__ == "__main__":
    show(Path(sys.argv[1]))
