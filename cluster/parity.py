"""The law of parity: what happened on Ray is an execution of the World, step for step, and ends in the same state."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from actors.ops import Code
from cluster.engine import Record
from cluster.words import channel_name, words
from racevisor import step
from racevisor.channel import Channel
from racevisor.errors import NotDeterministic
from racevisor.guard import unguarded
from racevisor.scenario import Case
from racevisor.world import Execution, World

_THREAD = step.THREAD
_LOAD, _STORE, _FENCE, _SEND = int(Code.LOAD), int(Code.STORE), int(Code.FENCE), int(Code.SEND)


@contextmanager
def _uncollected() -> Iterator[None]:
    """The steps of a round all stay until the next one: a collector that looks through them as they come finds nothing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Report(NamedTuple):
    """What one host brought home of one round.

    `cells` and `state` (private state of actors) are those that are not as they were at the start; `bounded`: a thread stopped at
    the step bound; `said` counts the messages between actors, `crossed` those of them that left the host.
    """

    log: Sequence[Record]
    cells: Sequence[tuple[int, Any]]
    state: Sequence[tuple[int, str, Any]]
    bounded: bool
    said: int
    crossed: int


def merge(reports: Sequence[Report]) -> list[Record]:
    """Every step in one order: by Lamport clock, then by host.

    A step that follows from another has a later clock, and two steps on one cell are in the log of one host; so any such order
    is one in which the World could have picked.
    """
    # Each log is sorted, and sorted() makes use of that; of equal clocks it leaves the lower host's first.
    return sorted(chain.from_iterable(report.log for report in reports), key=itemgetter(0))


class Parity:
    """Holds rounds of one case against a World.  Raises NotDeterministic where they differ."""

    def __init__(self, case: Case, world: World) -> None:
        self.case = case
        self.world = world
        # That monitors declare what they read matters to searches, which leave out what nobody looks at; to hide all else from
        # them would cost a machine of hundreds of vCPUs seconds for each round.
        world.judge = unguarded
        numbers = {actor.name: i for i, actor in enumerate(world.vm.actors)}
        self.threads = {numbers[thread.actor.name]: thread for thread in world.threads}
        self.per_cell = case.memory == "pso"

    @_uncollected()
    def replay(self, round_: int, reports: Sequence[Report], records: Sequence[Record]) -> Execution:
        """Take the steps of a live round in the World; unlike a search, go on after a violation: the round did."""
        world = self.world
        world.reset()
        where = f"live round {round_} of {self.case}"
        take, may_move, threads, equal = world.step, world.may_move, self.threads, self.equal
        world.follow(True)
        try:
            for n, record in enumerate(records):
                thread = threads.get(record[2])
                channel = thread.channel if thread is not None and record[1] == _THREAD else self._channel(record)
                if channel is None or not may_move(channel):
                    world.follow(False)
                    movable = ", ".join(sorted(c.name for c in world.movable)) or "nothing"
                    said = words(world.vm, self.case.memory, record)
                    raise NotDeterministic(
                        f"{where}: step {n} was {said['channel']} ({said['label']}),"
                        f" but in the World only {movable} can move there"
                    )
                done = take(channel)
                if not equal(done, record):
                    said = words(world.vm, self.case.memory, record)
                    raise NotDeterministic(
                        f"{where}: step {n} of {channel.name} was {said['label']}, but in the World it is {done.label}"
                    )
        finally:
            world.follow(False)
        bounded = any(report.bounded for report in reports)
        if world.movable and not bounded:
            movable = ", ".join(sorted(c.name for c in world.movable))
            raise NotDeterministic(f"{where} ended after {len(records)} steps, but in the World {movable} can still move")
        self.compare(where, reports)
        violations = list(world.violations)
        outcome = None
        status = "bounded" if bounded else "violated" if violations else "terminal"
        if not bounded:
            violations += self.case.check(world.vm)
            outcome = self.case.scenario.outcome(world.vm)
        return Execution(round_, world.steps, status, violations, outcome)

    def _channel(self, record: Record) -> Channel | None:
        _, kind, number, _, where, _, result = record
        thread = self.threads.get(number)
        if thread is None:
            return None
        if kind == step.THREAD:
            return thread.channel
        if kind == step.STORE_BUFFER:
            return thread.flushes.get(where if self.per_cell else -1)
        if kind == step.CHOICE:
            return thread.answers[result] if 0 <= result < len(thread.answers) else None
        return self.world.channels.get(channel_name(self.world.vm, self.case.memory, record))

    def equal(self, done: step.Step, record: Record) -> bool:
        """Is the step of the World what was recorded live: the same op, the same cell, the same values?"""
        _, kind, _, code, where, after, result = record
        cell = done.cell
        if kind == _THREAD:
            op = done.op
            if op.code.real != code:
                return False
            if cell is not None:
                if cell.index != where:
                    return False
                if code == _LOAD:
                    return bool(done.result == result)
                if code == _STORE:
                    return bool(op.a == after)
                return bool(done.after == after and done.result == result)
            if code == _FENCE:
                return bool(int(op.order) == after)
            return code == _SEND and bool(op.a == self.world.vm.actors[where].name)
        if kind == step.CHOICE:
            return True
        if kind == step.IPI:
            return bool(done.after == after)
        return cell is not None and cell.index == where and bool(done.after == after)

    def compare(self, where: str, reports: Sequence[Report]) -> None:
        """Hold the cells and private states that the hosts brought home against the World's.  Raises NotDeterministic."""
        vm = self.world.vm
        values = {index: value for report in reports for index, value in report.cells}
        different: list[str] = []
        for cell in vm.cells:
            value = values.get(cell.index, cell.init)
            if cell.value != value:
                different.append(f"{cell.label} is {value!r} live and {cell.value!r} in the World")
        state = {(number, name): value for report in reports for number, name, value in report.state}
        for number, actor in enumerate(vm.actors):
            for name, init in actor.state.items():
                value = state.get((number, name), init)
                own = getattr(actor, name)
                if own != value:
                    different.append(f"{actor.name}.{name} (private) is {value!r} live and {own!r} in the World")
        if different:
            raise NotDeterministic(f"{where} ends in another state than its replay in the World:\n  " + "\n  ".join(different))


def schedule_of(execution: Execution) -> list[tuple[str, str]]:
    """(channel, label) of every step: what a trace keeps."""
    return [(done.channel, done.label) for done in execution.steps]
