"""The command line of neurovol: its commands, their options and help."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import neurovol

STAGES_OF = {  # what each stage command does
    "convert": ("convert", "annotate"),
    "pseudolabel": ("pseudolabel",),
    "train": ("train",),
    "segment": ("segment",),
    "evaluate": ("evaluate", "report"),
    "run": ("convert", "annotate", "pseudolabel", "train", "segment", "evaluate", "report"),
}

DESCRIPTION = """\
Every neuronal body in 3D from a few annotated slices: stitched stacks in, probabilities, figures and a
report out. Samples may be far larger than memory; an interrupted command goes on where it was.
"""

EPILOG = """\
examples:
  neurovol run project.toml                  do whatever the project file declares and is not done yet
  neurovol run project.toml --dry-run        print what that would be: blocks, bytes, memory, hours
  neurovol status project.toml               what is done, begun, stale (and why), or missing
  neurovol train project.toml --set train.steps=500
  neurovol convert slices/ slab.ome.zarr --voxel-size 2 0.88 0.88
  neurovol convert ch0/ ch1/ slab.ome.zarr   channels that lie apart, as one volume
  neurovol verify slab.ome.zarr --source slices/ --repair
  neurovol verify project.toml               all finished volumes against their ledgers
  neurovol doctor project.toml               would it run tonight? packages, server, disk, queue, workers
  neurovol check-blocks project.toml         do blocks or windows show? some faces are computed anew

exit codes: 0 done; 1 something failed, what is finished is kept, run again to go on; 2 something for you to mend.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, with its help."""
    top = argparse.ArgumentParser(
        prog="neurovol",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"neurovol {neurovol.__version__}")
    top.add_argument("-v", "--verbose", action="store_true", help="show each block's retries and details")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _stage(commands, "run", "do all that a project file declares and is not done yet")
    _stage(commands, "convert", "a project's sources to chunked OME-Zarr, or a SOURCE, or one per channel, to DEST")
    _stage(commands, "pseudolabel", "train the 2D CNN on annotated pixels, and label the training boxes with it")
    _stage(commands, "train", "train the 3D U-Net on annotated and pseudo-labelled voxels, and its baseline")
    _stage(commands, "segment", "the U-Net over whole samples, block by block")
    _stage(commands, "evaluate", "score the three methods on the test annotations, and write the report")
    status = commands.add_parser(
        "status",
        help="what of a project is done, begun, stale or missing",
        description=(
            "Prints every step of a project and how far it is; for a stale one, the setting or input that changed."
        ),
    )
    status.add_argument("project", type=Path, metavar="PROJECT", help="project file (TOML)")
    _set(status)
    _verify(commands)
    _check_blocks(commands)
    _doctor(commands)
    _phantom(commands)
    return top


def _stage(commands: Any, name: str, what: str) -> None:
    command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    command.add_argument("project", type=Path, metavar="PROJECT", help="project file (TOML)")
    if name == "convert":
        command.usage = "neurovol convert [options] PROJECT\n       neurovol convert [options] SOURCE [SOURCE ...] DEST"
        command.add_argument(
            "more",
            type=Path,
            nargs="*",
            metavar="DEST",
            help="with a SOURCE in place of PROJECT: the OME-Zarr to write; before it, sources of further channels",
        )
        command.add_argument(
            "--voxel-size",
            type=float,
            nargs=3,
            metavar=("Z", "Y", "X"),
            help="in µm, for SOURCE … DEST; default: what the source says",
        )
        command.add_argument(
            "--channels",
            type=int,
            nargs="+",
            metavar="C",
            help="for SOURCE … DEST, counted over all sources; default: the first, of several sources all",
        )
        command.add_argument(
            "--on-bad-slice",
            choices=("error", "fill"),
            help="a slice that cannot be read ends the conversion (default), or is filled with zeros and recorded",
        )
    command.add_argument("--sample", metavar="NAME", help="only this sample")
    command.add_argument(
        "--redo",
        action="append",
        default=[],
        metavar="STAGE",
        help="build a stage's stale results anew, or all of its results if none is stale; "
        "the old ones stay until the new are complete",
    )
    command.add_argument("--dry-run", action="store_true", help="print the plan, do nothing")
    _set(command)


def _set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a setting of the project file, for example train.steps=500",
    )


def _verify(commands: Any) -> None:
    command = commands.add_parser(
        "verify",
        help="read every chunk of a volume against its checksum, and repair what is damaged",
        description=(
            "Reads every chunk of a volume that neurovol made, or of all finished ones of a project, at every level, "
            "against its checksum and the ledger of the step that made it, and names each damaged shard. Exit code 1 "
            "if any is left."
        ),
    )
    command.add_argument(
        "store", type=Path, metavar="STORE", help="an image, label or probability volume (.ome.zarr), or a project file"
    )
    command.add_argument(
        "--source",
        type=Path,
        nargs="+",
        action="extend",
        help="also compare voxel for voxel with what it was converted from; all of them, in their order",
    )
    command.add_argument(
        "--channels", type=int, nargs="+", metavar="C", help="of the source; default: as the ledger says, or all"
    )
    command.add_argument(
        "--repair",
        action="store_true",
        help="redo damaged shards alone: of level 0 from --source, or with a project file by the step that made them; "
        "of other levels from the level below",
    )


def _check_blocks(commands: Any) -> None:
    command = commands.add_parser(
        "check-blocks",
        help="whether blocks or windows show in finished predictions",
        description=(
            "Computes the voxels by some randomly chosen faces between blocks, and between windows, of every finished "
            "prediction anew, with windows placed otherwise, and tells the largest difference: no more than rounding "
            "if all is right. Exit code 1 if it is more."
        ),
    )
    command.add_argument("project", type=Path, metavar="PROJECT", help="project file (TOML)")
    command.add_argument("--sample", metavar="NAME", help="only this sample")
    command.add_argument("--faces", type=int, default=20, metavar="N", help="of each prediction (default: 20)")
    command.add_argument("--seed", type=int, default=0, help="same seed, same faces (default: 0)")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write every face and what came of it")
    _set(command)


def _doctor(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="look for what would end a run at night, before it begins",
        description=(
            "Looks at packages, Prefect's server and its scheduler and, of a project, at its file and sources, the "
            "store's disk and the room on it, the queue, and workers, some of which it starts as a run would. A line "
            "for each: ok, warn, fail (with the way out) or skipped. Exit code 1 if any fails."
        ),
    )
    command.add_argument("project", type=Path, nargs="?", metavar="PROJECT", help="project file (TOML)")
    command.add_argument("--no-workers", action="store_true", help="start no workers")
    command.add_argument(
        "--wait", type=float, default=120.0, metavar="SECONDS", help="for workers to come (default: 120)"
    )
    _set(command)


def _phantom(commands: Any) -> None:
    command = commands.add_parser(
        "phantom",
        help="write a made-up sample with known truth as TIFF",
        description="Writes two-photon-like cortex with known truth as an OME-TIFF, slab by slab, whatever its size.",
    )
    command.add_argument("dest", type=Path, metavar="DEST", help="TIFF file to write")
    command.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=(64, 256, 256),
        metavar=("Z", "Y", "X"),
        help="voxels (default: 64 256 256)",
    )
    command.add_argument("--seed", type=int, default=0, help="same seed, same sample (default: 0)")
    command.add_argument("--contrast", type=float, default=1.0, help="brightness of cells against tissue (default: 1)")
    command.add_argument("--truth", type=Path, metavar="FILE", help="also write the truth, 1 = neuron")
    command.add_argument("--dry-run", action="store_true", help="print the plan, do nothing")
