"""Leaps: a run of private steps of one thread, executed once and taken at once whenever the thread is there again."""

from __future__ import annotations

from typing import Any

from actors.actor import Cell
from actors.ops import Code
from racevisor.step import THREAD
from racevisor.world import Channel, Leap, Thread, World

#: What a step on a watched cell has in common with a write to a cell that the same monitor reads: a number for the two cells.
Pairs = tuple[int, ...]
#: Of a cell: its domain, is it watched, the pairs that any step on it is part of, those that a write to it is part of.
Domain = tuple[int, bool, Pairs, Pairs]

_LONGEST = 100  # steps in one leap


class Leaps:
    """What each thread did, as a function of its local state, its own cells and its store buffer."""

    def __init__(self, domains: list[Domain], owners: dict[int, int], stops: set[int]) -> None:
        self.domains = domains
        self.owners = owners
        self.stops = stops  # local states that no leap jumps over
        self.known: dict[Any, Leap] = {}
        self.own_cells: dict[Thread, tuple[int, list[Cell], set[int]]] = {}

    def take(self, world: World, thread: Thread) -> bool:
        """Take the thread's next private steps as one leap; False if the next one has to be a step of its own."""
        known, cells, indices = self.own_cells.get(thread, (0, [], set()))
        if known != len(self.owners):  # more cells have turned out to be this thread's own
            mine = thread.channel.number
            posts = thread.buffer is not None  # then a monitor may tell the order of the thread's own steps
            cells = [
                c for c in world.vm.cells if not (c.judges if posts else c.watched) and self._owns(mine, *self.domains[c.index])
            ]
            indices = {c.index for c in cells}
            self.own_cells[thread] = (len(self.owners), cells, indices)
        buffer = thread.buffer
        key = (thread.history, tuple([c.value for c in cells]), () if buffer is None else buffer.contents())
        leap = self.known.get(key)
        if leap is None:
            leap = self.known[key] = self._first_time(world, thread, cells, indices)
        elif leap[0]:
            world.leap(thread, *leap)
        return bool(leap[0])

    def _owns(self, accessor: int, domain: int, _watched: bool, _pairs: Pairs, pairs_if_written: Pairs) -> bool:
        """May the accessor take any step on a cell alone, by what is known already?"""
        return all(self.owners.get(one) == accessor for one in (domain, *pairs_if_written))

    def _first_time(self, world: World, thread: Thread, cells: list[Cell], indices: set[int]) -> Leap:
        begin = len(world.steps)
        moved = True
        while moved and len(world.steps) - begin < _LONGEST:
            moved = False
            for channel in (*thread.flushes.values(), thread.channel):  # stores first: so a buffer does not grow for ever
                if channel.at >= 0 and _leapable(world, channel, indices):
                    world.step(channel)
                    moved = thread.history not in self.stops
                    break
        return world.steps[begin:], [(c, c.value) for c in cells], thread.history, thread.buffer and thread.buffer.copy()


def _leapable(world: World, channel: Channel, indices: set[int]) -> bool:
    op = channel.thread.op
    if channel.kind == THREAD and op is not None and op.code in (Code.SEND, Code.CHOOSE):
        return False
    cell, _ = world.access(channel)
    return cell is None or cell.index in indices
