"""Who talks to whom: the communication graph of a machine, and what its hub does between one part and the next.

Everything here is read off the automata of the threads (`racevisor.automata`): a local state knows its op, an op knows its cell.
`racevisor.decompose` says what it is good for, and proves that what was learned here is all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from actors.actor import Cell
from actors.ops import Code, Op, Order, describe
from racevisor.channel import Thread
from racevisor.errors import RacevisorError
from racevisor.world import World


class Refused(RacevisorError):
    """The machine cannot be taken apart, or not shown to be; the words say why."""


class Sealed(Cell):
    """A cell that the check of another part may not look at."""

    __slots__ = ()

    @property
    def value(self) -> Any:
        """Nobody's business."""
        raise Refused(f"what is judged looks at {self.label}, which is not of the part that is judged")


def constant(read: set[int]) -> type[Cell]:
    """A cell that nobody is known to touch: whoever looks at it is noted down in `read`, in case it turns out otherwise."""

    def value(cell: Cell) -> Any:
        read.add(cell.index)
        return cell.init

    return type("Constant", (Cell,), {"__slots__": (), "value": property(value)})


@dataclass(frozen=True)
class Part:
    """Threads that share cells with each other and with the hub, and with nobody else; the cells by index."""

    threads: tuple[Thread, ...]
    cells: frozenset[int]

    def __str__(self) -> str:
        return " and ".join(thread.actor.name for thread in self.threads)


def cell_of(world: World, op: Op) -> Cell | None:
    """The cell that an op touches; an IPI touches the one of the physical CPU that it arrives at."""
    return world.landing(op.a) if op.code == Code.SEND else op.cell


def local_states(world: World, thread: Thread) -> Iterator[int]:
    """Every local state of the thread that was ever met."""
    automata = world.automata
    assert automata is not None
    seen = {automata.moves[thread.actor.name]}
    todo = list(seen)
    while todo:
        state = todo.pop()
        yield state
        for after in automata.leads[state].values():
            if after not in seen:
                seen.add(after)
                todo.append(after)


def touches(world: World, thread: Thread) -> frozenset[int]:
    """The cells that ops of the thread's known local states touch."""
    automata = world.automata
    assert automata is not None
    found = set()
    for state in local_states(world, thread):
        op = automata.ops[state]
        if op is not None and (cell := cell_of(world, op)) is not None:
            found.add(cell.index)
    return frozenset(found)


def parts_around(hub: Thread | None, touched: dict[Thread, frozenset[int]], together: Iterable[Iterable[int]]) -> list[Part]:
    """The components that are left of the communication graph without `hub`; cells of one group in `together` are not parted."""
    parent: dict[object, object] = {}

    def root(node: object) -> object:
        while (above := parent.setdefault(node, node)) is not node:
            node = above
        return node

    for thread, cells in touched.items():
        if thread is not hub:
            for cell in cells:
                parent[root(cell)] = root(thread)
            root(thread)
    for group in together:
        first, *others = group
        for cell in others:
            parent[root(cell)] = root(first)
    members: dict[object, list[Thread]] = {}
    for thread in touched:
        if thread is not hub:
            members.setdefault(root(thread), []).append(thread)
    cells_of: dict[object, set[int]] = {}
    for node in list(parent):
        if isinstance(node, int):
            cells_of.setdefault(root(node), set()).add(node)
    return [Part(tuple(threads), frozenset(cells_of.get(of, ()))) for of, threads in members.items()]


#: What a run of ops does to a store that the thread had posted before: (drained if no barrier stands behind it, drained if one
#: does, does one stand behind it now).
Effect = tuple[bool, bool, bool]
NOTHING: Effect = (False, False, False)


def effect_of(op: Op, memory: str, before: Effect = NOTHING) -> Effect:
    """`before`, and then `op`: the other side of StoreBuffer.allows."""
    fresh, old, barred = before
    code, order = op.code, op.order
    if memory == "sc" or order == Order.LOCAL or code in (Code.LOAD, Code.CHOOSE):
        return before
    if code == Code.STORE or (code == Code.FENCE and order != Order.FULL):
        orders = memory == "pso" and order in (Order.RELEASE, Order.WRITE)
        return (fresh, old, (barred or orders) and not fresh)
    if code == Code.RMW and order == Order.NONE and memory == "pso":  # passes what no barrier stands behind
        return (fresh or barred, True, barred and not (fresh or barred))
    return (True, True, False)


class Hub:
    """The hub's automaton, cut where it goes in and out of the parts.

    An *excursion* begins with an op on a cell of a part.  If the hub goes on in one and the same local state whatever that op
    told it, the excursion is this one op; else it lasts until all its ways have come to one and the same checkpoint.  *Home*
    states are those outside excursions, and those in which one begins.
    """

    def __init__(self, world: World, thread: Thread, parts: list[Part]) -> None:
        assert world.automata is not None
        self.world = world
        self.thread = thread
        self.automata = world.automata
        self.parts = parts
        self.of_cell = {cell: n for n, part in enumerate(parts) for cell in part.cells}
        self.first = self.automata.moves[thread.actor.name]

    def part_of(self, state: int) -> int | None:
        """The part that the op of a local state touches; None if it is the hub's own business."""
        op = self.automata.ops[state]
        cell = None if op is None else cell_of(self.world, op)
        return None if cell is None else self.of_cell.get(cell.index)

    def home(self, alone: set[int]) -> set[int]:
        """The home states; Refused unless what happens in a part makes no difference to them.

        `alone` are the local states that the hub comes to while no other thread moves.
        """
        home: set[int] = set()
        todo = [self.first]
        while todo:
            state = todo.pop()
            if state in home:
                continue
            home.add(state)
            if state not in alone:
                raise Refused(f"{self._name} comes to {self._words(state)} only if another thread has moved")
            nexts = set(self.automata.leads[state].values())
            part = self.part_of(state)
            if part is None:
                op = self.automata.ops[state]
                if op is not None and op.code == Code.SEND:
                    raise Refused(f"{self._name} sends an IPI to a CPU that is its own")
                todo.extend(nexts)
            elif len(nexts) <= 1:
                todo.extend(nexts)
            else:
                todo.extend(self._join(state, part))
        return home

    def _join(self, entry: int, part: int) -> set[int]:
        """Where an excursion ends whose first op told the hub different things."""
        automata, memory, cells = self.automata, self.world.memory, self.world.vm.cells
        op = automata.ops[entry]
        assert op is not None
        ways = [(after, effect_of(op, memory), ()) for after in automata.leads[entry].values()]
        ends: set[tuple[int, Effect, tuple[object, ...]]] = set()
        while ways:
            state, effect, own = ways.pop()
            if state in automata.anchors:
                ends.add((state, effect, own))
                continue
            op = automata.ops[state]
            assert op is not None
            touched = cell_of(self.world, op)
            if touched is not None:
                other = self.of_cell.get(touched.index)
                if other is None and (op.code != Code.LOAD or cells[touched.index].watched):
                    own = (*own, (op.code, op.fn, touched.index, op.a, op.b))  # type: ignore[assignment]
                elif other is not None and other != part:
                    raise Refused(
                        f"{self._name} goes from {self.parts[part]} to {self.parts[other]} with a local variable alive: "
                        f"no checkpoint lies between {self._words(entry)} and {self._words(state)}"
                    )
            effect = effect_of(op, memory, effect)
            ways.extend((after, effect, own) for after in automata.leads[state].values())
        if len(ends) > 1:
            why = "it goes on in different states" if len({end for end, *_ in ends}) > 1 else "with different barriers or stores"
            raise Refused(f"what {self._name} does after {self._words(entry)} depends on {self.parts[part]}: {why}")
        return {end for end, *_ in ends}

    def chooses(self, states: set[int]) -> bool:
        """Is one of them a choice?  Else the hub has but one way to go, for nobody else writes its own cells."""
        ops = self.automata.ops
        return any(op is not None and op.code == Code.CHOOSE for op in map(ops.__getitem__, states))

    def leaves(self, alone: set[int]) -> list[set[int]]:
        """For each part: the checkpoints and ends after which the hub never touches it again."""
        into: dict[int, list[int]] = {}
        touching: list[list[int]] = [[] for _ in self.parts]
        for state in sorted(alone):
            if (part := self.part_of(state)) is not None:
                touching[part].append(state)
            for after in self.automata.leads[state].values():
                into.setdefault(after, []).append(state)
        anchors = self.automata.anchors & alone
        found = []
        for todo in touching:
            before = set(todo)
            while todo:
                for state in into.get(todo.pop(), ()):
                    if state not in before:
                        before.add(state)
                        todo.append(state)
            found.append(anchors - before)
        return found

    def reach(self, state: int, stops: set[int]) -> frozenset[int]:
        """The cells that the hub may touch from `state` on, before it comes to one of `stops`."""
        seen, todo, found = {state}, [state], set()
        while todo:
            here = todo.pop()
            op = self.automata.ops[here]
            if here in stops or op is None:
                continue
            if (cell := cell_of(self.world, op)) is not None:
                found.add(cell.index)
            for after in self.automata.leads[here].values():
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
        return frozenset(found)

    @property
    def _name(self) -> str:
        return self.thread.actor.name

    def _words(self, state: int) -> str:
        op = self.automata.ops[state]
        return "its end" if op is None else describe(op)
