"""What the stateless searches share: the present path, the way back along it, and what sleeps.

Each is a depth-first search over schedules.  It keeps one node per step of the present path; between two executions it drops the
nodes that are done with, replaces the step of the deepest one that is left, and sets out from there.  A World with a journal
takes the steps back one by one; any other runs the kept steps again.

A *sleep set* (Godefroid, LNCS 1032, 1996) holds the heads that need not move next: all that begins with them was explored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

from actors.ops import may_write
from racevisor.dependence import NOTHING, Access, HappensBefore, access_of, independent
from racevisor.errors import NotDeterministic
from racevisor.step import CHOICE
from racevisor.world import Channel, Execution, World

Sleep = dict[Channel, Access]


class Node:
    """A state on the present path: the head that was moved there, those that need not be, how many were before it."""

    __slots__ = ("channel", "done", "sleep")

    def __init__(self, channel: Channel, sleep: Sleep) -> None:
        self.channel = channel
        self.sleep = sleep
        self.done = 0

    def left(self) -> int:
        """How many heads are still to be moved here, as far as is known; the present one does not count."""
        return 0


N = TypeVar("N", bound=Node)


class Stateless(ABC, Generic[N]):
    """Exhaustive; `exhausted` is True once the tree is finished and no execution met the step bound.

    `executions` counts the complete executions, `blocked` those that were given up because every movable head slept.

    A World stops at the first violation.  What the threads would have done next may race with what they did before, so by
    default the search goes on to the end of such an execution for itself.  Without `past_violations` it does not: enough to
    tell Never from Sometimes, but not to claim Always, nor that all outcomes were seen.
    """

    def __init__(self, *, past_violations: bool = True) -> None:
        self.past_violations = past_violations
        self.executions = 0
        self.blocked = 0
        self.bounded = False
        self.exhausted = False
        self.nodes: list[N] = []
        self.sound = 0  # how many steps the present path takes before it meets a violation
        self.world: World | None = None

    # ---- what a search adds -----------------------------------------------------------------------------------------------

    def enter(self, world: World) -> None:
        """The first execution begins in `world`."""

    @abstractmethod
    def plan(self, movable: list[Channel]) -> N | None:
        """A node for a state that the path has come to anew, or None if every head sleeps there."""

    def learn(self, world: World) -> None:
        """The execution of the present path has ended: find what is to be tried elsewhere on it."""

    @abstractmethod
    def leave(self, node: N, depth: int) -> Channel | None:
        """All that begins with the node's present head is explored: the next one, or None if the node is done with."""

    def asleep(self) -> Sleep:
        """What sleeps in the state that the path has come to."""
        if not self.nodes or not self.nodes[-1].sleep:
            return {}
        assert self.world is not None
        node = self.nodes[-1]
        return inherited(node.sleep, node.channel, access_of(node.channel, self.world.steps[-1]))

    # ---- the verbs --------------------------------------------------------------------------------------------------------

    def resume(self, world: World) -> bool:
        """Set out from the deepest node that is left, if this World can take steps back."""
        if world.automata is None:
            return False
        if world.journal is None or not self.nodes:
            world.journal = []
            return False
        # A step that was a violation is taken again: the World has to stop there again.
        world.undo(min(len(self.nodes) - 1, self.sound))
        return True

    def begin(self, world: World, run: int) -> None:
        """Start with the path whose last channel `end` has replaced."""
        if self.world is None:
            self.world = world
            self.enter(world)
        elif self.world is not world:
            raise ValueError(f"a {type(self).__name__} learns from one World; make another one for another World")
        self.depth = len(world.steps)

    def pick(self, movable: list[Channel]) -> Channel | None:
        """The known path first, then what the search plans."""
        depth = self.depth
        self.depth = depth + 1
        nodes = self.nodes
        if depth < len(nodes):
            channel = nodes[depth].channel
        else:
            node = self.plan(movable)
            if node is None:
                return None
            nodes.append(node)
            channel = node.channel
        if channel.at < 0:
            raise NotDeterministic(
                f"the search wants {channel.name} at step {depth}, where it could move in an execution with the same steps\n"
                "  now it cannot: an actor depends on something that is no cell and no private state\n"
                "  find the first difference:  Audit(RandomWalk(0, 100), case.world) in racevisor.strategies.audit"
            )
        return channel

    def end(self, execution: Execution) -> bool:
        """Learn from the execution, and step back to the deepest state where something is left to do."""
        world = self.world
        assert world is not None
        status = execution.status
        self.sound = len(execution.steps) - (status == "violated")
        if status == "violated" and self.past_violations:
            status = self._go_on(world, execution)
        if status == "pruned":
            self.blocked += 1
        else:
            self.executions += 1
            if status == "bounded":
                self.bounded = True
        self.learn(world)
        nodes = self.nodes
        while nodes:
            node = nodes[-1]
            channel = self.leave(node, len(nodes) - 1)
            if channel is not None:
                node.channel = channel
                node.done += 1
                return True
            nodes.pop()
        self.exhausted = not self.bounded
        return False

    def frontier(self) -> list[tuple[int, int]]:
        """Per node of the present path where there was or is a choice: (heads explored, heads known so far)."""
        return [(node.done, node.done + 1 + node.left()) for node in self.nodes if node.done or node.left()]

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _go_on(self, world: World, execution: Execution) -> str:
        """From a violation to the end, on copies: the execution that was judged keeps its steps and its violations."""
        world.steps = execution.steps[:]
        world.violations = []
        while world.movable:
            if len(world.steps) >= world.max_steps:
                return "bounded"
            channel = self.pick(world.movable)
            if channel is None:
                break  # the rest is known, and the execution itself is complete
            world.step(channel)
        return "violated"


class Reversal(NamedTuple):
    """A race of the present execution, or a choice in it that has other answers."""

    later: int  # number of the later step; of the choice itself
    earlier: int
    cause: int  # what the later step follows by cause and effect, a bitmask
    channel: Channel  # of the step that is to come first
    access: Access  # what it will touch then


class Reversing(Stateless[N]):
    """A search that reverses races.

    Each execution is asked for all its reversals, not only for those of its new steps: a reversal takes along what need not
    follow the earlier step, to the end of the execution, and that is another thing with every end.
    """

    def enter(self, world: World) -> None:
        self.order = HappensBefore(world)
        self.reversals: list[Reversal] = []
        self.kept = 0  # how many steps of the present execution the one before it had too

    def extend(self) -> None:
        """Happens-before of the steps that were taken since."""
        world = self.world
        assert world is not None
        order = self.order
        for n in range(len(order.past), len(self.nodes)):
            channel = self.nodes[n].channel
            step = world.steps[n]
            for earlier, cause in order.extend(channel, step):
                access = order.overtaking(earlier, step.op, order.accesses[n])
                self.reversals.append(Reversal(n, earlier, cause, channel, access))
            if channel.kind == CHOICE:
                # Another answer takes the place of this one, as the later step of a race takes that of the earlier one.
                others = (world.channels[f"{step.thread}?{i}"] for i in range(step.op.a))
                self.reversals += [Reversal(n, n, order.past[n], other, NOTHING) for other in others if other is not channel]

    def forget(self, depth: int) -> None:
        """Forget the steps from number `depth` on."""
        self.order.cut(depth)
        self.kept = depth
        reversals = self.reversals
        while reversals and reversals[-1].later >= depth:
            reversals.pop()

    def learn(self, world: World) -> None:
        """Plan the reversals.

        This has to wait for the end of the execution: what does not follow the earlier step of a race may come after both.
        """
        self.extend()
        order = self.order
        kept = self.kept
        for reversal in self.reversals:
            if reversal.later >= kept or order.way(reversal.earlier) >> kept:
                self.reverse(reversal)
        for thread in world.threads:
            op = thread.op
            if op is not None and thread.channel.at < 0:
                for earlier, cause in order.blocked(thread):
                    access = order.overtaking(earlier, op, Access(op.cell, may_write(op), None))
                    self.reverse(Reversal(len(self.nodes), earlier, cause, thread.channel, access))

    @abstractmethod
    def reverse(self, reversal: Reversal) -> None:
        """Plan the later step before the earlier one, unless that is covered by what sleeps or is planned there."""


def awake(movable: list[Channel], sleep: Sleep, last: Channel | None) -> Channel | None:
    """The head to move where nothing is planned: the one that moved last if it can, so that context switches are few."""
    if last is not None and last.at >= 0 and last not in sleep:
        return last
    best = None
    for channel in movable:
        if (best is None or channel.number < best.number) and channel not in sleep:
            best = channel
    return best


def inherited(sleep: Sleep, taken: Channel, access: Access) -> Sleep:
    """What slept before a step of the channel `taken` that did `access`, and commutes with it, sleeps on."""
    if taken.kind == CHOICE:
        thread = taken.thread
        return {c: a for c, a in sleep.items() if c.kind != CHOICE or c.thread is not thread}
    cell, writes, own = access
    if cell is None:
        return sleep
    if own is None and not cell.judges:
        return {c: a for c, a in sleep.items() if a[0] is not cell or not (writes or a[1])}
    return {c: a for c, a in sleep.items() if independent(a, access)}
