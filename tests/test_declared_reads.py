"""A monitor judges by cells of several threads: no reduction may hide a state in which it fails, nor may it look elsewhere."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import EXHAUSTIVE, Make, by_brute_force, by_source_dpor, diaries, exhaust, search, small_programs, world

from actors.actor import Cell
from actors.ops import READ_ONCE, WRITE_ONCE
from actors.thread import Thread
from actors.vm import Vm
from racevisor.errors import UndeclaredRead
from racevisor.memory import MODELS
from racevisor.monitor import Monitor, Violation
from racevisor.step import Step
from racevisor.strategies.audit import Audit
from racevisor.strategies.brute_force import BruteForce
from racevisor.strategies.random_walk import RandomWalk
from racevisor.world import World

bounded = settings(max_examples=80)


class Together(Monitor):
    """At a step on a watched cell, none of `looks_at` may hold 1; what it declares is up to the test."""

    check = "together"

    def __init__(self, watches: list[Cell], looks_at: list[Cell], reads: list[Cell]) -> None:
        super().__init__(watches, reads=reads)
        self.looks_at = looks_at

    def on_step(self, _step: Step) -> Violation | None:
        return Violation(self.check, "y is 1") if any(cell.value == 1 for cell in self.looks_at) else None


def together(*reads: str) -> Make:
    return lambda vm: [Together([vm.memory.x], [vm.memory.y], [getattr(vm.memory, name) for name in reads])]


# ---- what is declared is seen in every order ------------------------------------------------------------------------------

#: P0 is at x only when P1 is done, on all but a few schedules; the two never touch a cell of each other's.
NARROW = " ".join(["w+=1"] * 12) + " x+=1 | y=1 y=0"


@pytest.mark.parametrize("memory", MODELS)
def test_a_violation_over_cells_of_two_threads_that_share_nothing_is_found(memory: str) -> None:
    """Without the declaration every order of the two threads is alike, and the one that is taken is a good one."""

    def make(automata: bool, *reads: str) -> World:
        return world(NARROW, memory, together(*reads), automata=automata)

    assert by_brute_force(make(False, "y")).violations == {"y is 1"}

    def unguarded(automata: bool) -> World:
        of = make(automata)
        of.judge = lambda monitor, step: monitor.on_step(step)
        return of

    for name in EXHAUSTIVE:
        assert exhaust(name, lambda automata: make(automata, "y")).violations == {"y is 1"}, name
        assert exhaust(name, unguarded).violations == set(), name


@pytest.mark.parametrize(
    ("program", "classes"),
    [
        ("x=1 | y=1", 2),  # the write may come before or after the look
        ("x=1 | r0=y", 1),
        ("x=1 | y?1>2", 1),  # a cmpxchg that fails only reads
        ("r0=x | y=1", 2),  # the monitor is called at reads, too
        ("y=1 | z=1", 1),  # two writes, and nobody looks in between
        ("x=1 | y=1 | z=1", 4),
        ("r0=y | y=1", 2),  # among themselves they are as they were
        ("w=1 | x=1", 1),
    ],
)
def test_a_write_to_a_read_cell_is_ordered_against_the_watched_ones_and_nothing_more(program: str, classes: int) -> None:
    """Watching y and z would be sound as well, and would explore what nobody can tell apart."""

    def monitors(vm: Vm) -> list[Monitor]:
        return [Together([vm.memory.x], [], [vm.memory.y, vm.memory.z])]

    assert by_source_dpor(world(program, monitors=monitors)).strategy.executions == classes


def test_a_cell_that_is_watched_need_not_be_declared_as_read() -> None:
    vm = Vm()
    m: Any = vm.guest_memory(x=0, y=0)
    monitor = Together([m.x, m.y, m.x], [m.x, m.y], [m.y])
    assert [cell.name for cell in monitor.watches] == ["x", "y"]
    assert monitor.reads == []


# ---- what is not declared is an error -------------------------------------------------------------------------------------


def messages(make: Callable[[bool], World]) -> Iterator[str]:
    """The error of every strategy."""
    strategies = [(kind.make(), kind.automata) for kind in EXHAUSTIVE.values()]
    for strategy, automata in (*strategies, (BruteForce(), False), (RandomWalk(1, 20), True)):
        of = make(automata)
        with pytest.raises(UndeclaredRead) as caught:
            search(of, strategy)
        of.close()
        yield str(caught.value)


def test_a_monitor_that_reads_an_undeclared_cell_is_told_what_to_type() -> None:
    for message in messages(lambda automata: world("x=1 | y=1 y=0", "sc", together(), automata=automata)):
        assert message.startswith("check together reads memory.y at step ")
        assert "add memory.y to reads=" in message


class Looks(Monitor):
    """Reads a private attribute, and does not mind the error."""

    check = "looks"

    def __init__(self, cell: Cell, actor: Any, look: Callable[[Any], Any]) -> None:
        super().__init__([cell])
        self.actor = actor
        self.look = look

    def on_step(self, _step: Step) -> Violation | None:
        try:
            self.look(self.actor)
        except Exception:
            return None
        return None


@pytest.mark.parametrize(
    "look", [lambda actor: actor.seen, lambda actor: getattr(actor, "seen", 0), lambda actor: actor.local_state()]
)
def test_a_monitor_that_reads_a_private_attribute_is_refused(look: Callable[[Any], Any]) -> None:
    """Under automata it is not the attribute of the present state: threads do not run there, they are looked up."""

    def make(automata: bool) -> World:
        return world("x=1 | r0=x", "sc", lambda vm: [Looks(vm.memory.x, vm.by_name["P1"], look)], automata=automata)

    for message in messages(make):
        assert message.startswith("check looks reads P1.seen at step ")
        assert "make it a cell" in message


def test_after_a_guarded_call_everything_is_as_it_was() -> None:
    """Other monitors, end-state checks and the machine itself read what they like."""
    ends = []

    def check(vm: Vm) -> list[Violation]:
        ends.append((vm.memory.y.value, vm.by_name["P1"].seen))  # type: ignore[union-attr, attr-defined]
        return []

    of = world("x=1 x=2 | r0=y y=3", monitors=lambda vm: [Together([vm.memory.x], [], [])])
    kinds = {*map(type, of.vm.cells), *map(type, of.vm.actors)}
    of.check = check
    by_source_dpor(of)
    assert ends == [(3, (("r0", 0),))]
    assert {*map(type, of.vm.cells), *map(type, of.vm.actors)} == kinds


class Late(Monitor):
    """Looks at y when it is called with a value that it has not seen before, which happens late."""

    check = "late"

    def __init__(self, x: Cell, y: Cell, late: int) -> None:
        super().__init__([x])
        self.x, self.y, self.late = x, y, late

    def on_step(self, _step: Step) -> Violation | None:
        return Violation(self.check, "") if self.x.value >= self.late and self.y.value else None


def long_run(late: int, *, always: bool) -> World:
    """One thread that stores 0 so often that the guard finds nothing new, then 1, 2, 3."""
    vm = Vm()
    m: Any = vm.guest_memory(x=0, y=0)

    async def body(_me: Any) -> None:
        for value in [0] * 1_300 + [1, 2, 3]:
            await WRITE_ONCE(m.x, value)

    Thread(vm, "P0", body)
    of = World(vm, monitors=[Late(m.x, m.y, late)])
    of.guard.always = always
    return of


@pytest.mark.parametrize(("always", "late", "caught"), [(True, 1, True), (True, 3, True), (False, 0, True), (False, 3, False)])
def test_the_guard_looks_at_every_call_until_it_has_met_nothing_new_for_long(always: bool, late: int, caught: bool) -> None:
    """The limit is real and stated in racevisor.guard; with `always`, as in an audit, there is none."""
    of = long_run(late, always=always)
    if caught:
        with pytest.raises(UndeclaredRead, match=r"add memory\.y to reads="):
            of.run(RandomWalk(1, 1))
    else:
        assert of.run(RandomWalk(1, 1)).status == "terminal"
    of.close()


def test_an_audit_guards_every_call() -> None:
    """The walk itself lets the late input pass; the audited runs do not."""
    strategy = Audit(RandomWalk(1, 1), lambda: long_run(3, always=False))
    of = long_run(3, always=False)
    execution = of.run(strategy)
    with pytest.raises(UndeclaredRead):
        strategy.end(execution)
    of.close()


def test_values_that_cannot_be_hashed_are_guarded_each_time() -> None:
    """Source DPOR has no need to hash a value, so a scenario may hold a list in a cell there."""
    vm = Vm()
    m: Any = vm.guest_memory(x=[], y=0)

    async def body(_me: Any) -> None:
        await READ_ONCE(m.x)
        await WRITE_ONCE(m.x, [1])

    Thread(vm, "P0", body)
    of = World(vm, monitors=[Together([m.x], [m.y], [])])
    with pytest.raises(UndeclaredRead, match="step 0"):
        of.run(RandomWalk(1, 1))
    of.close()


# ---- random programs under random monitors ---------------------------------------------------------------------------------

LOADS_AND_STORES = ["r0=x", "r1=y", "r2=z", "x=1", "x=2", "y=1", "y=0", "z=1", "w=1", "x:=3", "y:=0", "mb", "wmb"]
ATOMIC = ["x+=1", "x?0>3", "x?1>2", "y<>2", "y@1"]
WAITS = ["lock", "unlock", "x==1", "x==0>1", "y==0>2", "y==1>0", "choose"]
WORDS = [*LOADS_AND_STORES, *ATOMIC, *WAITS, "ipi", "cli", "sti"]
#: c is the cell of the physical CPU, m the mutex word
WATCHES = st.sampled_from(["x", "y", "z", "w", "c", "m", "xy", "yx", "yz", "xc"]).map(list)
READS = st.sampled_from(["", "x", "y", "z", "c", "m", "xy", "yz", "wy", "cm"]).map(list)


def cells(vm: Vm, names: list[str]) -> list[Cell]:
    found = {cell.name: cell for cell in vm.cells}
    return [found[{"c": "cpu", "m": "mutex"}.get(name, name)] for name in names]


class Table(Monitor):
    """Fails at the combinations of declared values that `bad` lists, whatever they mean."""

    check = "table"

    def __init__(self, watches: list[Cell], reads: list[Cell], bad: int) -> None:
        super().__init__(watches, reads=reads)
        self.bad = bad

    def on_step(self, _step: Step) -> Violation | None:
        row = 0
        for cell in (*self.watches, *self.reads):
            row = 2 * row + bool(cell.value)
        return Violation(self.check, "bad") if self.bad >> row & 1 else None


TABLES = st.lists(st.tuples(WATCHES, READS, st.integers(0, 2**16 - 1)), min_size=1, max_size=2)


@pytest.mark.parametrize("name", EXHAUSTIVE)
@bounded
@given(program=small_programs(WORDS), memory=st.sampled_from(MODELS), tables=TABLES)
def test_a_random_predicate_fails_where_brute_force_sees_it_fail(
    name: str, program: str, memory: str, tables: list[tuple[list[str], list[str], int]]
) -> None:
    """Violated or not, and the end states of the executions that no violation cut short."""

    def make(automata: bool) -> World:
        def monitors(vm: Vm) -> list[Monitor]:
            return [Table(cells(vm, watches), cells(vm, reads), bad) for watches, reads, bad in tables]

        return world(program, memory, monitors, automata=automata)

    full = by_brute_force(make(False))
    reduced = exhaust(name, make)
    assert (reduced.violations, reduced.ends) == (full.violations, full.ends)


class Diary(Monitor):
    """Never violated; it remembers all that a predicate could judge by.  It begins with no ghost variable."""

    check = "diary"

    def on_step(self, step: Step) -> Violation | None:
        assert step.cell is not None
        entry = (step.channel, step.cell.name, step.before, step.after, *(cell.value for cell in self.reads))
        self.ghost["seen"] = (*self.ghost.get("seen", ()), entry)
        return None


@pytest.mark.parametrize("name", EXHAUSTIVE)
@bounded
@given(
    program=small_programs(WORDS),
    memory=st.sampled_from(MODELS),
    declared=st.lists(st.tuples(WATCHES, READS), min_size=1, max_size=2),
)
def test_all_that_a_monitor_could_judge_by_is_seen(
    name: str, program: str, memory: str, declared: list[tuple[list[str], list[str]]]
) -> None:
    """The order of the watched steps, and at each of them the values of the read cells: so no predicate over these is missed."""

    def make(automata: bool) -> World:
        def monitors(vm: Vm) -> list[Monitor]:
            return [Diary(cells(vm, watches), reads=cells(vm, reads)) for watches, reads in declared]

        return world(program, memory, monitors, automata=automata)

    kind = EXHAUSTIVE[name]
    assert diaries(make(kind.automata), kind.make()) == diaries(make(False), BruteForce())


@bounded
@given(program=small_programs(WORDS), memory=st.sampled_from(MODELS), watches=WATCHES, reads=READS)
def test_every_class_under_a_reading_monitor_is_executed_once(
    program: str, memory: str, watches: list[str], reads: list[str]
) -> None:
    """Dependence that is too large shows here, as too many executions; what is too small shows above."""

    def make() -> World:
        def monitors(vm: Vm) -> list[Monitor]:
            return [Diary(cells(vm, watches), reads=cells(vm, reads))]

        return world(program, memory, monitors)

    reduced, full = by_source_dpor(make(), classes=True), by_brute_force(make(), classes=True)
    assert len(set(reduced.classes)) == len(reduced.classes)
    assert set(reduced.classes) == set(full.classes)
