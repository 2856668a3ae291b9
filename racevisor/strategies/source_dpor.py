"""Source-DPOR with sleep sets: one complete execution per Mazurkiewicz trace, plus some that are given up half way.

Abdulla, Aronis, Jonsson, Sagonas: Source Sets: A Foundation for Optimal Dynamic Partial Order Reduction, JACM 64(4), 2017,
algorithm 1.  Where this differs from the page:

* a process is a channel: a thread, a store buffer, the IPIs from one thread to one CPU; the answers of a choice are channels too,
  and where a choice is come to, all of them are planned;
* races are looked for when the execution has ended, and only those whose later step is new: an execution shares a prefix
  with the one before it, and the races of that prefix are known;
* a reversal is dropped if one of its first steps sleeps at that point: all that begins with that step has been explored;
* a thread that is left in an await takes part in races with the step that it was about to take, see dependence.py.
"""

from __future__ import annotations

from racevisor.dependence import HappensBefore, access_of
from racevisor.step import CHOICE
from racevisor.strategies.dpor import Node, Sleep, Stateless, inherited
from racevisor.world import Channel, World


class _Node(Node):
    """With the heads that are to be moved here, those that were moved included."""

    __slots__ = ("backtrack",)

    def __init__(self, channel: Channel, sleep: Sleep) -> None:
        super().__init__(channel, sleep)
        self.backtrack = [channel]

    def left(self) -> int:
        return sum(c not in self.sleep and c is not self.channel for c in self.backtrack)


class SourceDpor(Stateless[_Node]):
    """Cheaper per execution than the optimal search, and better where few executions block."""

    def enter(self, world: World) -> None:
        self.order = HappensBefore(world)

    def plan(self, movable: list[Channel]) -> _Node | None:
        """The first head that does not sleep."""
        assert self.world is not None
        nodes = self.nodes
        sleep: Sleep = {}
        if nodes and nodes[-1].sleep:
            taken = nodes[-1].channel
            sleep = inherited(nodes[-1].sleep, taken, access_of(taken, self.world.steps[-1]))
        for channel in movable:
            if channel not in sleep:
                node = _Node(channel, sleep)
                if channel.kind == CHOICE:
                    # No race leads from one answer to another.  One that a race has planned needs no such company: the others
                    # are taken where this choice was first come to, and races of their own bring them here.
                    node.backtrack += [c for c in channel.thread.answers if c is not channel]
                return node
        return None

    def leave(self, node: _Node, depth: int) -> Channel | None:
        node.sleep = {**node.sleep, node.channel: self.order.accesses[depth]}
        self.order.cut(depth)
        return next((c for c in node.backtrack if c not in node.sleep), None)

    def learn(self, world: World) -> None:
        """Plan the reversals of the races that are new."""
        order = self.order
        nodes = self.nodes
        steps = world.steps
        for n in range(len(order.past), len(nodes)):
            channel = nodes[n].channel
            for earlier, first, _ in order.extend(channel, steps[n]):
                self._reverse(earlier, n, channel, first)
        for thread in world.threads:
            if thread.op is not None and thread.channel.at < 0:
                for earlier, first, _ in order.blocked(thread):
                    self._reverse(earlier, len(nodes), thread.channel, first)

    def _reverse(self, earlier: int, later: int, channel: Channel, first: bool) -> None:
        """Plan the step `later`, of `channel`, before the step `earlier`.

        The plan is what need not follow `earlier`, then `later`.  It is covered if one of the steps that can come first in it
        is already planned in that state or sleeps there.
        """
        node = self.nodes[earlier]
        backtrack = node.backtrack
        sleep = node.sleep
        past = self.order.past
        nodes = self.nodes
        bit = 1 << earlier
        chosen = None
        for k in range(earlier + 1, later):
            # nothing that happens before k lies between, and `earlier` does not either
            if past[k] < bit:
                initial = nodes[k].channel
                if initial in backtrack or initial in sleep:
                    return
                chosen = chosen or initial
        if first:
            if channel in backtrack or channel in sleep:
                return
            chosen = chosen or channel
        assert chosen is not None
        backtrack.append(chosen)
