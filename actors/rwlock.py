"""A reader-writer spinlock: who reads is together with others who read, who writes is alone."""

from __future__ import annotations

from typing import Any

from actors.actor import Cell
from actors.ops import Code, Op, Order, atomic_fetch_add, await_masked, cmpxchg

WRITER = 1  # the readers have the bits after it, one for each thread that may read
#: Where readers are counted: a writer waits, somebody is at the head of the queue (wait_lock), and one reader.
WAITING, QUEUE, READER = 2, 4, 8
#: So many readers have a bit each, which a picture can name; more are counted, as C does it: a word is 64 bits long.
MOST_NAMED = 6


class RwLock:
    """rwlock_t: one bit for a writer; one for each thread that may read, or (`counted`) their number.

    A lock with named readers is one step to take, for a search.  A counted one is C's, with its queue: among hundreds of
    threads it matters that readers do not starve a writer, nor writers a reader.  [kernel/locking/qrwlock.c]
    """

    def __init__(self, cell: Cell, *, counted: bool = False) -> None:
        self.cell = cell
        self.counted = counted

    def read_lock(self, bit: int) -> Any:
        """Wait until there is no writer: an op, or a coroutine."""
        return self._queued_read_lock() if self.counted else await_masked(self.cell, WRITER, 0, set=bit)

    def read_unlock(self, bit: int) -> Op:
        """One reader less."""
        if self.counted:
            return atomic_fetch_add(-READER, self.cell)
        return Op(Code.RMW, self.cell, "andnot", bit, order=Order.FULL)

    def write_lock(self) -> Any:
        """Wait until there is nobody: an op, or a coroutine."""
        return self._queued_write_lock() if self.counted else await_masked(self.cell, -1, 0, set=WRITER)

    def write_unlock(self) -> Op:
        """The writer has gone."""
        return Op(Code.RMW, self.cell, "andnot", WRITER, order=Order.FULL)

    async def _queued_read_lock(self) -> None:
        """Count oneself; if a writer is there or waits, take that back and queue.  [qrwlock.c queued_read_lock_slowpath]"""
        if not await atomic_fetch_add(READER, self.cell) & (WRITER | WAITING):
            return
        await atomic_fetch_add(-READER, self.cell)
        await self._lock_queue()
        await atomic_fetch_add(READER, self.cell)
        await await_masked(self.cell, WRITER, 0)
        await self._unlock_queue()

    async def _queued_write_lock(self) -> None:
        """At the head of the queue, say that a writer waits: new readers queue.  [qrwlock.c queued_write_lock_slowpath]"""
        if not await cmpxchg(self.cell, 0, WRITER):
            return
        await self._lock_queue()
        await Op(Code.RMW, self.cell, "or", WAITING, order=Order.FULL)
        await await_masked(self.cell, ~QUEUE, WAITING, clear=WAITING, set=WRITER)
        await self._unlock_queue()

    def _lock_queue(self) -> Op:
        return await_masked(self.cell, QUEUE, 0, set=QUEUE)  # arch_spin_lock(&lock->wait_lock)

    def _unlock_queue(self) -> Op:
        return Op(Code.RMW, self.cell, "andnot", QUEUE, order=Order.FULL)
