"""Source-DPOR executes exactly one interleaving per Mazurkiewicz trace: against numbers of other tools, and against brute force.

The numbers of classes are from the test data of Nidhugg, GenMC and Concuerror, and from the papers on source sets.
"""

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Make, by_brute_force, by_source_dpor, diaries, search, world

from actors.ops import READ_ONCE, WRITE_ONCE, await_eq
from actors.thread import Thread
from actors.vm import Vm
from racevisor.errors import NotDeterministic
from racevisor.memory import MODELS
from racevisor.monitor import Monitor, Violation
from racevisor.oracles.programs import (
    ainc,
    cas,
    casrot,
    dining,
    filesystem,
    inc,
    indexer,
    lastzero,
    lockinc,
    machine,
    popl,
    readers,
    taking,
    wainc,
)
from racevisor.step import Step
from racevisor.strategies.brute_force import BruteForce
from racevisor.strategies.source_dpor import SourceDpor
from racevisor.world import World

CLASSES = [
    (readers, {2: 4, 8: 256}),
    (lastzero, {5: 64}),
    (filesystem, {14: 2, 16: 8}),
    (indexer, {11: 1, 12: 8}),
    (inc, {2: 4, 3: 36, 4: 576}),
    (ainc, {n: math.factorial(n) for n in (2, 3, 4, 5)}),
    (cas, {2: 2, 3: 3, 4: 4, 5: 5}),
    (casrot, {2: 2, 3: 5, 4: 14, 5: 43, 6: 144, 7: 523}),
    (wainc, {2: 6, 3: 24, 4: 120}),
    (lockinc, {n: math.factorial(n) for n in (2, 3, 4)}),
    (dining, {2: 3, 3: 7, 4: 15}),
]


@pytest.mark.parametrize(("make", "n", "classes"), [(make, n, k) for make, rows in CLASSES for n, k in rows.items()])
def test_complete_executions_are_as_many_as_there_are_classes(make: Callable[[int], World], n: int, classes: int) -> None:
    """Fewer would be unsound, more would be work done twice."""
    assert by_source_dpor(make(n)).strategy.executions == classes


def test_dining_philosophers_deadlock_in_exactly_one_class() -> None:
    """All hold their left fork: the one class where nobody eats, and it is a result."""
    of = dining(4)
    strategy = SourceDpor()
    deadlocks = run = 0
    again = True
    while again:
        execution = of.run(strategy, run)
        deadlocks += execution.status == "terminal" and any(thread.op is not None for thread in of.threads)
        again = strategy.end(execution)
        run += 1
    assert deadlocks == 1


def test_two_locks_in_opposite_order_deadlock_in_one_of_three_classes() -> None:
    """ABBA."""
    found = by_source_dpor(machine([taking("a", "b"), taking("b", "a")], a="", b=""))
    assert found.strategy.executions == 3
    assert sorted(len(end.blocked) for end in found.ends) == [0, 2]


def test_the_example_of_the_source_sets_paper_blocks_as_often_as_in_the_paper() -> None:
    """5 classes, and 5 executions given up: the price that wakeup trees (optimal DPOR) do away with."""
    strategy = by_source_dpor(popl()).strategy
    assert (strategy.executions, strategy.blocked) == (5, 5)


# ---- what an exhaustive search must not forget ----------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["lock | lock x=1 unlock", "lock x=1 unlock | lock", "lock | lock | lock unlock"])
@pytest.mark.parametrize("memory", MODELS)
def test_a_thread_that_ends_while_it_holds_the_lock_hides_no_class(program: str, memory: str) -> None:
    """The other one never takes the lock in that execution, and a race with a step that is never taken is easily forgotten."""
    reduced, full = both(program, memory)
    assert reduced.ends == full.ends
    assert len({end.blocked for end in reduced.ends}) > 1


def test_a_wait_is_met_on_both_sides_of_a_value_that_comes_and_goes() -> None:
    """x is 1 for a moment: the waiter may catch it or be left behind, and P1's second store is no part of any plain race."""
    reduced, full = both("x=1 x=0 | x==1", "sc")
    assert {end.blocked for end in reduced.ends} == {(), ("P1",)} == {end.blocked for end in full.ends}


def test_every_answer_of_a_choice_is_tried_in_every_order_of_the_rest() -> None:
    """An answer is no step of another thread: no race leads to the other answer."""
    found = by_source_dpor(world("choose choose | x=1"))
    assert {end.seen[0] for end in found.ends} == {(("choose", a), ("choose", b)) for a in (0, 1) for b in (0, 1)}
    assert found.strategy.executions == 4


def test_an_ipi_arrives_on_either_side_of_the_irq_flag() -> None:
    """With IRQs off it stays pending, with IRQs on its handler runs and it is gone."""
    found = by_source_dpor(world("ipi | cli"))
    assert {end["cpu"] for end in found.ends} == {1, 5}


@pytest.mark.parametrize("memory", MODELS)
def test_an_ipi_does_not_arrive_before_it_is_sent(memory: str) -> None:
    """Arrival races with `cli`, but the sender has waited for what came after `cli`."""
    assert by_source_dpor(world("cli x=1 | x==1 ipi", memory)).strategy.executions == 1


@pytest.mark.parametrize("memory", ["tso", "pso"])
def test_a_thread_does_not_wait_for_its_own_posted_store_before_it_has_left(memory: str) -> None:
    """The store made it wait for ever; that the wait came first is no order that the thread could have."""
    found = by_source_dpor(world("x=1 x==0", memory))
    assert found.strategy.executions == 1
    assert {end.blocked for end in found.ends} == {("P0",)}


def test_what_sleeps_is_not_planned_again() -> None:
    """Nidhugg and Concuerror drop such reversals too: 9 executions are given up here, and would be more."""
    assert by_source_dpor(lastzero(5)).strategy.blocked == 9


class OrderOf(Monitor):
    """Violated if the steps on its cells come in this order of channels."""

    check = "order"

    def __init__(self, cells: list[Any], *bad: str) -> None:
        super().__init__(cells, seen=())
        self.bad = bad

    def on_step(self, step: Step) -> Violation | None:
        self.ghost["seen"] += (step.channel,)
        return Violation(self.check, " then ".join(self.bad)) if self.ghost["seen"] == self.bad else None


def watching(names: str, *bad: str) -> Make:
    return lambda vm: [OrderOf([getattr(vm.memory, name) for name in names.split()], *bad)]


@pytest.mark.parametrize("program", ["x=1 | y=1", "r0=x | r0=x", "r0=x | r0=y", "x==0 | x==0", "x?1>2 | y=1"])
@pytest.mark.parametrize("bad", [("P0", "P1"), ("P1", "P0")])
def test_a_violation_that_lies_in_the_order_of_independent_steps_is_found(program: str, bad: tuple[str, str]) -> None:
    """Two cells, or two reads: without the monitor one execution is enough, and it shows one of the two orders."""
    assert by_source_dpor(world(program)).strategy.executions == 1
    assert by_source_dpor(world(program, monitors=watching("x y", *bad))).violations == {" then ".join(bad)}


def test_cells_that_two_monitors_watch_apart_stay_independent() -> None:
    """A monitor orders what it watches, and nothing more: 2 classes for x and y, and z commutes with both."""

    def monitors(vm: Vm) -> list[Monitor]:
        return [OrderOf([vm.memory.x, vm.memory.y]), OrderOf([vm.memory.z])]

    assert by_source_dpor(world("x=1 | y=1 | z=1", monitors=monitors)).strategy.executions == 2


def test_a_good_end_behind_a_violation_is_found() -> None:
    """The first execution is violated before P1 takes its step; the race that leads to the good end lies behind the violation."""

    async def p0(me: Any) -> None:
        if await READ_ONCE(me.vm.memory.y) == 0:
            await WRITE_ONCE(me.vm.memory.x, 1)

    async def p1(me: Any) -> None:
        await WRITE_ONCE(me.vm.memory.y, 1)

    def ends(strategy: SourceDpor) -> int:
        vm = Vm()
        memory = vm.guest_memory(x=0, y=0)
        Thread(vm, "P0", p0, seen=())
        Thread(vm, "P1", p1, seen=())
        found = search(World(vm, "sc", monitors=[OrderOf([memory.x], "P0")]), strategy)
        assert found.violations == {"P0"}
        return len(found.ends)

    assert ends(SourceDpor()) == 1
    assert ends(SourceDpor(past_violations=False)) == 0  # as documented: Sometimes, not Always


def test_a_search_that_met_the_step_bound_claims_nothing() -> None:
    """A spinning thread is cut, and what lies behind the cut is not known."""

    async def spin(me: Any) -> None:
        while not await READ_ONCE(me.vm.memory.x):
            pass

    async def store(me: Any) -> None:
        await WRITE_ONCE(me.vm.memory.x, 1)

    of = machine([spin, store], x=0)
    of.max_steps = 20
    strategy = search(of, SourceDpor()).strategy
    assert strategy.bounded and not strategy.exhausted


def test_two_searches_take_the_same_executions_in_the_same_order() -> None:
    """Which execution is number 17 must not hang on addresses or on hash seeds."""

    def schedules() -> list[list[str]]:
        of = world("x=1 r0=y x+=1 | y=1 r1=x lock | lock x=2 unlock", "pso")
        strategy = SourceDpor()
        taken = []
        again = True
        while again:
            execution = of.run(strategy, len(taken))
            taken.append([step.channel for step in execution.steps])
            again = strategy.end(execution)
        return taken

    assert schedules() == schedules()


def test_a_search_stops_at_a_machine_that_changes_between_runs() -> None:
    """What was planned in one execution is not there in the next; going on would be a proof about two machines."""
    runs = count()

    async def fickle(me: Any) -> None:
        if next(runs):
            await await_eq(me.vm.memory.y, 1)
        await READ_ONCE(me.vm.memory.x)

    async def store(me: Any) -> None:
        await WRITE_ONCE(me.vm.memory.x, 1)

    of = machine([store, fickle], x=0, y=0)
    with pytest.raises(NotDeterministic, match="the search wants P1 at step 0"):
        search(of, SourceDpor())
    of.close()


def test_a_search_refuses_a_second_world() -> None:
    """Channels belong to one World; a plan for another one would be nonsense without a warning."""
    strategy = SourceDpor()
    search(world("x=1"), strategy)
    with pytest.raises(ValueError, match="one World"):
        world("x=1").run(strategy, 1)


# ---- random programs ------------------------------------------------------------------------------------------------------

COMMON = ["r0=x", "r1=y", "x=1", "x=2", "y=1", "z=1", "r2=z"]
ATOMIC = ["x+=1", "x?0>3", "x?1>2", "y<>2", "y@1"]
ORDER = ["mb", "wmb", "x:=3", "y:=2"]
LOCKS = ["lock", "unlock", "lock x=1 unlock", "lock r0=x y=1 unlock"]
WAITS = ["x==1", "x==0>1", "y==0>2", "y==1>0"]
REST = ["choose", "ipi", "cli", "sti"]


def programs(*kinds: list[str]) -> st.SearchStrategy[str]:
    """Two threads of up to four words, or three of up to two: brute force has to keep up."""
    word = st.sampled_from([w for kind in kinds for w in kind])
    two = st.lists(st.lists(word, min_size=1, max_size=4), min_size=2, max_size=2)
    three = st.lists(st.lists(word, min_size=1, max_size=2), min_size=3, max_size=3)
    return st.one_of(two, three).map(lambda threads: " | ".join(" ".join(words) for words in threads)).filter(small)


def small(program: str) -> bool:
    """Few enough executions for brute force, even if every store is posted."""
    threads = [words.split() for words in program.split(" | ")]
    steps = [len(words) + sum(word == "ipi" or ("=" in word and word[0] != "r") for word in words) for words in threads]
    interleavings = math.factorial(sum(steps)) // math.prod(math.factorial(n) for n in steps)
    return interleavings << program.count("choose") <= 600


def both(program: str, memory: str, monitors: Make = lambda vm: []) -> tuple[Any, Any]:
    return (
        by_source_dpor(world(program, memory, monitors), classes=True),
        by_brute_force(world(program, memory, monitors), classes=True),
    )


def compare(program: str, memory: str, monitors: Make = lambda vm: []) -> None:
    reduced, full = both(program, memory, monitors)
    assert reduced.ends == full.ends
    assert len(set(reduced.classes)) == len(reduced.classes)
    assert set(reduced.classes) == set(full.classes)


bounded = settings(max_examples=100)


class Diary(Monitor):
    """Never violated; its memory of what it saw is part of the end state."""

    check = "diary"

    def on_step(self, step: Step) -> Violation | None:
        assert step.cell is not None
        self.ghost["seen"] += ((step.channel, step.cell.name, step.after),)
        return None


@bounded
@given(programs(COMMON, ATOMIC, WAITS), st.sampled_from(MODELS), st.sampled_from([["x"], ["x y"], ["x y", "y z"], ["x", "y"]]))
def test_a_monitor_sees_every_order_of_what_it_watches(program: str, memory: str, watches: list[str]) -> None:
    """All that a monitor could judge by: whatever predicate it computes, no verdict is missed."""

    def monitors(vm: Vm) -> list[Monitor]:
        return [Diary([getattr(vm.memory, name) for name in names.split()], seen=()) for names in watches]

    compare(program, memory, monitors)
    reduced, full = (diaries(world(program, memory, monitors), strategy) for strategy in (SourceDpor(), BruteForce()))
    assert reduced == full
