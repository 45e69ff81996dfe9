"""`neurovol <command>`, for people at a terminal: no server needed, a progress bar, one-paragraph errors."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neurovol.arguments import STAGES_OF, parser
from neurovol.errors import Failure, UserError

if TYPE_CHECKING:
    from distributed import Client

    from neurovol.progress import Report
    from neurovol.stages.made import Made
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


def _steps(file: Path, overrides: list[str], sample: str | None = None) -> Steps:
    from neurovol.project import open_project
    from neurovol.projectfile import parse_override
    from neurovol.stages.inbox import steps_with

    return steps_with(open_project(file, dict(parse_override(text) for text in overrides)), sample)


def _run(options: argparse.Namespace) -> None:
    if options.command == "convert" and options.on_bad_slice is not None:
        options.set.append(f"convert.on_bad_slice={options.on_bad_slice}")
    without_project = options.command == "convert" and options.more
    steps = _single(options) if without_project else _steps(options.project, options.set, options.sample)
    from neurovol.stages.order import actions, chosen, refuse_nothing_to_learn

    if options.sample is not None:
        steps.project.settings.sample(options.sample)
    every = actions(steps)
    todo = chosen(every, STAGES_OF[options.command], options.sample)
    refuse_nothing_to_learn(steps, options.command)
    if options.dry_run:
        from neurovol.stages.plan import text_of

        print(text_of(plan for action in todo for plan in action.plan()))
        return
    _perform(steps, every, todo, options.redo)


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
    from neurovol.stages.inbox import inbox_steps
    from neurovol.stages.order import actions
    from neurovol.terminal import print_status

    steps = _steps(options.project, options.set)
    print_status(actions(steps))
    for name, found in inbox_steps(steps.project).items():
        print(f"\n{name}, in the inbox" + (f": {found}" if isinstance(found, str) else ""))
        if not isinstance(found, str):
            print_status(actions(found))


def _verify(options: argparse.Namespace) -> None:
    from neurovol.blockwise.cluster import cores, open_client
    from neurovol.clustersettings import ClusterSettings
    from neurovol.terminal import Bars

    made, left = list(_to_verify(options)), list[str]()
    with Bars() as bars, open_client(ClusterSettings(workers=cores(), threads=1)) as client:
        for one in made:
            try:
                left += _verify_one(one, options, client, bars.report)
            except (UserError, Failure) as error:
                if options.store.suffix != ".toml":
                    raise
                left.append(str(error))  # the project's other volumes are read all the same
                print(f"damaged: {error}")
    if left:
        raise Failure(
            f"{'; '.join(left)}. Mend them with --repair (level 0 of a STORE also needs --source; give a project file "
            f"for what was made from models), or build them anew"
        )


def _to_verify(options: argparse.Namespace) -> Iterator[Made]:
    """The finished volumes of a project file, or the one volume named."""
    from neurovol.stages.made import Made, volumes
    from neurovol.stages.verify import copying, original_of

    if options.store.suffix == ".toml":
        if options.source is not None:
            raise UserError("--source goes with a STORE; a project file names the sources itself")
        for steps in _with_inbox(_steps(options.store, [])):
            yield from volumes(steps)
        return
    original = None if options.source is None else original_of(options.store, options.source, options.channels)
    yield Made(
        str(options.store),
        options.store,
        None if original is None else lambda: copying(options.store, original),
        "only what they were made from can mend: of an image give it as --source, of labels and probabilities give "
        "the project file in place of STORE; or build the volume anew with --redo",
        original,
    )


def _with_inbox(steps: Steps) -> Iterator[Steps]:
    """A project's own steps, and of each sample in its inbox; says which of these cannot be told."""
    from neurovol.stages.inbox import inbox_steps

    yield steps
    for name, found in inbox_steps(steps.project).items():
        if isinstance(found, str):
            print(f"left out: {name}, in the inbox: {found}")
        else:
            yield found


def _verify_one(made: Made, options: argparse.Namespace, client: Client, report: Report) -> list[str]:
    """Verify a volume, and repair it if that is asked for; what is left damaged, in words."""
    from neurovol.stages.verify import damages, recorded_count, repair, shards_of
    from neurovol.volume.omezarr import open_volume

    total = sum(map(len, shards_of(open_volume(made.path))))
    found = list(damages(client, made.path, made.original, report))
    for damage in found:
        print(f"damaged: {damage}")
    if found and options.repair:
        repair(client, made.path, found, made.level_0() if made.level_0 else None, made.way_out)
        print(f"repaired {len(found)} of {total} shards; reading all once more")
        found = list(damages(client, made.path, made.original, report))
    if found:
        return [f"{made.path}: {len(found)} of {total} shards are damaged, the first is {found[0]}"]
    equal = "" if made.original is None else " and equal to the source"
    print(f"{made.path}: all {total} shards are whole{equal} ({recorded_count(made.path)} as the ledger recorded)")
    return []


def _check_blocks(options: argparse.Namespace) -> None:
    from neurovol.stages.checkblocks import check_blocks
    from neurovol.stages.made import predictions
    from neurovol.terminal import Bars

    if options.faces < 1:
        raise UserError(f"--faces {options.faces}: at least one face has to be looked at")
    steps = _steps(options.project, options.set, options.sample)
    if options.sample:
        finished = list(predictions(steps, steps.project.settings.sample(options.sample).name))
    else:
        finished = [
            wanted for every in _with_inbox(steps) for name in every.samples for wanted in predictions(every, name)
        ]
    if not finished:
        raise UserError(f"{options.project}: no prediction is finished yet, so there is nothing to check; run it first")
    with Bars() as bars:
        found = [check_blocks(wanted, options.faces, options.seed, bars.report) for wanted in finished]
    for checked in found:
        print(checked)
    if options.json:
        options.json.write_text(json.dumps([checked.to_json() for checked in found], indent=1) + "\n")
    wrong = [
        f"{checked.step}, {checked.worst.face}, most at {list(checked.worst.worst)}"
        for checked in found
        if not checked.is_right
    ]
    if wrong:
        raise Failure(
            f"blocks or windows show, worst at: {'; '.join(wrong)}. The output is not what one pass of the network "
            f"would give: see whether `neurovol verify` calls it damaged, and build it anew with --redo"
        )


def _doctor(options: argparse.Namespace) -> None:
    from neurovol.doctor.checks import examine
    from neurovol.projectfile import parse_override

    overrides = dict(parse_override(text) for text in options.set)
    levels: list[str] = []
    for finding in examine(
        options.project,
        overrides,
        workers=not options.no_workers,
        wait_s=options.wait,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    ):
        print(finding.line, flush=True)
        levels.append(finding.level)
    if failed := levels.count("fail"):
        raise Failure(f"{failed} of {len(levels)} checks failed; each says its way out")


def _write_phantom(options: argparse.Namespace) -> None:
    from neurovol.projectfile import checked
    from neurovol.samplesettings import Phantom
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
    "verify": _verify,
    "check-blocks": _check_blocks,
    "doctor": _doctor,
    "phantom": _write_phantom,
}

if __name__ == "__main__":
    sys.exit(main())
