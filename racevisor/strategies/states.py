"""Stateful search: every reachable state once, each state recognised by its fingerprint.

Three reductions, all exact for end states and for whether some check fails (an execution stops at its first violation, so of
several checks that fail independently only one may be seen):

* **private first**: a head on a cell that only its own thread ever touches commutes with everything, so it is taken alone
  (an ample set of one; Peled, CAV 1993).  Which cells are private is found out: a run starts by believing it of every cell
  that is not watched; the first time a second thread touches a believed-private cell, the search starts again knowing better.
  A write to a cell that a monitor reads is private only if nobody else takes a step on the monitor's watched cells.
  A head on a cell that a monitor looks at is not taken alone while a posted store of its own thread waits for such a cell.
  A chain of private steps that comes back to a state is broken there by a full expansion, so that no cycle hides the other
  threads for ever; so is one of 1,000 steps.  Where a thread goes round by private steps is learned as well: at that checkpoint
  the state is compared from then on, and so a busy loop of private steps is found as soon as it has come round.
* **sleep sets** with state matching (Godefroid, LNCS 1032, section 5.2): of two commuting heads one order is enough.
* a state already expanded is not expanded again, except for what then slept.

`reduce=False` does without the first two: every distinct state is expanded with all heads that can move, and counted.

`symmetry=True` adds a fourth: a state that is a permutation of one already expanded is not expanded again
(racevisor.symmetry).  The search itself only ever walks through real states.  Why the other three stay sound with it:

* What is believed of a cell is believed of its images, and whoever touches a cell touches it for all that he can be exchanged
  with; so a permutation of a run that was not walked breaks no belief that the run itself would not break (`_claim`).
* What slept in a state is kept by the names of channels in the canonical state.  Let s be explored, except for Z, and s' = p(s)
  be met later with Z' asleep.  Whatever is reachable from s' without beginning, up to commutation, in Z', begins either
  outside of p(Z), and then a permutation of it was reached from s; or in p(Z) - Z', which is explored now.  So induction over
  the length of runs goes through as without symmetry, with "reached" read as "a permutation of it is reached", and the
  set kept for both is p(Z) & Z'.  Independence is the same for images, because permutations keep ops and cells apart.

Threads run as automata (racevisor.automata), so going back to a state copies a few values and executes nothing.
"""

from __future__ import annotations

from random import Random
from typing import Any

from actors.ops import Code
from racevisor.livelock import alone, fair, livelock
from racevisor.step import CHOICE, IPI, THREAD
from racevisor.strategies.leaps import Domain, Leaps, Pairs
from racevisor.symmetry import Symmetry
from racevisor.world import Channel, Execution, Snapshot, World

#: What a head touches: (domain, does it write?, what a monitor tells its step from)
Touch = tuple[int, bool, Pairs]
Sleep = dict[Channel, Touch]
Place = tuple[int, int]  # (number of the channel, index of the cell)
_CHAIN = 1_000  # private steps in a row before the other threads are looked at; steps of an execution that only learns
_LONG = 200  # private steps in a row, from which on it is looked whether they go round in a circle
LEARN = 16  # random executions first: they learn which cells are shared, and often meet a bad one
SHARED = -2  # the owner of what several accessors touch
_OF_THREAD = (THREAD, CHOICE)
_NOTHING: frozenset[Any] = frozenset()
_UNSHARED: Touch = (-1, False, ())


class Frame:
    """A branching state on the present path: what is still to be tried there, and what sleeps."""

    __slots__ = ("children", "sleep", "snapshot", "todo")

    def __init__(self, snapshot: Snapshot, todo: list[Channel], sleep: Sleep) -> None:
        self.snapshot = snapshot
        self.todo = todo
        self.sleep = sleep
        self.children = len(todo) + 1


class StatefulSearch:
    """Exhaustive; `exhausted` is True once every state was expanded and no execution met the step bound.

    `states` are the states expanded (with `symmetry`, up to permutation).  With `reduce=False` they are all that can be
    reached, and `generated` counts as TLC does: the initial state, and every transition out of every distinct state.
    """

    def __init__(self, *, reduce: bool = True, symmetry: bool = False) -> None:
        self.reduce = reduce
        self.wants_symmetry = symmetry
        self.symmetry: Symmetry | None = None
        self.domains: list[Domain] = []
        self.owners: dict[int, int] = {}  # domain or pair of a monitor -> the one accessor seen so far, or SHARED
        self.rounds: set[int] = set()  # local states at checkpoints to which a thread came back by private steps alone
        #: is the head private?  By local state, or by where a store or IPI arrives; only for heads whose toucher is known
        self.settled: dict[int | Place, bool] = {}
        self.certain = False  # is that known for all heads of the present state?
        self.noted: set[int] = set()  # local states whose head has been noted; who is known to touch a domain stays known
        self.blocked = 0
        self.bounded = False
        self.exhausted = False
        self.states = 0
        self._restart()

    def _restart(self) -> None:
        self.visited: dict[Any, frozenset[Any]] = {}
        self.frames: list[Frame] = []
        self.under_way = False
        self.again = False
        self.generated = 1
        self.leaps = Leaps(self.domains, self.owners, self.rounds)

    # ---- the verbs --------------------------------------------------------------------------------------------------------

    def resume(self, world: World) -> bool:
        """Set out from the deepest state where something is left to try."""
        if not self.frames:
            return False
        world.rewind(self.frames[-1].snapshot)
        return True

    def begin(self, world: World, run: int) -> None:
        if not self.domains:
            self.domains.extend(domains(world))
            if self.wants_symmetry:
                self.symmetry = Symmetry(world)
        self.world = world
        self.chain = len(world.steps)
        self.met: set[Any] = set()  # states of chains of this execution, at checkpoints where it is looked
        self.alone: dict[Any, int] = {}  # the states since only one thread has been able to move, and after how many steps
        self.learning = Random(f"learn:{run}").random if run < LEARN and self.reduce else None
        self.next = self.frames[-1].todo.pop() if self.frames else None
        self.under_way = True
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
            self._leave(channel, self.frames[-1].sleep)
            return channel
        settled = self.settled
        self.certain = False
        while self.reduce and len(self.world.steps) - self.chain < _CHAIN:
            self.certain = True
            for channel in movable:
                if channel.kind == CHOICE:
                    continue
                key = channel.thread.history if channel.kind == THREAD else self._place(channel)
                private = settled.get(key)
                if private is None:
                    private = self._private(channel)
                    self.certain = self.certain and key in settled
                if not private:
                    continue
                for posted in channel.thread.flushes.values() if channel.kind == THREAD else ():
                    if posted.at >= 0 and self._private(posted):
                        channel = posted  # before the thread posts more: a loop that stores comes back to its state then
                        break
                if channel in self.sleep:
                    self.blocked += 1
                    return None
                if not self._comes_round(channel):
                    break  # whoever goes round in a circle lets the private steps of others be taken first
            else:
                break
            if channel.kind == IPI or not self._leap(channel):
                return channel
            if not movable:
                return None
        self.chain = len(self.world.steps)
        return self._expand(movable)

    def end(self, execution: Execution) -> bool:
        for thread in self.world.threads:
            if thread.op is not None and thread.op.code == Code.AWAIT:
                self._touch(thread.channel)  # who is blocked on a cell competes for it, though it never took a step on it
        self.under_way = False
        if self.learning is not None:
            self.again = False
            return True
        if execution.status == "bounded":
            self.bounded = True
        if self.again:
            self._restart()
            return True
        if execution.status == "terminal" and not self.reduce:
            self.visited.setdefault(self._known()[0], _NOTHING)  # nobody was asked to pick there
        while self.frames and not self.frames[-1].todo:
            self.frames.pop()
        self.states = len(self.visited)
        if not self.frames:
            self.exhausted = not self.bounded
            return False
        return True

    def frontier(self) -> list[tuple[int, int]]:
        """Per branching state from the first to the present path's last: (heads done with, heads to try that are known of)."""
        path = [(frame.children - len(frame.todo) - 1, frame.children) for frame in self.frames]
        if path and not self.under_way:
            path[-1] = (path[-1][0] + 1, path[-1][1])
        return path

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _comes_round(self, channel: Channel) -> bool:
        """Is this a state in which the present execution has been, before a private step at a checkpoint?"""
        state = channel.thread.history
        known = state in self.rounds
        if not known and len(self.world.steps) - self.chain < _LONG:
            return False
        automata = self.world.automata
        if automata is None or state not in automata.anchors:
            return False
        key = self.world.fingerprint()
        if key not in self.met:
            self.met.add(key)
            return False
        if not known:
            self.rounds.add(state)
            self.again = True  # with leaps that end here, a loop is found in its first rounds and not in its two hundredth
        return True

    def _leap(self, channel: Channel) -> bool:
        thread = channel.thread
        if len(self.world.steps) - self.chain >= _LONG:
            return False  # a leap might jump over the checkpoint where a loop closes
        if self.sleep and (thread.channel in self.sleep or any(c in self.sleep for c in thread.flushes.values())):
            return False  # a head that sleeps must not be moved along, for then its channel would sleep for the next head
        return self.leaps.take(self.world, thread)

    def _access(self, channel: Channel) -> Touch:
        """(domain, does it write?, pairs) of a head; (-1, False, ()) if it touches nothing shared."""
        cell, writes = self.world.access(channel)
        if cell is None:
            return _UNSHARED
        domain, watched, pairs, pairs_if_written = self.domains[cell.index]
        return domain, writes or watched, pairs_if_written if writes else pairs

    def _shares(self, channel: Channel) -> Pairs:
        """The domain and the pairs of a head, whatever values it will meet: an RMW may come to write."""
        cell, _ = self.world.access(channel)
        if cell is None:
            return ()
        domain, _, pairs, pairs_if_written = self.domains[cell.index]
        if not pairs_if_written:
            return (domain,)
        op = channel.thread.op
        return domain, *(pairs if channel.kind == THREAD and op is not None and op.code == Code.LOAD else pairs_if_written)

    def _private(self, channel: Channel) -> bool:
        """Does the head commute with all that others may do?  Claims an untouched domain for its thread."""
        if channel.kind == CHOICE:
            return False
        place = channel.thread.history if channel.kind == THREAD else self._place(channel)
        settled = self.settled.get(place)
        if settled is not None:
            return settled
        shares = self._shares(channel)
        if not shares:
            return True
        for share in shares:
            if share not in self.owners:
                self._claim(channel, share)
        accessor = accessor_of(channel)
        if len(shares) == 1:
            owner = self.owners[shares[0]]
            private, known = owner == accessor, owner in (accessor, SHARED)
        else:
            owners = {self.owners[share] for share in shares}
            private, known = owners == {accessor}, owners <= {accessor, SHARED}
        if private and channel.thread.buffer is not None and self._judged(channel):
            # A monitor may see whether this head comes before or after a posted store of its own thread.
            return not any(entry.cell.judges for entry in channel.thread.buffer.entries)
        if known:
            self.settled[place] = private
        return private

    def _place(self, channel: Channel) -> Place:
        """Where a posted store or an IPI is about to arrive."""
        if channel.kind == IPI:
            return channel.number, -1
        cell = channel.payload
        return channel.number, channel.thread.buffer.entries[0].cell.index if cell is None else cell.index  # type: ignore[union-attr]

    def _judged(self, channel: Channel) -> bool:
        cell, _ = self.world.access(channel)
        return cell is not None and bool(cell.judges)

    def _touch(self, channel: Channel) -> None:
        """Note who is about to touch what; a second toucher of a believed-private domain means to start again."""
        if channel.kind == THREAD:
            history = channel.thread.history
            if history in self.noted or history in self.settled:
                return
            if self.symmetry is None:
                self.noted.add(history)
        for share in self._shares(channel):
            if self.owners.get(share) not in (SHARED, accessor_of(channel)):
                self._claim(channel, share)

    def _claim(self, channel: Channel, domain: int) -> None:
        """Somebody touches a domain for the first time, and with him all that he can be exchanged with."""
        claims = [(accessor_of(channel), domain)]
        if self.symmetry is not None and domain >= len(self.domains):
            claims = [(SHARED, domain)]  # a pair of a monitor; its images are other monitors' and nobody's own either
        elif self.symmetry is not None:
            claims = [
                (accessor_of(thread.channel) if thread is not None else SHARED, self.domains[cell.index][0])
                for thread, cell in self.symmetry.touches(channel, [i for i, d in enumerate(self.domains) if d[0] == domain])
            ]
        self.settled.clear()
        for accessor, touched in claims:
            owner = self.owners.setdefault(touched, accessor)
            if owner != accessor and owner != SHARED:
                self.owners[touched] = SHARED
                self.again = True

    def _known(self) -> tuple[Any, frozenset[Any] | None]:
        """(a value that tells the present state from others, what slept in it before; None if it is new)."""
        try:
            key = self.world.fingerprint() if self.symmetry is None else self.symmetry.canonical()
            return key, self.visited.get(key)
        except TypeError as error:
            raise self.world.unhashable() from error

    def _expand(self, movable: list[Channel]) -> Channel | None:
        """A state where threads compete: what of it is left to explore?"""
        if self.reduce:
            if not self.certain:
                for channel in movable:
                    self._touch(channel)
            if self.again:
                return None
        key, slept = self._known()
        if movable[0].thread is not movable[-1].thread or not alone(movable):
            self.alone.clear()
        elif key in self.alone and fair(self.world.steps[self.alone[key] :], movable):
            self.world.violations.append(livelock(movable[0]))
            return None
        else:
            self.alone[key] = len(self.world.steps)
            self.sleep = {}  # follow it: what a sleeping head would lead to is known, but not that it leads back here
        sleep = self.sleep
        if slept is None:
            self.generated += len(movable)
            todo = [c for c in movable if c not in sleep]
        elif slept:
            todo = [c for c in movable if c not in sleep and self._name(c) in slept]
            sleep = {c: access for c, access in sleep.items() if self._name(c) in slept}
        else:
            todo = []
        if todo or slept is None:
            self.visited[key] = frozenset([self._name(c) for c in sleep]) if sleep else _NOTHING
        if not todo:
            self.blocked += 1
            return None
        # the last of `todo` is explored by this very execution; the others wait, each sleeping on those taken before it
        channel = todo.pop()
        sleep = dict(sleep)
        if todo:
            self.frames.append(Frame(self.world.snapshot(), todo, sleep))
        self._leave(channel, sleep)
        return channel

    def _name(self, channel: Channel) -> Any:
        return channel if self.symmetry is None else self.symmetry.channel(channel)

    def _leave(self, channel: Channel, sleep: Sleep) -> None:
        """Take `channel` out of a state: what commutes with it sleeps on; from now on it sleeps in that state itself."""
        if self.reduce:
            touch = self._access(channel)
            self.sleep = _commuting(sleep, channel, touch) if sleep else {}
            if not self._private(channel):  # where a chain was broken it might lead back here, and nothing but it be taken below
                sleep[channel] = touch


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
    judging = set(world.monitors)  # a World that was made small has fewer than its cells know of
    found = []
    for cell in world.vm.cells:
        watching = tuple(pairs[monitor, read] for monitor in cell.watched for read in monitor.reads if monitor in judging)
        reading = tuple(pairs[monitor, cell] for monitor in cell.judges if monitor not in cell.watched and monitor in judging)
        found.append((root(cell.index), bool(cell.watched), watching, watching + reading))
    return found


def accessor_of(channel: Channel) -> int:
    """Who takes the step: a thread and its own store buffer are one, an IPI in flight is nobody else's."""
    return -channel.number - 10 if channel.kind == IPI else channel.thread.channel.number


def _commuting(sleep: Sleep, channel: Channel, touch: Touch) -> Sleep:
    """Those whose heads commute with that of `channel`."""
    domain, writes, pairs = touch
    thread = channel.thread if channel.kind in _OF_THREAD else None
    found = {}
    for other, access in sleep.items():
        if other is channel or (other.thread is thread and other.kind in _OF_THREAD):
            continue
        if access[0] == domain and domain >= 0 and (access[1] or writes):
            continue
        if pairs and any(pair in access[2] for pair in pairs):
            continue
        found[other] = access
    return found
