"""A trace walked by hand: one step on, one back, the whole state at each, and another head taken instead of the recorded one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.ops import describe
from racevisor import trace
from racevisor.errors import NotDeterministic
from racevisor.explain import Told
from racevisor.explore import witness
from racevisor.guard import unguarded
from racevisor.reenact import reenact
from racevisor.scenario import Case
from racevisor.step import CHOICE, IPI, STORE_BUFFER
from racevisor.stepper import innermost_function
from racevisor.words import value_name, words
from racevisor.world import Channel

Pick = tuple[str, str]


@dataclass(frozen=True)
class Head:
    """What could happen next: the channel to pick, whose step it would be, in words; is it what was recorded?"""

    channel: str
    thread: str
    words: str
    recorded: bool


@dataclass(frozen=True)
class Value:
    """A cell as it is now.  `touched`: the last step was on it; `first`: it is as it was at the start."""

    owner: str
    name: str
    value: str
    touched: bool
    first: bool


class Walk:
    """`picks` of a case; `at` is how many of them have been taken.

    The World goes forward only, so going back is going there from the start: a trace has some thousand steps at most.
    """

    def __init__(self, case: Case, picks: Sequence[Pick], *, past_violations: bool = False) -> None:
        self.case = case
        self.picks = list(picks)
        self.past_violations = past_violations
        #: from which step on this is another execution than the recorded one; None: it is the recorded one
        self.parted: int | None = None
        self._world = case.world(max_steps=max(len(self.picks) + 1, case.max_steps), functions=True)
        self._world.judge = unguarded
        self._actors = {thread.actor.name: thread.actor for thread in self._world.threads}
        self._names = {function.__name__: name for name, function in case.variant.replaces.items()}
        self.told: list[Told] = []
        self._world.reset()
        self.go(len(self.picks))

    @property
    def at(self) -> int:
        """How many steps have been taken."""
        return len(self._world.steps)

    @property
    def broken(self) -> list[str]:
        """The checks that are broken by now, and if nothing can move any more, what is wrong with that."""
        world = self._world
        found = [(violation.check, violation.text) for violation in world.violations]
        if not world.movable and (self.past_violations or not found):
            found += [(violation.check, violation.text) for violation in self.case.check(world.vm)]
        return [f"{check}: {text}" for check, text in found]

    @property
    def fatal(self) -> list[int]:
        """The steps that the checks name, of those that have been taken."""
        return sorted({n for violation in self._world.violations for n in violation.fatal})

    def close(self) -> None:
        """Drop what is suspended."""
        self._world.close()

    # ---- to and fro -----------------------------------------------------------------------------------------------------------

    def go(self, where: int) -> None:
        """To the state after `where` steps, or as near as there are.  NotDeterministic if a step is not what was recorded."""
        world = self._world
        where = max(0, min(where, len(self.picks)))
        if where < self.at:
            world.reset()
        while self.at < where:
            name, label = self.picks[self.at]
            channel = world.channels.get(name)
            if channel is None or channel.at < 0:
                can = ", ".join(sorted(c.name for c in world.movable)) or "nothing"
                raise NotDeterministic(f"step {self.at} was of {name}, which cannot move here; only {can} can")
            self._step(channel)
            done = world.steps[-1]
            if done.label != label:
                raise NotDeterministic(f"step {done.n} of {name} was {label!r} and is {done.label!r} now")

    def take(self, name: str) -> None:
        """Let the head of this channel move: as it was recorded, or on a way of its own from here on."""
        if self.at < len(self.picks) and self.picks[self.at][0] == name:
            self.go(self.at + 1)
            return
        channel = self._world.channels[name]
        if channel.at < 0:
            raise ValueError(f"{name} cannot move here")
        del self.picks[self.at :], self.told[self.at :]
        self.parted = self.at if self.parted is None else min(self.parted, self.at)
        self._step(channel)
        self.picks.append((name, self._world.steps[-1].label))

    def finish(self) -> None:
        """On to where nothing can move, a check breaks or the step bound is met; with few switches, from where the picks end."""
        self.go(len(self.picks))
        world = self._world
        last: Channel | None = None
        while world.movable and (self.past_violations or not world.violations) and self.at < self.case.max_steps:
            if last is None or last.at < 0:
                last = min(world.movable, key=lambda channel: channel.number)
            self.take(last.name)

    def _step(self, channel: Channel) -> None:
        step = self._world.step(channel)
        if step.n == len(self.told):
            text = words(step, self._actors[step.thread])[0]
            if step.kind == STORE_BUFFER:
                text += " reaches memory"
            elif step.posted:
                text += " (posted)"
            self.told.append(Told(step.n, step.thread, self._names.get(step.function, step.function), text))

    # ---- what there is to see -------------------------------------------------------------------------------------------------

    def heads(self) -> list[Head]:
        """What could happen next, in the order of the threads."""
        recorded = self.picks[self.at][0] if self.at < len(self.picks) else None
        return [
            Head(channel.name, channel.thread.actor.name, self._would(channel), channel.name == recorded)
            for channel in sorted(self._world.movable, key=lambda channel: (channel.thread.channel.number, channel.number))
        ]

    def _would(self, channel: Channel) -> str:
        thread = channel.thread
        if channel.kind == IPI:
            return f"its IPI arrives at {channel.payload}"
        if channel.kind == STORE_BUFFER:
            assert thread.buffer is not None
            entry = next(e for e in thread.buffer.entries if channel.payload is None or e.cell is channel.payload)
            return f"{entry.cell.label} = {value_name(entry.cell, entry.value)} reaches memory"
        if channel.kind == CHOICE:
            return f"chooses {channel.payload}"
        assert thread.op is not None
        function = innermost_function(thread.coroutine)
        inside = f"{self._names.get(function, function)}(): " if function else ""
        return inside + describe(thread.op)

    def waiting(self) -> list[str]:
        """Who has not ended and cannot move, and at what."""
        return [
            f"{thread.actor.name}: {describe(thread.op)}"
            for thread in self._world.threads
            if thread.op is not None and thread.channel.at < 0 and not thread.answers
        ]

    def values(self, *, every: bool = False) -> list[Value]:
        """The cells that are not as they were at the start, and the one that was just touched; or all of them."""
        last = self._world.steps[-1].cell if self._world.steps else None
        return [
            Value(cell.owner.name, cell.name, value_name(cell, cell.value), cell is last, cell.value == cell.init)
            for cell in self._world.vm.cells
            if every or cell is last or cell.value != cell.init
        ]

    def posted(self) -> list[str]:
        """The stores that others do not see yet, and the IPIs in flight."""
        stores = [
            f"{thread.actor.name}: {entry.cell.label} = {value_name(entry.cell, entry.value)}"
            for thread in self._world.threads
            if thread.buffer is not None
            for entry in thread.buffer.entries
        ]
        return stores + [f"IPI {channel.name}" for channel in self._world.flying if channel.queue]

    # ---- a trace of one's own -------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Keep the picks as a trace of their own; it replays like any other, also if it ends half way."""
        _, execution = reenact(self.case, self.picks, past_violations=self.past_violations)
        by = trace.LIVE if self.past_violations else trace.EXPLORE
        trace.save(trace.of(self.case, witness(execution), seed=0, strategy="by hand", recorded_by=by), path)
