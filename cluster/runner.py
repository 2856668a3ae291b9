"""A thread on the host of its actor: where it stands."""

from __future__ import annotations

from random import Random
from typing import Any

from actors.actor import Actor
from actors.ops import Op
from racevisor.memory import StoreBuffer


class Runner:
    """A thread of this host: its coroutine and where it stands."""

    __slots__ = (
        "actor", "bounded", "buffer", "choices", "coroutine", "draining", "held", "held_store", "index", "op", "rolled",
        "rolled_store", "send", "stalled", "taken", "waiting",
    )  # fmt: skip

    def __init__(self, actor: Actor, index: int, memory: str) -> None:
        self.actor = actor
        self.index = index
        self.buffer = StoreBuffer(memory) if memory != "sc" else None
        self.coroutine: Any = None
        self.clear()

    def clear(self) -> None:
        """Not begun."""
        self.send: Any = None
        self.op: Op | None = None
        self.waiting = False  # for the answer to `op`
        self.stalled = False  # until posted stores have left
        self.bounded = False
        self.draining = False  # among the threads whose posted stores may leave
        self.taken = 0
        # Noise: for how many turns the next step, or the next posted store, stays; and whether the dice were thrown for it.
        self.held = self.held_store = 0
        self.rolled = self.rolled_store = False
        self.choices: Random | None = None
        if self.buffer is not None:
            self.buffer.clear()
