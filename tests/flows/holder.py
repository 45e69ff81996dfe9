"""`python -m tests.flows.holder FOLDER NAME`: a flow that holds a slot of conversions until it is told to go."""

import sys
import time
from pathlib import Path

from prefect import flow

from flows.limits import slot


@flow(name="holder")
def hold(folder: Path, name: str) -> None:
    (folder / f"{name}.wants").touch()
    with slot("convert"):
        (folder / f"{name}.holds").touch()
        while not (folder / f"{name}.go").exists():
            time.sleep(0.1)
    (folder / f"{name}.left").touch()


if __name__ == "__main__":
    hold(Path(sys.argv[1]), sys.argv[2])
