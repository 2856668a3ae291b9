"""The fewest context switches: a shortest path through the states of one World.

A node is a state and the column that moved last; going on with that column costs nothing, with another one a switch.  So the
first bad end that Dijkstra's algorithm (Numerische Mathematik 1, 1959) takes from its heap has the fewest switches, among these
the fewest steps, among these the least delay of posted stores.

Two things keep it small.  Steps that no other column can notice are taken at once: an execution that switches before them
becomes one that switches after them, with no more switches.  Which cells only one column touches is learned; where that proves
wrong, the search begins again.  And where the bad outcome is one of the end, whatever can move and cannot be stopped from moving
has to move some time: each such column will cost a switch, so a state that is too dear already is not entered (the estimate of
P. Hart, N. Nilsson, B. Raphael: A Formal Basis for the Heuristic Determination of Minimum Cost Paths, 1968).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from actors.actor import Cell
from actors.ops import Code
from racevisor.livelock import alone, fair
from racevisor.step import IPI, STORE_BUFFER, THREAD, Step
from racevisor.world import Channel, Snapshot, Thread, World

_SHARED = -1

#: switches (with those that are sure to come), steps, how many steps were taken while a posted store waited
Key = tuple[int, int, int]


class _Node(NamedTuple):
    parent: _Node | None
    channels: tuple[str, ...]  # from the parent
    column: Thread | None
    snapshot: Snapshot | None  # None: a bad end
    spent: Key
    state: Any = None


class Fewest(NamedTuple):
    """What was found: a schedule or None; no execution has fewer switches than `at_least`; states looked at."""

    schedule: list[str] | None
    at_least: int
    states: int


class _AgainError(Exception):
    """A cell was believed to be one column's own, and is not."""


class FewestSwitches:
    """Looks for the execution with the fewest switches, at most `most`, that breaks `check`, at a step or `at_end`.

    `most_states` bounds the states that are entered, over all beginnings; `enough()` may say that time is up.
    """

    def __init__(
        self, world: World, check: str, *, at_end: bool, most: int, most_states: int, enough: Callable[[], bool] = lambda: False
    ) -> None:
        self.world = world
        self.check = check
        self.at_end = at_end
        self.livelock = check == "livelock"
        self.most = most
        self.most_states = most_states
        self.enough = enough
        self.states = 0
        self.owner: dict[int, int] = {}  # cell -> the column that touches it, or _SHARED
        self.rows = {thread: n for n, thread in enumerate(world.threads)}

    def learn(self, steps: Iterable[Step]) -> None:
        """Who touched what in an execution: each belief that is wrong from the start costs a beginning."""
        rows = {thread.actor.name: row for thread, row in self.rows.items()}
        for step in steps:
            if step.cell is not None and self.owner.setdefault(step.cell.index, rows[step.thread]) != rows[step.thread]:
                self.owner[step.cell.index] = _SHARED

    def search(self) -> Fewest:
        """Leaves the World in some state."""
        while True:
            try:
                return self._search()
            except _AgainError:
                continue

    def _search(self) -> Fewest:
        world = self.world
        world.journal = []
        world.reset()
        serial = count()
        self.heap: list[tuple[Key, int, _Node]] = []
        self.best: dict[Any, Key] = {}
        self.serial = serial
        for thread in world.threads:
            self._meets(thread)
        self._enter(None, (), None, (0, 0, 0))
        least = 0
        while self.heap:
            key, _, node = heappop(self.heap)
            least = max(least, key[0])
            if node.snapshot is None:
                return Fewest(_schedule(node), least, self.states)
            if self.states >= self.most_states or self.enough():
                return Fewest(None, least, self.states)
            if self.best[node.state] != node.spent:
                continue  # it was entered more cheaply
            world.rewind(node.snapshot)
            world.steps = []
            world.journal = []
            self.states += 1
            for channel in sorted(world.movable, key=lambda channel: channel.number):
                column = channel.thread
                switch = node.column is not None and column is not node.column
                if node.spent[0] + switch <= self.most:
                    self._try(node, channel, switch)
                    world.undo(0)
        return Fewest(None, self.most + 1, self.states)

    def _try(self, node: _Node, channel: Channel, switch: bool) -> None:
        """Move a head, then what nobody else can notice; enter the state that comes of it."""
        world = self.world
        column = channel.thread
        buffer = column.buffer
        taken: list[str] = []
        late = node.spent[2]
        while True:
            late += buffer is not None and bool(buffer.entries) and channel.kind != STORE_BUFFER
            self._take(channel)
            taken.append(channel.name)
            if world.violations:
                break
            if self.livelock and alone(world.movable):
                break
            following = self._unnoticed(column)
            if following is None or len(taken) > world.max_steps:
                break
            channel = following
        spent = (node.spent[0] + switch, node.spent[1] + len(taken), late)
        if spent[1] <= world.max_steps:
            self._enter(node, tuple(taken), column, spent)

    def _enter(self, parent: _Node | None, channels: tuple[str, ...], column: Thread | None, spent: Key) -> None:
        world = self.world
        if not world.movable and not world.violations and self.at_end:
            assert world.automata is not None
            assert world.check is not None
            world.automata.restore_private_state(world.threads)
            world.violations = world.check(world.vm)
        if world.violations:
            if any(v.check == self.check for v in world.violations):
                heappush(self.heap, (spent, next(self.serial), _Node(parent, channels, column, None, spent)))
            return
        sure = self._sure(column) if self.at_end else 0
        if spent[0] + sure > self.most or not world.movable:
            return
        state = (world.fingerprint(), column)
        known = self.best.get(state)
        if known is None or spent < known:
            self.best[state] = spent
            loop = self._loop() if self.livelock and alone(world.movable) else None
            if loop is not None:
                heappush(self.heap, (spent, next(self.serial), _Node(parent, (*channels, *loop), column, None, spent)))
            node = _Node(parent, channels, column, world.snapshot(), spent, state)
            heappush(self.heap, ((spent[0] + sure, spent[1], spent[2]), next(self.serial), node))

    def _loop(self) -> list[str] | None:
        """The steps in which the one column that can move goes round for ever, if it does."""
        world = self.world
        depth = len(world.steps)
        since: dict[Any, int] = {}
        found = None
        while world.movable and alone(world.movable) and len(world.steps) - depth < world.max_steps:
            began = since.setdefault(world.fingerprint(), len(world.steps))
            if began < len(world.steps) and fair(world.steps[began:], world.movable):
                found = [step.channel for step in world.steps[depth:]]
                break
            self._take(max(world.movable, key=lambda channel: (channel.kind == STORE_BUFFER, channel.number)))
        world.undo(depth)
        return found

    def _sure(self, column: Thread | None) -> int:
        """How many other columns have a head that nobody can stop."""
        waiting = {
            channel.thread
            for channel in self.world.movable
            if channel.kind != THREAD or channel.thread.op.code != Code.AWAIT  # type: ignore[union-attr]
        }
        return len(waiting - {column}) - (column is None and bool(waiting))

    # ---- what nobody else can notice --------------------------------------------------------------------------------------

    def _take(self, channel: Channel) -> None:
        step = self.world.step(channel)
        if step.cell is not None and not step.posted:
            self._touch(step.cell, channel.thread)
        if channel.kind != IPI and channel.kind != STORE_BUFFER:
            self._meets(channel.thread)

    def _meets(self, thread: Thread) -> None:
        """A thread that waits on a cell competes for it, though it may never take a step on it."""
        if thread.op is not None and thread.op.code == Code.AWAIT and thread.op.cell is not None:
            self._touch(thread.op.cell, thread)

    def _touch(self, cell: Cell, thread: Thread) -> None:
        row = self.rows[thread]
        known = self.owner.setdefault(cell.index, row)
        if known != row and known != _SHARED:
            self.owner[cell.index] = _SHARED
            raise _AgainError

    def _unnoticed(self, column: Thread) -> Channel | None:
        """A head of the column that commutes with all that others may do."""
        for flush in column.flushes.values():
            if flush.at >= 0 and self._own(flush):
                return flush
        return column.channel if column.channel.at >= 0 and self._own(column.channel) else None

    def _own(self, channel: Channel) -> bool:
        cell, _ = self.world.access(channel)
        return cell is None or (not cell.judges and self.owner.get(cell.index) == self.rows[channel.thread])


def _schedule(node: _Node | None) -> list[str]:
    pieces = []
    while node is not None:
        pieces.append(node.channels)
        node = node.parent
    return [name for piece in reversed(pieces) for name in piece]
