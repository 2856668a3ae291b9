"""Interchangeable actors: a state and what it becomes when they change places are one state to a search.

A VM declares groups of bundles (`Vm.interchangeable`): vCPU i with all that is its own.  A permutation of the bundles of a group
renames actors, cells and threads, and the values that name them (a lock word holds its owner's name).  If the machine treats
the bundles alike, a permutation turns executions into executions, so of all states that are permutations of each other one
needs to be expanded (Ip and Dill, Better Verification Through Symmetry, 1996; Emerson and Sistla, same year).

Two things are done here, for all groups at once:

* **The declaration is checked** (`_check`).  Every move that some thread was seen to make is made by the threads that it becomes
  under the exchanges of two neighbours, which generate all permutations, and the ops must be each other's images.  So code
  that tells bundles apart is an error as soon as the search meets it in one of them, whichever it is.
* **A state gets a name that its permutations share** (`canonical`).  Each bundle gets a label: the local states of its threads,
  the values of its cells, what is posted, what its monitors remember, and where it is named from outside; with all names of
  bundles taken out.  Who names whom among bundles is a graph with labelled edges.  Sorting by label, refined along the edges,
  names the bundles; where that leaves ties that matter, every order of them is tried and the least is taken.

What cannot be seen here: bundles told apart by numbers that mean actors inside of monitors or of checks at the end.
"""

from __future__ import annotations

import re
from itertools import permutations, product
from math import factorial, prod
from typing import Any, NamedTuple

from actors.actor import Actor, Cell
from actors.ops import Op, describe
from racevisor.channel import Channel, Thread
from racevisor.errors import UsageError
from racevisor.monitor import Monitor
from racevisor.step import CHOICE, IPI, STORE_BUFFER
from racevisor.world import World

_TRIES = 720  # orders of tied bundles that are compared; beyond it some permutations of a state count as different states
_PLAIN = (int, bool, float, bytes, type(None))

Edges = list[tuple[int, int]]  # (label, bundle)


class _Name(NamedTuple):
    """Stands where an actor of a bundle was named: `own` if it was of the bundle itself."""

    own: bool
    role: int


class _Exchange(NamedTuple):
    """A permutation: two neighbouring bundles of one group change places."""

    first: str
    second: str
    names: dict[str, str]
    cells: dict[int, Cell]
    threads: dict[Thread, Thread]


class NotInterchangeable(UsageError):
    """The machine tells apart what was declared interchangeable."""


class Symmetry:
    """The groups of one World whose threads are automata."""

    def __init__(self, world: World) -> None:
        vm = world.vm
        if not vm.groups or world.automata is None:
            raise UsageError(
                "symmetry was asked for, but the machine declares no interchangeable actors\n"
                "  declare them where it is built: vm.interchangeable([[vcpu0, ...], [vcpu1, ...]])"
            )
        self.world = world
        self.automata = world.automata
        self.bundles = [bundle for group in vm.groups for bundle in group]
        self.place: dict[str, tuple[int, int]] = {}  # actor -> (bundle, role)
        self.peers: list[range] = []  # bundle -> the bundles of its group
        roles = 0
        for group in vm.groups:
            peers = range(len(self.peers), len(self.peers) + len(group))
            for bundle in group:
                self.place.update({actor.name: (len(self.peers), roles + i) for i, actor in enumerate(bundle)})
                self.peers.append(peers)
            roles += len(group[0])
        self.named = re.compile(r"\b(" + "|".join(map(re.escape, self.place)) + r")\b")
        at = [self.bundle_of(cell.owner) for cell in vm.cells]
        self.cells = [[cell for cell in vm.cells if at[cell.index] == n] for n in range(-1, len(self.bundles))]
        self.threads = [[t for t in world.threads if self.bundle_of(t.actor) == n] for n in range(-1, len(self.bundles))]
        self.cell_role = {cell.index: i for cells in self.cells for i, cell in enumerate(cells)}
        self.exchanges = [self._exchange(n) for n in range(len(self.bundles) - 1) if n + 1 in self.peers[n]]
        self.monitors = self._monitors(world.monitors)
        self._known = 0  # moves of the automata that were checked
        self._images: list[dict[int, int]] = [{-1: -1} for _ in self.exchanges]
        self._numbers: dict[Any, int] = {}  # whatever is compared, by the order in which it was first met
        self._locals: list[tuple[int, tuple[int, ...]]] = []  # local state -> (number without names, the bundles it names)
        # all that belongs to a bundle, and the labels it has had; first what belongs to none
        self._layout: list[tuple[int, list[Cell], list[Thread], list[Monitor], dict[Any, tuple[int, Edges]]]] = [
            (n, self.cells[n + 1], self.threads[n + 1], self.monitors[n + 1], {}) for n in range(-1, len(self.bundles))
        ]
        self._colours: list[int] = []  # of the bundles, in the state last asked for
        self._places: list[int] | None = None  # of the bundles in the canonical state, where they matter
        self._channels: dict[Channel, tuple[int, int, int]] = {}

    # ---- what changes places ------------------------------------------------------------------------------------------------

    def bundle_of(self, actor: Actor) -> int:
        """The bundle of an actor, -1 if it is in none."""
        return self.place.get(actor.name, (-1, 0))[0]

    def image(self, cell: Cell, bundle: int) -> Cell:
        """The cell that corresponds to `cell` in another bundle of its group."""
        return self.cells[bundle + 1][self.cell_role[cell.index]]

    def _exchange(self, n: int) -> _Exchange:
        a, b = self.bundles[n], self.bundles[n + 1]
        names = {x.name: y.name for x, y in (*zip(a, b, strict=True), *zip(b, a, strict=True))}
        cells, threads = self.cells, self.threads
        return _Exchange(
            a[0].name,
            b[0].name,
            names,
            {x.index: y for i, j in ((n, n + 1), (n + 1, n)) for x, y in zip(cells[i + 1], cells[j + 1], strict=True)},
            {x: y for i, j in ((n, n + 1), (n + 1, n)) for x, y in zip(threads[i + 1], threads[j + 1], strict=True)},
        )

    def _monitors(self, monitors: list[Monitor]) -> list[list[Monitor]]:
        """The monitors of each bundle, after those that belong to none."""
        found: list[list[Monitor]] = [[] for _ in range(len(self.bundles) + 1)]
        have = [(type(m), m.check, [cell.index for cell in m.watches], {cell.index for cell in m.reads}) for m in monitors]
        for monitor in monitors:
            looks_at = [*monitor.watches, *monitor.reads]
            homes = {self.bundle_of(cell.owner) for cell in looks_at} - {-1}
            home = homes.pop() if len(homes) == 1 else -1
            for exchange in self.exchanges:
                there = [exchange.cells.get(cell.index, cell).index for cell in monitor.watches]
                read = {exchange.cells.get(cell.index, cell).index for cell in monitor.reads}
                alike = (type(monitor), monitor.check, there, read) in have
                same = {cell.index for cell in monitor.watches} == {*there} and {cell.index for cell in monitor.reads} == read
                if not (alike if home >= 0 else same):
                    labels = ", ".join(self.world.vm.cells[i].label for i in there)
                    raise NotInterchangeable(
                        f"{exchange.first} and {exchange.second} are declared interchangeable, but check {monitor.check} watches "
                        f"{', '.join(cell.label for cell in looks_at)}\n  and nothing watches {labels} in the same way"
                    )
            found[home + 1].append(monitor)
        return found

    # ---- names inside of values ---------------------------------------------------------------------------------------------

    def _shape(self, value: Any, own: int, refs: list[int], where: str) -> Any:
        """`value` with the names of bundles taken out; whom it names is appended to `refs`."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, str):
            bundle, role = self.place.get(value, (-1, 0))
            if bundle >= 0:
                if bundle != own:
                    refs.append(bundle)
                return _Name(bundle == own, role)
            if self.named.search(value):
                raise NotInterchangeable(
                    f"{where} is {value!r}, which names an actor in a way that cannot be renamed\n"
                    f"  keep the plain name, alone or in a tuple, or search without symmetry"
                )
            return value
        if isinstance(value, tuple):
            return tuple([self._shape(part, own, refs, where) for part in value])
        raise NotInterchangeable(
            f"{where} is {value!r}, a {type(value).__name__}, in which actors cannot be renamed\n"
            f"  keep ints, strings, bools, None and tuples of them, or search without symmetry"
        )

    def _number(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    # ---- is the declaration true? -------------------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Name the local states found out since the last time, and check that their images are found in the other bundles."""
        automata = self.automata
        while self._known < len(automata.learned):
            thread, before, value, after = automata.learned[self._known]
            self._known += 1
            if after == len(self._locals):
                self._locals.append(self._local(thread, before, value, automata.keys[after]))
            for exchange, images in zip(self.exchanges, self._images, strict=True):
                self._check(exchange, images, thread, before, value, after)

    def _local(self, thread: Thread, before: int, value: Any, key: tuple[Any, ...]) -> tuple[int, tuple[int, ...]]:
        name = thread.actor.name
        own, role = self.place.get(name, (-1, name))
        if len(key) == 2 or key[1] == "end":  # a checkpoint or the end: what is private decides
            refs: list[int] = []
            return self._number((role, self._shape(key[1:], own, refs, f"the private state of {name}"))), tuple(refs)
        number, known = self._locals[before] if before >= 0 else (-1, ())
        refs = list(known)
        shape = self._shape(value, own, refs, f"what {name} was given")
        return self._number((role, number, shape)), tuple(refs)

    def _check(self, by: _Exchange, images: dict[int, int], thread: Thread, before: int, value: Any, after: int) -> None:
        automata = self.automata
        other = by.threads.get(thread, thread)
        image = automata.move(other, _renamed(value, by.names), images[before])
        other.actor.notes.clear()  # it was not stepped
        op, wanted = automata.ops[image], _image_of(automata.ops[after], by)
        private = _renamed(automata.private[after], by.names)
        pair = images.setdefault(after, image) == image and images.setdefault(image, after) == after
        if pair and _same(op, wanted) and private == automata.private[image]:
            return
        here = _words(automata.ops[after])
        if other is thread:
            story = f"{thread.actor.name}, which is in no bundle, tells them apart: it awaits {here}"
            story += f", and {_words(op)} where they have changed places"
        elif _same(op, wanted):
            story = (
                f"where {thread.actor.name} holds {automata.private[after]}, {other.actor.name} holds {automata.private[image]}"
            )
        else:
            story = f"where {thread.actor.name} awaits {here}, {other.actor.name} awaits {_words(op)}"
        raise NotInterchangeable(f"{by.first} and {by.second} are declared interchangeable, but {story}")

    # ---- the name of a state ------------------------------------------------------------------------------------------------

    def canonical(self) -> Any:
        """A value that the permutations of the present state share, and no other state."""
        if self._known < len(self.automata.learned):
            self._catch_up()
        whole = -1
        named: Edges = []
        edges: list[tuple[int, int, int]] = []
        colours = self._colours = []
        self._places = None
        for n, cells, threads, monitors, labels in self._layout:
            raw: list[Any] = [cell.value for cell in cells]
            for thread in threads:
                raw.append(thread.history)
                if thread.buffer is not None and thread.buffer.entries:
                    raw.append(thread.buffer.contents())
            for monitor in monitors:
                raw.append(monitor.state())
            state = tuple(raw)
            label, refs = labels.get(state) or labels.setdefault(state, self._label(n))
            if n < 0:
                whole, named = label, refs
            else:
                colours.append(label)
                if refs:
                    edges += [(n, tag, other) for tag, other in refs]
        flying = [self._flying(channel, edges) for channel in self.world.flying if channel.queue]
        if flying:
            named = [*named, *(mention for mention in flying if mention is not None and mention[1] >= 0)]
            lonely = sorted(mention[0] for mention in flying if mention is not None and mention[1] < 0)
            whole = self._number(("flying", whole, *lonely))
        if named:
            mentions: dict[int, list[int]] = {}
            for tag, n in named:
                mentions.setdefault(n, []).append(tag)
            for n, tags in mentions.items():
                colours[n] = self._number(("named", colours[n], *sorted(tags)))
        if edges:
            return self._canonical_graph(whole, colours, edges)
        return (whole, *sorted(colours))

    def _label(self, n: int) -> tuple[int, Edges]:
        """The number of the state of a bundle, and whom it names where; -1 is all that is in no bundle."""
        parts: list[Any] = [self.peers[n] if n >= 0 else None]
        refs: list[int] = []
        for cell in self.cells[n + 1]:
            parts.append(self._shape(cell.value, n, refs, cell.label))
        for thread in self.threads[n + 1]:
            number, named = self._locals[thread.history]
            refs.extend(named)
            parts.append(number)
            if thread.buffer is not None:
                where = f"a store posted by {thread.actor.name}"
                for entry in thread.buffer.entries:
                    at = self.bundle_of(entry.cell.owner)
                    if at >= 0 and at != n:
                        refs.append(at)
                    what = self._shape(entry.value, n, refs, where)
                    cell_ = (at == n, self.peers[at] if at >= 0 else None, self.cell_role[entry.cell.index])
                    parts.append((cell_, what, thread.buffer.epoch - entry.epoch))
        for monitor in self.monitors[n + 1]:
            parts.append(self._shape(monitor.state(), n, refs, f"what check {monitor.check} remembers"))
        # equal parts have their names in the same positions, so the position alone says as what somebody is named
        return self._number(tuple(parts)), [(self._number(("at", n >= 0, i)), other) for i, other in enumerate(refs)]

    def _flying(self, channel: Channel, edges: list[tuple[int, int, int]]) -> tuple[int, int] | None:
        """An IPI in flight: an edge between two bundles, or (label, the one bundle at its ends, or -1)."""
        number, a, b = self._channel(channel)
        tag = self._number(("ipi", number, channel.queue, a >= 0, b >= 0, a == b))
        if a >= 0 and b >= 0 and a != b:
            edges.append((a, tag, b))
            return None
        return tag, max(a, b)

    def _canonical_graph(self, whole: int, colours: list[int], edges: list[tuple[int, int, int]]) -> Any:
        kinds = len(set(colours))
        while True:
            seen: list[list[tuple[int, int, int]]] = [[] for _ in colours]
            for a, tag, b in edges:
                seen[a].append((0, tag, colours[b]))
                seen[b].append((1, tag, colours[a]))
            colours = [
                self._number((colour, *sorted(around))) if around else colour
                for colour, around in zip(colours, seen, strict=True)
            ]
            if len(set(colours)) == kinds:
                break
            kinds = len(set(colours))
        touched = {n for a, _, b in edges for n in (a, b)}
        classes: dict[int, list[int]] = {}
        for n in sorted(range(len(colours)), key=colours.__getitem__):
            classes.setdefault(colours[n], []).append(n)
        tied = [len(members) if members[0] in touched else 1 for members in classes.values()]
        if prod(map(factorial, tied)) > _TRIES:
            tied = [1] * len(classes)
        orders = [permutations(members) if n > 1 else [tuple(members)] for n, members in zip(tied, classes.values(), strict=True)]
        best: tuple[Any, list[int]] | None = None
        for order in product(*orders):
            places = [0] * len(colours)
            for place, n in enumerate(n for members in order for n in members):
                places[n] = place
            drawn = sorted((places[a], tag, places[b]) for a, tag, b in edges)
            if best is None or drawn < best[0]:
                best = drawn, places
        assert best is not None
        self._places = best[1]
        return (whole, *sorted(colours), *best[0])

    # ---- channels under a permutation ---------------------------------------------------------------------------------------

    def _channel(self, channel: Channel) -> tuple[int, int, int]:
        """(what it is, without names; the bundle of its thread; the bundle of the cell or CPU that it leads to)."""
        found = self._channels.get(channel)
        if found is None:
            name, payload = channel.thread.actor.name, channel.payload
            a, role = self.place.get(name, (-1, name))
            b, what = -1, payload if channel.kind == CHOICE else None
            if channel.kind == IPI:
                b, what = self.place.get(payload, (-1, payload))
            elif channel.kind == STORE_BUFFER and payload is not None:
                b = self.bundle_of(payload.owner)
                what = (self.peers[b] if b >= 0 else None, self.cell_role[payload.index])
            found = self._channels[channel] = self._number(("channel", channel.kind, role, what)), a, b
        return found

    def channel(self, channel: Channel) -> tuple[int, int, int]:
        """The channel's name in the canonical state, which its images have in the permutations of the present state.

        The present state is the one that was last asked for its canonical value.
        """
        places = self._places
        if places is None:
            places = self._places = [0] * len(self.bundles)
            for place, n in enumerate(sorted(range(len(places)), key=self._colours.__getitem__)):
                places[n] = place
        number, a, b = self._channels.get(channel) or self._channel(channel)
        return number, places[a] if a >= 0 else -1, places[b] if b >= 0 else -1

    def touches(self, channel: Channel, domain: list[int]) -> list[tuple[Thread | None, Cell]]:
        """A head touches one of some cells: who touches what, by symmetry?  None stands for several threads, or an IPI.

        `domain` are indices of cells, closed under the permutations that leave its first cell where it is.
        """
        thread = channel.thread
        cell = self.world.vm.cells[domain[0]]
        homes = {self.bundle_of(self.world.vm.cells[i].owner) for i in domain}
        a = self.bundle_of(thread.actor)
        b = homes.pop() if len(homes) == 1 else -1
        images = [self.image(cell, j) for j in self.peers[b]] if b >= 0 else [cell]
        if channel.kind == IPI or (a >= 0 and a != b and len(self.peers[a]) > 1):
            return [(None, image) for image in images]
        if a < 0 or a != b:
            return [(thread, image) for image in images]
        role = self.threads[a + 1].index(thread)
        return [(self.threads[j + 1][role], image) for j, image in zip(self.peers[a], images, strict=True)]


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, tuple):
        return tuple([_renamed(part, names) for part in value])
    return value


def _image_of(op: Op | None, by: _Exchange) -> Op | None:
    if op is None:
        return None
    cell = op.cell if op.cell is None else by.cells.get(op.cell.index, op.cell)
    return Op(op.code, cell, op.fn, _renamed(op.a, by.names), _renamed(op.b, by.names), op.order)


def _same(a: Op | None, b: Op | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.cell is b.cell and (a.code, a.fn, a.order, a.a, a.b) == (b.code, b.fn, b.order, b.a, b.b)


def _words(op: Op | None) -> str:
    return "nothing more" if op is None else describe(op)
