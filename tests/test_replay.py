"""Replay takes the recorded steps or says where it cannot; audit notices a run that is no function of its schedule."""

import re
from itertools import count
from typing import Any

import pytest
from programs import world

from actors.ops import WRITE_ONCE
from actors.thread import Thread
from actors.vm import Vm
from racevisor.errors import NotDeterministic
from racevisor.memory import MODELS
from racevisor.strategies.audit import Audit
from racevisor.strategies.random_walk import RandomWalk
from racevisor.strategies.replay import Pick, Replay
from racevisor.strategies.source_dpor import SourceDpor
from racevisor.world import Execution, World

PROGRAM = "x=1 y=1 choose | r0=y r1=x lock | lock ipi unlock"


def recorded(of: World, seed: int = 0) -> tuple[list[Pick], Execution]:
    execution = of.run(RandomWalk(seed, 1))
    return [(step.channel, step.label) for step in execution.steps], execution


def replayed(of: World, schedule: list[Pick]) -> Execution:
    strategy = Replay(schedule)
    execution = of.run(strategy)
    strategy.end(execution)
    return execution


@pytest.mark.parametrize("memory", MODELS)
def test_a_replay_takes_the_recorded_steps(memory: str) -> None:
    """The schedule is all that there is to a run."""
    for seed in range(20):
        schedule, execution = recorded(world(PROGRAM, memory), seed)
        again = replayed(world(PROGRAM, memory), schedule)
        assert [(step.channel, step.label) for step in again.steps] == schedule
        assert again.status == execution.status == "terminal"


def test_a_schedule_without_labels_is_followed_by_name() -> None:
    """What a person types, or a minimiser makes up, has no labels."""
    execution = replayed(world("x=1 | r0=x"), [("P1", None), ("P0", None)])
    assert [step.label for step in execution.steps] == ["READ_ONCE(memory.x) = 0", "WRITE_ONCE(memory.x, 1)"]


def test_a_schedule_may_end_early() -> None:
    """A run that was cut at its bound, or at the step that was bad."""
    execution = replayed(world("x=1 | r0=x"), [("P1", None)])
    assert (execution.status, len(execution.steps)) == ("pruned", 1)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ([("P1", "READ_ONCE(memory.x) = 0"), ("P1", None)], "step 1 wants P1\n  but only P0 and P2 can move"),
        ([("P2", None), ("P7", "smp_mb()")], "step 1 wants P7:  smp_mb()\n  but only P0 and P1 can move"),
        ([("P0", "WRITE_ONCE(memory.x, 2)"), ("P1", None)], "step 0 wants P0:  WRITE_ONCE(memory.x, 2)\n  but what happens is  "),
        ([("P0", None), ("P1", "READ_ONCE(memory.x) = 0")], "step 1 wants P1:  READ_ONCE(memory.x) = 0\n  but what happens is  "),
        ([("P0", None), ("P1", None), ("P2", None), ("P0", None)], "step 3 wants P0\n  but nothing can move any more"),
    ],
)
def test_a_replay_stops_at_the_first_difference_and_says_what_it_is(schedule: list[Pick], said: str) -> None:
    """Which step, what was recorded, what is there instead, and what to type next."""
    with pytest.raises(NotDeterministic, match=re.escape(said)) as caught:
        replayed(world("x=1 | r0=x | r1=y"), schedule)
    assert "record it again:  racevisor explore" in str(caught.value)
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("memory", MODELS)
def test_an_audit_agrees_with_a_machine_that_is_deterministic(memory: str) -> None:
    """And leaves the search as it is."""
    program = "x=1 r0=y choose | y=1 r1=x"
    alone, audited = SourceDpor(), Audit(SourceDpor(), lambda: world(program, memory))
    for strategy in (alone, audited):
        of = world(program, memory)
        run = 0
        while strategy.end(of.run(strategy, run)):
            run += 1
    assert audited.audited == alone.executions + alone.blocked


def test_an_audit_finds_a_value_that_is_kept_between_runs() -> None:
    """A counter in a module is no state of the machine."""
    calls = count()

    async def body(me: Any) -> None:
        await WRITE_ONCE(me.vm.memory.x, next(calls))

    def make() -> World:
        vm = Vm()
        vm.guest_memory(x=0)
        Thread(vm, "P0", body)
        return World(vm)

    audit = Audit(RandomWalk(0, 1), make)
    with pytest.raises(NotDeterministic, match=re.escape("step 0 wants P0:  WRITE_ONCE(memory.x, 0)")):
        audit.end(make().run(audit))


def test_an_audit_finds_an_outcome_that_differs() -> None:
    """The steps agree and the judgement does not."""
    names = count()

    def make() -> World:
        of = world("x=1")
        of.outcome = lambda vm: f"outcome {next(names)}"
        return of

    audit = Audit(RandomWalk(0, 1), make)
    with pytest.raises(NotDeterministic, match="'outcome 0'\n  but the same 1 steps in a fresh World: 'outcome 1'"):
        audit.end(make().run(audit))
