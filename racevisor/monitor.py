"""Checks that observe.  A monitor declares the cells it watches and those that it reads, and sees nothing else.

It is called at every step on a watched cell, and may then look at the values of watched and read cells.  That is what keeps a
reduced search sound: the steps on its watched cells are kept in every order, and so is a write to a read cell against each of
them; what it judges by cannot differ between two executions of which the search takes one.  A monitor's own memory ("ghost
state") counts as state of the World.  That a monitor looks at nothing else is checked, see racevisor.guard.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, final

from actors.actor import Cell
from racevisor.step import Step


class Violation:
    """A check that failed: which, why, at which step (None: at the end), and the steps that did it."""

    __slots__ = ("check", "fatal", "step", "text")

    def __init__(self, check: str, text: str, fatal: tuple[int, ...] = ()) -> None:
        self.check = check
        self.text = text
        self.fatal = fatal
        self.step: int | None = None

    def __repr__(self) -> str:
        return f"<{self.check}: {self.text}>"


class Monitor(ABC):
    """Base class.  `watches`: the cells whose steps it judges; `reads`: other cells at whose values it looks when it does.

    Watch little: the steps on watched cells are explored in every order, while those on read cells are so only where one of
    them is a write and the other a step on a watched cell.  Ghost variables live in `ghost`, a dict of hashable values that
    `reset` restores.
    """

    #: short name of the invariant, as in "I-I2"
    check = ""

    def __init__(self, watches: Iterable[Cell], *, reads: Iterable[Cell] = (), **ghost: Any) -> None:
        watched = dict.fromkeys(watches)
        self.watches = list(watched)
        self.reads = [cell for cell in dict.fromkeys(reads) if cell not in watched]
        self.initial = ghost
        self.ghost: dict[str, Any] = dict(ghost)
        #: where each ghost event happened, for the report; not part of the state
        self.where: dict[str, int] = {}

    def reset(self) -> None:
        """The start of a run."""
        self.ghost = dict(self.initial)
        self.where = {}

    @abstractmethod
    def on_step(self, step: Step) -> Violation | None:
        """A step touched a watched cell.  Judge by the step, `ghost`, and the values of the declared cells, by nothing else."""

    @final
    def state(self) -> tuple[Any, ...]:
        """The ghost state, as part of the World's fingerprint, which leaves it out where it is empty."""
        ghost = self.ghost
        return tuple(sorted(ghost.items())) if len(ghost) > 1 else tuple(ghost.items())
