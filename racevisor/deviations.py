"""An execution as what a simple scheduler would not have done by itself.

The scheduler knows *columns*, as the picture draws them: a thread with its posted stores and the IPIs that it sent.  It lets a
column go on until nothing of it can move, then the next one in the order of the threads.  Within a column posted stores leave as
soon as they may, the oldest first, IPIs arrive at once, and the first answer of a choice is taken.  Whatever else an execution
does is a *deviation*; to take one back is to ask whether the bug needs it (A. Zeller, R. Hildebrandt: Simplifying and Isolating
Failure-Inducing Input, IEEE TSE 28(2), 2002; J.-D. Choi, A. Zeller: Isolating Failure-Inducing Thread Schedules, ISSTA 2002).

A deviation is told by how far its column had come, not by how many steps there were in all: so the others keep their meaning
when one is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from racevisor.livelock import alone, fair, livelock
from racevisor.step import THREAD, Step
from racevisor.world import Channel, Execution, Thread, World

#: Where the scheduler stands: the column, how many steps it has taken, how often the scheduler has stood there.
Place = tuple[str, int, int]


class Deviation(NamedTuple):
    """At `place` the head of `channel` moves, and not what the scheduler would have moved."""

    place: Place
    channel: str


class Cost(NamedTuple):
    """What is to be small, the most important first."""

    switches: int
    deviations: int
    steps: int


class Played(NamedTuple):
    """One execution with its deviations; `bad` if it breaks the check that is looked for."""

    execution: Execution
    deviations: tuple[Deviation, ...]
    bad: bool

    @property
    def cost(self) -> Cost:
        """How far from simple it is."""
        steps = self.execution.steps
        return Cost(switches(steps), len(self.deviations), len(steps))


def switches(steps: Sequence[Step]) -> int:
    """How often the picture goes from one column to another."""
    return sum(a.thread != b.thread for a, b in pairwise(steps))


class Player:
    """Runs schedules of one World (made with automata=True), looking for a violation of `check`.

    `executions` counts them.  Each ends at the first violation, whatever check it is of.
    """

    def __init__(self, world: World, check: str) -> None:
        self.world = world
        self.check = check
        self.executions = 0
        self._rows = {thread: n for n, thread in enumerate(world.threads)}

    def play(self, deviations: Sequence[Deviation]) -> Played:
        """The scheduler's execution but for these; one whose place is not met, or whose head cannot move there, is left out."""
        wanted = {one.place: one.channel for one in deviations}

        def choose(place: Place, default: Channel) -> Channel:
            channel = self.world.channels.get(wanted.get(place, ""))
            return channel if channel is not None and channel.at >= 0 else default

        return self._run(choose)

    def follow(self, schedule: Sequence[str], *, patient: bool = False) -> Played:
        """Takes these channels as far as they can move.  What cannot is left out, and the end is the scheduler's.

        `patient`: for a thread that is blocked the scheduler lets others go on, until it can move.
        """
        rest = list(reversed(schedule))

        def choose(_place: Place, default: Channel) -> Channel:
            while rest:
                channel = self.world.channels.get(rest[-1])
                if channel is not None and channel.at >= 0:
                    rest.pop()
                    return channel
                if patient and channel is not None and channel.kind == THREAD and channel.thread.op is not None:
                    break
                rest.pop()
            return default

        return self._run(choose)

    def _run(self, choose: Callable[[Place, Channel], Channel]) -> Played:
        world = self.world
        world.reset()
        self.executions += 1
        deviations: list[Deviation] = []
        counts: dict[Thread | None, int] = {}
        stood: dict[tuple[str, int], int] = {}
        column: Thread | None = None
        movable = world.movable
        status = "terminal"
        since: dict[object, int] = {}
        while movable:
            if len(world.steps) >= world.max_steps:
                status = "bounded"
                break
            here = ("" if column is None else column.actor.name, counts.get(column, 0))
            visit = stood[here] = stood.get(here, 0) + 1
            default = self.default(column)
            place = (*here, visit)
            channel = choose(place, default)
            if channel is not default:
                deviations.append(Deviation(place, channel.name))
            if self.check == "livelock":
                if not alone(movable):
                    since.clear()
                else:
                    began = since.setdefault(world.fingerprint(), len(world.steps))
                    if began < len(world.steps) and fair(world.steps[began:], movable):
                        world.violations.append(livelock(movable[0]))
                        status = "violated"
                        break
            column = channel.thread
            world.step(channel)
            counts[column] = counts.get(column, 0) + 1
            if world.violations:
                status = "violated"
                break
        outcome = None
        if status in ("terminal", "violated"):
            assert world.automata is not None
            world.automata.restore_private_state(world.threads)
            if status == "terminal" and world.check is not None:
                world.violations.extend(world.check(world.vm))
            if world.outcome is not None:
                outcome = world.outcome(world.vm)
        execution = Execution(0, world.steps, status, world.violations, outcome)
        return Played(execution, tuple(deviations), any(v.check == self.check for v in execution.violations))

    def default(self, column: Thread | None) -> Channel:
        """What the scheduler moves where `column` moved last.  Something has to be movable."""
        threads = self.world.threads
        first = self._rows[column] if column is not None else 0
        for n in range(len(threads)):
            channel = self._head(threads[(first + n) % len(threads)])
            if channel is not None:
                return channel
        raise AssertionError("something can move, and no thread has it")

    def _head(self, thread: Thread) -> Channel | None:
        """What of a column moves next."""
        buffer = thread.buffer
        if buffer is not None and buffer.entries:
            return thread.flushes[buffer.movable()[0].cell.index if buffer.per_cell else -1]
        for ipi in self.world.flying:
            if ipi.thread is thread and ipi.at >= 0:
                return ipi
        if thread.channel.at >= 0:
            return thread.channel
        return next((answer for answer in thread.answers if answer.at >= 0), None)


class Spent(Exception):
    """The budget is: what there is so far is the result."""


def reduced(player: Player, played: Played, look: Callable[[], None], better: Callable[[Played], Played]) -> Played:
    """Fewer deviations, until none can be taken back alone without losing the bug or taking more context switches.

    `better` may put something simpler in the place of a bad execution; `look` is called before each execution and raises Spent.
    What was reached then is in the exception's `args`.
    """
    best = played
    chunk = max(1, len(best.deviations) // 2)
    try:
        while True:
            at = 0
            smaller = False
            while at < len(best.deviations):
                kept = best.deviations[:at] + best.deviations[at + chunk :]
                look()
                candidate = player.play(kept)
                if candidate.bad and candidate.cost < best.cost:
                    best = min(candidate, better(candidate), key=lambda one: one.cost)
                    smaller = True
                else:
                    at += chunk
            if smaller:
                chunk = min(chunk, max(1, len(best.deviations) // 2))
            elif chunk == 1:
                return best
            else:
                chunk //= 2
    except Spent:
        raise Spent(best) from None
