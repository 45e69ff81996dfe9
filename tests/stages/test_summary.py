"""What people see of steps in Prefect: a table of all, the loss of one that learns."""

import base64
import io
import re
from pathlib import Path

from PIL import Image

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.progress import Progress
from neurovol.project import Step
from neurovol.stages.summary import learning, table

SAID = Progress("train unet3d_pseudo", 60, 100, "steps", 60, 30.0)


def training(folder: Path) -> Step:
    inputs = {"train.learning_rate": 0.001, "train.steps": 100}
    return Step("train", "unet3d_pseudo", inputs, folder / "l.jsonl", folder / "models" / "m")


def write_losses(ledger: Path, step: Step, count: int, loss: float) -> None:
    with Ledger(ledger, Header(step.name, step.inputs, 100)) as rows:
        for n in range(1, count + 1):
            rows.append(n, "done", loss=loss)


def test_the_table_tells_of_blocks_that_were_set_aside(tmp_path: Path) -> None:
    step = Step("segment", "a", {}, tmp_path / "l.jsonl", tmp_path / "a.zarr")
    with Ledger(step.ledger, Header(step.name, {}, 1200)) as ledger:
        ledger.append(0, "done", fingerprint=ledger.fingerprint, crc32c=1, seconds=2.0, attempt=1)
        ledger.append(1, "quarantined", attempt=3, box=[[0, 1], [0, 1], [0, 1]], error="torn")
    assert table([step]) == [
        {
            "step": "segment a",
            "state": "begun",
            "done": "1 of 1,200 blocks",
            "time": "2.0 s",
            "million voxels/s": "",
            "set aside": "1",
        }
    ]


def test_the_table_tells_the_share_of_a_training(tmp_path: Path) -> None:
    step = training(tmp_path)
    assert table([step])[0]["done"] == ""
    write_losses(step.ledger, step, 25, 0.5)
    assert (table([step])[0]["state"], table([step])[0]["done"]) == ("begun", "25%")


def test_a_training_shows_a_curve_as_soon_as_there_is_one(tmp_path: Path) -> None:
    step = training(tmp_path)
    assert learning(step, SAID) is None
    write_losses(step.ledger, step, 1, 0.5)
    assert learning(step, SAID) is None
    write_losses(step.ledger, step, 30, 0.25)
    page = learning(step, SAID)
    assert page is not None
    assert page.startswith("**train unet3d_pseudo**: step 60 of 100, loss 0.2500, learning rate 0.001 throughout\n")
    (png,) = re.findall(r"data:image/png;base64,([^)]+)", page)
    assert len(png) < 30_000
    assert Image.open(io.BytesIO(base64.b64decode(png))).format == "PNG"


def test_a_training_that_is_done_anew_shows_the_new_curve(tmp_path: Path) -> None:
    step = training(tmp_path)
    write_losses(step.ledger, step, 30, 0.25)
    write_losses(step.beside.ledger, step, 10, 0.75)
    assert "loss 0.7500" in str(learning(step, SAID))
