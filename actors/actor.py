"""Actor and Cell: who owns what.  A cell is shared and reached by an op; anything else an actor holds is its own."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, ClassVar

from actors.ops import Code, Op


class Cell:
    """One shared variable, owned by one actor.  Threads reach it only through ops; checks may read `.value` between steps."""

    __slots__ = ("index", "init", "judges", "label", "load", "name", "owner", "value", "waiters", "watched")

    def __init__(self, owner: Actor, name: str, init: Any, index: int) -> None:
        self.owner = owner
        self.name = name
        self.label = f"{owner.name}.{name}"
        self.init = init
        self.value = init
        self.index = index  # position in vm.cells: the wire address
        self.load = Op(Code.LOAD, self)
        self.waiters: list[Any] = []  # used by the runtime: threads blocked on this cell
        self.watched: tuple[Any, ...] = ()  # used by the runtime: monitors that are called for this cell
        self.judges: tuple[Any, ...] = ()  # used by the runtime: these, and monitors that only look at it

    def __repr__(self) -> str:
        return f"<cell {self.label}={self.value!r}>"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        raise TypeError(
            f"{self.label} is a shared cell and was compared as if it were its value; another CPU may change it at any time.\n"
            f"  read it first:  value = await READ_ONCE({self.label})"
        )

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self.label} is a shared cell and was tested as if it were its value.\n"
            f"  read it first:  if await READ_ONCE({self.label}): ..."
        )


class Actor:
    """A named part of the machine.  A thread of control overrides `run`; a device or manager only owns cells.

    `state` lists the plain attributes that are the actor's private state: they are reset between runs, compared when a run is
    checked against another one, and sent home by a live host at the end of a round.  Their values are msgpack values.
    """

    #: Private attributes and their values at the start of a run; a VM under construction may overwrite them per instance.
    state: dict[str, Any]
    #: Names for the values of its cells, by cell name, and for the bits of those that are bit masks; for pictures only.
    value_names: ClassVar[Mapping[str, Mapping[Any, str]]] = {}
    bit_names: ClassVar[Mapping[str, Mapping[int, str]]] = {}

    def __init__(self, vm: Any, name: str) -> None:
        self.vm = vm
        self.name = name
        self.state = {}
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.checkpoint_seen: tuple[Any, ...] | None = None
        vm.add_actor(self)

    def cell(self, name: str, init: Any = 0) -> Cell:
        """A new shared variable of this actor; values are msgpack values (int, str, bool, None, tuple of them)."""
        cell: Cell = self.vm.add_cell(self, name, init)
        return cell

    def private(self, **attributes: Any) -> None:
        """Declare private state with its initial values."""
        self.state.update(attributes)
        for name, value in attributes.items():
            setattr(self, name, value)

    def reset(self) -> None:
        """Back to the state at the start of a run; cells are reset by the VM."""
        for name, value in self.state.items():
            setattr(self, name, value)
        self.notes.clear()
        self.checkpoint_seen = None

    def close(self) -> None:
        """Drop what is suspended inside the actor: the end of a run."""

    def run(self) -> Coroutine[Op, Any, Any] | None:
        """The thread of control, if this actor is one."""
        return None

    def note(self, event: str, **fields: Any) -> None:
        """Annotate the step just taken by this actor's thread; names are KVM's tracepoints where one exists.  Not a step."""
        self.notes.append((event, fields))

    def checkpoint(self, label: str) -> None:
        """Promise that from here on this thread depends only on its private state, not on any local variable.

        A stateful search then forgets how the thread came here, which is what lets loops close.  Not a step.
        """
        if self.vm.fingerprints:
            self.checkpoint_seen = (label, self.local_state())

    def local_state(self) -> tuple[Any, ...]:
        """All that this actor's thread remembers at a checkpoint, as a hashable value."""
        return tuple(getattr(self, name) for name in self.state)

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.name}>"
