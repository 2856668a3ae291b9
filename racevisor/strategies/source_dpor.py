"""Source-DPOR with sleep sets: one complete execution per Mazurkiewicz trace, plus some that are given up half way.

Abdulla, Aronis, Jonsson, Sagonas: Source Sets: A Foundation for Optimal Dynamic Partial Order Reduction, JACM 64(4), 2017,
algorithm 1.  Where this differs from the page:

* a process is a channel: a thread, a store buffer, the IPIs from one thread to one CPU; the answers of a choice are channels too,
  and that one comes instead of another is planned like the reversal of a race;
* races are reversed when the execution has ended, and those that it shares with the one before it are reversed again;
* what need not follow the earlier step of a race is taken from the whole execution, not only from what lies between the two
  steps: a cmpxchg that failed and now comes first succeeds, and what commuted with it then may have to come before it;
* a reversal is dropped if one of its first steps sleeps at that point: all that begins with that step has been explored;
* a thread that is left in an await takes part in races with the step that it was about to take, see dependence.py.
"""

from __future__ import annotations

from racevisor.dependence import process
from racevisor.strategies.dpor import Node, Reversal, Reversing, Sleep
from racevisor.world import Channel


class _Node(Node):
    """With the heads that are to be moved here, those that were moved included."""

    __slots__ = ("backtrack",)

    def __init__(self, channel: Channel, sleep: Sleep) -> None:
        super().__init__(channel, sleep)
        self.backtrack = [channel]

    def left(self) -> int:
        return sum(c not in self.sleep and c is not self.channel for c in self.backtrack)


class SourceDpor(Reversing[_Node]):
    """Cheaper per execution than the optimal search, and better where few executions block."""

    def plan(self, movable: list[Channel]) -> _Node | None:
        """The first head that does not sleep."""
        sleep = self.asleep()
        channel = next((c for c in movable if c not in sleep), None)
        return None if channel is None else _Node(channel, sleep)

    def leave(self, node: _Node, depth: int) -> Channel | None:
        node.sleep = {**node.sleep, node.channel: self.order.accesses[depth]}
        self.forget(depth)
        return next((c for c in node.backtrack if c not in node.sleep), None)

    def reverse(self, reversal: Reversal) -> None:
        """Plan the later step before the earlier one, unless that is covered.

        The plan is what need not follow `earlier`, then `later`.  It is covered if one of the steps that can come first in it
        is already planned in that state or sleeps there.
        """
        later, earlier, cause, channel, access = reversal
        order = self.order
        node = self.nodes[earlier]
        way = order.way(earlier)
        leads = not (cause | order.conflicting(access)) & way
        for heads in (node.backtrack, node.sleep):
            for head in heads:
                steps = order.steps_of.get(process(head), 0) & way
                if steps:
                    first = (steps & -steps).bit_length() - 1
                    if order.channels[first] is head and not order.past[first] & way:
                        return
                elif head is channel and leads:
                    return
        first = (way & -way).bit_length() - 1  # what comes first of all can always come first
        node.backtrack.append(channel if leads and not 0 <= first < later else order.channels[first])
