"""Bounded searches: every schedule that a simple scheduler comes to with at most so many interventions.

What a bound counts is against an *entity*: a channel, that is a thread, a store buffer (one per thread and cell under pso) or the
IPIs from one thread to one CPU, all alike.  A posted store is the move of another entity, as if a CPU of its own wrote it back.
The answers of a choice are data: they are moves of their thread, all are tried, and none costs anything.

Small bounds find most bugs, and a bound is no proof: `cut` says whether anything was left beyond it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from racevisor.classes import TraceKeys
from racevisor.dependence import HappensBefore
from racevisor.errors import NotDeterministic, UsageError
from racevisor.step import CHOICE
from racevisor.world import Channel, Execution, World


class _Node:
    """A state on the present path: what may be moved there within the bound, and which of these was."""

    __slots__ = ("at", "moves", "spent")

    def __init__(self, moves: list[tuple[Channel, int]], spent: int) -> None:
        self.moves = moves  # each with what it costs
        self.at = 0
        self.spent = spent  # before this step


class _Bounded(ABC):
    """Depth first, one execution per schedule, each run from the start.

    `exhausted` is True if the search is finished and neither this bound nor the step bound kept anything from it: then it ran
    every interleaving, like brute force.  `cut` is True if something lay beyond the bound.  With `count_classes`, `classes` is
    the number of distinct Mazurkiewicz traces among the complete executions, and `keys` holds their names.
    """

    noun = ""

    def __init__(self, bound: int, *, count_classes: bool = False) -> None:
        if bound < 0:
            raise UsageError(f"a search with at most {bound} {self.noun}s runs nothing\n  0 runs the scheduler undisturbed")
        self.bound = bound
        self.count_classes = count_classes
        self.executions = 0
        self.bounded = False
        self.cut = False
        self.exhausted = False
        self.keys: set[int] = set()
        self.world: World | None = None
        self.path: list[_Node] = []
        self._places: dict[Channel, tuple[int, int, str]] = {}

    @property
    def classes(self) -> int:
        """Distinct Mazurkiewicz traces so far; 0 unless they are counted."""
        return len(self.keys)

    def limit_words(self) -> str:
        """The bound in words."""
        return f"at most {self.bound} {self.noun}{'' if self.bound == 1 else 's'}"

    def frontier(self) -> list[tuple[int, int]]:
        """Per branching node of the present path: (children finished, children known)."""
        return [(node.at, len(node.moves)) for node in self.path if len(node.moves) > 1]

    # ---- the three verbs --------------------------------------------------------------------------------------------------

    def begin(self, world: World, _run: int) -> None:
        """Start with the path whose last move `end` has replaced."""
        if self.world is None:
            self.world = world
            self._order = HappensBefore(world)
            self._trace = TraceKeys(self._order)
            self._rows = {thread: n for n, thread in enumerate(world.threads)}
        elif self.world is not world:
            raise ValueError(f"a {type(self).__name__} keeps the path of one World; make another one for another World")
        self.depth = 0
        self.last: Channel | None = None  # the entity that moved last
        self.spent = 0

    def pick(self, movable: list[Channel]) -> Channel:
        """The known path first, then what the undisturbed scheduler would do."""
        depth = self.depth
        self.depth = depth + 1
        path = self.path
        if depth == len(path):
            path.append(_Node(self._moves(movable), self.spent))
        node = path[depth]
        channel, cost = node.moves[node.at]
        if channel.at < 0:
            raise NotDeterministic(
                f"the search wants {channel.name} at step {depth}, where it could move in an execution with the same steps\n"
                "  now it cannot: an actor depends on something that is no cell and no private state\n"
                "  find the first difference:  Audit(RandomWalk(0, 100), case.world) in racevisor.strategies.audit"
            )
        if depth + 1 == len(path):  # before that, the path knows
            self.spent = node.spent + cost
            self.last = entity(channel)
        return channel

    def end(self, execution: Execution) -> bool:
        """Step back to the deepest state where a move within the bound is left."""
        self.executions += 1
        self.bounded = self.bounded or execution.status == "bounded"
        if self.count_classes and execution.status in ("terminal", "violated"):
            self._name(execution)
        path = self.path
        while path:
            node = path[-1]
            node.at += 1
            if node.at < len(node.moves):
                self._order.cut(len(path) - 1)
                self._trace.cut(len(path) - 1)
                return True
            path.pop()
        self.exhausted = not self.bounded and not self.cut
        return False

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _name(self, execution: Execution) -> None:
        assert self.world is not None
        for step in execution.steps[len(self._trace) :]:
            self._order.extend(self.world.channels[step.channel], step)
            self._trace.extend(step)
        self.keys.add(self._trace.key())

    def _moves(self, movable: list[Channel]) -> list[tuple[Channel, int]]:
        """What may be moved with what is left of the bound, the free moves first."""
        left = self.bound - self.spent
        last = self.last
        if not left and last is not None and last.at >= 0:
            # Nothing is left to spend, so it goes on.  Most states of a search are such.
            self.cut = self.cut or len(movable) > 1
            return [(last, 0)]
        moves: list[tuple[Channel, int]] = []
        for one, cost in self._costs(self._in_turn(movable)):
            if cost > left:
                self.cut = True
                break  # costs only rise
            # a thread that stands before a choice is movable by its answers
            moves += [(c, cost) for c in ([one] if one.at >= 0 else one.thread.answers)]
        return moves

    def _in_turn(self, movable: list[Channel]) -> list[Channel]:
        """The entities that can move, in circular order from the one that moved last.

        The circle is: each thread, its store buffers, its IPIs, then the next thread.  It does not depend on when a channel was
        first used.  Where a thread stops to wait for its own posted stores, these are next.
        """
        ready = sorted(dict.fromkeys(map(entity, movable)), key=self._place)
        if self.last is not None:
            last = self._place(self.last)
            ready = [c for c in ready if self._place(c) >= last] + [c for c in ready if self._place(c) < last]
        return ready

    def _place(self, one: Channel) -> tuple[int, int, str]:
        place = self._places.get(one)
        if place is None:
            place = self._places[one] = (self._rows[one.thread], one.kind, one.name)
        return place

    @abstractmethod
    def _costs(self, ready: list[Channel]) -> Iterator[tuple[Channel, int]]:
        """Each entity that can move, with what moving it now costs; rising."""


class DelayBounded(_Bounded):
    """At most `bound` delays of a round-robin scheduler that preempts nobody.

    The scheduler moves an entity until it cannot go on, then the next one in circular order.  A delay skips the entity whose
    turn it is, which waits until its turn comes again; several delays may fall on one step.

    Emmi, Qadeer, Rakamaric: Delay-Bounded Scheduling, POPL 2011.
    """

    noun = "delay"

    def _costs(self, ready: list[Channel]) -> Iterator[tuple[Channel, int]]:
        return ((channel, cost) for cost, channel in enumerate(ready))


class PreemptionBounded(_Bounded):
    """At most `bound` preemptions: switches away from an entity that could go on.  Where it cannot, every other is free.

    The paper raises the bound by one until time is up; a search here has one bound, and runs what has fewer as well.

    Musuvathi, Qadeer: Iterative Context Bounding for Systematic Testing of Multithreaded Programs, PLDI 2007.
    """

    noun = "preemption"

    def _costs(self, ready: list[Channel]) -> Iterator[tuple[Channel, int]]:
        goes_on = ready[0] is self.last
        return ((channel, 1 if goes_on and n else 0) for n, channel in enumerate(ready))


def entity(channel: Channel) -> Channel:
    """The channel that a bound or a priority is about: the thread's own for an answer of its choice, otherwise itself."""
    return channel.thread.channel if channel.kind == CHOICE else channel
