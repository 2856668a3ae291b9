"""Audit: is a run really a function of its schedule?  Every schedule is run again, twice, in Worlds made for that alone.

An actor that asks the clock, draws its own random numbers, walks a set of strings or keeps something in a module between two
runs is found here, before a trace of it fails to replay on somebody else's machine.  So is a check that looks at something it
did not declare: here the guard lets no call pass (racevisor.guard).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from racevisor.errors import NotDeterministic
from racevisor.strategies.replay import Replay
from racevisor.world import Channel, Execution, Strategy, World

_CAUSES = (
    "an actor or a check depends on something that is no cell and no private state:\n"
    "  a module's or a class's variable, the time, random numbers of its own, id(), the order of a set of strings"
)


class Audit:
    """Wraps `strategy`; `make_world` makes a fresh World of the same case.  `audited` counts the schedules that agreed."""

    def __init__(self, strategy: Strategy, make_world: Callable[[], World]) -> None:
        self.strategy = strategy
        self.make_world = make_world
        self.audited = 0

    def begin(self, world: World, run: int) -> None:
        """The wrapped strategy begins."""
        self.strategy.begin(world, run)

    def pick(self, movable: list[Channel]) -> Channel | None:
        """The wrapped strategy picks."""
        return self.strategy.pick(movable)

    def end(self, execution: Execution) -> bool:
        """Run the schedule again in two fresh Worlds and compare, then let the wrapped strategy learn."""
        schedule = [(step.channel, step.label) for step in execution.steps]
        for _ in range(2):
            world = self.make_world()
            world.guard.always = True
            try:
                replay = Replay(schedule, again=_CAUSES)
                again = world.run(replay, execution.run)
                replay.end(again)
            finally:
                world.close()
            for what, first, second in (
                ("ends", _ending(execution), _ending(again)),
                ("finds", _findings(execution), _findings(again)),
                ("has the outcome", execution.outcome, again.outcome),
            ):
                if first != second:
                    raise NotDeterministic(
                        f"run {execution.run} {what} {first!r}\n"
                        f"  but the same {len(schedule)} steps in a fresh World: {second!r}\n  {_CAUSES}"
                    )
        self.audited += 1
        return self.strategy.end(execution)


def _ending(execution: Execution) -> str:
    # A run that was cut looks, run again, like a schedule that stops early.
    return "cut" if execution.status in ("bounded", "pruned") else execution.status


def _findings(execution: Execution) -> list[tuple[Any, ...]]:
    return [(v.check, v.text, v.step, v.fatal) for v in execution.violations]
