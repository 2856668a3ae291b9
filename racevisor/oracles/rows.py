"""What is known of the oracles, one row per number: the table of `racevisor selfcheck`.

Another group of rows is one more function in GROUPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.ops import READ_ONCE, WRITE_ONCE, cmpxchg
from racevisor.oracles import programs as p
from racevisor.oracles.programs import Body, fence, load, machine, store, straight
from racevisor.oracles.protocols import peterson, two_phase_commit
from racevisor.strategies.bounded import DelayBounded
from racevisor.strategies.optimal import OptimalDpor
from racevisor.strategies.pct import Pct
from racevisor.strategies.sleep_sets import SleepSets
from racevisor.strategies.source_dpor import SourceDpor
from racevisor.strategies.states import StatefulSearch
from racevisor.world import World


@dataclass(frozen=True)
class Row:
    """One known number: `measure()` must lie between `low` and `high`, both included (None: no such end)."""

    program: str
    #: what is counted
    counted: str
    strategy: str
    measure: Callable[[], int]
    low: int | None
    high: int | None

    @property
    def known(self) -> str:
        """The known number, or the end that is known."""
        if self.low == self.high:
            return f"{self.low:,}"
        return f"at least {self.low:,}" if self.high is None else f"at most {self.high:,}"

    def agrees(self, got: int) -> bool:
        """Is the number as known?"""
        return (self.low is None or got >= self.low) and (self.high is None or got <= self.high)


def exactly(program: str, counted: str, strategy: str, known: int, measure: Callable[[], int]) -> Row:
    """A row with one right answer."""
    return Row(program, counted, strategy, measure, known, known)


def automata(make: Callable[[], World]) -> World:
    """The same program in a World as `explore` makes it: threads are automata, and searches go back without running anything."""
    plain = make()
    plain.close()
    return World(plain.vm, plain.memory, automata=True)


# ---- how a number is measured ---------------------------------------------------------------------------------------------


def ends(of: World, strategy: Any) -> Iterator[World]:
    """The World at the end of every complete execution; closed at last."""
    run = 0
    again = True
    while again:
        execution = of.run(strategy, run)
        if execution.status == "terminal":
            yield of
        again = strategy.end(execution)
        run += 1
    of.close()


def complete(make: Callable[[], World], strategy: Callable[[], Any]) -> int:
    """Complete executions of a search that is exhausted; -1 if it is not."""
    search = strategy()
    count = sum(1 for _ in ends(make(), search))
    return count if search.exhausted else -1


def all_executions(make: Callable[[], World], strategy: Callable[[], Any]) -> int:
    """The same, with those that were given up half way."""
    search = strategy()
    count = sum(1 for _ in ends(make(), search))
    return count + search.blocked if search.exhausted else -1


def deadlocks(make: Callable[[], World], strategy: Callable[[], Any]) -> int:
    """Distinct end states in which a thread is blocked."""
    found = {
        tuple(cell.value for cell in of.vm.cells)
        for of in ends(make(), strategy())
        if any(thread.op is not None for thread in of.threads)
    }
    return len(found)


def outcomes(make: Callable[[], World], strategy: Callable[[], Any]) -> int:
    """Distinct valuations of all that was read."""
    return len({tuple(thread.actor.seen for thread in of.threads) for of in ends(make(), strategy())})  # type: ignore[attr-defined]


def within(make: Callable[[], World], bound: int) -> int:
    """Mazurkiewicz traces among the executions with at most `bound` delays."""
    search = DelayBounded(bound, count_classes=True)
    for _ in ends(make(), search):
        pass
    return search.classes


def first_hit(make: Callable[[], World], bad: Callable[[World], bool], runs: int, depth: int, steps: int) -> int:
    """The number of the first run of PCT that shows the bug, from 1; one more than `runs` if none does."""
    for run, of in enumerate(ends(make(), Pct(0, runs, depth, steps=steps)), 1):
        if bad(of):
            of.close()
            return run
    return runs + 1


def hits(make: Callable[[], World], bad: Callable[[World], bool], runs: int, depth: int, steps: int) -> int:
    """How many of so many runs of PCT show the bug."""
    return sum(map(bad, ends(make(), Pct(0, runs, depth, steps=steps))))


# ---- Mazurkiewicz traces --------------------------------------------------------------------------------------------------

#: maker, size -> traces; the size None is a program without one
CLASSES: list[tuple[Callable[..., World], dict[int | None, int]]] = [
    (p.readers, {2: 4, 8: 256}),
    (p.lastzero, {5: 64, 10: 3328}),
    (p.filesystem, {14: 2, 16: 8}),
    (p.indexer, {12: 8}),
    (p.inc, {2: 4, 3: 36, 4: 576}),
    (p.ainc, {n: math.factorial(n) for n in (2, 3, 4, 5)}),
    (p.cas, {2: 2, 3: 3, 4: 4, 5: 5}),
    (p.casrot, {2: 2, 3: 5, 4: 14, 5: 43, 6: 144, 7: 523}),
    (p.wainc, {2: 6, 3: 24, 4: 120}),
    (p.lockinc, {n: math.factorial(n) for n in (2, 3, 4)}),
    (p.dining, {2: 3, 3: 7, 4: 15}),
    (p.abba, {None: 3}),
    (p.popl, {None: 5}),
    (p.independent_receivers, {None: 2}),
    (p.indifferent_senders, {3: 1}),
]
#: sleep sets alone give up too many executions on the others
_SMALL = 600
_MANY_THREADS = (p.filesystem, p.indexer)


def classes() -> list[Row]:
    """One execution per trace: by optimal DPOR nothing else; by the others, nothing else that is complete."""
    rows = []
    for maker, known in CLASSES:
        for size, count in known.items():
            make = partial(automata, maker if size is None else partial(maker, size))
            name = maker.__name__ if size is None else f"{maker.__name__}({size})"
            rows.append(exactly(name, "executions", "optimal", count, partial(all_executions, make, OptimalDpor)))
            rows.append(exactly(name, "traces", "source", count, partial(complete, make, SourceDpor)))
            if count <= _SMALL and maker not in _MANY_THREADS:
                rows.append(exactly(name, "traces", "sleep", count, partial(complete, make, SleepSets)))
    rows.append(exactly("popl", "executions", "source", 10, partial(all_executions, partial(automata, p.popl), SourceDpor)))
    return rows


def locked_up() -> list[Row]:
    """Deadlocks: in one state everybody holds one lock and waits for another."""
    rows = []
    for name, make in (("dining(4)", partial(p.dining, 4)), ("abba", p.abba)):
        for strategy, search in (("optimal", OptimalDpor), ("states", StatefulSearch)):
            rows.append(exactly(name, "deadlocks", strategy, 1, partial(deadlocks, partial(automata, make), search)))
    return rows


def delays() -> list[Row]:
    """Delay-bounded search: how many traces of readers(6) each bound admits."""
    make = partial(p.readers, 6)
    known = (1, 2, 8, 23, 43, 58, 64, 64)
    measures = [partial(within, make, bound) for bound in range(len(known))]
    return [exactly("readers(6)", f"traces, {bound} delays", "delay", known[bound], m) for bound, m in enumerate(measures)]


# ---- memory models --------------------------------------------------------------------------------------------------------


def _sb(*between: p.Make) -> list[Body]:
    return [straight(store("x", 1), *between, load("y")), straight(store("y", 1), *between, load("x"))]


#: threads, number of outcomes under sc and tso.  Names are the literature's (Alglave, Maranget, Tautschnig: Herding Cats, 2014).
LITMUS: dict[str, tuple[Callable[[], list[Body]], int, int]] = {
    "SB": (_sb, 3, 4),
    "SB+mbs": (lambda: _sb(fence), 3, 3),
    "MP": (lambda: [straight(store("x", 1), store("y", 1)), straight(load("y"), load("x"))], 3, 3),
    "LB": (lambda: [straight(load("x"), store("y", 1)), straight(load("y"), store("x", 1))], 3, 3),
    "IRIW": (
        lambda: [*map(straight, (store("x", 1), store("y", 1))), *(straight(load(a), load(b)) for a, b in ("xy", "yx"))],
        15,
        15,
    ),
    "WRC": (lambda: [straight(store("x", 1)), straight(load("x"), store("y", 1)), straight(load("y"), load("x"))], 7, 7),
}


def litmus(name: str, memory: str) -> World:
    """A litmus test of the table."""
    return machine(LITMUS[name][0](), memory=memory, automata=True, x=0, y=0)


def weak_memory() -> list[Row]:
    """Distinct outcomes of the classic shapes."""
    rows = []
    for name, (_, sc, tso) in LITMUS.items():
        for memory, known in (("sc", sc), ("tso", tso)):
            for strategy, search in (("states", StatefulSearch), ("optimal", OptimalDpor)):
                make = partial(litmus, name, memory)
                rows.append(exactly(f"{name} {memory}", "outcomes", strategy, known, partial(outcomes, make, search)))
    return rows


# ---- PCT's guarantee ------------------------------------------------------------------------------------------------------


def padding(steps: int, name: str) -> list[p.Make]:
    """Steps that nobody else sees."""
    return [load(name)] * steps


def order_violation() -> World:
    """The reader may come before the writer: depth 1, 2 threads."""
    return machine([straight(store("x", 1)), straight(load("x"))], x=0)


def atomicity_violation() -> World:
    """A store between a load and a compare-and-swap of the same cell: depth 2, 2 threads, 20 steps."""

    async def update(me: Any) -> None:
        value = await READ_ONCE(me.vm.memory.x)
        me.seen = (await cmpxchg(me.vm.memory.x, value, value + 1) == value,)
        for _ in range(8):
            await READ_ONCE(me.vm.memory.mine)

    async def other(me: Any) -> None:
        for _ in range(9):
            await READ_ONCE(me.vm.memory.yours)
        await WRITE_ONCE(me.vm.memory.x, 5)

    return machine([update, other], x=0, mine=0, yours=0)


def lock_inversion() -> World:
    """ABBA among private steps: depth 2, 2 threads, 28 steps."""

    def taking(mine: str, first: str, second: str) -> Body:
        locks = p.taking(first, second)
        before = straight(*padding(5, mine))

        async def body(me: Any) -> None:
            await before(me)
            await locks(me)
            await before(me)

        return body

    return machine([taking("mine", "a", "b"), taking("yours", "b", "a")], a="", b="", mine=0, yours=0)


def read_too_early(of: World) -> bool:
    """Of order_violation."""
    return bool(of.threads[1].actor.seen == (0,))  # type: ignore[attr-defined]


def torn(of: World) -> bool:
    """Of atomicity_violation."""
    return bool(of.threads[0].actor.seen == (False,))  # type: ignore[attr-defined]


def locked(of: World) -> bool:
    """Of lock_inversion."""
    return any(thread.op is not None for thread in of.threads)


def sampling() -> list[Row]:
    """A depth-d bug of n threads and k steps is hit by a run with probability at least 1/(n k^(d-1)).

    Three standard deviations of luck are allowed for; the seed is fixed.
    """
    rows = []
    for make, bad, n, k, d, enough in (
        (order_violation, read_too_early, 2, 2, 1, 20),
        (atomicity_violation, torn, 2, 20, 2, 300),
        (lock_inversion, locked, 2, 28, 2, 400),
    ):
        runs = 2000
        mean = runs / (n * k ** (d - 1))
        name = make.__name__.replace("_", " ")
        luck = math.floor(mean - 3 * math.sqrt(mean * (1 - mean / runs)))
        rows.append(Row(name, "first hit", "pct", partial(first_hit, make, bad, enough, d, k), 1, enough))
        rows.append(Row(name, f"hits in {runs:,}", "pct", partial(hits, make, bad, runs, d, k), luck, None))
    return rows


def every_state(make: Callable[[], World], figure: str) -> int:
    """A figure of the stateful search without any reduction: `states`, or `generated` as TLC counts."""
    search = StatefulSearch(reduce=False)
    for _ in ends(make(), search):
        pass
    return int(getattr(search, figure))


def state_counts() -> list[Row]:
    """Distinct and generated states, as TLC has them for the TLA+ texts of the two protocols."""
    return [
        exactly(program, figure, "states, unreduced", known, partial(every_state, make, figure))
        for program, make, distinct, generated in (
            ("Peterson", peterson, 42, 77),
            ("two-phase commit(3)", two_phase_commit, 288, 1_146),
        )
        for figure, known in (("states", distinct), ("generated", generated))
    ]


GROUPS: list[Callable[[], list[Row]]] = [classes, locked_up, delays, weak_memory, state_counts, sampling]


def table() -> list[Row]:
    """Every row."""
    return [row for group in GROUPS for row in group()]
