"""SRCU: readers may sleep, and an updater waits for those that began before it asked.  [kernel/srcu.c, 2.6.35]

A reader counts itself in one of two counters and gives the same one back; `completed & 1` says in which.  An updater flips
that, and waits until the counter that was in use is empty.  What keeps a reader from counting itself in a counter on which
nobody waits any more is synchronize_sched(): the reader looks which counter it is and counts with preemption off, so when every
CPU has been preemptible after the flip, all who saw the old counter are in it.

Modelled by other means: the counters are per CPU in C, and summed one after the other; here each is one cell, which its reader
changes atomically.  The barriers that synchronize_sched() forces on every CPU are taken by the readers, as later SRCU does it
(3.8 has smp_mb() in srcu_read_lock()); its wait is modelled as it is, CPU by CPU.  Every reader has a CPU of its own.
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor, Cell
from actors.ops import READ_ONCE, WRITE_ONCE, Op, atomic_fetch_add, await_eq, local_rmw
from actors.sync import Lock

OFF, ON = "off", "on"


class Srcu(Actor):
    """A struct srcu_struct; `readers` names the threads that may ever read."""

    def __init__(self, vm: Any, name: str, readers: list[str]) -> None:
        super().__init__(vm, name)
        self.completed = self.cell("completed", 0)
        self.c = (self.cell("c[0]", 0), self.cell("c[1]", 0))
        self.mutex = Lock(self.cell("mutex", ""))
        #: preemption on the CPU of each reader: state of that CPU, which no store buffer holds
        self.preemption: dict[str, Cell] = {reader: self.cell(f"preemption@{reader}", ON) for reader in readers}

    def preempt_disable(self, me: Actor) -> Op:
        """No synchronize_sched() that begins from here on ends before preempt_enable()."""
        return local_rmw(self.preemption[me.name], "xchg", OFF)

    def preempt_enable(self, me: Actor) -> Op:
        """The CPU may schedule."""
        return local_rmw(self.preemption[me.name], "xchg", ON)


async def srcu_read_lock(me: Actor, srcu: Srcu) -> int:
    """Begin to read; returns the counter to give back.  [kernel/srcu.c __srcu_read_lock, 2.6.34]"""
    await srcu.preempt_disable(me)
    idx: int = await READ_ONCE(srcu.completed) & 1
    await atomic_fetch_add(1, srcu.c[idx])
    await srcu.preempt_enable(me)
    return idx


async def srcu_read_unlock(me: Actor, srcu: Srcu, idx: int) -> None:
    """Done reading; may be called on another CPU.  [kernel/srcu.c __srcu_read_unlock, 2.6.34]"""
    await atomic_fetch_add(-1, srcu.c[idx])


async def synchronize_sched_expedited(srcu: Srcu) -> None:
    """Every CPU has been preemptible since the call began.  [kernel/sched.c, 2.6.34]"""
    for preemption in srcu.preemption.values():
        await await_eq(preemption, ON)


async def synchronize_sched(srcu: Srcu) -> None:
    """The same, less pressing: a grace period that was under way already does not count.  [kernel/rcutree.c, 2.6.34]"""
    await synchronize_sched_expedited(srcu)
    await synchronize_sched_expedited(srcu)


async def synchronize_srcu_expedited(me: Actor, srcu: Srcu) -> None:
    """Every reader that was reading when the call began is done.  [kernel/srcu.c __synchronize_srcu, 2.6.34]"""
    await _synchronize_srcu(me, srcu, synchronize_sched_expedited)


async def synchronize_srcu(me: Actor, srcu: Srcu) -> None:
    """The patient kind."""
    await _synchronize_srcu(me, srcu, synchronize_sched)


async def _synchronize_srcu(me: Actor, srcu: Srcu, sync_func: Any) -> None:
    idx = await READ_ONCE(srcu.completed)
    async with srcu.mutex.held_by(me):
        if await READ_ONCE(srcu.completed) - idx >= 2:
            return  # others flipped twice while we waited for the mutex
        await sync_func(srcu)
        idx = await READ_ONCE(srcu.completed)
        await WRITE_ONCE(srcu.completed, idx + 1)
        await sync_func(srcu)
        await await_eq(srcu.c[idx & 1], 0)
        await sync_func(srcu)


async def synchronize_srcu_flip_only(me: Actor, srcu: Srcu) -> None:
    """Flip and wait, without a look at the CPUs: a reader that has looked and not yet counted is nobody's."""

    async def no_wait(srcu: Srcu) -> None:
        """Nothing."""

    await _synchronize_srcu(me, srcu, no_wait)
