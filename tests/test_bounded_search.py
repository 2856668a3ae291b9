"""Delay- and preemption-bounded search: exactly the schedules within the bound, each once, and no claim beyond it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import PROGRAMS, End, by_brute_force, end_state, search, trace_class, world

from actors.actor import Actor
from actors.ops import READ_ONCE
from actors.thread import Thread
from actors.vm import Vm
from racevisor.classes import trace_key
from racevisor.errors import NotDeterministic, UsageError
from racevisor.memory import MODELS
from racevisor.step import CHOICE
from racevisor.strategies.bounded import DelayBounded, PreemptionBounded
from racevisor.strategies.brute_force import BruteForce
from racevisor.strategies.random_walk import RandomWalk
from racevisor.world import Channel, Execution, World

Bounded = type[DelayBounded] | type[PreemptionBounded]
BOTH = pytest.mark.parametrize("kind", [DelayBounded, PreemptionBounded])
READERS = "x=42" + 6 * " | r0=x"
Place = tuple[int, int, str]


class Costs(BruteForce):
    """Every interleaving, with what it costs in delays and in preemptions, counted from the definition afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, ...], tuple[int, int]] = {}

    def begin(self, world: World, run: int) -> None:
        super().begin(world, run)
        self.rows = {thread: n for n, thread in enumerate(world.threads)}
        self.history: list[tuple[set[Place], Place]] = []

    def place(self, channel: Channel) -> Place:
        of = channel.thread.channel if channel.kind == CHOICE else channel
        return self.rows[of.thread], of.kind, of.name

    def pick(self, movable: list[Channel]) -> Channel:
        chosen = super().pick(movable)
        self.history.append(({self.place(c) for c in movable}, self.place(chosen)))
        return chosen

    def end(self, execution: Execution) -> bool:
        delays = preemptions = 0
        last: Place = (-1, 0, "")
        for ready, chosen in self.history:
            preemptions += last in ready and chosen != last
            # who stood between the one whose turn it was and the one that moved was skipped
            if chosen >= last:
                delays += sum(last <= one < chosen for one in ready)
            else:
                delays += sum(one >= last or one < chosen for one in ready)
            last = chosen
        self.found[tuple(step.channel for step in execution.steps)] = delays, preemptions
        return super().end(execution)


def schedules(of: World, strategy: Any) -> list[tuple[str, ...]]:
    found = []
    run = 0
    again = True
    while again:
        execution = of.run(strategy, run)
        found.append(tuple(step.channel for step in execution.steps))
        again = strategy.end(execution)
        run += 1
    of.close()
    return found


@pytest.mark.parametrize(("bound", "classes"), list(enumerate([1, 2, 8, 23, 43, 58, 64, 64])))
def test_delays_reach_as_many_classes_of_the_readers_as_another_tool_found(bound: int, classes: int) -> None:
    """A writer and six readers, 64 Mazurkiewicz traces: the figures are those of another delay-bounded search."""
    found = search(world(READERS), DelayBounded(bound, count_classes=True)).strategy
    assert found.classes == classes
    assert found.cut and not found.exhausted


@settings(max_examples=25)
@given(PROGRAMS, st.sampled_from(MODELS), st.integers(0, 3))
def test_a_bound_runs_each_schedule_within_it_once_and_no_other(program: str, memory: str, bound: int) -> None:
    """Which schedules these are is worked out from all interleavings, by counting what a scheduler would have had to do."""
    costs = Costs()
    search(world(program, memory), costs)
    for place, kind in enumerate((DelayBounded, PreemptionBounded)):
        strategy = kind(bound)
        found = schedules(world(program, memory), strategy)
        wanted = {schedule for schedule, cost in costs.found.items() if cost[place] <= bound}
        assert sorted(found) == sorted(wanted)
        assert strategy.executions == len(found)
        assert strategy.cut == (len(wanted) < len(costs.found)) != strategy.exhausted


@settings(max_examples=60)
@given(PROGRAMS, st.sampled_from(MODELS), st.sampled_from([DelayBounded, PreemptionBounded]))
def test_end_states_grow_with_the_bound_up_to_those_of_brute_force(program: str, memory: str, kind: Bounded) -> None:
    """More budget never loses a bug, and a search that says exhausted has seen everything."""
    before: set[End] = set()
    bound = 0
    while True:
        found = search(world(program, memory), kind(bound))
        assert before <= found.ends
        before = found.ends
        if found.strategy.exhausted:
            break
        assert found.strategy.cut
        bound += 1
    full = by_brute_force(world(program, memory))
    assert found.ends == full.ends
    assert found.strategy.executions == full.strategy.executions


@settings(max_examples=60)
@given(PROGRAMS, st.sampled_from(MODELS), st.sampled_from([DelayBounded, PreemptionBounded]))
def test_the_classes_counted_on_the_way_are_those_of_the_executions(program: str, memory: str, kind: Bounded) -> None:
    """The names are grown from what two executions share; the slow definition starts each time anew."""
    of = world(program, memory)
    strategy = kind(1, count_classes=True)
    names, slow = set(), set()
    run = 0
    again = True
    while again:
        execution = of.run(strategy, run)
        names.add(trace_key(of))
        slow.add(trace_class(of))
        again = strategy.end(execution)
        run += 1
    of.close()
    assert strategy.keys == names
    assert strategy.classes == len(slow)


def test_without_delays_threads_run_one_after_the_other_with_their_stores_behind_them() -> None:
    """Bound 0 is one schedule, the one of a machine where nothing comes between."""
    found = schedules(world("x=1 r0=y | y=1 r1=x", "tso"), DelayBounded(0))
    assert found == [("P0", "P0", "P0~stores", "P1", "P1", "P1~stores")]


def test_one_delay_of_a_posted_store_is_one_half_of_store_buffering() -> None:
    """A store buffer is an entity: what TSO adds to SC costs delays like any other disorder, here one per store."""
    program = "x=1 r0=y | y=1 r1=x"

    def relaxed(kind: Bounded, bound: int) -> bool:
        return any(end["r0"] == end["r1"] == 0 for end in search(world(program, "tso"), kind(bound)).ends)

    assert [relaxed(DelayBounded, bound) for bound in range(3)] == [False, True, True]
    # a thread that has ended is not preempted, and its store may go after everything else
    assert [relaxed(PreemptionBounded, bound) for bound in range(2)] == [True, True]


def test_a_preemption_is_a_switch_from_one_that_could_go_on() -> None:
    """Between two reads of one thread a store of another needs one; before or after them it needs none."""
    program = "r0=x r1=x | x=1"
    ends = [search(world(program), PreemptionBounded(bound)).ends for bound in range(2)]
    assert [{(end["r0"], end["r1"]) for end in some} for some in ends] == [{(0, 0), (1, 1)}, {(0, 0), (0, 1), (1, 1)}]


@BOTH
def test_the_answers_of_a_choice_cost_nothing(kind: Bounded) -> None:
    """They are data of the environment, not a matter of scheduling: bound 0 tries them all."""
    found = search(world("choose choose"), kind(0))
    assert len(found.ends) == 4
    assert found.strategy.exhausted


@BOTH
def test_a_search_that_met_the_step_bound_claims_nothing(kind: Bounded) -> None:
    """A thread that spins was cut, so what it would have done is not known, whatever the bound."""

    async def spin(me: Any) -> None:
        while not await READ_ONCE(me.vm.memory.x):
            pass

    vm = Vm()
    vm.guest_memory(x=0)
    Thread(vm, "P0", spin)
    found = search(World(vm, max_steps=20), kind(9, count_classes=True)).strategy
    assert found.bounded and not found.cut and not found.exhausted
    assert found.classes == 0


@BOTH
def test_the_frontier_says_how_far_each_branching_node_has_come(kind: Bounded) -> None:
    """An estimate of what remains is made of it: from the root down, children finished and children known."""
    of = world("x=1 | r0=x | r0=x")
    strategy = kind(2)
    run, met = 0, []
    again = True
    while again:
        execution = of.run(strategy, run)
        met.append(strategy.frontier())
        again = strategy.end(execution)
        run += 1
    of.close()
    assert met[0] == [(0, 3), (0, 2)]
    assert met == sorted(met), "a depth-first search leaves nothing behind"
    assert met[-1] == [(2, 3)] if kind is DelayBounded else met[-1] == [(2, 3), (1, 2)]
    assert strategy.frontier() == []


@BOTH
def test_the_bound_is_said_in_words(kind: Bounded) -> None:
    """The verdict shows it, so that nobody takes a bounded search for a proof."""
    noun = kind.noun
    assert [kind(n).limit_words() for n in (0, 1, 2)] == [f"at most 0 {noun}s", f"at most 1 {noun}", f"at most 2 {noun}s"]
    with pytest.raises(UsageError, match="at most -1"):
        kind(-1)


@BOTH
def test_a_search_refuses_a_second_world(kind: Bounded) -> None:
    """Its path consists of channels, which belong to one World."""
    strategy = kind(1)
    one, other = world("x=1 | y=1"), world("x=1 | y=1")
    one.run(strategy)
    with pytest.raises(ValueError, match="one World"):
        other.run(strategy)
    one.close()
    other.close()


@BOTH
def test_a_search_stops_at_a_machine_that_changes_between_runs(kind: Bounded) -> None:
    """The schedule before it would otherwise not be the one that is thought to be searched."""
    runs: list[Actor] = []

    async def fickle(me: Any) -> None:
        runs.append(me)
        if len(runs) < 2:
            await READ_ONCE(me.vm.memory.x)

    async def load(me: Any) -> None:
        await READ_ONCE(me.vm.memory.x)

    vm = Vm()
    vm.guest_memory(x=0)
    Thread(vm, "P0", fickle)
    Thread(vm, "P1", load)
    Thread(vm, "P2", load)
    of = World(vm)
    strategy = kind(2)
    assert strategy.end(of.run(strategy, 0))
    with pytest.raises(NotDeterministic, match="at step 0"):
        of.run(strategy, 1)
    of.close()


def test_two_searches_take_the_same_executions_in_the_same_order() -> None:
    """Nothing depends on the order of a set or on which channel of a World was used first."""
    program = "x=1 y=1 r0=w | y=2 w=1 ipi | x=3 choose"
    first, second = (schedules(world(program, "pso"), DelayBounded(1)) for _ in range(2))
    used = world(program, "pso")
    for seed in range(5):
        used.run(RandomWalk(seed, 5))
    assert first == second == schedules(used, DelayBounded(1))


def test_an_end_state_is_read_where_the_execution_ended() -> None:
    """Guards the helper that all of this relies on: bound 0 of one thread leaves its last value."""
    of = world("x=1 x=2")
    execution = of.run(DelayBounded(0))
    assert execution.status == "terminal" and end_state(of)["x"] == 2
    of.close()
