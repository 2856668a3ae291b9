"""The kernel's locks and task states, built from ops."""

from __future__ import annotations

from actors.actor import Actor, Cell
from actors.ops import Op, await_eq, smp_store_release

TASK_RUNNING, TASK_INTERRUPTIBLE = 0, 1


class Lock:
    """A mutex or spinlock: blocking acquire, release store.  `async with lock.held_by(actor)`."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def acquire(self, who: Actor) -> Op:
        """Block until free, then own it: one step, a full barrier on x86 as the LOCK prefix is."""
        return await_eq(self.cell, "", who.name)

    def release(self) -> Op:
        """Store-release of the lock word."""
        return smp_store_release(self.cell, "")

    def held_by(self, who: Actor) -> _Held:
        """Critical section: `async with vcpu.mutex.held_by(self): ...`."""
        return _Held(self, who)


class _Held:
    __slots__ = ("lock", "who")

    def __init__(self, lock: Lock, who: Actor) -> None:
        self.lock = lock
        self.who = who

    async def __aenter__(self) -> None:
        await self.lock.acquire(self.who)

    async def __aexit__(self, exc_type: type[BaseException] | None, *_rest: object) -> None:
        if exc_type is None:  # an abandoned run is closed, not unwound: it takes no further step
            await self.lock.release()
