"""A reader-writer spinlock: who reads is together with others who read, who writes is alone."""

from __future__ import annotations

from actors.actor import Cell
from actors.ops import Code, Op, Order, await_masked

WRITER = 1  # the readers have the bits after it, one for each thread that may read


class RwLock:
    """rwlock_t: one bit for a writer, one for each thread that may read.  [kernel/locking/qrwlock.c]"""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def read_lock(self, bit: int) -> Op:
        """Wait until there is no writer."""
        return await_masked(self.cell, WRITER, 0, set=bit)

    def read_unlock(self, bit: int) -> Op:
        """One reader less."""
        return Op(Code.RMW, self.cell, "andnot", bit, order=Order.FULL)

    def write_lock(self) -> Op:
        """Wait until there is nobody."""
        return await_masked(self.cell, -1, 0, set=WRITER)

    def write_unlock(self) -> Op:
        """The writer has gone."""
        return Op(Code.RMW, self.cell, "andnot", WRITER, order=Order.FULL)
