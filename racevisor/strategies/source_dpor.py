"""Source-DPOR with sleep sets: one execution per Mazurkiewicz trace, plus some that are given up half way.

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

from racevisor.dependence import Access, HappensBefore, access_of, independent
from racevisor.errors import NotDeterministic
from racevisor.step import CHOICE
from racevisor.world import Channel, Execution, World

Sleep = dict[Channel, Access]


class _Node:
    """A state on the present path: the head that was moved there, those to be moved there, those that need not be."""

    __slots__ = ("backtrack", "channel", "sleep")

    def __init__(self, channel: Channel, sleep: Sleep) -> None:
        self.channel = channel
        self.backtrack = [channel]
        self.sleep = sleep


class SourceDpor:
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
        self.nodes: list[_Node] = []
        self.world: World | None = None

    # ---- the three verbs --------------------------------------------------------------------------------------------------

    def begin(self, world: World, run: int) -> None:
        """Start with the path whose last channel `end` has replaced."""
        if self.world is None:
            self.world = world
            self.order = HappensBefore(world)
        elif self.world is not world:
            raise ValueError("a SourceDpor learns from one World; make another one for another World")
        self.depth = 0
        self.replayed = len(self.nodes)

    def pick(self, movable: list[Channel]) -> Channel | None:
        """The known path first, then the first head that does not sleep."""
        depth = self.depth
        self.depth = depth + 1
        nodes = self.nodes
        if depth < self.replayed:
            channel = nodes[depth].channel
            if channel.at < 0:
                raise NotDeterministic(
                    f"the search wants {channel.name} at step {depth}, where it could move in an execution with the same steps\n"
                    "  now it cannot: an actor depends on something that is no cell and no private state\n"
                    "  find the first difference:  Audit(RandomWalk(0, 100), case.world) in racevisor.strategies.audit"
                )
            return channel
        sleep = self._inherited(nodes[-1]) if nodes else {}
        for channel in movable:
            if channel not in sleep:
                node = _Node(channel, sleep)
                if channel.kind == CHOICE:
                    # No race leads from one answer to another.  One that a race has planned needs no such company: the others
                    # are taken where this choice was first come to, and races of their own bring them here.
                    node.backtrack += [c for c in channel.thread.answers if c is not channel]
                nodes.append(node)
                return channel
        return None

    def end(self, execution: Execution) -> bool:
        """Look for races, plan their reversals, and step back to the deepest state where something is left to do."""
        world = self.world
        assert world is not None
        status = execution.status
        if status == "violated" and self.past_violations:
            status = self._go_on(world, execution)
        if status == "pruned":
            self.blocked += 1
        else:
            self.executions += 1
            self.bounded = self.bounded or status == "bounded"
        self._find_races(world)
        nodes = self.nodes
        while nodes:
            node = nodes[-1]
            depth = len(nodes) - 1
            node.sleep = {**node.sleep, node.channel: self.order.accesses[depth]}
            self.order.cut(depth)
            channel = next((c for c in node.backtrack if c not in node.sleep), None)
            if channel is not None:
                node.channel = channel
                return True
            nodes.pop()
        self.exhausted = not self.bounded
        return False

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _inherited(self, node: _Node) -> Sleep:
        """What slept before the last step and commutes with it sleeps on."""
        sleep = node.sleep
        if not sleep:
            return sleep
        assert self.world is not None
        taken = node.channel
        access = access_of(taken, self.world.steps[-1])
        if taken.kind == CHOICE:
            thread = taken.thread
            return {c: a for c, a in sleep.items() if independent(a, access) and (c.kind != CHOICE or c.thread is not thread)}
        if access.cell is None:
            return sleep
        return {c: a for c, a in sleep.items() if independent(a, access)}

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

    def _find_races(self, world: World) -> None:
        order = self.order
        nodes = self.nodes
        steps = world.steps
        for n in range(len(order.past), len(nodes)):
            channel = nodes[n].channel
            for earlier, first in order.extend(channel, steps[n]):
                self._reverse(earlier, n, channel, first)
        for thread in world.threads:
            if thread.op is not None and thread.channel.at < 0:
                for earlier, first in order.blocked(thread):
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
