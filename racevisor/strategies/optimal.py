"""Optimal DPOR: one execution per Mazurkiewicz trace, and none that is given up.

Abdulla, Aronis, Jonsson, Sagonas: Source Sets: A Foundation for Optimal Dynamic Partial Order Reduction, JACM 64(4), 2017,
algorithm 2.  Source-DPOR remembers which head is to be moved first when a race is reversed, and may then run into heads that all
sleep.  Here the whole way to the reversed race is remembered, in a *wakeup tree* per state: after it nothing sleeps any more.

Where this differs from the page:

* a later step that now comes first may do something else: a cmpxchg that failed succeeds; the tree has what it will do;
* the answers of a choice exclude each other, as the two orders of a race do, and are treated alike: another answer is put where
  this one was, behind all that does not follow this one;
* a thread that is left in an await takes part in races with the step that it was about to take, see dependence.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from racevisor.dependence import Access, independent, process
from racevisor.step import CHOICE
from racevisor.strategies.dpor import Node, Reversal, Reversing, Sleep, awake, inherited
from racevisor.world import Channel

#: A head: a channel, or its name where there is no World.
H = TypeVar("H")


class Branch(Generic[H]):
    """A node of a wakeup tree: the head to be moved, what it will touch, and where to go on from there."""

    __slots__ = ("access", "channel", "tree")

    def __init__(self, channel: H, access: Access) -> None:
        self.channel = channel
        self.access = access
        self.tree: list[Branch[H]] = []


#: first(head, what it would touch, way, last): can it move first, then the way (a bitmask of steps) be taken, then, if `last`,
#: the later step?  None if not; else its own step on the way, as a bit, -1 if it is the later step, or 0 if it commutes with all.
First = Callable[[H, Access, int, bool], int | None]


def gap(
    asleep: Iterable[tuple[H, Access]], tree: list[Branch[H]], way: int, first: First[H]
) -> tuple[list[Branch[H]], int, bool] | None:
    """Where a wakeup tree has to grow so that the way, and the later step after it, will be explored; None if that is covered.

    It is covered by a head that could move first with the rest still to follow (a *weak initial* of the way): all that begins
    with such a head has been explored, if it sleeps, or will be, if a branch of the tree that begins with it ends there.
    Returns the list to be extended, what of the way is left to put there, and whether the later step is.
    """
    last = True  # False: the later step itself has been taken
    for head, touched in asleep:
        if first(head, touched, way, last) is not None:
            return None
    while tree:
        for branch in tree:
            step = first(branch.channel, branch.access, way, last)
            if step is None:
                continue
            if step < 0:
                last = False
            elif step:
                way ^= step
            if not (way or last) or not branch.tree:
                return None  # if the tree ends here, all that follows will be explored
            tree = branch.tree
            break
        else:
            break
    return tree, way, last


class WakeupNode(Node):
    """With the wakeup tree: the heads still to be moved here, and the part of it below the present head."""

    __slots__ = ("below", "tree")

    def __init__(self, channel: Channel, sleep: Sleep, tree: list[Branch[Channel]], below: list[Branch[Channel]]) -> None:
        super().__init__(channel, sleep)
        self.tree = tree
        self.below = below

    def left(self) -> int:
        return len(self.tree)


class OptimalDpor(Reversing[WakeupNode]):
    """Never blocked: `blocked` stays 0."""

    def plan(self, movable: list[Channel]) -> WakeupNode | None:
        """The first branch of the wakeup tree; where it ends, the first head that does not sleep."""
        sleep: Sleep = {}
        taken = None
        if self.nodes:
            node = self.nodes[-1]
            taken = node.channel
            self.extend()
            if node.sleep:
                sleep = inherited(node.sleep, taken, self.order.accesses[-1])
            tree = node.below
            if tree:
                branch = tree.pop(0)
                return WakeupNode(branch.channel, sleep, tree, branch.tree)
        channel = awake(movable, sleep, taken)
        if channel is None:
            return None
        return WakeupNode(channel, sleep, [], [])

    def leave(self, node: WakeupNode, depth: int) -> Channel | None:
        if not node.tree:
            return None
        node.sleep = {**node.sleep, node.channel: self.order.accesses[depth]}
        self.forget(depth)
        branch = node.tree.pop(0)
        node.below = branch.tree
        return branch.channel

    def reverse(self, reversal: Reversal) -> None:
        """Plan the later step before the earlier one, unless that is covered by what sleeps or is planned there."""
        node = self.nodes[reversal.earlier]
        way, _, first = self.wanted(reversal)
        found = gap(node.sleep.items(), node.tree, way, first)
        if found is None:
            return
        tree, way, last = found
        order = self.order
        while way:
            low = way & -way
            way ^= low
            k = low.bit_length() - 1
            branch = Branch(order.channels[k], order.accesses[k])
            tree.append(branch)
            tree = branch.tree
        if last:
            tree.append(Branch(reversal.channel, reversal.access))

    def wanted(self, reversal: Reversal) -> tuple[int, int, First[Channel]]:
        """The steps to be taken before the later one, those that it has to follow, and who could move first."""
        _, earlier, cause, channel, access = reversal
        order = self.order
        past = cause | order.conflicting(access)

        def first(head: Channel, touched: Access, way: int, last: bool) -> int | None:
            return self._first(head, touched, way, past, channel if last else None, access)

        return order.way(earlier), past, first

    def _first(self, head: Channel, touched: Access, way: int, past: int, last: Channel | None, access: Access) -> int | None:
        """As in First; `last` is the channel of the later step, None if that has been taken."""
        order = self.order
        who = head if head.kind != CHOICE else head.thread.channel
        steps = order.steps_of.get(who, 0) & way
        if steps:
            steps &= -steps
            n = steps.bit_length() - 1
            return None if order.channels[n] is not head or order.past[n] & way else steps
        if last is not None:
            if process(last) is who:
                return -1 if head is last and not past & way else None
            if not independent(access, touched):
                return None
        return None if order.conflicting(touched) & way else 0
