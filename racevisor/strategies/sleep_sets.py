"""Sleep sets alone: every head at every state, except those that sleep.  A cross-check for the searches that look for races.

Godefroid, Partial-Order Methods for the Verification of Concurrent Systems, LNCS 1032, 1996, chapter 5.  No race is looked for
and no happens-before is kept: only the table of dependence is used.  It completes one execution per Mazurkiewicz trace and gives
up many more half way.
"""

from __future__ import annotations

from racevisor.dependence import access_of
from racevisor.strategies.dpor import Node, Sleep, Stateless
from racevisor.world import Channel


class _Node(Node):
    """With the heads that are still to be moved here."""

    __slots__ = ("todo",)

    def __init__(self, channel: Channel, sleep: Sleep, todo: list[Channel]) -> None:
        super().__init__(channel, sleep)
        self.todo = todo

    def left(self) -> int:
        return len(self.todo)


class SleepSets(Stateless[_Node]):
    """Exhaustive, for small programs."""

    def plan(self, movable: list[Channel]) -> _Node | None:
        sleep = self.asleep()
        awake = [channel for channel in movable if channel not in sleep]
        return _Node(awake[0], sleep, awake[1:]) if awake else None

    def leave(self, node: _Node, depth: int) -> Channel | None:
        assert self.world is not None
        node.sleep = {**node.sleep, node.channel: access_of(node.channel, self.world.steps[depth])}
        return node.todo.pop(0) if node.todo else None
