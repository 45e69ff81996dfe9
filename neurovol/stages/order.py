"""Each step of a project with what plans and what does it: the one list that the CLI and the flows walk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal, Protocol, get_args

from distributed import Client

from neurovol.blockwise.cluster import Workers, cores
from neurovol.clustersettings import ClusterSettings
from neurovol.errors import UserError
from neurovol.progress import Report
from neurovol.project import State, Step, stale_text, state_of
from neurovol.stages.annotate import annotate, plan_annotate
from neurovol.stages.convert import convert, plan_convert
from neurovol.stages.copying import copiers
from neurovol.stages.evaluate import evaluate, plan_evaluate
from neurovol.stages.plan import Plan
from neurovol.stages.predict import predicting_cluster
from neurovol.stages.pseudolabel import check_pseudolabel, learn_cnn2d, plan_learn, plan_pseudolabel, pseudolabel
from neurovol.stages.report import plan_report, report_project
from neurovol.stages.segment import (
    check_baseline,
    check_segment,
    plan_baseline,
    plan_segment,
    predict_baseline,
    segment,
)
from neurovol.stages.steps import BASELINES, Steps
from neurovol.stages.train import plan_train, train

Stage = Literal["convert", "annotate", "pseudolabel", "train", "segment", "evaluate"]
STAGES: tuple[str, ...] = (*get_args(Stage), "report")


class Work(Protocol):
    """Does a step, whatever part of it is not done yet, by workers; with `redo` builds it anew."""

    def __call__(self, *, client: Client, redo: bool, report: Report) -> None: ...


class OwnWork(Protocol):
    """The same in this process, without workers."""

    def __call__(self, *, redo: bool, report: Report) -> None: ...


@dataclass(frozen=True)
class Action:
    """A step, how to plan it, and how to do it."""

    step: Step
    plan: Callable[[], list[Plan]]
    work: Work | None  # None where the step is done without workers: then `own_work`
    sample: str | None = None  # None where the step is the whole project's
    check: Callable[[Set[str]], None] | None = None  # refuses early what it would refuse; names what is built anew
    own_work: OwnWork | None = None


def actions(steps: Steps) -> list[Action]:
    """Every step of the project in the order they are taken."""
    found = [*_conversion(steps)]
    if steps.to_learn_from and steps.trains:
        found += _learning(steps)
    if steps.predicts:
        found += _prediction(steps)
    every = [action.step for action in found]
    return [*found, _own(steps.report(), partial(plan_report, steps), partial(report_project, steps, every))]


def _conversion(steps: Steps) -> Iterator[Action]:
    for name, view in steps.samples.items():
        yield Action(steps.convert(name), partial(plan_convert, steps, name), partial(convert, steps, name), name)
        for role in view.annotations:
            plan, work = partial(plan_annotate, steps, name, role), partial(annotate, steps, name, role)
            yield Action(steps.annotate(name, role), plan, work, name)


def _learning(steps: Steps) -> Iterator[Action]:
    yield _own(steps.learn_cnn2d(), partial(plan_learn, steps), partial(learn_cnn2d, steps))
    for name in steps.to_learn_from:
        plan, work = partial(plan_pseudolabel, steps, name), partial(pseudolabel, steps, name)
        yield Action(steps.pseudolabel(name), plan, work, name, partial(check_pseudolabel, steps, name))
    for method in steps.unets:
        yield _own(steps.learn_unet3d(method), partial(plan_train, steps, method), partial(train, steps, method))


def _prediction(steps: Steps) -> Iterator[Action]:
    for name in steps.to_cover:
        plan, work = partial(plan_segment, steps, name), partial(segment, steps, name)
        yield Action(steps.segment(name), plan, work, name, partial(check_segment, steps, name))
    tested = steps.with_role("test")
    for name, method in product(tested, BASELINES) if steps.trains else ():
        plan, work = partial(plan_baseline, steps, name, method), partial(predict_baseline, steps, name, method)
        yield Action(steps.baseline(name, method), plan, work, name, partial(check_baseline, steps, name, method))
    if tested:
        yield _own(steps.evaluate(), partial(plan_evaluate, steps), partial(evaluate, steps))


def _own(step: Step, plan: Callable[[], list[Plan]], work: OwnWork) -> Action:
    return Action(step, plan, None, own_work=work)


def chosen(every: Iterable[Action], stages: Iterable[str], sample: str | None = None) -> list[Action]:
    """The actions of some stages, of one sample if one is named."""
    wanted = set(stages)
    return [a for a in every if a.step.stage in wanted and (sample is None or a.sample in (None, sample))]


def to_redo(every: Iterable[Action], redo: Iterable[str]) -> set[str]:
    """The names of the steps to build anew: what is stale from the first stage in `redo` on.

    Of a stage that is named and has nothing stale, all steps are built anew. Raises UserError for
    steps that are stale and not to be redone: old and new results are never mixed.
    """
    named = set(redo)
    unknown = named - set(get_args(Stage))
    if unknown:
        raise UserError(f"--redo {' '.join(sorted(unknown))}: no such stage; stages are {', '.join(get_args(Stage))}")
    first = min((STAGES.index(stage) for stage in named), default=len(STAGES))
    states = [(a.step, state_of(a.step)) for a in every]
    stale = [(step, state) for step, state in states if state.kind == "stale" and step.stage != "report"]
    left = [pair for pair in stale if STAGES.index(pair[0].stage) < first]
    if left:
        raise UserError(stale_text(left))
    again = {step.name for step, _ in stale}
    for stage in named - {step.stage for step, _ in stale}:
        again |= {step.name for step, _ in states if step.stage == stage}
    return again


def refuse_nothing_to_learn(steps: Steps, command: str) -> None:
    """Refuse a command, as `neurovol COMMAND`, whose stages have no annotations to learn from or to score on."""
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


def check_all(every: Iterable[Action], redo: Set[str]) -> None:
    """Refuse what any of the actions that are not done would refuse: before hours of other steps, not after."""
    for action in every:
        if action.check is not None and (state_of(action.step).kind != "done" or action.step.name in redo):
            action.check(redo)


def perform_all(
    steps: Steps, every: Iterable[Action], redo: set[str], report: Report, begin: Callable[[Action, State], None]
) -> None:
    """Do the actions that are not done, in order; `begin` is told of each before it starts."""
    every = list(every)
    check_all(every, redo)
    with Workers(steps.project.folder / "jobs") as workers:
        for action in every:
            state = state_of(action.step)
            again = action.step.name in redo
            begin(action, State("missing") if again else state)
            if state.kind == "done" and not again:
                continue
            if action.own_work is not None:
                workers.release_jobs()
                action.own_work(redo=again, report=report)
            if action.work is not None:
                settings, work = cluster_for(steps, action.step.stage), partial(action.work, redo=again, report=report)
                workers.persevere(settings, action.step.name, work, partial(_blocks_done, action.step, again))


def _blocks_done(step: Step, redo: bool) -> int:
    return state_of(step.beside if redo else step).done


def cluster_for(steps: Steps, stage: str) -> ClusterSettings:
    """The workers that a stage wants: as set; by default copying takes one a core, each on its own."""
    cluster = steps.project.settings.cluster
    if stage not in ("convert", "annotate"):
        return predicting_cluster(cluster)
    if cluster.kind != "local" or cluster.workers is not None:
        return cluster
    workers = copiers(steps.samples.values(), steps.project.settings.convert.allowed_bytes, cores())
    return cluster.model_copy(update={"workers": workers, "threads": 1})
