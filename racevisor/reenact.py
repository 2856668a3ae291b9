"""A schedule that was found, run once more with the names of kernel functions: for pictures and for words."""

from __future__ import annotations

from collections.abc import Callable

from racevisor.guard import unguarded
from racevisor.livelock import alone, found_in
from racevisor.monitor import Violation
from racevisor.scenario import Case
from racevisor.strategies.replay import Replay
from racevisor.world import Channel, Execution, World


def reenact(
    case: Case,
    picks: list[tuple[str, str]],
    *,
    past_violations: bool = False,
    watch: Callable[[World, Channel], None] | None = None,
) -> tuple[World, Execution]:
    """Run a schedule again, with function names; raises NotDeterministic where it differs.

    A search stops at the first broken check; a live machine runs on (`past_violations`), and is judged at its end as well.
    `watch` is called before each step with the channel whose head will move: its thread still stands where it awaits.
    """
    world = case.world(max_steps=max(len(picks) + 1, case.max_steps), functions=True)
    world.judge = unguarded
    strategy = Replay(picks, again="")
    try:
        world.reset()
        strategy.begin(world, 0)
        while world.movable and len(world.steps) < len(picks) and (past_violations or not world.violations):
            channel = strategy.pick(world.movable)
            if channel is None:
                break
            if watch is not None:
                watch(world, channel)
            world.step(channel)
        status = "violated" if world.violations else "pruned" if world.movable else "terminal"
        outcome = None
        if not world.movable and (past_violations or not world.violations):
            world.violations.extend(case.check(world.vm))
        if status == "pruned" and alone(world.movable):
            busy = _busy_loop(case, picks)
            if busy is not None:
                status = "violated"
                world.violations.append(busy)
        if status != "pruned":
            outcome = case.scenario.outcome(world.vm)
        execution = Execution(0, world.steps, status, world.violations, outcome)
        strategy.end(execution)
        return world, execution
    finally:
        world.close()


def _busy_loop(case: Case, picks: list[tuple[str, str]]) -> Violation | None:
    world = case.world(automata=True)
    try:
        return found_in(world, [channel for channel, _ in picks])
    finally:
        world.close()
