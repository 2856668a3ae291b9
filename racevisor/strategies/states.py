"""Stateful search: every reachable state once, each state recognised by its fingerprint.

Three reductions, all exact for end states and for whether some check fails (an execution stops at its first violation, so of
several checks that fail independently only one may be seen):

* **private first**: a head on a cell that only its own thread ever touches commutes with everything, so it is taken alone
  (an ample set of one; Peled, CAV 1993).  Which cells are private is found out: a run starts by believing it of every cell
  that is not watched; the first time a second thread touches a believed-private cell, the search starts again knowing better.
  A write to a cell that a monitor reads is private only if nobody else takes a step on the monitor's watched cells.
  A chain of 1,000 private steps is broken by a full expansion, so that no cycle hides the other threads for ever.
* **sleep sets** with state matching (Godefroid, LNCS 1032, section 5.2): of two commuting heads one order is enough.
* a state already expanded is not expanded again, except for what then slept.

Threads run as automata (racevisor.automata), so going back to a state copies a few values and executes nothing.
"""

from __future__ import annotations

from random import Random
from typing import Any

from actors.actor import Cell
from actors.ops import Code
from racevisor.step import CHOICE, IPI, THREAD
from racevisor.world import Channel, Execution, Leap, Snapshot, Thread, World, alone, livelock

#: What a head touches: (domain, does it write?, what a monitor tells its step from)
Touch = tuple[int, bool, tuple[int, ...]]
Sleep = dict[Channel, Touch]
_CHAIN = 1_000  # private steps in a row before the other threads are looked at; steps of an execution that only learns
_LEARN = 64  # random executions first: they learn which cells are shared, and often meet a bad one
_SHARED = -2
_OF_THREAD = (THREAD, CHOICE)


class _Frame:
    """A branching state on the present path: what is still to be tried there."""

    __slots__ = ("sleep", "snapshot", "todo")

    def __init__(self, snapshot: Snapshot, todo: list[Channel], sleep: Sleep) -> None:
        self.snapshot = snapshot
        self.todo = todo
        self.sleep = sleep


class StatefulSearch:
    """Exhaustive; `exhausted` is True once every state was expanded and no execution met the step bound."""

    def __init__(self) -> None:
        self.domains: list[Domain] = []
        self.owners: dict[int, int] = {}  # domain or pair of a monitor -> the one accessor seen so far, or _SHARED
        self.blocked = 0
        self.bounded = False
        self.exhausted = False
        self.states = 0
        self._restart()

    def _restart(self) -> None:
        self.visited: dict[Any, Sleep] = {}
        self.frames: list[_Frame] = []
        self.again = False
        self.leaps: dict[Any, Leap] = {}
        self.own_cells: dict[Thread, tuple[int, list[Cell], set[int]]] = {}

    # ---- the three verbs --------------------------------------------------------------------------------------------------

    def resume(self, world: World) -> bool:
        """Set out from the deepest state where something is left to try."""
        if not self.frames:
            return False
        world.rewind(self.frames[-1].snapshot)
        return True

    def begin(self, world: World, run: int) -> None:
        if not self.domains:
            self.domains = domains(world)
        self.world = world
        self.chain = len(world.steps)
        self.alone: set[Any] = set()  # the states since only one thread has been able to move
        self.learning = Random(f"learn:{run}").random if run < _LEARN else None
        self.next = self.frames[-1].todo.pop() if self.frames else None
        self.sleep: Sleep = {}

    def pick(self, movable: list[Channel]) -> Channel | None:
        if self.learning is not None:
            if len(self.world.steps) > _CHAIN:
                return None
            channel = movable[int(self.learning() * len(movable))]
            self._touch(channel)
            self.again = False
            return channel
        if self.next is not None:
            channel, self.next = self.next, None
            self._leave(channel, self.frames[-1])
            return channel
        while len(self.world.steps) - self.chain < _CHAIN:
            for channel in movable:
                if self._private(channel):
                    break
            else:
                break
            if channel in self.sleep:
                self.blocked += 1
                return None
            if channel.kind == IPI or not self._leap(channel.thread):
                return channel
            if not movable:
                return None
        self.chain = len(self.world.steps)
        return self._expand(movable)

    def end(self, execution: Execution) -> bool:
        for thread in self.world.threads:
            if thread.op is not None and thread.op.code == Code.AWAIT:
                self._touch(thread.channel)  # who is blocked on a cell competes for it, though it never took a step on it
        if self.learning is not None:
            self.again = False
            return True
        if execution.status == "bounded":
            self.bounded = True
        if self.again:
            self._restart()
            return True
        while self.frames and not self.frames[-1].todo:
            self.frames.pop()
        self.states = len(self.visited)
        if not self.frames:
            self.exhausted = not self.bounded
            return False
        return True

    # ---- leaps: a run of private steps, taken at once the second time ------------------------------------------------------

    def _leap(self, thread: Thread) -> bool:
        """Take the thread's next private steps as one remembered leap; False if the next one has to be a step of its own."""
        world = self.world
        if self.sleep and (thread.channel in self.sleep or any(c in self.sleep for c in thread.flushes.values())):
            return False  # a head that sleeps must not be moved along, for then its channel would sleep for the next head
        known, cells, indices = self.own_cells.get(thread, (0, [], set()))
        if known != len(self.owners):  # more cells have turned out to be this thread's own
            mine = thread.channel.number
            cells = [c for c in world.vm.cells if not c.watched and self._owns(mine, *self.domains[c.index])]
            indices = {c.index for c in cells}
            self.own_cells[thread] = (len(self.owners), cells, indices)
        buffer = thread.buffer
        key = (thread.history, tuple([c.value for c in cells]), () if buffer is None else buffer.contents())
        leap = self.leaps.get(key)
        if leap is None:
            leap = self.leaps[key] = self._first_time(thread, cells, indices)
            return bool(leap[0])
        if leap[0]:
            world.leap(thread, *leap)
        return bool(leap[0])

    def _first_time(self, thread: Thread, cells: list[Cell], indices: set[int]) -> Leap:
        world = self.world
        begin = len(world.steps)
        own = [thread.channel, *thread.flushes.values()]
        moved = True
        while moved and len(world.steps) - begin < 100:
            moved = False
            for channel in own:
                if channel.at >= 0 and self._leapable(channel, indices):
                    world.step(channel)
                    moved = True
                    break
        return world.steps[begin:], [(c, c.value) for c in cells], thread.history, thread.buffer and thread.buffer.copy()

    def _leapable(self, channel: Channel, indices: set[int]) -> bool:
        op = channel.thread.op
        if channel.kind == THREAD and op is not None and op.code in (Code.SEND, Code.CHOOSE):
            return False
        cell, _ = self.world.access(channel)
        return cell is None or cell.index in indices

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _access(self, channel: Channel) -> Touch:
        """(domain, does it write?, pairs) of a head; (-1, False, ()) if it touches nothing shared."""
        cell, writes = self.world.access(channel)
        if cell is None:
            return -1, False, ()
        domain, watched, pairs, pairs_if_written = self.domains[cell.index]
        return domain, writes or watched, pairs_if_written if writes else pairs

    def _owns(self, accessor: int, domain: int, _watched: bool, _pairs: Pairs, pairs_if_written: Pairs) -> bool:
        """May the accessor take any step on a cell alone, by what is known already?"""
        return all(self.owners.get(one) == accessor for one in (domain, *pairs_if_written))

    def _private(self, channel: Channel) -> bool:
        """Does the head commute with all that others may do?  Claims an untouched domain for its thread."""
        if channel.kind == CHOICE:
            return False
        domain, _, pairs = self._access(channel)
        if domain < 0:
            return True
        accessor = _accessor(channel)
        for pair in pairs:
            if self.owners.setdefault(pair, accessor) != accessor:
                return False
        return self.owners.setdefault(domain, accessor) == accessor

    def _touch(self, channel: Channel) -> None:
        """Note who is about to touch what; a second toucher of a believed-private domain means to start again."""
        domain, _, pairs = self._access(channel)
        if domain >= 0:
            accessor = _accessor(channel)
            for one in (domain, *pairs):
                owner = self.owners.setdefault(one, accessor)
                if owner != _SHARED and owner != accessor:
                    self.owners[one] = _SHARED
                    self.again = True

    def _expand(self, movable: list[Channel]) -> Channel | None:
        """A state where threads compete: what of it is left to explore?"""
        world = self.world
        for channel in movable:
            self._touch(channel)
        if self.again:
            return None
        key = world.fingerprint()
        slept = self.visited.get(key)
        if not alone(movable):
            self.alone.clear()
        elif key in self.alone and len(movable) == 1:  # nothing posted waits: the loop is not one that starves its own stores
            world.violations.append(livelock(movable[0]))
            return None
        else:
            self.alone.add(key)
        sleep = self.sleep
        if slept is None:
            self.visited[key] = dict(sleep)
            todo = [c for c in movable if c not in sleep]
        else:
            todo = [c for c in slept if c not in sleep]
            sleep = {c: a for c, a in slept.items() if c in sleep}
            self.visited[key] = dict(sleep)
        if not todo:
            self.blocked += 1
            return None
        # the last of `todo` is explored by this very execution; the others wait, each sleeping on those taken before it
        channel = todo.pop()
        frame = _Frame(world.snapshot(), todo, dict(sleep)) if todo else None
        if frame is not None:
            self.frames.append(frame)
        self._leave(channel, frame or _Frame(None, todo, sleep))  # type: ignore[arg-type]
        return channel

    def _leave(self, channel: Channel, frame: _Frame) -> None:
        """Take `channel` out of a state: what commutes with it sleeps on; from now on it sleeps in that state itself."""
        touch = self._access(channel)
        self.sleep = {o: access for o, access in frame.sleep.items() if not _dependent(o, access, channel, touch)}
        frame.sleep[channel] = touch


#: What a step on a watched cell has in common with a write to a cell that the same monitor reads: a number for the two cells.
Pairs = tuple[int, ...]
#: Of a cell: its domain, is it watched, the pairs that any step on it is part of, those that a write to it is part of.
Domain = tuple[int, bool, Pairs, Pairs]


def domains(world: World) -> list[Domain]:
    """Per cell.  Cells that one monitor watches together are one domain: their order is what it judges."""
    parent = list(range(len(world.vm.cells)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for monitor in world.monitors:
        first, *others = monitor.watches
        for cell in others:
            parent[root(cell.index)] = root(first.index)
    pairs = {pair: len(parent) + n for n, pair in enumerate((m, cell) for m in world.monitors for cell in m.reads)}
    found = []
    for cell in world.vm.cells:
        watching = tuple(pairs[monitor, read] for monitor in cell.watched for read in monitor.reads)
        reading = tuple(pairs[monitor, cell] for monitor in cell.judges if monitor not in cell.watched)
        found.append((root(cell.index), bool(cell.watched), watching, watching + reading))
    return found


def _accessor(channel: Channel) -> int:
    # a thread and its own store buffer are one accessor; an IPI in flight is nobody's
    return -channel.number - 10 if channel.kind == IPI else channel.thread.channel.number


def _dependent(a: Channel, access: Touch, b: Channel, touch: Touch) -> bool:
    if a is b or (a.thread is b.thread and a.kind in _OF_THREAD and b.kind in _OF_THREAD):
        return True
    domain, writes, pairs = touch
    return (access[0] == domain and domain >= 0 and (access[1] or writes)) or any(pair in access[2] for pair in pairs)
