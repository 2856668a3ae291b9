"""Optimal DPOR: one execution per Mazurkiewicz trace, and none that is given up.

Abdulla, Aronis, Jonsson, Sagonas: Source Sets: A Foundation for Optimal Dynamic Partial Order Reduction, JACM 64(4), 2017,
algorithm 2.  Source-DPOR remembers which head is to be moved first when a race is reversed, and may then run into heads that all
sleep.  Here the whole way to the reversed race is remembered, in a *wakeup tree* per state: after it nothing sleeps any more.

Where this differs from the page:

* a later step that now comes first may do something else: a cmpxchg that failed succeeds; the tree has what it will do;
* for choices, for races with a thread that is left in an await, and for what is known of an execution's prefix: as in
  source_dpor.py.
"""

from __future__ import annotations

from racevisor.dependence import Access, HappensBefore, independent, process
from racevisor.step import CHOICE
from racevisor.strategies.dpor import Node, Sleep, Stateless, inherited
from racevisor.world import Channel, World


class Branch:
    """A node of a wakeup tree: the head to be moved, what it will touch, and where to go on from there."""

    __slots__ = ("access", "channel", "tree")

    def __init__(self, channel: Channel, access: Access) -> None:
        self.channel = channel
        self.access = access
        self.tree: list[Branch] = []


class _Node(Node):
    """With the wakeup tree: the heads still to be moved here, and the part of it below the present head."""

    __slots__ = ("below", "tree")

    def __init__(self, channel: Channel, sleep: Sleep, tree: list[Branch], below: list[Branch]) -> None:
        super().__init__(channel, sleep)
        self.tree = tree
        self.below = below

    def left(self) -> int:
        return len(self.tree)


class OptimalDpor(Stateless[_Node]):
    """Never blocked: `blocked` stays 0."""

    def enter(self, world: World) -> None:
        self.order = HappensBefore(world)

    def plan(self, movable: list[Channel]) -> _Node | None:
        """The first branch of the wakeup tree; where it ends, the first head that does not sleep."""
        assert self.world is not None
        nodes = self.nodes
        sleep: Sleep = {}
        if nodes:
            node = nodes[-1]
            if node.sleep:
                sleep = inherited(node.sleep, node.channel, self.world.steps[-1])
            tree = node.below
            if tree:
                branch = tree.pop(0)
                return _Node(branch.channel, sleep, tree, branch.tree)
        for channel in movable:
            if channel not in sleep:
                # no race leads from one answer of a choice to another: all are planned where it is first come to
                answers = channel.thread.answers if channel.kind == CHOICE else ()
                return _Node(channel, sleep, [Branch(c, Access(None, False, None)) for c in answers if c is not channel], [])
        return None

    def leave(self, node: _Node, depth: int) -> Channel | None:
        node.sleep = {**node.sleep, node.channel: self.order.accesses[depth]}
        self.order.cut(depth)
        if not node.tree:
            return None
        branch = node.tree.pop(0)
        node.below = branch.tree
        return branch.channel

    def learn(self, world: World) -> None:
        """Put the reversals of the races that are new into the wakeup trees."""
        order = self.order
        nodes = self.nodes
        steps = world.steps
        found = [(n, race) for n in range(len(order.past), len(nodes)) for race in order.extend(nodes[n].channel, steps[n])]
        for n, (earlier, _, past) in found:
            access = order.overtaking(earlier, steps[n].op, order.accesses[n])
            self._reverse(earlier, n, past, nodes[n].channel, access)
        for thread in world.threads:
            if thread.op is not None and thread.channel.at < 0:
                for earlier, _, past in order.blocked(thread):
                    access = Access(thread.op.cell, thread.op.b is not None, None)
                    self._reverse(earlier, len(nodes), past, thread.channel, access)

    def _reverse(self, earlier: int, later: int, past: int, channel: Channel, access: Access) -> None:
        """Plan a step of `channel` before the step `earlier`, unless that is covered by what sleeps or is planned there."""
        node = self.nodes[earlier]
        order = self.order
        history = order.past
        # The way: all that does not follow `earlier`, then the later step.
        way = 0
        bit = 2 << earlier
        for before in history[earlier + 1 :]:
            if not before >> earlier & 1:
                way |= bit
            bit <<= 1
        past |= order.conflicting(access)
        for sleeper, touched in node.sleep.items():
            if self._first(sleeper, touched, way, past, channel, access) is not None:
                return
        tree = node.tree
        last = True  # is the later step itself still to come?
        while True:
            for branch in tree:
                step = self._first(branch.channel, branch.access, way, past, channel if last else None, access)
                if step is None:
                    continue
                if step < 0:
                    last = False
                elif step:
                    way ^= step
                    if branch.channel.kind == CHOICE and step >> later:
                        known = {b.channel for b in tree} | node.sleep.keys()
                        tree += [Branch(c, branch.access) for c in self._other_answers(branch.channel) if c not in known]
                if not way and not last:
                    return
                tree = branch.tree
                if not tree:
                    return  # the tree ends here, and all that follows will be explored
                break
            else:
                break
        while way:
            low = way & -way
            way ^= low
            k = low.bit_length() - 1
            branch = Branch(order.channels[k], order.accesses[k])
            tree.append(branch)
            if branch.channel.kind == CHOICE and k > later:
                # The race is older than this choice and will not be found again for its other answers.
                tree += [Branch(c, branch.access) for c in self._other_answers(branch.channel)]
            tree = branch.tree
        if last:
            tree.append(Branch(channel, access))

    def _other_answers(self, answer: Channel) -> list[Channel]:
        assert self.world is not None
        stem = answer.name.rpartition("?")[0]
        answers = []
        while (channel := self.world.channels.get(f"{stem}?{len(answers)}")) is not None:
            answers.append(channel)
        return [channel for channel in answers if channel is not answer]

    def _first(self, head: Channel, touched: Access, way: int, past: int, channel: Channel | None, access: Access) -> int | None:
        """Can `head`, which would touch `touched`, move first, and then the way be taken (is it a *weak initial*)?  None if not.

        If it can: the bit of its step on the way; 0 if it is not on the way and commutes with all of it; -1 if it is the later
        step, of `channel` (None: that one has been taken).
        """
        order = self.order
        steps = order.steps_of.get(process(head), 0) & way
        if steps:
            steps &= -steps
            n = steps.bit_length() - 1
            return None if order.channels[n] is not head or order.past[n] & way else steps
        if channel is not None and process(channel) is process(head):
            return None if channel is not head or past & way else -1
        if order.conflicting(touched) & way or (channel is not None and not independent(access, touched)):
            return None
        return 0
