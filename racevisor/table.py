"""A table of cases: searched in several processes, each piece of code once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from typing import Any

from racevisor.explore import Verdict, explore_case
from racevisor.scenario import Case, Scenario, Source, from_source

Progress = Callable[[int, int], None]


def verdicts(wanted: list[Case], jobs: int, on_progress: Progress | None, options: dict[str, Any]) -> Iterator[Verdict]:
    """Verdicts in the order of `wanted`.

    A variant that replaces only functions that are never called in a set-up is the same code there as the reference variant
    (the one that replaces nothing); it gets the reference's verdict, and its ledger says so.
    """
    pool = ProcessPoolExecutor(jobs, initializer=_ignore_interrupts) if jobs > 1 and len(wanted) > 1 else None
    try:
        table = _Table(wanted, pool, on_progress, options)
        for n in range(len(wanted)):
            yield table.settle(n)
    finally:
        if pool is not None:
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:  # a cell that is half searched is worth nothing, and Ctrl-C must not wait for it
                worker.terminate()


class _Table:
    """Cells being searched: references first, then what is not the same code."""

    def __init__(
        self, wanted: list[Case], pool: ProcessPoolExecutor | None, on_progress: Progress | None, options: dict[str, Any]
    ) -> None:
        self.wanted = wanted
        self.pool = pool
        self.on_progress = on_progress
        self.options = options
        self.done: dict[int, Verdict] = {}
        self.asked: dict[int, Future[Verdict]] = {}
        self.references: dict[tuple[str, str], int] = {}
        for n, case in enumerate(wanted):
            if not case.variant.replaces and not case.variant.exempt:
                self.references.setdefault((case.setup, case.memory), n)
        if pool is not None:
            for n in self.references.values():
                self._ask(n)
            for n in range(len(wanted)):
                if n not in self.asked and not self._same_code(n):
                    self._ask(n)

    def _ask(self, n: int) -> None:
        case = self.wanted[n]
        assert self.pool is not None
        task = (case.source.path, case.source.text, case.variant_name, case.setup, case.memory, case.vcpus, self.options)
        self.asked[n] = self.pool.submit(_in_worker, *task)

    def settle(self, n: int) -> Verdict:
        """The verdict of one cell."""
        if n not in self.done:
            if n in self.asked:
                self._keep(n, self._wait(self.asked[n]))
            elif not self._same_code(n):
                self._keep(n, explore_case(self.wanted[n], **self.options))
        return self.done[n]

    def _keep(self, n: int, verdict: Verdict) -> None:
        self.done[n] = verdict
        self._tell()

    def _wait(self, future: Future[Verdict]) -> Verdict:
        while not future.done():
            wait([other for other in self.asked.values() if not other.done()], return_when=FIRST_COMPLETED)
            self._tell()
        return future.result()

    def _tell(self) -> None:
        if self.on_progress is not None:
            ahead = sum(future.done() for n, future in self.asked.items() if n not in self.done)
            self.on_progress(len(self.done) + ahead, len(self.wanted))

    def _same_code(self, n: int) -> bool:
        """Give the cell its reference's verdict, if it is the same code."""
        case = self.wanted[n]
        of = self.references.get((case.setup, case.memory))
        if of is None or of == n or case.variant.exempt:
            return False
        verdict = self.settle(of)
        if not verdict.ledger.exhausted or case.variant.replaces.keys() & verdict.calls:
            return False
        reason = f"the same code as {verdict.variant}: nothing that {case.variant_name} replaces is called here"
        ledger = replace(verdict.ledger, reason=reason, seconds=0.0)
        self._keep(n, replace(verdict, variant=case.variant_name, claimed=case.claimed, ledger=ledger))
        return True


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop


_loaded: dict[str, Scenario] = {}


def _in_worker(path: str, text: str, variant: str, setup: str, memory: str, vcpus: int, options: dict[str, Any]) -> Verdict:
    source = Source(path, text)
    scenario = _loaded.get(source.digest)
    if scenario is None:
        scenario = _loaded[source.digest] = from_source(source)
    return explore_case(Case(scenario, source, variant, setup, memory, vcpus), **options)
