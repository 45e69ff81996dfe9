"""`neurovol <command>`, for people at a terminal: no server needed, a progress bar, one-paragraph errors."""

from __future__ import annotations

import argparse
import errno
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import neurovol
from neurovol.errors import Failure, UserError

if TYPE_CHECKING:
    from neurovol.stages.order import Action
    from neurovol.stages.steps import Steps

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
    _stage(commands, "convert", "a project's sources to chunked OME-Zarr, or one SOURCE to DEST")
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
    _phantom(commands)
    return top


def _stage(commands: Any, name: str, what: str) -> None:
    command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    command.add_argument("project", type=Path, metavar="PROJECT", help="project file (TOML)")
    if name == "convert":
        command.usage = "neurovol convert [options] PROJECT\n       neurovol convert [options] SOURCE DEST"
        command.add_argument(
            "dest",
            type=Path,
            nargs="?",
            metavar="DEST",
            help="with a SOURCE in place of PROJECT: the OME-Zarr to write",
        )
        command.add_argument(
            "--voxel-size",
            type=float,
            nargs=3,
            metavar=("Z", "Y", "X"),
            help="in µm, for SOURCE DEST; default: what the source says",
        )
        command.add_argument("--channels", type=int, nargs="+", metavar="C", help="for SOURCE DEST; default: 0")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, with errors said in one paragraph."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    warnings.filterwarnings("default" if options.verbose else "ignore")
    try:
        COMMANDS[options.command](options)
    except UserError as error:
        return _say(f"neurovol: {error}", 2)
    except Failure as error:
        return _say(f"neurovol: {error}", 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _say(f"neurovol: disk full: {error}; free space and run again, finished blocks are kept", 1)
    except KeyboardInterrupt:
        return _say("neurovol: interrupted; finished blocks are kept, run the same command again to go on", 130)
    return 0


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _steps(file: Path, overrides: list[str]) -> Steps:
    from neurovol.project import open_project
    from neurovol.projectfile import parse_override
    from neurovol.stages.steps import Steps

    return Steps(open_project(file, dict(parse_override(text) for text in overrides)))


def _run(options: argparse.Namespace) -> None:
    if options.command == "convert" and options.dest is not None:
        steps = _single(options)
    else:
        steps = _steps(options.project, options.set)
    from neurovol.stages.order import actions, chosen

    if options.sample is not None:
        steps.project.settings.sample(options.sample)
    every = actions(steps)
    todo = chosen(every, STAGES_OF[options.command], options.sample)
    _refuse_nothing_to_learn(steps, options.command)
    if options.dry_run:
        from neurovol.stages.plan import text_of

        print(text_of(plan for action in todo for plan in action.plan()))
        return
    _perform(steps, every, todo, options.redo)


def _refuse_nothing_to_learn(steps: Steps, command: str) -> None:
    if command in ("pseudolabel", "train") and not steps.trains:
        raise UserError(f"{steps.project.file}: segment.checkpoint replaces training; remove it to train a model")
    if command != "convert" and steps.trains and not steps.with_role("train"):
        raise UserError(
            f'{steps.project.file}: no annotation has role = "train", so there is nothing to learn from; '
            "declare one, or give a trained model as segment.checkpoint"
        )
    if command == "evaluate" and not steps.with_role("test"):
        raise UserError(
            f'{steps.project.file}: no annotation has role = "test", so there is nothing to evaluate on; declare one'
        )


def _perform(steps: Steps, every: list[Action], todo: list[Action], redo: list[str]) -> None:
    from neurovol.blockwise.cluster import open_client
    from neurovol.project import state_of
    from neurovol.stages.order import perform_all, to_redo
    from neurovol.terminal import Bars

    again = to_redo(todo, redo)
    if not again and all(state_of(action.step).kind == "done" for action in todo):
        print("nothing to do: all is done")
        return
    with Bars() as bars, open_client(steps.project.settings.cluster) as client:
        perform_all(todo, client, again, bars.report, bars.begin)
    if any(action.step.stage == "report" for action in todo):
        print(f"report: {steps.project.report}")


def _single(options: argparse.Namespace) -> Steps:
    """SOURCE DEST as a project of one sample whose image lies at DEST."""
    from neurovol.stages.single import single_conversion

    return single_conversion(options.project, options.dest, options.voxel_size, options.channels)


def _status(options: argparse.Namespace) -> None:
    from neurovol.stages.order import actions
    from neurovol.terminal import print_status

    print_status(actions(_steps(options.project, options.set)))


def _write_phantom(options: argparse.Namespace) -> None:
    from neurovol.projectfile import checked
    from neurovol.settings import Phantom
    from neurovol.terminal import Bars
    from neurovol.volume.export import plan_phantom, write_phantom

    phantom = checked(Phantom, "phantom", shape=tuple(options.shape), seed=options.seed, contrast=options.contrast)
    if options.dry_run:
        print(plan_phantom(phantom, options.dest, options.truth))
        return
    with Bars() as bars:
        write_phantom(phantom, options.dest, options.truth, bars.report)


COMMANDS = {
    **dict.fromkeys(STAGES_OF, _run),
    "status": _status,
    "phantom": _write_phantom,
}

if __name__ == "__main__":
    sys.exit(main())
