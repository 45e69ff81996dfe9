"""A bounded number of futures at a time, and what to do where one is lost: blame, try again, wait, give up."""

from __future__ import annotations

import logging
import queue
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from uuid import uuid4

from distributed import Client, Future, KilledWorker

from neurovol.blockwise.alone import LargeWorker
from neurovol.blockwise.attempt import Attempt, BlockTask, Group, Order, attempt, failed
from neurovol.blockwise.blame import Blame
from neurovol.blockwise.hang import Hangs, TimeLimit
from neurovol.blockwise.marker import STOP, Marker
from neurovol.blockwise.reach import LOST, ClusterLost, Roll, reaching
from neurovol.blockwise.tally import Tally
from neurovol.geometry import Block, side_by_side

log = logging.getLogger(__name__)

QUEUED = 1  # futures outstanding per worker beside one for each of its threads, so that none idles
TURN_SECONDS = 0.2  # small blocks are given to a worker as many at a time as take that long
MOST_AT_A_TIME = 1024
TURNS = 2  # that each thread gets of what is left, at least, so that none waits long for the last
BACKOFF_S, MOST_BACKOFF_S = 0.25, 30.0
MOST_LOSSES = 5  # of workers, before a block of theirs was begun
LOOK_S = 1.0


@dataclass(frozen=True)
class _Going:
    future: Future[list[Attempt]]
    order: Order


@dataclass(frozen=True)
class _Again:
    """To be tried again, not before a moment."""

    block: Block
    number: int
    due: float = 0.0


class Submission:
    """Iterates over the last attempt at each block: done, or failed for good after `retries` further attempts.

    Blocks are taken in their order, up to `together` side by side at once by a TogetherTask. `markers` is a folder
    that driver and workers share. Blocks whose computing killed their workers twice are tried by themselves, while
    nothing else runs, when all others are through: on a fresh worker that has the memory of all, where the cluster is
    of this machine. A queue gives a job no more than it asked for; there they are tried by themselves alone.
    """

    def __init__(
        self,
        client: Client,
        task: BlockTask,
        blocks: Iterable[Block],
        count: int,
        *,
        markers: Path | None,
        retries: int = 2,
        together: int = 1,
        limit: TimeLimit | None = None,
        look: Callable[[], object] = int,
        tally: Tally | None = None,
    ) -> None:
        """`look` is called every second or so, whether blocks end or not; `tally` is kept current."""
        self.client, self.task, self.retries, self.markers, self.look = client, task, retries, markers, look
        self.tally = tally or Tally()
        self.looked_at = time.monotonic()
        self.blame, self.hangs = Blame(client, markers), Hangs(client, limit or TimeLimit())
        self.large, self.roll = LargeWorker(client), Roll(client)
        self.look_s = min(max(LOOK_S, self.hangs.limit.least_s / 50), 5.0)
        self.together = together
        self.left = count  # blocks not submitted yet
        self.workers: dict[str, int] = {}  # threads of each
        self.computing = 1  # threads that compute
        self.fresh = side_by_side(blocks, self._at_most)
        self.again: deque[_Again] = deque()
        self.alone: deque[_Again] = deque()
        self.going: dict[str, _Going] = {}
        self.ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.recent: deque[float] = deque(maxlen=101)  # seconds of blocks

    def __iter__(self) -> Iterator[Attempt]:
        with reaching():
            yield from self._settled()

    def _settled(self) -> Iterator[Attempt]:
        self._count_workers()
        while self._refill():
            ended = self._next_ended(self._patience_s())
            if ended is not None:
                yield from self._judged(ended)
                ended = None  # while its future is there Dask computes the result again, should its worker end
            if time.monotonic() - self.looked_at > self.look_s:
                self.looked_at = time.monotonic()
                self._count_workers()
                self.look()
                orders = [going.order for going in self.going.values()]
                self.hangs.kill(self.blame.markers(), orders, self.recent, self.tally.at_work)

    def drain(self, seconds: float) -> Iterator[Attempt]:
        """Begin nothing more, and wait that long for what is being computed."""
        if self.markers is not None and self.markers.is_dir():
            (self.markers / STOP).touch()
        end = time.monotonic() + seconds
        while self.going and (left := end - time.monotonic()) > 0:
            ended = self._next_ended(min(left, LOOK_S))
            if ended is not None and ended.future.status == "finished":
                with suppress(TimeoutError, KilledWorker, *LOST):  # what died now is done again by the next run
                    yield from [r for r in ended.future.result(timeout=LOOK_S) if r.receipt is not None]

    def close(self, stopped: bool = False) -> None:
        """Take back what is outstanding; a worker that has the memory of all stays so where the run was stopped."""
        if self.client.status == "running":
            with suppress(*LOST):
                self.client.cancel([going.future for going in self.going.values()])
                self.blame.close()
                if not stopped:
                    self.large.end()

    def _at_most(self) -> int:
        """Apart they take longer, so only where some thread would get none."""
        return max(1, min(self.together, self.left // self.computing))

    def _refill(self) -> bool:
        """Submit what there is room for; False when all is through."""
        if not self.going:
            self.large.end()
        while self._room() > 0 and (taken := self._take()) is not None:
            self._submit(*taken)
        if not self.going and not self.again and self.alone:
            alone = self.alone.popleft()
            self._submit(((alone.block,),), alone.number, self.large.begin())
        return bool(self.going or self.again)

    def _room(self) -> int:
        """For how many more futures."""
        return (sum(self.workers.values()) + QUEUED * len(self.workers) or 1) - len(self.going)

    def _count_workers(self) -> None:
        self.workers = self.roll.call()
        self.tally.workers = len(self.workers)
        self.computing = sum(max(1, threads - 1) for threads in self.workers.values()) or 1

    def _take(self) -> tuple[tuple[Group, ...], int] | None:
        """The next groups of blocks to submit, and the number of the attempt."""
        now = time.monotonic()
        again = next((a for a in self.again if a.due <= now), None)
        if again is not None:
            self.again.remove(again)
            return ((again.block,),), again.number
        groups = tuple(islice(self.fresh, self._groups_a_turn()))
        self.left -= sum(map(len, groups))
        return (groups, 1) if groups else None

    def _groups_a_turn(self) -> int:
        """Groups for one future: of blocks that are computed together a single one, as these are not small."""
        if self.together > 1:
            return 1
        if not self.recent:
            return 1
        seconds = max(statistics.fmean(self.recent), TURN_SECONDS / MOST_AT_A_TIME)
        return min(int(TURN_SECONDS / seconds), self.left // (TURNS * self.computing)) or 1

    def _submit(self, groups: tuple[Group, ...], number: int, worker: str | None = None) -> None:
        order = Order(groups, number, uuid4().hex, str(self.markers or ""), self._needs_s(), self.tally.detailed)
        self.tally.given_out(order)
        here = {} if worker is None else {"workers": [worker], "allow_other_workers": True}  # should it be gone
        future = self.client.submit(attempt, self.task, order, pure=False, **here)
        self._await(_Going(future, order))

    def _needs_s(self) -> float:
        """What nineteen of twenty recent blocks took at most: on a worker with less time left none is begun."""
        return sorted(self.recent)[int(0.95 * (len(self.recent) - 1))] if self.recent else 0.0

    def _await(self, going: _Going) -> None:
        token = going.order.token
        self.going[token] = going
        going.future.add_done_callback(lambda _: self.ended.put(token))

    def _patience_s(self) -> float:
        """How long to wait for a future before there is something else to do."""
        if self._room() <= 0:
            return self.look_s
        return max(0.0, min((again.due - time.monotonic() for again in self.again), default=self.look_s))

    def _next_ended(self, seconds: float) -> _Going | None:
        try:
            token = self.ended.get(timeout=seconds)
        except queue.Empty:
            return None
        return self.going.pop(token, None)

    def _judged(self, ended: _Going) -> Iterator[Attempt]:
        """What of an ended future is final; the rest goes back to be tried again."""
        for result in self._results(ended):
            if result.receipt is not None:
                self.recent.append(result.seconds)
                yield result
            elif result.hopeless or result.disk_full or result.number > self.retries:
                yield result
            else:
                log.warning("block %d failed, trying again: %s", result.block.index, result.last_line)
                self.tally.again(result.block.index, result.number, result.worker, result.last_line)
                wait = min(BACKOFF_S * 2 ** max(0, result.number - 1), MOST_BACKOFF_S) if result.number else 0.0
                self.again.append(_Again(result.block, result.number + 1, time.monotonic() + wait))

    def _results(self, ended: _Going) -> list[Attempt]:
        status = ended.future.status
        if status == "cancelled":  # as all are when the scheduler is lost
            raise ClusterLost("the connection to the scheduler was lost")
        if status in ("lost", "pending"):  # a worker died with the result, which Dask has computed again
            self._await(ended)
            return []
        try:
            if status == "finished":
                results = list(ended.future.result(timeout=LOOK_S))
                self._put_back(ended.order, results)
                return results
            error = ended.future.exception(timeout=LOOK_S)
        except TimeoutError:  # as in the case before; to wait here would let other blocks hang unseen
            self._await(ended)
            return []
        except KilledWorker as killed:
            error = killed
        if error is None:  # cancelled since
            raise ClusterLost("the connection to the scheduler was lost")
        if not isinstance(error, KilledWorker):  # the task could not even be begun
            return [
                r for g in ended.order.groups for r in failed(g, ended.order.number, f"{type(error).__name__}: {error}")
            ]
        return self._blamed(ended.order)

    def _put_back(self, order: Order, results: list[Attempt]) -> None:
        """Blocks of which nothing was said: the worker's time is up, and others are to do them."""
        said = {result.block.index for result in results}
        due = time.monotonic() + BACKOFF_S  # the worker that did not may still be asked, until it is gone
        unsaid = [block for group in order.groups for block in group if block.index not in said]
        self.again.extend(_Again(block, order.number, due) for block in unsaid)

    def _blamed(self, order: Order) -> list[Attempt]:
        """Of a future whose worker died: blames the block that was running, takes back the others."""
        died_at = self.blame.died_at(order.token)
        results: list[Attempt] = []
        for group in order.groups:
            marker = died_at.get(group[0].index)
            if marker is None:
                results += self._taken_back(group, order.number)
            elif len(group) > 1:
                results += failed(group, order.number, "the worker died while it computed these blocks together")
            else:
                results += self._died(group[0], order.number, marker)
        return results

    def _taken_back(self, group: Group, number: int) -> list[Attempt]:
        self.blame.losses[group[0].index] += 1
        if self.blame.losses[group[0].index] > MOST_LOSSES:
            return [
                Attempt(b, number, 0.0, error=f"{MOST_LOSSES + 1} workers died before they began it", hopeless=True)
                for b in group
            ]
        self.again.extendleft(_Again(block, number) for block in reversed(group))
        return []

    def _died(self, block: Block, number: int, marker: Marker) -> list[Attempt]:
        error = self.blame.death(marker, block.index, self.hangs.blocks, self.large.allowed_bytes)
        deaths = self.blame.deaths[block.index]
        if deaths != 2:
            return failed((block,), number + (deaths > 2) * self.retries, error)
        log.warning("block %d: %s; it is tried by itself when all others are through", block.index, error)
        self.tally.again(block.index, number, "", error)
        self.alone.append(_Again(block, number + 1))
        return []
