"""What a World is made of: channels whose heads may move, threads, snapshots, and the strategies that pick."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from actors.actor import Actor, Cell
from actors.ops import Op
from racevisor.memory import StoreBuffer
from racevisor.monitor import Violation
from racevisor.step import Step

if TYPE_CHECKING:
    from racevisor.world import World


class Channel:
    """A FIFO whose head may move.  `at` is its position among the movable ones, -1 if it cannot move."""

    __slots__ = ("at", "kind", "name", "number", "payload", "queue", "thread")

    def __init__(self, name: str, kind: int, number: int, thread: Thread, payload: Any = None) -> None:
        self.name = name
        self.kind = kind
        self.number = number
        self.thread = thread
        self.payload = payload  # STORE_BUFFER: the cell, or None; IPI: the physical CPU; CHOICE: the answer
        self.queue = 0  # IPI: how many are in flight
        self.at = -1

    def __repr__(self) -> str:
        return f"<channel {self.name}>"


class Thread:
    """An actor that runs: its coroutine, the op it waits to execute, its store buffer."""

    __slots__ = ("actor", "answers", "buffer", "channel", "coroutine", "flushes", "history", "op", "send")

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.coroutine: Any = None
        self.send: Callable[[Any], Op] | None = None
        self.op: Op | None = None
        self.buffer: StoreBuffer | None = None
        self.channel: Channel = None  # type: ignore[assignment]  # set by the World that makes the thread
        self.flushes: dict[int, Channel] = {}  # by cell index (pso), or one under -1 (tso)
        self.answers: list[Channel] = []
        self.history = 0


class Strategy(Protocol):
    """What chooses.  It sees channels, never actors, and owns its seed."""

    def begin(self, world: World, run: int) -> None:
        """A new execution starts; the World is reset."""

    def pick(self, movable: list[Channel]) -> Channel | None:
        """The channel whose head moves next, or None to give this execution up."""

    def end(self, execution: Execution) -> bool:
        """The execution ended; True if there is another one worth running."""


class Execution:
    """One execution: its steps and how it ended (`terminal`, `violated`, `bounded`, `pruned`)."""

    __slots__ = ("outcome", "run", "status", "steps", "violations")

    def __init__(self, run: int, steps: list[Step], status: str, violations: list[Violation], outcome: Any) -> None:
        self.run = run
        self.steps = steps
        self.status = status
        self.violations = violations
        self.outcome = outcome

    @property
    def bad(self) -> bool:
        """Did it show the outcome that is hunted, or break a check?"""
        return bool(self.violations)


#: A run of steps: the steps, the cells they may have changed with their values after it, local state and store buffer after it.
Leap = tuple[list[Step], list[tuple[Cell, Any]], int, StoreBuffer | None]


#: What World.undo needs of a step besides the Step: its channel, its thread's local state before it, the posted store that
#: reached memory and its place in the buffer, ghost states of the monitors that saw the step.
Undo = tuple[Channel, int, Any, Any, Any]


class Snapshot:
    """What World.rewind copies back; `values` are those of the first of `cells`, all others are as they were at first."""

    __slots__ = ("buffers", "cells", "depth", "ghosts", "histories", "queues", "values")

    def __init__(
        self,
        depth: int,
        cells: list[Cell],
        values: list[Any],
        histories: list[int],
        buffers: list[StoreBuffer | None],
        queues: list[tuple[Channel, int]],
        ghosts: list[tuple[dict[str, Any], dict[str, int]]],
    ) -> None:
        self.depth = depth
        self.cells = cells
        self.values = values
        self.histories = histories
        self.buffers = buffers
        self.queues = queues
        self.ghosts = ghosts

    def keep(self, cells: list[Cell]) -> None:
        """Forget the values of all other cells."""
        wanted = {cell.index for cell in cells}
        kept = [(cell, value) for cell, value in zip(self.cells, self.values, strict=False) if cell.index in wanted]
        self.cells, self.values = [cell for cell, _ in kept], [value for _, value in kept]
