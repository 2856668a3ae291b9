"""Decomposition: threads that talk to each other through a hub only are searched one part at a time, together with the hub.

The communication graph (`racevisor.hub`) says which threads touch which cells.  Without the hub H it falls into parts P1..Pn; the
state space is a product of their state spaces, so it is enough to exhaust n small Worlds: in World i only H and the threads of Pi
move, the others stay before their first step.  In World 0 only H moves.

**What is proved.**  The violation-free executions of the whole machine, projected on H's home states, H's own cells, and the
threads and cells of Pi, are those of World i.

*World i has nothing that the machine has not:* an execution of World i is one of the machine in which the others have not moved.

*The machine has nothing that World i has not:* take a shortest execution that does not project on some World i, and its last
step t; what came before t projects on every World.  If t is a step of Pi, it meets in World i the same local states, cells and
posted stores: it is a step there.  If it touched a cell that is not Pi's, World i would have met that too, and the search stops,
merges the parts and starts again.  If t is a step of H from a home state, that state, H's own cells and the cells of the one part
that t may touch are the same in that part's World.  If t is a step of H on an excursion into Pi (see `racevisor.hub.Hub`), it is
one in World i, while H still stands before the excursion in every World j.  If it ends the excursion, then in World j, where Pi
is frozen, H walks through all of it: this touches no cell of Pj, it comes to an end, and it ends in the same home state with the
same own cells and the same effect on stores that H had posted for Pj.  These conditions are checked, on the automaton of H as all
the Worlds have found it: one end for each excursion, one order of writes to own cells, one effect (`hub.Effect`), no
other part on the way, nothing but known home states; and in no World does H end up blocked on a cell of a part.  An excursion
never lasts for ever, because ways that do not meet again are never exhausted, and ways that meet again end it.
Posted stores to another part's cells can always go first, which nobody in Pi sees.

**What is spared.**  H's way to its first step on a cell of Pi commutes with Pi, so World i begins behind it; and H stops at the
first checkpoint from which it never comes back to Pi.  Where a World is bounded, or a condition fails, the machine is not taken
apart, and the caller searches the whole.

**Judging.**  Monitors belong to the part whose cells they watch (cells watched by one are never parted).  End states are judged
by `check` with `vm.judged` set to the actors of one part; all cells that are not the part's are sealed meanwhile, so that a check
that looks at two parts at once is found out.  The end of the machine is bad iff that of a part is; a bad execution of World i is
made one of the whole machine by letting the others run, really, and so is the good one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NoReturn

from actors.actor import Actor, Cell
from actors.ops import Code, Op
from actors.vm import Vm
from racevisor.hub import Hub, Part, Refused, Sealed, cell_of, constant, parts_around, touches
from racevisor.strategies.states import StatefulSearch
from racevisor.world import Channel, Execution, Snapshot, Thread, World

HUBS = 3  # threads that are tried as the hub
LEARN = 4  # random executions of the whole machine, to see who talks to whom


class _Surprise(Exception):
    """A thread is about to touch a cell of which this was not known: the graph was wrong."""


class Stopped(Refused):
    """`should_stop` said so: no other hub is tried."""


@dataclass
class Found:
    """What one World has shown: World 0 if `part` is None."""

    part: Part | None
    states: int = 0
    executions: int = 0
    bad: int = 0
    blocked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    #: schedules as channel names: what the hub does before this World begins, and the execution
    head: list[str] = field(default_factory=list)
    bad_schedule: list[str] | None = None
    good_schedule: list[str] | None = None
    #: where the hub was left, in a state from which it could not go on
    hub_ends: set[int] = field(default_factory=set)
    #: where the hub stands when this World begins
    begins: int | None = None
    #: cells that no thread was known to touch, and that checks looked at
    constants: set[int] = field(default_factory=set)


@dataclass
class Decomposed:
    """All Worlds exhausted."""

    hub: str
    found: list[Found]  # World 0, then the parts
    #: executions of the whole machine; the good one is made of those of the parts, if these fit one after the other
    bad: Execution | None = None
    good: Execution | None = None

    @property
    def parts(self) -> list[Found]:
        """What was found in each part."""
        return self.found[1:]

    @property
    def always(self) -> bool:
        """Does every execution end badly?  Iff all of one part's do."""
        return any(one.executions == one.bad for one in self.found)

    @property
    def states(self) -> int:
        """States in all Worlds."""
        return sum(one.states for one in self.found)

    @property
    def words(self) -> str:
        """For a ledger."""
        sizes = sorted({len(one.part.threads) for one in self.parts if one.part})
        threads = f"{sizes[0]} thread{'s' * (sizes[0] > 1)}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} threads"
        return (
            f"decomposed into {len(self.parts)} parts of {threads} around {self.hub}, which do not talk to each other; "
            f"{self.states} states in all"
        )


class Decomposition:
    """Takes the World apart that it is given (made with automata=True, and not used for anything else afterwards)."""

    def __init__(self, world: World, *, should_stop: Callable[[int], bool] | None = None) -> None:
        self.world = world
        self.vm: Vm = world.vm
        self.should_stop = should_stop
        self.all = (world.threads, world.monitors)
        self.check, world.check = world.check, None
        self.outcome, world.outcome = world.outcome, None
        self.executions = 0
        self.known: dict[Any, Found] = {}
        self.hub: Thread | None = None
        self.refused: dict[Thread, Refused] = {}

    def run(self) -> Decomposed:
        """Exhaust all Worlds and check the conditions; Refused if it cannot be done."""
        assert self.world.automata is not None
        if self.world.automata.moves:
            raise ValueError("a World that has run is not taken apart")
        try:
            self._learn()
            while True:
                try:
                    return self._attempt(*self._partition())
                except _Surprise:
                    continue
                except Stopped:
                    raise
                except Refused as reason:
                    if self.hub is None or len(self.refused) == HUBS - 1:
                        raise next(iter(self.refused.values()), reason) from None
                    self.refused[self.hub] = reason
        finally:
            self._unseal()
            self._widen()
            self.world.close()

    # ---- who talks to whom --------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """A few executions of the whole machine."""
        world = self.world
        for run in range(LEARN):
            random = Random(f"parts:{run}").random
            world.reset()
            while world.movable and not world.violations and len(world.steps) < world.max_steps:
                world.step(world.movable[int(random() * len(world.movable))])

    def _partition(self) -> tuple[Thread, list[Part]]:
        threads, monitors = self.all
        touched = {thread: touches(self.world, thread) for thread in threads}
        together = [[cell.index for cell in (*m.watches, *getattr(m, "reads", ()))] for m in monitors]
        best: tuple[Thread, list[Part]] | None = None
        for thread in threads:
            parts = parts_around(thread, touched, together)
            if thread not in self.refused and (best is None or len(parts) > len(best[1])):
                best = thread, parts
        self.hub = None
        if best is None or len(best[1]) < 2:
            raise Refused("no thread is the hub of at least two parts that do not talk to each other")
        self.hub = best[0]
        return best

    def _attempt(self, thread: Thread, parts: list[Part]) -> Decomposed:
        world = self.world
        automata = world.automata
        assert automata is not None
        hub = Hub(world, thread, parts)
        alone: set[int] = set()
        found = [self._hub_alone(hub, alone)]
        heads = self._heads(hub, alone)
        stops = hub.leaves(alone)
        for n, part in enumerate(parts):
            found.append(self._part(hub, part, heads[n], stops[n]))
        home = hub.home(alone)
        for one in found:
            for state in one.hub_ends:
                op = automata.ops[state]
                if op is not None and (state not in home or hub.part_of(state) is not None):
                    words = one.part if one.part is not None else "another thread"
                    raise Refused(f"{thread.actor.name} may wait for ever for {words}")
            if not one.executions:
                raise Refused(f"no execution of {one.part or thread.actor.name} comes to an end")
        if hub.chooses(home) and any(one.bad for one in found) and not any(one.executions == one.bad for one in found):
            raise Refused(f"{thread.actor.name} goes different ways, and a good end of one part may be the bad end of another")
        return self._whole(Decomposed(thread.actor.name, found))

    # ---- the Worlds ---------------------------------------------------------------------------------------------------------

    def _widen(self) -> None:
        self.world.narrow(self.all[0], self.vm.cells, self.all[1], lambda _thread, _op: False)

    def _hub_alone(self, hub: Hub, alone: set[int]) -> Found:
        """World 0; fills `alone`."""

        def note(thread: Thread, _op: Op) -> bool:
            alone.add(thread.history)
            return False

        self.world.narrow([hub.thread], self.vm.cells, self.all[1], note)
        others = [thread for thread in self.all[0] if thread is not hub.thread]
        foreign = [cell for cell in self.vm.cells if cell.index in hub.of_cell]
        own = [actor for actor in self.vm.actors if actor is hub.thread.actor or not self._has_part(hub, actor)]
        found = self._exhaust(Found(None), hub, set(), frozenset(own), others, [], foreign)
        alone |= found.hub_ends
        return found

    def _has_part(self, hub: Hub, actor: Actor) -> bool:
        return any(cell.owner is actor and cell.index in hub.of_cell for cell in self.vm.cells) or any(
            thread.actor is actor for part in hub.parts for thread in part.threads
        )

    def _heads(self, hub: Hub, alone: set[int]) -> list[tuple[list[str], Snapshot, int] | None]:
        """Per part: what the hub does before its first step on the part's cells, if there is but one way to go."""
        world, automata = self.world, self.world.automata
        assert automata is not None
        heads: list[tuple[list[str], Snapshot, int] | None] = [None] * len(hub.parts)
        if hub.chooses(alone):
            return heads
        self._widen()
        world.reset()
        thread = hub.thread
        own = [thread.channel]
        while True:
            part = hub.part_of(thread.history)
            moving = next((c for c in own if c.at >= 0), None)
            if part is not None and heads[part] is None:
                self._drain(thread)
                heads[part] = ([step.channel for step in world.steps], self._snapshot(hub, hub.parts[part]), thread.history)
                continue
            if moving is None:
                moving = next((c for c in world.movable if c.thread is thread), None)
            if moving is None:
                return heads
            world.step(moving)

    def _drain(self, thread: Thread) -> None:
        """Let all posted stores of the hub reach memory: nobody else looks at these cells yet."""
        while (channel := next((c for c in thread.flushes.values() if c.at >= 0), None)) is not None:
            self.world.step(channel)

    def _snapshot(self, hub: Hub, part: Part) -> Snapshot:
        """The present state with all cells; `_part` keeps those that its World needs."""
        world = self.world
        threads, monitors = self.all
        world.threads = [hub.thread, *part.threads]
        snapshot = world.snapshot()
        world.threads, world.monitors = threads, monitors
        snapshot.depth = 0
        return snapshot

    def _part(self, hub: Hub, part: Part, head: tuple[list[str], Snapshot, int] | None, stops: set[int]) -> Found:
        """World i."""
        threads = [hub.thread, *part.threads]
        reach = hub.reach(head[2] if head else hub.first, stops)
        play = part.cells | reach
        signature = (hub.thread, part, play, frozenset(stops), head and (head[2], tuple(head[0])))
        world = self.world
        touched = frozenset().union(*(touches(world, thread) for thread in self.all[0])) | hub.of_cell.keys()
        known = self.known.get(signature)
        if known is not None and not known.constants & touched:
            return known
        cells = [cell for cell in self.vm.cells if cell.index in play]
        monitors = [m for m in self.all[1] if any(cell.index in part.cells for cell in m.watches)]
        start = None
        if head is not None:
            start = head[1]
            start.keep(cells)
            # an IPI that is on its way to another part stays on its way
            arrivals = [(channel, queue, world.landing(channel.payload)) for channel, queue in start.queues]
            start.queues = [(channel, queue) for channel, queue, cell in arrivals if cell is not None and cell.index in play]
            start.ghosts = [ghost for m, ghost in zip(self.all[1], start.ghosts, strict=True) if m in monitors]
        world.narrow(threads, cells, monitors, self._guard(hub, part, play, stops), start)
        moving = {thread.actor for thread in threads}
        others = [thread for thread in self.all[0] if thread.actor not in moving]
        owners = {self.vm.cells[index].owner for index in part.cells}
        judged = frozenset({t.actor for t in part.threads} | {o for o in owners if o not in {t.actor for t in self.all[0]}})
        outside = [cell for cell in self.vm.cells if cell.index in touched and cell.index not in play]
        beside = [cell for cell in cells if cell.index not in part.cells]
        found = Found(part, head=head[0] if head else [], begins=head[2] if head else None)
        untouched = [cell for cell in self.vm.cells if cell.index not in touched and cell.index not in play]
        self._seal(untouched, [], constant(found.constants))
        self.known[signature] = self._exhaust(found, hub, stops, judged, others, outside, beside)
        return found

    def _guard(self, hub: Hub, part: Part, play: frozenset[int], stops: set[int]) -> Callable[[Thread, Op], bool]:
        world = self.world

        def guard(thread: Thread, op: Op) -> bool:
            if thread is hub.thread:
                if thread.history in stops:
                    return True
                allowed = play
            else:
                allowed = part.cells
            cell = op.cell if op.code != Code.SEND else cell_of(world, op)
            if cell is not None and cell.index not in allowed:
                raise _Surprise(f"{thread.actor.name}: {cell.label}")
            return False

        return guard

    def _exhaust(
        self,
        found: Found,
        hub: Hub,
        stops: set[int],
        judged: frozenset[Actor],
        frozen: list[Thread],
        outside: list[Cell],
        beside: list[Cell],
    ) -> Found:
        """Search the World as it is now, to the end.

        `judged` are the actors that its ends are judged for; `frozen` threads and the cells `outside` cannot be looked at
        throughout; the cells `beside` the part's own change, and cannot be looked at when an end is judged.
        """
        world = self.world
        what = str(found.part) if found.part is not None else hub.thread.actor.name
        self._seal(outside, frozen)
        watched = [(cell, cell.watched) for cell in beside if found.part is not None]
        for cell, _ in watched:
            cell.watched = ()  # by checks of other parts
        search = StatefulSearch()
        run = 0
        try:
            while True:
                execution = world.run(search, run)
                run += 1
                self.executions += 1
                if execution.status == "bounded":
                    raise Refused(f"{what} and its hub may go on for more than {world.max_steps} steps")
                if execution.status in ("terminal", "violated"):
                    self._judge(found, execution, hub, stops, judged, beside)
                if self.should_stop is not None and self.should_stop(self.executions):
                    raise Stopped("the search was stopped")
                if not search.end(execution):
                    break
        finally:
            self._unseal()
            for cell, monitors in watched:
                cell.watched = monitors
        if not search.exhausted:
            raise Refused(f"the search of {what} came to no end")
        found.states = search.states
        found.blocked = search.blocked
        return found

    def _judge(
        self, found: Found, execution: Execution, hub: Hub, stops: set[int], judged: frozenset[Actor], beside: list[Cell]
    ) -> None:
        violations = list(execution.violations)
        if any(violation.check == "livelock" for violation in violations):
            raise Refused(f"a thread of {found.part or hub.thread.actor.name} may run for ever: {violations[0].text}")
        if execution.status == "terminal":
            state = hub.thread.history
            found.hub_ends.add(state)
            stopped = state in stops
            actor = hub.thread.actor
            private = {name: actor.__dict__.pop(name) for name in actor.state if found.part is not None}
            self._seal(beside, [])
            self.vm.judged = judged
            try:
                violations += self.check(self.vm) if self.check is not None else []
                if self.outcome is not None and (words := str(self.outcome(self.vm))):
                    found.outcomes[words] += 1
            except AttributeError as error:
                if isinstance(error.obj, Actor) and error.name in error.obj.state:
                    where = "where it does not stop" if not stopped else "which goes on after this part"
                    raise Refused(f"what is judged looks at {error.obj.name}.{error.name}, {where}") from error
                raise
            finally:
                self.vm.judged = None
                for cell in beside:
                    cell.__class__ = Cell
                actor.__dict__.update(private)
            if stopped:
                found.hub_ends.discard(state)
        found.executions += 1
        schedule = [step.channel for step in execution.steps]
        if violations:
            found.bad += 1
            if found.bad_schedule is None or len(schedule) < len(found.bad_schedule):
                found.bad_schedule = schedule
        elif found.good_schedule is None:
            found.good_schedule = schedule

    # ---- executions of the whole machine ------------------------------------------------------------------------------------

    def _whole(self, decomposed: Decomposed) -> Decomposed:
        """What was found in the parts, shown on the whole machine."""
        world, found = self.world, decomposed.found
        self._widen()
        world.check, world.outcome = self.check, self.outcome
        bad = min(([*one.head, *one.bad_schedule] for one in found if one.bad_schedule is not None), key=len, default=None)
        if bad is not None:
            script = _Script(decomposed.hub, [(None, bad)])
            decomposed.bad = world.run(script)
            if script.lost or not decomposed.bad.bad:
                _broken(f"the bad execution {bad} of a part is none of the whole machine")
        pieces = [(one.begins, one.good_schedule or []) for one in sorted(decomposed.parts, key=lambda one: len(one.head))]
        if not decomposed.always and all(begins is not None for begins, _ in pieces):
            script = _Script(decomposed.hub, pieces)
            good = world.run(script)
            decomposed.good = good if good.status == "terminal" and not good.bad else None
        return decomposed

    # ---- seals --------------------------------------------------------------------------------------------------------------

    def _seal(self, cells: list[Cell], threads: list[Thread], seal: type[Cell] = Sealed) -> None:
        for cell in cells:
            cell.__class__ = seal
        assert self.world.automata is not None
        for thread in threads:
            self.world.automata.forget(thread)
            for name in thread.actor.state:
                thread.actor.__dict__.pop(name, None)

    def _unseal(self) -> None:
        for cell in self.vm.cells:
            cell.__class__ = Cell
        for thread in self.all[0]:
            for name, value in thread.actor.state.items():
                thread.actor.__dict__.setdefault(name, value)


class _Script:
    """Follows a schedule of channel names, walking the hub alone to where each piece of it begins; then at random to the end."""

    def __init__(self, hub: str, pieces: Sequence[tuple[int | None, list[str]]]) -> None:
        self.hub = hub
        self.pieces = pieces
        self.random = Random("to the end")
        self.lost = False

    def begin(self, world: World, _run: int) -> None:
        """Set out."""
        self.world = world
        self.names: list[str] = []
        self.left = list(reversed(self.pieces))
        self.walking: int | None = None
        self.thread = next(thread for thread in world.threads if thread.actor.name == self.hub)

    def pick(self, movable: list[Channel]) -> Channel | None:
        """The next of the schedule."""
        while not self.names and (self.walking is not None or self.left):
            if self.walking is None:
                self.walking, names = self.left.pop()
                self.piece = list(reversed(names))
            if self.walking is None or self.thread.history == self.walking:
                posted = next((c for c in self.thread.flushes.values() if c.at >= 0), None)
                if posted is not None and self.walking is not None:
                    return posted
                self.walking, self.names = None, self.piece
                continue
            step = self.thread.channel if self.thread.channel.at >= 0 else None
            step = step or next((c for c in movable if c.thread is self.thread), None)
            if step is None:
                self.lost = True
            return step
        if self.names:
            channel = self.world.channels.get(self.names.pop())
            if channel is None or channel.at < 0:
                self.lost = True
                return None
            return channel
        return movable[int(self.random.random() * len(movable))]

    def end(self, _execution: Execution) -> bool:
        """There is but one."""
        return False


def _broken(what: str) -> NoReturn:
    raise AssertionError(f"{what}\n  please report it, this is an error of racevisor")
