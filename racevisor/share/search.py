"""A table of cells shared out: a pool for each, pieces of several cells at a time, verdicts in the end.

A cell is begun when nothing can be handed out of those before it, so no worker idles at the end of a cell.  A cell whose variant
may be the same code as its reference waits for that (racevisor/table.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from racevisor import choose
from racevisor.choose import Wanted
from racevisor.errors import UsageError
from racevisor.estimate import Estimate
from racevisor.explore import Verdict
from racevisor.scenario import Case
from racevisor.share.cells import CellPool, CellWorker
from racevisor.share.protocol import Pool, Worker
from racevisor.share.seeds import SeedPool, SeedWorker
from racevisor.share.states import StatesWorker
from racevisor.share.states_pool import StatesPool
from racevisor.share.subtree_pool import SubtreePool
from racevisor.share.subtrees import SubtreeWorker
from racevisor.share.verdicts import plain, spent, verdict_from, verdict_of
from racevisor.table import machine, references
from racevisor.twins import Twins

#: by strategy: who shares it out, and who works
KINDS: dict[str, tuple[Any, Any]] = {
    "optimal": (SubtreePool, SubtreeWorker),
    "pct": (SeedPool, SeedWorker),
    "random": (SeedPool, SeedWorker),
    "auto": (CellPool, CellWorker),
    "states": (StatesPool, StatesWorker),
    "delay": (CellPool, CellWorker),
    "preemption": (CellPool, CellWorker),
}


#: so many cells are searched state by state by all workers, one after the other; of more, each is searched by one worker
FEW = 4


def kind_of(case: Case, wanted: Wanted) -> tuple[Any, Any]:
    """(pool, worker) of a case.  What is taken apart, or seen up to permutation, is for one process."""
    if wanted.strategy == "states" and (wanted.symmetry or wanted.wants_parts(case.vcpus)):
        return CellPool, CellWorker
    return KINDS[wanted.strategy]


def check(wanted: Wanted) -> None:
    """UsageError where a strategy cannot be shared out, or its options do not go together."""
    choose.kind(wanted)
    if wanted.strategy not in KINDS:
        raise UsageError(
            f"strategy {wanted.strategy} is for one process: it checks the others\n"
            f"  --workers goes with --strategy {', '.join(KINDS)}"
        )


def make_worker(case: Case, wanted: Wanted) -> Worker:
    """Who works on the pieces of a case."""
    worker: Worker = kind_of(case, wanted)[1](case, wanted)
    return worker


def work(worker: Worker, given: list[Any], seconds: float) -> Any:
    """What Sharing.give has handed out: hear the news, if there are any, and work on the piece."""
    news, piece = given
    if news is not None:
        worker.hear(news)
    return worker.work(piece, seconds)


class Cell:
    """One case: its pool once it is begun, its verdict once it is over."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.pool: Pool | None = None
        self.verdict: Verdict | None = None
        self.seconds = 0.0  # that passed since it was begun, in processes before this one
        self.began = 0.0
        self.given: set[int] = set()


class Sharing:
    """All cells of one command; `clock` returns seconds and only grows."""

    def __init__(self, cases: list[Case], wanted: Wanted, workers: int, clock: Callable[[], float] = time.perf_counter) -> None:
        check(wanted)
        if wanted.strategy == "auto" and len(cases) <= FEW and wanted.depth is None:
            wanted = replace(wanted, strategy="states", budget=choose.seconds(wanted))
        self.wanted = wanted
        self.workers = workers
        self.cells = [Cell(case) for case in cases]
        self.clock = clock
        self._references = references(cases)
        self._twins: dict[Any, Twins] = {}
        self._heard: dict[tuple[int, int], int] = {}  # (worker, cell): the version of the pool's news that it knows
        self._limit = choose.seconds(wanted)

    # ---- pieces -----------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Has every cell its verdict?"""
        return all(cell.verdict is not None for cell in self.cells)

    def give(self, worker: int = 0) -> tuple[int, int, Any] | None:
        """(cell, number, [news, piece]) for a worker, see `work`; None: nothing to hand out now."""
        for n, cell in enumerate(self.cells):
            if cell.verdict is not None or not self._begun(n):
                continue
            if self._late(cell):
                self._settle(n)
                continue
            assert cell.pool is not None
            given = cell.pool.give()
            if given is not None:
                number, piece = given
                cell.given.add(number)
                since = self._heard.get((worker, n), 0)
                version, news = cell.pool.news(since)
                return n, number, [news if version > since else None, piece]
        return None

    def take(self, n: int, number: int, result: Any, worker: int = 0) -> None:
        """The result of a piece; ignored where the cell is settled."""
        cell = self.cells[n]
        if isinstance(result, dict):
            self._heard[worker, n] = result.get("heard", 0)  # it says what it knows: it may have been made anew
        cell.given.discard(number)
        if cell.verdict is None and cell.pool is not None:
            cell.pool.take(number, result)
            self._settle(n)

    def lost(self, n: int, number: int, worker: int = 0) -> None:
        """Whoever had the piece is gone; who comes in its place knows nothing."""
        cell = self.cells[n]
        self._heard = {of: version for of, version in self._heard.items() if of[0] != worker}
        cell.given.discard(number)
        if cell.verdict is None and cell.pool is not None:
            cell.pool.lost(number)

    def left(self, n: int) -> float | None:
        """Seconds of the budget that a cell has left; None: no such bound."""
        cell = self.cells[n]
        whole = kind_of(cell.case, self.wanted)[0] is CellPool  # it knows of its budget itself
        return None if self._limit is None or whole else max(0.0, self._limit - self._seconds(cell))

    def _seconds(self, cell: Cell) -> float:
        return cell.seconds + (self.clock() - cell.began if cell.pool is not None else 0.0)

    def _late(self, cell: Cell) -> bool:
        whole = isinstance(cell.pool, CellPool)
        return not whole and self._limit is not None and self._seconds(cell) >= self._limit

    def _begun(self, n: int) -> bool:
        cell = self.cells[n]
        if cell.pool is None:
            of = self._references[n]
            if of is not None:
                reference = self.cells[of].verdict
                if reference is None:
                    return False
                twins = self._twins.setdefault(machine(cell.case), Twins())
                if not twins.searched:
                    twins.add(self.cells[of].case, reference)
                cell.verdict = twins.same_code(cell.case)
                if cell.verdict is not None:
                    return False
            cell.pool = kind_of(cell.case, self.wanted)[0](cell.case, self.wanted)
            cell.began = self.clock()
        return True

    # ---- verdicts ---------------------------------------------------------------------------------------------------------

    def _settle(self, n: int) -> None:
        """Is it over?  Done, settled, or out of time when all that was handed out is home."""
        cell = self.cells[n]
        pool = cell.pool
        assert pool is not None
        if isinstance(pool, CellPool):
            cell.verdict = pool.verdict
            return
        kind = choose.kind(self.wanted)
        settled = kind.systematic and not self.wanted.to_the_end and pool.tally.settled
        late = self._late(cell) and not cell.given
        if settled or pool.done or late:
            self._judge(cell, settled=settled, late=late and not pool.done)

    def _judge(self, cell: Cell, *, settled: bool, late: bool, stopped: str = "") -> None:
        pool = cell.pool
        assert pool is not None
        seconds = self._seconds(cell)
        runs = self.wanted.runs is not None and pool.tally.runs >= self.wanted.runs and not pool.exhausted
        if not settled and not stopped and (late or runs) and choose.kind(self.wanted).covers:
            stopped = spent(seconds, pool.tally.runs, by_clock=late)
        elif late and not settled:
            stopped = spent(seconds, pool.tally.runs, by_clock=True)
        cell.verdict = verdict_from(
            cell.case, self.wanted, pool, seconds=seconds, workers=self.workers, settled=settled, stopped=stopped, by_clock=late
        )
        cell.seconds = seconds
        cell.pool = None
        pool.close()

    def give_up(self, why: str) -> None:
        """No more is searched: cells that were begun get a verdict on what was found so far."""
        for cell in self.cells:
            if cell.pool is not None and cell.verdict is None and not isinstance(cell.pool, CellPool) and cell.pool.tally.runs:
                self._judge(cell, settled=False, late=False, stopped=why)

    def close(self) -> None:
        """Nothing more is searched, and nothing saved."""
        for cell in self.cells:
            if cell.pool is not None:
                cell.pool.close()
                cell.pool = None

    def verdicts(self) -> list[tuple[Case, Verdict]]:
        """Those that there are, in the order of the table."""
        return [(cell.case, cell.verdict) for cell in self.cells if cell.verdict is not None]

    # ---- how it stands ----------------------------------------------------------------------------------------------------

    def look(self) -> tuple[int, int, float, Callable[[], Estimate | None]]:
        """(executions, states, seconds, estimate) of the cells that are being searched."""
        cells = [cell for cell in self.cells if cell.pool is not None]
        seconds = max((self._seconds(cell) for cell in cells), default=0.0)
        executions = sum(cell.pool.tally.runs for cell in cells if cell.pool is not None)
        states = sum(cell.pool.states for cell in cells if cell.pool is not None)

        def estimate() -> Estimate | None:
            pool = cells[0].pool if len(cells) == 1 else None
            return None if pool is None else pool.estimate(seconds)

        return executions, states, seconds, estimate

    # ---- a checkpoint -----------------------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """As plain data; the scenario itself is not in it."""
        cells = []
        for cell in self.cells:
            case = cell.case
            what = [case.variant_name, case.setup, case.memory, case.vcpus]
            verdict = None if cell.verdict is None else plain(cell.verdict)
            pool = None if cell.pool is None or cell.verdict is not None else cell.pool.save()
            cells.append([what, verdict, pool, self._seconds(cell)])
        return {"wanted": asdict(self.wanted), "cells": cells}

    @classmethod
    def load(
        cls, scenario: Any, source: Any, saved: dict[str, Any], workers: int, clock: Callable[[], float] = time.perf_counter
    ) -> Sharing:
        """As it was, for other workers."""
        wanted = Wanted(**saved["wanted"])
        cases = [Case(scenario, source, *what) for what, *_ in saved["cells"]]
        sharing = cls(cases, wanted, workers, clock)
        for cell, (_, verdict, pool, seconds) in zip(sharing.cells, saved["cells"], strict=True):
            cell.seconds = seconds
            if verdict is not None:
                cell.verdict = verdict_of(verdict)
            elif pool is not None:
                cell.pool = kind_of(cell.case, wanted)[0].load(cell.case, wanted, pool)
                cell.began = clock()
        return sharing
