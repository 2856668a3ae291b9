"""Numbers of states that others have published, the same in every process; and what a state may be made of."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import by_brute_force, by_source_dpor, search, world

from actors.actor import Actor
from actors.ops import READ_ONCE, WRITE_ONCE, await_masked, describe, set_bit
from actors.thread import Thread
from actors.vm import Vm
from racevisor.errors import RacevisorError, Unhashable, UsageError
from racevisor.memory import MODELS
from racevisor.monitor import Monitor
from racevisor.oracles.protocols import peterson, two_phase_commit
from racevisor.step import Step
from racevisor.strategies.random_walk import RandomWalk
from racevisor.strategies.states import StatefulSearch
from racevisor.world import World

ROOT = Path(__file__).resolve().parent.parent


def counted(of: World, **options: Any) -> StatefulSearch:
    strategy = StatefulSearch(**options)
    run = 0
    while strategy.end(of.run(strategy, run)):
        run += 1
    of.close()
    assert strategy.exhausted
    return strategy


# ---- counts -------------------------------------------------------------------------------------------------------------------


def test_without_reduction_every_state_and_transition_of_petersons_algorithm_is_counted() -> None:
    """42 distinct states, 77 generated: what TLC says of Lamport's version."""
    found = counted(peterson(), reduce=False)
    assert (found.states, found.generated) == (42, 77)


def test_without_reduction_every_state_and_transition_of_two_phase_commit_is_counted() -> None:
    """288 distinct states, 1,146 generated: what TLC says of TwoPhase with three resource managers."""
    found = counted(two_phase_commit(3), reduce=False)
    assert (found.states, found.generated) == (288, 1146)


PROGRAMS = st.lists(
    st.lists(st.sampled_from(("x=1", "x=2", "y=1", "r0=x", "r1=y", "x+=1", "x&1>2", "y&1>3", "x&2>2")), min_size=1, max_size=3),
    min_size=2,
    max_size=3,
).filter(lambda threads: sum(len(words) for words in threads) <= 7)


@settings(max_examples=60)
@given(PROGRAMS, st.sampled_from(MODELS))
def test_reduced_and_full_search_end_alike_with_a_blocking_op_whose_effect_depends_on_what_it_sees(
    threads: list[list[str]], memory: str
) -> None:
    """`await_masked` may write or only read, and which of the two is known when it runs."""
    program = " | ".join(" ".join(words) for words in threads)
    full = search(world(program, memory, automata=True), StatefulSearch(reduce=False))
    assert search(world(program, memory, automata=True), StatefulSearch()).ends == full.ends
    assert by_source_dpor(world(program, memory)).ends == full.ends
    if memory == "sc":
        assert by_brute_force(world(program, memory)).ends == full.ends


def test_a_guarded_action_goes_on_when_its_bits_are_right_and_changes_them_in_the_same_step() -> None:
    vm = Vm()
    word: Any = vm.guest_memory(word=0).word

    async def take(me: Any) -> None:
        me.seen = await await_masked(word, 0b11, (0b01, 0b10), clear=0b11, set=0b100)

    async def give(_me: Any) -> None:
        await set_bit(1, word)

    Thread(vm, "P0", take, seen=None)
    Thread(vm, "P1", give)
    of = World(vm, "sc", automata=True)
    execution = of.run(RandomWalk(0, 1))
    assert [(step.before, step.after) for step in execution.steps] == [(0, 2), (2, 4)]
    assert vm.by_name["P0"].seen == 2  # type: ignore[attr-defined]
    of.close()
    assert describe(await_masked(word, 3, (1, 2), 3, 4)) == "await_masked(memory.word, & 0x3 in 0x1, 0x2, &= ~0x3, |= 0x4)"


# ---- the same everywhere ------------------------------------------------------------------------------------------------------

_FIGURES = """
from racevisor.oracles.mmu_notifier import mmu_notifier
from racevisor.strategies.states import StatefulSearch

for options in ({}, {"symmetry": True}, {"symmetry": True, "reduce": False}):
    for make in (lambda: mmu_notifier(2), lambda: mmu_notifier(2, retry=False), lambda: mmu_notifier(1, memory="pso")):
        search, world, run, steps = StatefulSearch(**options), make(), 0, 0
        while True:
            execution = world.run(search, run)
            steps = (31 * steps + sum(world.channels[step.channel].number for step in execution.steps)) % 1_000_003
            if not search.end(execution):
                break
            run += 1
        print(run, steps, search.states, search.generated, search.blocked)
"""


def test_states_order_and_figures_do_not_depend_on_the_hash_seed() -> None:
    """A figure that differs between two processes is one that nobody can check."""
    said = {
        subprocess.run(
            [sys.executable, "-c", _FIGURES], env={"PYTHONHASHSEED": seed}, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "4711")
    }
    assert len(said) == 1
    assert len(said.pop().splitlines()) == 9


# ---- what a state may be made of ----------------------------------------------------------------------------------------------


def test_a_private_attribute_that_cannot_be_hashed_is_reported_with_its_name() -> None:
    vm = Vm()
    m: Any = vm.guest_memory(x=0)

    async def body(me: Any) -> None:
        me.log = [1]
        me.checkpoint("here")
        await READ_ONCE(m.x)

    Thread(vm, "P0", body, log=())
    with pytest.raises(
        Unhashable, match=r"P0.log is \[1\] at checkpoint 'here': a list, which cannot be hashed.*\n  keep a tuple"
    ):
        counted(World(vm, "sc", automata=True))


@pytest.mark.parametrize("running", [True, False])
def test_private_state_that_another_thread_changes_is_an_error_and_not_a_wrong_verdict(running: bool) -> None:
    """A thread's moves are remembered with its own private state: what they do to anybody else's would be lost."""
    vm = Vm()
    m: Any = vm.guest_memory(x=0)

    async def body(me: Any) -> None:
        if me is not other:
            await READ_ONCE(m.x)
            other.busy = True
        await READ_ONCE(m.x)

    other: Any = Thread(vm, "disk", body, busy=False) if running else Actor(vm, "disk")
    other.private(busy=False)
    Thread(vm, "P0", body, seen=())
    with pytest.raises(UsageError, match=r"P0 changed disk\.busy from False to True, .*\n  .*: make it a cell of disk"):
        counted(World(vm, "sc", automata=True))


def test_a_value_that_is_stored_and_never_read_is_reported_with_its_cell() -> None:
    for memory, where in (("sc", r"memory\.x is \{\}: a dict"), ("tso", r"a store to memory\.x posted by P\d is \{\}: a dict")):
        vm = Vm()
        m: Any = vm.guest_memory(x=0)

        async def body(_me: Any, m: Any = m) -> None:
            await WRITE_ONCE(m.x, {})
            await WRITE_ONCE(m.x, {})

        Thread(vm, "P0", body)
        Thread(vm, "P1", body)
        with pytest.raises(RacevisorError, match=where):
            counted(World(vm, memory, automata=True), reduce=False)


def test_a_ghost_variable_that_cannot_be_hashed_is_reported_with_its_check_and_key() -> None:
    class Keeps(Monitor):
        check = "keeps"

        def on_step(self, step: Step) -> None:
            self.ghost["writers"] = [step.thread]

    vm = Vm()
    m: Any = vm.guest_memory(x=0)

    async def body(_me: Any) -> None:
        await WRITE_ONCE(m.x, 1)
        await WRITE_ONCE(m.x, 2)

    Thread(vm, "P0", body)
    Thread(vm, "P1", body)
    with pytest.raises(Unhashable, match=r"ghost variable 'writers' of check keeps is \['P\d'\]: a list, which cannot be hashed"):
        counted(World(vm, "sc", monitors=[Keeps([m.x])], automata=True))


# ---- how far it is ------------------------------------------------------------------------------------------------------------


def test_the_frontier_counts_what_is_done_and_what_is_left_at_each_branching_state() -> None:
    """The product over the path of what is left tells an estimate how much of the tree was walked."""
    strategy = StatefulSearch(reduce=False)
    of = world("x=1 | x=2 | x+=1", automata=True)
    seen = []
    run = 0
    while strategy.end(of.run(strategy, run)):
        seen.append(strategy.frontier())
        run += 1
    of.close()
    assert seen[0] == [(0, 3), (1, 2)]
    assert all(0 <= done < known for path in seen for done, known in path)
    assert seen[-1][0][0] == 2
    assert strategy.frontier() == []
