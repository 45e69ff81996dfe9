"""`neurovol <command>`, for people at a terminal: no server needed, a progress bar, one-paragraph errors."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neurovol.arguments import STAGES_OF, parser
from neurovol.errors import Failure, UserError

if TYPE_CHECKING:
    from neurovol.stages.order import Action
    from neurovol.stages.steps import Steps


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
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
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
    if options.command == "convert" and options.on_bad_slice is not None:
        options.set.append(f"convert.on_bad_slice={options.on_bad_slice}")
    without_project = options.command == "convert" and options.more
    steps = _single(options) if without_project else _steps(options.project, options.set)
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
    from neurovol.project import state_of
    from neurovol.stages.convert import filled_text
    from neurovol.stages.order import perform_all, to_redo
    from neurovol.terminal import Bars

    again = to_redo(todo, redo)
    if not again and all(state_of(action.step).kind == "done" for action in todo):
        print("nothing to do: all is done")
        return
    converts = [a for a in todo if a.step.stage == "convert"]
    made = [a for a in converts if a.step.name in again or state_of(a.step).kind != "done"]
    with Bars() as bars:
        perform_all(steps, todo, again, bars.report, bars.begin)
    for action in converts:
        if text := filled_text(action.step):
            print(text)
    for action in made:
        if action.sample is not None and (preview := steps.project.preview(action.sample)).exists():
            print(f"preview: {preview}")
    if any(action.step.stage == "report" for action in todo):
        print(f"report: {steps.project.report}")


def _single(options: argparse.Namespace) -> Steps:
    """SOURCE … DEST as a project of one sample whose image lies at DEST."""
    from neurovol.projectfile import parse_override
    from neurovol.stages.single import single_conversion

    overrides = dict(parse_override(text) for text in options.set)
    paths: list[Path] = [options.project, *options.more]
    return single_conversion(paths[:-1], paths[-1], options.voxel_size, options.channels, overrides)


def _status(options: argparse.Namespace) -> None:
    from neurovol.stages.order import actions
    from neurovol.terminal import print_status

    print_status(actions(_steps(options.project, options.set)))


def _verify_store(options: argparse.Namespace) -> None:
    from neurovol.blockwise.cluster import cores, open_client
    from neurovol.settings import ClusterSettings
    from neurovol.stages.verify import damages, original_of, repair, shards_of
    from neurovol.terminal import Bars
    from neurovol.volume.omezarr import open_volume

    total = sum(map(len, shards_of(open_volume(options.store))))
    original = None if options.source is None else original_of(options.store, options.source, options.channels)
    with Bars() as bars, open_client(ClusterSettings(workers=cores(), threads=1)) as client:
        found = list(damages(client, options.store, original, bars.report))
        for damage in found:
            print(f"damaged: {damage}")
        if found and options.repair:
            repair(client, options.store, found, original)
            print(f"repaired {len(found)} of {total} shards; reading all once more")
            found = list(damages(client, options.store, original, bars.report))
    if found:
        raise Failure(
            f"{options.store}: {len(found)} of {total} shards are damaged, the first is {found[0]}; "
            f"mend them with --repair (level 0 also needs --source), or build the volume anew"
        )
    print(f"{options.store}: all {total} shards are whole{'' if original is None else ' and equal to the source'}")


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
    "verify": _verify_store,
    "phantom": _write_phantom,
}

if __name__ == "__main__":
    sys.exit(main())
