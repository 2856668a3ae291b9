"""A table of cases: searched in several processes, variants that do the same once."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

from racevisor.collector import collect_rarely
from racevisor.explore import Verdict, explore_case
from racevisor.scenario import Case, Scenario, Source, from_source
from racevisor.twins import Twins

Progress = Callable[[int, int], None]


def verdicts(wanted: list[Case], jobs: int, on_progress: Progress | None, options: dict[str, Any]) -> Iterator[Verdict]:
    """Verdicts in the order of `wanted`; an exception that ends them says in a note in which cell it was raised."""
    with Table(wanted, jobs, on_progress, options) as table:
        for n in range(len(wanted)):
            yield table.settle(n)


class Table:
    """Cells being searched, of one scenario or of several: a context, which ends the processes that it has started.

    A *machine* is a scenario, a set-up, a memory model and a size.  What replaces nothing is searched first of its variants; one
    that turns out to be the twin of another one (racevisor.twins) gets its verdict, and its ledger says so.  With several
    processes all variants of a machine are searched by one of them.
    """

    def __init__(self, wanted: list[Case], jobs: int, on_progress: Progress | None, options: dict[str, Any]) -> None:
        self.wanted = wanted
        self.on_progress = on_progress
        self.options = options
        #: by place in `wanted`
        self.done: dict[int, Verdict] = {}
        self._failed: dict[int, Exception] = {}  # raised when its turn comes
        self._asked: dict[Future[list[Verdict]], list[int]] = {}
        self._machines: dict[tuple[Any, ...], list[int]] = {}
        self._twins: dict[tuple[Any, ...], Twins] = {}
        for n, case in enumerate(wanted):
            self._machines.setdefault(machine(case), []).append(n)
        for cells in self._machines.values():
            cells.sort(key=lambda n: bool(wanted[n].variant.replaces or wanted[n].variant.exempt))
        self._pool: ProcessPoolExecutor | None = None
        if jobs > 1 and len(wanted) > 1:
            self._pool = ProcessPoolExecutor(jobs, initializer=_begin)
            pieces = -(-jobs // len(self._machines))  # no process is to be idle: that is worth more than a twin
            for cells in self._machines.values():
                for i in range(min(pieces, len(cells))):
                    self._ask(cells[i::pieces])

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            workers = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:  # a cell that is half searched is worth nothing, and Ctrl-C must not wait for it
                worker.terminate()

    def settle(self, n: int) -> Verdict:
        """The verdict of one cell."""
        if self._pool is None and n not in self.done:
            of = machine(self.wanted[n])
            cells = self._machines[of]
            twins = self._twins.setdefault(of, Twins())
            for one in dict.fromkeys((cells[0], n)):
                if one not in self.done and one not in self._failed:
                    self._search(one, twins)
            if all(cell in self.done for cell in cells):
                del self._twins[of]
        while n not in self.done and n not in self._failed:
            self._collect(wait(self._asked, return_when=FIRST_COMPLETED).done)
        if n in self._failed:
            self._failed[n].add_note(where(self.wanted[n]))
            raise self._failed[n]
        return self.done[n]

    def _search(self, n: int, twins: Twins) -> None:
        try:
            self.done[n] = _one(self.wanted[n], twins, self.options)
        except Exception as error:
            self._failed[n] = error
        self._tell()

    def _ask(self, cells: list[int]) -> None:
        assert self._pool is not None
        first = self.wanted[cells[0]]
        variants = [self.wanted[n].variant_name for n in cells]
        task = (first.source.path, first.source.text, variants, first.setup, first.memory, first.vcpus, self.options)
        self._asked[self._pool.submit(_in_worker, *task)] = cells

    def _collect(self, done: set[Future[list[Verdict]]]) -> None:
        for future in done:
            cells = self._asked.pop(future)
            try:
                found = future.result()
                rest = cells[len(found) :]  # the first of them raises; asked for again, it raises here
            except Exception as error:
                self._failed[cells[0]] = error
                found, rest = [], cells[1:]
            self.done.update(zip(cells, found, strict=False))
            if rest:
                self._ask(rest)
            self._tell()

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(len(self.done), len(self.wanted))


def machine(case: Case) -> tuple[Any, ...]:
    """What two cells have in common that differ in the variant only."""
    return case.source.digest, case.setup, case.memory, case.vcpus


def _one(case: Case, twins: Twins, options: dict[str, Any]) -> Verdict:
    return twins.same_code(case) or explore_case(case, twins=twins, **options)


def references(wanted: list[Case]) -> list[int | None]:
    """For each cell, the one whose verdict may be its own as well; None: there is none."""
    first: dict[tuple[Any, ...], int] = {}
    for n, case in enumerate(wanted):
        if not case.variant.replaces and not case.variant.exempt:
            first.setdefault(machine(case), n)
    found = (None if case.variant.exempt else first.get(machine(case)) for case in wanted)
    return [None if of == n else of for n, of in enumerate(found)]


def where(case: Case) -> str:
    """The note to an error in the search of a cell."""
    cell = f"--variant {shlex.quote(case.variant_name)} --setup {shlex.quote(case.setup)} --memory {case.memory}"
    vcpus = "" if case.vcpus == case.scenario.vcpus else f" --vcpus {case.vcpus}"
    return f"  in the search of {case}\n  alone:  racevisor explore {shlex.quote(case.source.path)} {cell}{vcpus}"


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    collect_rarely()


_loaded: dict[str, Scenario] = {}


def _in_worker(
    path: str, text: str, variants: list[str], setup: str, memory: str, vcpus: int, options: dict[str, Any]
) -> list[Verdict]:
    """The verdicts of these variants up to the first that raises; the exception is that of the first variant."""
    source = Source(path, text)
    scenario = _loaded.get(source.digest)
    if scenario is None:
        scenario = _loaded[source.digest] = from_source(source)
    twins = Twins()
    found: list[Verdict] = []
    for variant in variants:
        try:
            found.append(_one(Case(scenario, source, variant, setup, memory, vcpus), twins, options))
        except Exception:
            if not found:
                raise
            break
    return found
