"""A bad execution is shrunk to what a person can read, and what is said about how far it could still be shrunk is true."""

from collections.abc import Callable

import pytest
from corpus import found, shrunk_of

from actors.ops import READ_ONCE, WRITE_ONCE, choose
from racevisor import Monitor, Scenario, Step, Thread, Variant, Violation, Vm
from racevisor.classes import trace_key
from racevisor.deviations import Player, switches
from racevisor.explore import cases, explore_case
from racevisor.fewest import FewestSwitches
from racevisor.linear import causes, linearized, posts_late
from racevisor.reenact import reenact
from racevisor.scenario import Case, Source
from racevisor.shrink import first_broken, shrink
from racevisor.strategies.brute_force import BruteForce
from racevisor.strategies.random_walk import RandomWalk


def test_what_is_shrunk_breaks_the_same_check_step_for_step_when_it_is_run_again(bad_cell: Case) -> None:
    """It takes the place of the execution that was found, also in a trace."""
    shrunk = shrunk_of(bad_cell)
    _, execution = reenact(bad_cell, shrunk.witness.schedule)
    assert execution.violations[0].check == shrunk.check == first_broken(found(bad_cell).violations).check
    assert switches(execution.steps) == shrunk.after.switches <= shrunk.before.switches
    assert len(execution.steps) == shrunk.after.steps


def test_no_deviation_can_be_taken_back_and_no_order_has_fewer_switches(bad_cell: Case) -> None:
    """1-minimal, and at most one switch from the optimum wherever the states could be exhausted; within the budget."""
    shrunk = shrunk_of(bad_cell)
    assert shrunk.one_minimal
    assert shrunk.executions <= 500
    assert shrunk.at_least >= shrunk.after.switches - 1
    world = bad_cell.world(automata=True)
    player = Player(world, shrunk.check)
    whole = player.play(shrunk.deviations)
    assert whole.bad
    assert len(whole.execution.steps) == shrunk.after.steps
    for one in shrunk.deviations:
        without = player.play([other for other in shrunk.deviations if other != one])
        assert not without.bad or without.cost > whole.cost
    world.close()


# ---- against all interleavings --------------------------------------------------------------------------------------------


class Sum(Monitor):
    """Both saw nothing of one another."""

    check = "both"

    def on_step(self, step: Step) -> Violation | None:
        values = [cell.value for cell in self.watches]
        return Violation(self.check, "both are there", (step.n,)) if values == [1, 1] else None


async def left(me: Thread) -> None:
    shared = me.vm.memory
    await WRITE_ONCE(shared.x, 1)
    if not await READ_ONCE(shared.y):
        await WRITE_ONCE(shared.left, 1)


async def right(me: Thread) -> None:
    shared = me.vm.memory
    if await choose(2):
        return
    await WRITE_ONCE(shared.y, 1)
    if not await READ_ONCE(shared.x):
        await WRITE_ONCE(shared.right, 1)


async def bystander(me: Thread) -> None:
    await READ_ONCE(me.vm.memory.x)


class StoreBuffering(Scenario):
    """Dekker: at most one of two may see that the other is not there."""

    name = "store_buffering"
    variants = {"plain": Variant("no barriers", claims={"*": "Sometimes"})}
    at_end = False

    def build(self, vm: Vm, setup: str) -> None:
        vm.guest_memory(x=0, y=0, left=0, right=0)
        for name, function in (("P0", left), ("P1", right), ("P2", bystander)):
            Thread(vm, name, function)

    def monitors(self, vm: Vm) -> list[Monitor]:
        return [] if self.at_end else [Sum([vm.memory.left, vm.memory.right])]

    def exists(self, vm: Vm) -> bool:
        return self.at_end and vm.memory.left.value == vm.memory.right.value == 1


class AtEnd(StoreBuffering):
    """The same, judged at the end: nobody can be left out."""

    at_end = True


@pytest.mark.parametrize(("kind", "memory"), [(StoreBuffering, "pso"), (AtEnd, "tso")])
def test_the_fewest_switches_are_those_of_the_best_of_all_interleavings(kind: Callable[[], Scenario], memory: str) -> None:
    """What is called provable was compared with brute force, which shares nothing with it but the World."""
    case = Case(kind(), Source("store_buffering", ""), "plain", "default", memory)
    world = case.world()
    every = BruteForce()
    bad = []
    run = 0
    while True:
        execution = world.run(every, run)
        if execution.bad:
            bad.append((switches(execution.steps), len(execution.steps)))
        run += 1
        if not every.end(execution):
            break
    world.close()
    assert bad
    check = "both" if kind is StoreBuffering else "exists"
    small = case.world(automata=True)
    fewest = FewestSwitches(small, check, at_end=kind is AtEnd, most=9, most_states=10_000).search()
    assert fewest.schedule is not None
    played = Player(small, check).follow(fewest.schedule)
    assert played.bad
    assert (played.cost.switches, played.cost.steps) == min(bad)
    assert fewest.at_least == min(bad)[0]
    none = FewestSwitches(small, check, at_end=kind is AtEnd, most=min(bad)[0] - 1, most_states=10_000).search()
    assert none.schedule is None
    assert none.at_least == min(bad)[0]
    small.close()


# ---- what it says ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def lost_init() -> Case:
    (case,) = cases("init_sipi", ["before"], ["plain"], ["tso"])
    return case


def test_a_lost_init_takes_two_switches(lost_init: Case) -> None:
    """vCPU1 runs up to its HLT, vCPU0 sends INIT, vCPU1 overwrites it: there is no shorter way to tell it."""
    shrunk = shrunk_of(lost_init)
    assert shrunk.minimal
    assert shrunk.after.switches == 2
    assert shrunk.sentence().endswith(f"to {shrunk.after.steps} steps and 2 switches (provably the fewest)")


def test_a_budget_that_is_spent_gives_the_best_so_far_and_says_so(lost_init: Case) -> None:
    """Nobody waits for ever for a picture, and no word of proof is said of what was not proved."""
    bad = explore_case(lost_init, strategy="random", runs=100).witness
    assert bad is not None
    schedule = [channel for channel, _ in bad.schedule]
    at_once = shrink(lost_init, schedule, first_broken(bad.violations), seconds=0)
    assert not at_once.one_minimal
    assert not at_once.minimal
    assert "the best within the budget" in at_once.sentence()
    few = shrink(lost_init, schedule, first_broken(bad.violations), states=3)
    assert few.one_minimal
    assert not few.minimal
    assert few.at_least < few.after.switches


def test_shrinking_twice_gives_the_same_and_shrinking_the_result_changes_nothing(lost_init: Case) -> None:
    """A picture in a mail and the one that its reader gets are one."""
    first, second = shrunk_of(lost_init), shrunk_of.__wrapped__(lost_init)
    assert first.witness.schedule == second.witness.schedule
    broken = first_broken(first.witness.violations)
    again = shrink(lost_init, [channel for channel, _ in first.witness.schedule], broken)
    assert again.witness.schedule == first.witness.schedule


@pytest.mark.parametrize("memory", ["sc", "tso", "pso"])
def test_an_execution_that_is_written_down_anew_is_the_same_trace_with_no_more_switches(memory: str) -> None:
    """To exchange what commutes must change nothing but the picture."""
    (case,) = cases("vcpu_requests", ["before"], ["entry"], [memory])
    world = case.world(automata=True)
    player = Player(world, "")
    walk = RandomWalk(3, 20)
    for run in range(20):
        steps = list(world.run(walk, run).steps)
        key, past = trace_key(world, steps), causes(world, steps)
        ordered = linearized(steps, past)
        late = [ordered[n] for n in posts_late(ordered, causes(world, ordered))]
        assert sorted(step.n for step in late) == list(range(len(steps)))
        assert switches(late) == switches(ordered) <= switches(steps)
        again = player.follow([step.channel for step in late]).execution.steps[: len(steps)]
        assert trace_key(world, again) == key
    world.close()
