"""The stateful search reaches what brute force reaches, and recognises a state that it has seen."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import by_brute_force, search, sparring, world
from test_source_dpor import watching

from actors.actor import Cell
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, choose, smp_mb
from actors.thread import Thread
from actors.vm import Vm
from racevisor.livelock import found_in
from racevisor.memory import MODELS
from racevisor.monitor import Monitor, Violation
from racevisor.oracles.protocols import peterson
from racevisor.step import Step
from racevisor.strategies import states
from racevisor.strategies.random_walk import RandomWalk
from racevisor.strategies.states import StatefulSearch
from racevisor.world import World


def by_states(of: World) -> Any:
    found = search(of, StatefulSearch())
    assert found.strategy.exhausted
    return found


ACCESSES = ("x=1", "x=2", "y=1", "y=2", "x:=1", "y:=2", "r0=x", "r1=y", "r2=x", "x+=1", "y+=2", "x<>3", "x?0>4", "x@1")
OTHERS = (
    "w=1",
    "w=2",
    "r3=w",
    "z+=1",
    "r4=z",
    "y@2",
    "mb",
    "wmb",
    "lock",
    "unlock",
    "x==1",
    "y==2",
    "x==1>0",
    "choose",
    "ipi",
    "cli",
    "sti",
)
WORDS = st.sampled_from((*ACCESSES, *OTHERS))


def steps(threads: list[list[str]]) -> int:
    """How many steps brute force has to order, with store buffers: a store is two."""
    stores = ("w=", "x=", "y=", "x:=", "y:=")
    return sum(1 + (word.startswith(stores) and "==" not in word) for words in threads for word in words)


THREADS = st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=2, max_size=3).filter(lambda threads: steps(threads) <= 8)


@settings(max_examples=100)
@given(THREADS, st.sampled_from(MODELS))
def test_every_end_state_of_brute_force_is_found_and_no_other(threads: list[list[str]], memory: str) -> None:
    program = " | ".join(" ".join(words) for words in threads)
    assert by_states(world(program, memory, automata=True)).ends == by_brute_force(world(program, memory)).ends


@settings(max_examples=60)
@given(THREADS, st.sampled_from(MODELS), st.integers(0, 9))
def test_a_schedule_found_on_automata_runs_the_same_on_coroutines(threads: list[list[str]], memory: str, seed: int) -> None:
    program = " | ".join(" ".join(words) for words in threads)
    quick, slow = (world(program, memory, automata=automata).run(RandomWalk(seed, 1)) for automata in (True, False))
    assert [(s.channel, s.label) for s in quick.steps] == [(s.channel, s.label) for s in slow.steps]


class Both(Monitor):
    """Not both at once: judged over two cells of two threads."""

    check = "both"

    def __init__(self, a: Cell, b: Cell) -> None:
        super().__init__([a, b])

    def on_step(self, _step: Step) -> Violation | None:
        return Violation(self.check, "both are set") if all(cell.value for cell in self.watches) else None


@pytest.mark.parametrize("memory", MODELS)
def test_a_violation_that_only_one_order_of_independent_steps_shows_is_found(memory: str) -> None:
    """x and y are never touched by the same thread, so a search that only knows conflicts tries one order of them."""
    program = "x=1 x=0 | y=1 y=0"
    found = by_states(world(program, memory, lambda vm: [Both(vm.memory.x, vm.memory.y)], automata=True))  # type: ignore[union-attr]
    assert found.violations == {"both are set"}


def test_a_program_that_never_ends_has_finitely_many_states_once_its_loops_say_checkpoint() -> None:
    search_ = StatefulSearch()
    found = search(peterson(), search_)
    assert search_.exhausted
    assert not found.ends
    assert search_.states <= 42


def test_a_loop_that_a_choice_can_leave_is_no_busy_loop() -> None:
    for goes_on in (0, 1):
        vm = Vm()
        m: Any = vm.guest_memory(x=0)

        async def body(me: Any, goes_on: int = goes_on, m: Any = m) -> None:
            while True:
                me.checkpoint("again")
                await READ_ONCE(m.x)
                if await choose(2) != goes_on:
                    return

        Thread(vm, "P0", body, seen=())
        found = by_states(World(vm, "sc", automata=True))
        assert found.violations == set()


def test_a_loop_that_nothing_can_leave_is_found_under_every_memory_model() -> None:
    for memory in MODELS:
        vm = Vm()
        m: Any = vm.guest_memory(x=0)

        async def body(me: Any, m: Any = m) -> None:
            while True:
                me.checkpoint("again")
                await WRITE_ONCE(m.x, 1)
                await smp_mb()

        async def other(_me: Any, m: Any = m) -> None:
            await READ_ONCE(m.x)

        Thread(vm, "P0", body, seen=())
        Thread(vm, "P1", other, seen=())
        found = by_states(World(vm, memory, automata=True))
        assert found.violations == {"P0 never blocks and never ends, and nothing else can move: a busy loop"}


def spinning(length: int, before: int, memory: str, others: int = 2) -> World:
    """P0 goes round for ever on a cell that nobody else touches; P1 and P2 touch what they share, and end."""
    vm = Vm()
    m: Any = vm.guest_memory(own=0, x=0, y=0)

    async def spins(me: Any) -> None:
        for _ in range(before):
            await READ_ONCE(m.own)
        while True:
            me.checkpoint("again")
            for i in range(length):
                await (WRITE_ONCE(m.own, i) if i % 2 else READ_ONCE(m.own))

    async def ends(me: Any) -> None:
        mine, theirs = (m.x, m.y) if me.name == "P1" else (m.y, m.x)
        for _ in range(others):
            await WRITE_ONCE(mine, 1)
            await READ_ONCE(theirs)

    Thread(vm, "P0", spins, seen=())
    Thread(vm, "P1", ends, seen=())
    Thread(vm, "P2", ends, seen=())
    return World(vm, memory, automata=True, max_steps=5_000)


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize(("length", "before"), [(1, 0), (7, 0), (7, 1_300), (99, 30), (150, 0)])
def test_a_busy_loop_of_private_steps_is_found_however_long_it_is(length: int, before: int, memory: str) -> None:
    """Private steps are taken a thousand in a row: a loop whose length does not divide that used to end at the step bound."""
    search_ = StatefulSearch()
    found = search(spinning(length, before, memory), search_)
    assert search_.exhausted
    assert found.violations == {"P0 never blocks and never ends, and nothing else can move: a busy loop"}


def test_a_busy_loop_of_private_steps_is_shown_in_its_first_rounds_and_replays() -> None:
    """Where it closes is learned, and the search starts again: nobody reads two hundred steps of a loop of seven."""
    of, search_ = spinning(7, 0, "sc", others=1), StatefulSearch()
    schedules = []
    run, goes_on = 0, True
    while goes_on:
        execution = of.run(search_, run)
        if execution.violations:
            schedules.append([step.channel for step in execution.steps])
        goes_on, run = search_.end(execution), run + 1
    (schedule,) = schedules
    assert len(schedule) <= 4 + 7 * 7  # four steps of P1 and P2, and P0 once or twice round before, between and after them
    assert found_in(spinning(7, 0, "sc", others=1), schedule) is not None


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize("order", ["P0 P1 P2", "P1 P0 P2", "P1 P2 P0"])
def test_a_thread_that_goes_round_alone_hides_nothing_of_the_others(
    order: str, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken first in its state, it slept in all that the others did from there, and was then the only one to be taken."""

    async def spins(me: Any) -> None:
        while True:
            me.checkpoint("again")
            await READ_ONCE(m.own)

    async def flips(me: Any) -> None:
        mine = m.x if me.name == "P1" else m.y
        for value in (1, 0, 1, 0):
            await WRITE_ONCE(mine, value)

    monkeypatch.setattr(states, "LEARN", 0)
    vm = Vm()
    m: Any = vm.guest_memory(own=0, x=0, y=0)
    for name in order.split():
        Thread(vm, name, spins if name == "P0" else flips, seen=())
    found = by_states(World(vm, memory, automata=True, monitors=[Both(m.x, m.y)]))
    assert found.violations == {"both are set", "P0 never blocks and never ends, and nothing else can move: a busy loop"}
    assert found.strategy.states == 21


def test_a_long_way_alone_is_no_loop_and_hides_no_end_of_the_others() -> None:
    """Store buffering beside a thread that counts to 1,500: all four ends, as without it."""
    vm = Vm()
    m: Any = vm.guest_memory(own=0, x=0, y=0)

    async def counts(me: Any) -> None:
        while me.rounds < 1_500:
            me.checkpoint("again")
            me.rounds += 1
            await READ_ONCE(m.own)

    async def stores(me: Any) -> None:
        mine, theirs = (m.x, m.y) if me.name == "P1" else (m.y, m.x)
        await WRITE_ONCE(mine, 1)
        me.seen = await READ_ONCE(theirs)

    Thread(vm, "P0", counts, seen=(), rounds=0)
    for name in ("P1", "P2"):
        Thread(vm, name, stores, seen=())
    assert len({end.seen for end in by_states(World(vm, "tso", automata=True)).ends}) == 4


class Marks(Monitor):
    """Ghost keys that appear as the run goes: two different memories are two states."""

    check = "marks"

    def on_step(self, step: Step) -> Violation | None:
        assert step.cell is not None
        self.ghost[step.cell.name] = 1
        return Violation(self.check, "x only") if step.cell.name == "z" and "y" not in self.ghost else None


class First(Monitor):
    """Remembers who was first, and where; both are empty at the start."""

    check = "first"

    def on_step(self, step: Step) -> Violation | None:
        self.ghost.setdefault("first", step.thread)
        self.where.setdefault("first", step.n)
        return None


@pytest.mark.parametrize("strategy", [StatefulSearch, lambda: StatefulSearch(reduce=False)])
def test_who_goes_back_to_where_a_monitor_remembered_nothing_finds_that_it_remembers_nothing(strategy: Any) -> None:
    """What it writes down afterwards must not get into what is kept of the state before."""
    of = world("y=1 | y=2", monitors=lambda vm: [First([vm.memory.y])], automata=True)  # type: ignore[union-attr]
    (first,), (y,) = of.monitors, [cell for cell in of.vm.cells if cell.name == "y"]
    chosen, seen, again, run = strategy(), set(), True, 0
    while again:
        execution = of.run(chosen, run)
        if execution.status == "terminal":
            seen.add((first.ghost["first"], first.where["first"], y.value))
        again, run = chosen.end(execution), run + 1
    assert seen == {("P0", 0, 2), ("P1", 0, 1)}


def test_ghost_states_with_different_keys_are_different() -> None:
    def make(vm: Vm) -> list[Monitor]:
        m: Any = vm.memory
        return [Marks([m.x, m.y, m.z])]

    vm = Vm()
    m: Any = vm.guest_memory(x=0, y=0, z=0)

    async def body(me: Any) -> None:
        await WRITE_ONCE(m.x if await choose(2) else m.y, 0)
        me.checkpoint("there")
        await WRITE_ONCE(m.z, 1)

    async def look(_me: Any) -> None:
        await READ_ONCE(m.z)

    Thread(vm, "P0", body, seen=())
    Thread(vm, "P1", look, seen=())
    of = World(vm, "sc", monitors=make(vm), automata=True)
    found = by_states(of)
    assert found.violations == {"x only"}
    assert found.ends


def test_a_waiter_on_a_cell_that_another_thread_leaps_over_is_woken() -> None:
    """It is learned late that B waits for what A stores."""
    assert {end.blocked for end in by_states(sparring(4)).ends} == {()}


@pytest.mark.parametrize("program", ["x=1 w=1 y==1 | r0=x y=1 y=2", "x=1 y=2 x==1>0 | x=1"])
def test_a_thread_that_waits_while_its_own_stores_leap_is_woken_once(program: str) -> None:
    assert by_states(world(program, "tso", automata=True)).ends == by_brute_force(world(program, "tso")).ends


def test_a_data_choice_is_explored_for_every_answer() -> None:
    vm = Vm()

    async def body(me: Any) -> None:
        me.seen = await choose(3), await choose(2)

    Thread(vm, "P0", body, seen=())
    of = World(vm, "sc", automata=True)
    assert {end.seen[0] for end in by_states(of).ends} == {(a, b) for a in range(3) for b in range(2)}


def test_a_thread_that_ends_while_it_holds_a_lock_blocks_the_other_in_some_executions() -> None:
    ends = by_states(world("lock x=1 | lock y=1 unlock", automata=True)).ends
    assert {end.blocked for end in ends} == {(), ("P1",)}


def test_a_value_that_cannot_be_hashed_is_reported_with_its_thread() -> None:
    vm = Vm()
    m: Any = vm.guest_memory(box=[])

    async def body(_me: Any) -> None:
        await READ_ONCE(m.box)

    Thread(vm, "P0", body, seen=())
    of = World(vm, "sc", automata=True)
    with pytest.raises(TypeError, match=r"P0 was given \[\], which cannot be hashed"):
        by_states(of)
    of.close()


def test_a_step_bound_is_never_taken_for_a_complete_search() -> None:
    vm = Vm()
    m: Any = vm.guest_memory(x=0, never=0)

    async def count(_me: Any) -> None:
        n = 0
        while True:
            n += 1
            await WRITE_ONCE(m.x, n)

    async def wait(_me: Any) -> None:
        await await_eq(m.x, -1)

    Thread(vm, "P0", count)
    Thread(vm, "P1", wait, seen=())
    strategy = StatefulSearch()
    search(World(vm, "sc", max_steps=60, automata=True), strategy)
    assert strategy.bounded
    assert not strategy.exhausted


@pytest.mark.parametrize("bad", [("P0", "P0~stores"), ("P0~stores", "P0")])
@pytest.mark.parametrize("program", ["x=1 r0=y", "x=1 r0=y | z=1", "w=1 x=1 r0=y"])
def test_a_monitor_sees_a_load_on_both_sides_of_its_own_threads_posted_store(
    program: str, bad: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other thread touches the cells, but the monitor tells the two orders apart; no random execution may find it by luck."""
    monkeypatch.setattr(states, "LEARN", 0)
    assert by_states(world(program, "tso", watching("x y", *bad), automata=True)).violations


@pytest.mark.parametrize("value", [0, 1])
def test_a_monitor_sees_two_posted_stores_of_one_thread_in_both_orders(value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under pso the two leave in any order, and the monitor watches one and reads the other."""

    class Reads(Monitor):
        check = "reads"

        def on_step(self, step: Step) -> Violation | None:
            return Violation(self.check, f"y is {self.reads[0].value}") if self.reads[0].value == value else None

    monkeypatch.setattr(states, "LEARN", 0)
    of = world("z=1 y=1 x=1", "pso", lambda vm: [Reads([vm.memory.x], reads=[vm.memory.y])], automata=True)  # type: ignore[union-attr]
    assert by_states(of).violations == {f"y is {value}"}
