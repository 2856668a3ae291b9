"""Optimal DPOR: one execution per Mazurkiewicz trace, and none that is given up.

Abdulla, Aronis, Jonsson, Sagonas: Source Sets: A Foundation for Optimal Dynamic Partial Order Reduction, JACM 64(4), 2017,
algorithm 2.  Source-DPOR remembers which head is to be moved first when a race is reversed, and may then run into heads that all
sleep.  Here the whole way to the reversed race is remembered, in a *wakeup tree* per state: after it nothing sleeps any more.

Where this differs from the page:

* a later step that now comes first may do something else: a cmpxchg that failed succeeds; the tree has what it will do;
* the answers of a choice exclude each other, as the two orders of a race do, and are treated alike: another answer is put where
  this one was, behind all that does not follow this one;
* for races with a thread that is left in an await, and for what is known of an execution's prefix: as in source_dpor.py.
"""

from __future__ import annotations

from actors.ops import may_write
from racevisor.dependence import NOTHING, Access, HappensBefore, independent, process
from racevisor.step import CHOICE
from racevisor.strategies.dpor import Node, Sleep, Stateless, awake, inherited
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
        #: what the present execution asks for: (earlier step, what happens before the later one, its channel, what it will touch)
        self.found: list[tuple[int, int, Channel, Access]] = []

    def plan(self, movable: list[Channel]) -> _Node | None:
        """The first branch of the wakeup tree; where it ends, the first head that does not sleep."""
        sleep: Sleep = {}
        taken = None
        if self.nodes:
            node = self.nodes[-1]
            taken = node.channel
            self._extend()
            if node.sleep:
                sleep = inherited(node.sleep, taken, self.order.accesses[-1])
            tree = node.below
            if tree:
                branch = tree.pop(0)
                return _Node(branch.channel, sleep, tree, branch.tree)
        channel = awake(movable, sleep, taken)
        if channel is None:
            return None
        return _Node(channel, sleep, [], [])

    def leave(self, node: _Node, depth: int) -> Channel | None:
        if not node.tree:
            return None
        node.sleep = {**node.sleep, node.channel: self.order.accesses[depth]}
        self.order.cut(depth)
        branch = node.tree.pop(0)
        node.below = branch.tree
        return branch.channel

    def _extend(self) -> None:
        """Happens-before of the steps that were taken since."""
        world = self.world
        assert world is not None
        order = self.order
        for n in range(len(order.past), len(self.nodes)):
            channel = self.nodes[n].channel
            step = world.steps[n]
            for earlier, _, past in order.extend(channel, step):
                self.found.append((earlier, past, channel, order.overtaking(earlier, step.op, order.accesses[n])))
            if channel.kind == CHOICE:
                # Another answer takes the place of this one, as the later step of a race takes that of the earlier one.
                others = (world.channels[f"{step.thread}?{i}"] for i in range(step.op.a))
                self.found += [(n, order.past[n], other, NOTHING) for other in others if other is not channel]

    def learn(self, world: World) -> None:
        """Put the reversals of the races that are new into the wakeup trees.

        This has to wait for the end of the execution: what does not follow the earlier step of a race may come after both.
        """
        self._extend()
        order = self.order
        self.ways: dict[int, int] = {}
        for thread in world.threads:
            if thread.op is not None and thread.channel.at < 0:
                for earlier, _, past in order.blocked(thread):
                    access = order.overtaking(earlier, thread.op, Access(thread.op.cell, may_write(thread.op), None))
                    self.found.append((earlier, past, thread.channel, access))
        for race in self.found:
            self._reverse(*race)
        self.found.clear()

    def _reverse(self, earlier: int, past: int, channel: Channel, access: Access) -> None:
        """Plan a step of `channel` before the step `earlier`, unless that is covered by what sleeps or is planned there.

        It is covered by a head that could move first with the rest still to follow (a *weak initial* of the way): all that begins
        with such a head has been explored, if it sleeps, or will be, if a branch of the tree that begins with it ends there.
        """
        node = self.nodes[earlier]
        order = self.order
        way = self._way(earlier)
        past |= order.conflicting(access)
        for head, touched in node.sleep.items():
            if self._first(head, touched, way, past, channel, access) is not None:
                return
        tree = node.tree
        last: Channel | None = channel  # None: the later step itself has been taken
        while tree:
            for branch in tree:
                step = self._first(branch.channel, branch.access, way, past, last, access)
                if step is None:
                    continue
                if step < 0:
                    last = None
                elif step:
                    way ^= step
                if not (way or last) or not branch.tree:
                    return  # if the tree ends here, all that follows will be explored
                tree = branch.tree
                break
            else:
                break
        while way:
            low = way & -way
            way ^= low
            k = low.bit_length() - 1
            branch = Branch(order.channels[k], order.accesses[k])
            tree.append(branch)
            tree = branch.tree
        if last is not None:
            tree.append(Branch(channel, access))

    def _first(self, head: Channel, touched: Access, way: int, past: int, last: Channel | None, access: Access) -> int | None:
        """Can `head`, which would touch `touched`, move first, then the way be taken, then the later step, of `last`?

        None if not; else its own step on the way, as a bit, -1 if it is the later step, or 0 if it commutes with all of that.
        """
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

    def _way(self, earlier: int) -> int:
        """All that does not follow the step `earlier`, though it came later: a bitmask of steps."""
        way = self.ways.get(earlier)
        if way is None:
            way = 0
            mask = bit = 1 << earlier
            for past in self.order.past[earlier + 1 :]:
                bit <<= 1
                if not past & mask:
                    way |= bit
            self.ways[earlier] = way
        return way
