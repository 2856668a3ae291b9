"""A table of cases: searched in several processes, each piece of code once."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from typing import Any

from racevisor.explore import Verdict, explore_case
from racevisor.scenario import Case, Scenario, Source, from_source

Progress = Callable[[int, int], None]


def verdicts(wanted: list[Case], jobs: int, on_progress: Progress | None, options: dict[str, Any]) -> Iterator[Verdict]:
    """Verdicts in the order of `wanted`; an exception that ends them says in a note in which cell it was raised.

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
    """Cells being searched: references first, then what is not the same code.  The cells may be of several scenarios."""

    def __init__(
        self, wanted: list[Case], pool: ProcessPoolExecutor | None, on_progress: Progress | None, options: dict[str, Any]
    ) -> None:
        self.wanted = wanted
        self.pool = pool
        self.on_progress = on_progress
        self.options = options
        self.done: dict[int, Verdict] = {}
        self.asked: dict[int, Future[Verdict]] = {}
        self.references: dict[tuple[Any, ...], int] = {}
        for n, case in enumerate(wanted):
            if not case.variant.replaces and not case.variant.exempt:
                self.references.setdefault(_machine(case), n)
        #: by reference: the cells that may turn out to be the same code, until it is known
        self.waiting: dict[int, list[int]] = {n: [] for n in self.references.values()}
        if pool is None:
            return
        for n in self.waiting:
            self._ask(n)
        for n in range(len(wanted)):
            of = self._reference(n)
            if of is not None:
                self.waiting[of].append(n)
            elif n not in self.asked:
                self._ask(n)

    def _reference(self, n: int) -> int | None:
        """The cell whose verdict may be this one's as well; None if there is none."""
        of = self.references.get(_machine(self.wanted[n]))
        return None if of == n or self.wanted[n].variant.exempt else of

    def _ask(self, n: int) -> None:
        case = self.wanted[n]
        assert self.pool is not None
        task = (case.source.path, case.source.text, case.variant_name, case.setup, case.memory, case.vcpus, self.options)
        self.asked[n] = self.pool.submit(_in_worker, *task)

    def settle(self, n: int) -> Verdict:
        """The verdict of one cell."""
        of = self._reference(n)
        if n not in self.done and of is not None:
            self.settle(of)
        if n not in self.done and not (of is not None and self._share(n, of)):
            try:
                verdict = self._wait(n) if self.pool is not None else explore_case(self.wanted[n], **self.options)
            except Exception as error:
                error.add_note(_where(self.wanted[n]))
                raise
            self._keep(n, verdict)
        return self.done[n]

    def _keep(self, n: int, verdict: Verdict) -> None:
        self.done[n] = verdict
        self._tell()

    def _wait(self, n: int) -> Verdict:
        """Meanwhile, what waited for another cell is asked for as soon as that one is done: no process is to be idle."""
        self._release()
        while not self.asked[n].done():
            wait([other for other in self.asked.values() if not other.done()], return_when=FIRST_COMPLETED)
            self._release()
            self._tell()
        return self.asked[n].result()

    def _release(self) -> None:
        for of in [n for n in self.waiting if self.asked[n].done()]:
            failed = self.asked[of].exception() is not None  # it is raised when its turn comes
            if not failed:
                self.done.setdefault(of, self.asked[of].result())
            for n in self.waiting.pop(of):
                if failed or not self._share(n, of):
                    self._ask(n)

    def _tell(self) -> None:
        if self.on_progress is not None:
            ahead = sum(future.done() for n, future in self.asked.items() if n not in self.done)
            self.on_progress(len(self.done) + ahead, len(self.wanted))

    def _share(self, n: int, of: int) -> bool:
        """Give the cell its reference's verdict, if it is the same code."""
        case, verdict = self.wanted[n], self.done[of]
        if n in self.done:
            return True
        if n in self.asked or not verdict.ledger.exhausted or case.variant.replaces.keys() & verdict.calls:
            return False
        reason = f"the same code as {verdict.variant}: nothing that {case.variant_name} replaces is called here"
        ledger = replace(verdict.ledger, reason=reason, seconds=0.0)
        self._keep(n, replace(verdict, variant=case.variant_name, claimed=case.claimed, ledger=ledger))
        return True


def _where(case: Case) -> str:
    cell = f"--variant {shlex.quote(case.variant_name)} --setup {shlex.quote(case.setup)} --memory {case.memory}"
    vcpus = "" if case.vcpus == case.scenario.vcpus else f" --vcpus {case.vcpus}"
    return f"  in the search of {case}\n  alone:  racevisor explore {shlex.quote(case.source.path)} {cell}{vcpus}"


def _machine(case: Case) -> tuple[Any, ...]:
    """What two cells have in common that differ in the variant only."""
    return case.source.digest, case.setup, case.memory, case.vcpus


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop


_loaded: dict[str, Scenario] = {}


def _in_worker(path: str, text: str, variant: str, setup: str, memory: str, vcpus: int, options: dict[str, Any]) -> Verdict:
    source = Source(path, text)
    scenario = _loaded.get(source.digest)
    if scenario is None:
        scenario = _loaded[source.digest] = from_source(source)
    return explore_case(Case(scenario, source, variant, setup, memory, vcpus), **options)
