"""Optimal DPOR executes each Mazurkiewicz trace once and gives nothing up; the cross-checks and brute force agree with it."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import by_brute_force, search, world
from test_source_dpor import (
    ATOMIC,
    CLASSES,
    COMMON,
    LOCKS,
    ORDER,
    REST,
    WAITS,
    Diary,
    OrderOf,
    bounded,
    dining,
    lastzero,
    popl,
    programs,
    taking,
    watching,
)
from test_source_dpor import machine as threads

from actors.ops import READ_ONCE, WRITE_ONCE, choose
from racevisor.memory import MODELS
from racevisor.strategies.optimal import OptimalDpor
from racevisor.strategies.sleep_sets import SleepSets
from racevisor.strategies.source_dpor import SourceDpor
from racevisor.world import World


def optimal(of: World, **options: Any) -> Any:
    found = search(of, OptimalDpor(), **options)
    assert found.strategy.exhausted
    assert found.strategy.blocked == 0
    return found


@pytest.mark.parametrize(("make", "n", "classes"), [(make, n, k) for make, rows in CLASSES for n, k in rows.items()])
def test_executions_are_exactly_as_many_as_there_are_classes(make: Any, n: int, classes: int) -> None:
    """None twice, none missing, none given up half way."""
    assert optimal(make(n)).strategy.executions == classes


def test_ten_writers_in_a_chain_have_3328_classes() -> None:
    """Long enough that a search which remembers too little of a reversal misses some: 3,322 without what comes after the race."""
    of = lastzero(10, automata=True)
    assert optimal(of).strategy.executions == 3_328


def test_the_example_of_the_source_sets_paper_needs_no_execution_to_be_given_up() -> None:
    """Source-DPOR gives up five here: the price that wakeup trees do away with."""
    assert optimal(popl()).strategy.executions == 5


def test_deadlocks_are_executions_like_others() -> None:
    """One class of fifteen for the philosophers, one of three for ABBA."""
    ends = [end.blocked for end in optimal(dining(4)).ends]
    assert ends.count(("P0", "P1", "P2", "P3")) == 1
    found = optimal(threads([taking("a", "b"), taking("b", "a")], a="", b=""))
    assert found.strategy.executions == 3
    assert sorted(len(end.blocked) for end in found.ends) == [0, 2]


def test_a_choice_that_comes_after_a_race_is_made_again_when_the_race_is_reversed() -> None:
    """The race is found in the execution with the first answer, and never again in the one with the second."""
    found = optimal(world("ipi sti | choose | cli"), classes=True)
    assert set(found.classes) == set(by_brute_force(world("ipi sti | choose | cli"), classes=True).classes)
    assert len(found.classes) == 10


@pytest.mark.parametrize("memory", ["tso", "pso"])
@pytest.mark.parametrize(
    ("program", "classes"),
    [
        ("x?0>1 | x?1>0 | x=1 r0=x", 14),  # 16 executions if the cmpxchg, reversed, is taken for what it was
        ("x@0 | x?2>1 | x=2 r0=x", 13),
        ("y?0>2 | x?0>1 | y=2 r0=y", 3),  # source-DPOR met 2: the load has to come before the cmpxchg once that succeeds
    ],
)
def test_an_rmw_that_comes_first_is_judged_by_what_it_does_then(program: str, classes: int, memory: str) -> None:
    """Before its own thread's load and flush, which commute, a cmpxchg conflicts with both or with one, as it succeeds or not."""
    compare(program, memory)
    assert optimal(world(program, memory)).strategy.executions == classes


@pytest.mark.parametrize("strategy", [OptimalDpor, SourceDpor, SleepSets])
def test_a_race_is_reversed_again_with_every_end_of_the_execution(strategy: Any) -> None:
    """P1's load and flush race whatever is answered behind them; reversed for one answer only, it lost one class of 24."""

    async def p0(me: Any) -> None:
        me.seen = (await choose(3), await choose(2))
        if me.seen[1] == 0:
            await WRITE_ONCE(me.vm.memory.y, 2)

    async def p1(me: Any) -> None:
        await WRITE_ONCE(me.vm.memory.z, 1)
        me.seen = (await READ_ONCE(me.vm.memory.y),)

    of = threads([p0, p1], y=0, z=0)
    of = World(of.vm, "tso", monitors=[Diary([of.vm.memory.y, of.vm.memory.z], seen=())], automata=True)  # type: ignore[union-attr]
    classes = search(of, strategy(), classes=True).classes
    assert len(classes) == len(set(classes)) == 24


# ---- a World that takes steps back ----------------------------------------------------------------------------------------


def seen(of: World) -> tuple[Any, ...]:
    return (
        of.fingerprint(),
        {channel.name for channel in of.movable},
        [(cell.label, sorted(thread.actor.name for thread in cell.waiters)) for cell in of.vm.cells],
        [(step.channel, step.label) for step in of.steps],
    )


@bounded
@given(programs(COMMON, ATOMIC, ORDER, LOCKS, WAITS, REST), st.sampled_from(MODELS), st.integers(0, 9))
def test_steps_taken_back_leave_no_mark(program: str, memory: str, seed: int) -> None:
    """Every state on the way back is the one on the way there: values, buffers, what can move, who waits, ghost states."""
    of = world(program, memory, lambda vm: [Diary([vm.memory.x, vm.memory.y], seen=())], automata=True)  # type: ignore[union-attr]
    of.journal = []
    of.reset()
    random = Random(seed)
    states = [seen(of)]
    for _ in range(3):
        while of.movable:
            of.step(random.choice(sorted(of.movable, key=lambda channel: channel.number)))
            states.append(seen(of))
        stay = random.randrange(len(states))
        for depth in range(len(states) - 1, stay - 1, -1):
            of.undo(depth)
            assert seen(of) == states[depth]
        del states[stay + 1 :]
    of.close()


# ---- random programs ------------------------------------------------------------------------------------------------------


def compare(program: str, memory: str, monitors: Any = lambda vm: []) -> None:
    full = by_brute_force(world(program, memory, monitors), classes=True)
    for strategy, automata in (
        (OptimalDpor, False),
        (OptimalDpor, True),
        (SourceDpor, False),
        (SourceDpor, True),
        (SleepSets, False),
        (SleepSets, True),
    ):
        reduced = search(world(program, memory, monitors, automata=automata), strategy(), classes=True)
        assert reduced.strategy.exhausted
        assert reduced.ends == full.ends
        assert reduced.violations == full.violations
        assert set(reduced.classes) == set(full.classes)
        assert len(set(reduced.classes)) == len(reduced.classes)
        assert strategy is not OptimalDpor or reduced.strategy.blocked == 0


@bounded
@given(programs(COMMON, ATOMIC, ORDER), st.sampled_from(MODELS))
def test_classes_of_loads_stores_and_barriers_are_those_of_brute_force(program: str, memory: str) -> None:
    """For all three searches: optimal, source, sleep sets."""
    compare(program, memory)


@bounded
@given(programs(LOCKS, WAITS, COMMON), st.sampled_from(MODELS))
def test_classes_of_locks_and_waits_are_those_of_brute_force(program: str, memory: str) -> None:
    """Threads that wait, that wait for ever, that end inside a critical section."""
    compare(program, memory)


@bounded
@given(programs(REST, ORDER, COMMON, WAITS), st.sampled_from(MODELS))
def test_classes_of_choices_and_ipis_are_those_of_brute_force(program: str, memory: str) -> None:
    """Channels that come into being, and heads that exclude each other."""
    compare(program, memory)


@bounded
@given(programs(COMMON, ATOMIC, WAITS), st.sampled_from(MODELS), st.sampled_from([["x y"], ["x y", "y z"], ["x", "y"]]))
def test_classes_under_monitors_are_those_of_brute_force(program: str, memory: str, watches: list[str]) -> None:
    """What one monitor watches is ordered, reads and different cells too."""
    compare(
        program, memory, lambda vm: [Diary([getattr(vm.memory, name) for name in names.split()], seen=()) for names in watches]
    )


@pytest.mark.parametrize("bad", [("P0", "P1"), ("P1", "P0")])
def test_a_violation_that_lies_in_the_order_of_independent_steps_is_found(bad: tuple[str, str]) -> None:
    """And the search goes on behind it: the other order is met too."""
    found = optimal(world("x=1 | y=1", monitors=watching("x y", *bad), automata=True))
    assert found.violations == {" then ".join(bad)}
    assert found.strategy.executions == 2


def test_a_good_end_behind_a_violation_is_found() -> None:
    """The race that leads to the good end lies behind the violation, where the World has stopped."""

    async def p0(me: Any) -> None:
        if await READ_ONCE(me.vm.memory.y) == 0:
            await WRITE_ONCE(me.vm.memory.x, 1)

    async def p1(me: Any) -> None:
        await WRITE_ONCE(me.vm.memory.y, 1)

    for past_violations, ends in ((True, 1), (False, 0)):
        of = threads([p0, p1], x=0, y=0)
        of = World(of.vm, "sc", monitors=[OrderOf([of.vm.memory.x], "P0")], automata=True)  # type: ignore[union-attr]
        found = search(of, OptimalDpor(past_violations=past_violations))
        assert found.violations == {"P0"}
        assert len(found.ends) == ends


def test_the_frontier_is_what_is_explored_and_known_along_the_path() -> None:
    """At the end of a search nothing is left on it; in between it never says more than there is."""
    strategy = OptimalDpor()
    of = lastzero(4)
    run = 0
    while strategy.end(of.run(strategy, run)):
        run += 1
        frontier = strategy.frontier()
        assert frontier
        assert all(0 <= done < known for done, known in frontier)
    assert strategy.frontier() == []
