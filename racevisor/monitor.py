"""Checks that observe.  A monitor declares the cells it watches and sees every step on them, and nothing else.

That is what keeps a reduced search sound: the steps on a watched cell are kept in every order, so a violation in any order
is seen.  A monitor's own memory ("ghost state") counts as state of the World.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

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
    """Base class.  Ghost variables live in `ghost`, a dict of hashable values that `reset` restores."""

    #: short name of the invariant, as in "I-I2"
    check = ""

    def __init__(self, watches: list[Cell], **ghost: Any) -> None:
        self.watches = watches
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
        """A step touched a watched cell."""

    def state(self) -> tuple[Any, ...]:
        """The ghost state, as part of the World's fingerprint."""
        return tuple(sorted(self.ghost.items()))
