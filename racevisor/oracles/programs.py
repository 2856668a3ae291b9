"""Programs whose number of Mazurkiewicz traces is known from elsewhere.

The numbers are from the test data of Nidhugg, GenMC and Concuerror and from the papers on source sets and optimal DPOR
(Abdulla, Aronis, Jonsson, Sagonas: JACM 64(4), 2017); each was also derived by enumerating all interleavings.  They hold for
atomic steps under sc, where two steps conflict iff they touch the same cell and one of them changes it; lock and unlock of one
mutex conflict, a failed compare-and-swap is a read.  Every function makes a fresh World.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from actors.actor import Cell
from actors.ops import READ_ONCE, WRITE_ONCE, Op, atomic_fetch_add, await_bits, cmpxchg, smp_mb
from actors.sync import Lock
from actors.thread import Thread
from actors.vm import Vm
from racevisor.world import World

Body = Callable[[Any], Coroutine[Any, Any, Any]]
#: an op on the shared cells, made when the thread comes to it
Make = Callable[[Any], Op]


def machine(bodies: list[Body], *, memory: str = "sc", automata: bool = False, **cells: Any) -> World:
    """Threads that share `cells`; each body is called with the thread and finds the cells in `thread.vm.memory`.

    What a thread has read is in its private attribute `seen`.
    """
    vm = Vm()
    vm.guest_memory(**cells)
    for i, body in enumerate(bodies):
        Thread(vm, f"P{i}", body, seen=())
    return World(vm, memory, automata=automata)


def straight(*ops: Make) -> Body:
    """A thread without branches; what its ops return is kept in `seen`."""

    async def body(me: Any) -> None:
        for op in ops:
            result = await op(me.vm.memory)
            if result is not None:
                me.seen = (*me.seen, result)

    return body


def store(name: str, value: Any) -> Make:
    """WRITE_ONCE(name, value)."""
    return lambda memory: WRITE_ONCE(getattr(memory, name), value)


def load(name: str) -> Make:
    """READ_ONCE(name)."""
    return lambda memory: READ_ONCE(getattr(memory, name))


def add(name: str, value: int) -> Make:
    """atomic_fetch_add(value, name)."""
    return lambda memory: atomic_fetch_add(value, getattr(memory, name))


def swap(name: str, old: int, new: int) -> Make:
    """cmpxchg(name, old, new)."""
    return lambda memory: cmpxchg(getattr(memory, name), old, new)


def fence(_memory: Any) -> Op:
    """smp_mb()."""
    return smp_mb()


# ---- readers, writers, counters -------------------------------------------------------------------------------------------


def readers(n: int) -> World:
    """One writer, n readers of one cell: 2**n, each reader before or after the write."""
    return machine([straight(store("x", 42)), *[straight(load("x"))] * n], x=0)


def lastzero(n: int, automata: bool = False) -> World:
    """A reader looks for the last zero of an array while n writers fill it, each from its left neighbour."""

    async def reader(me: Any) -> None:
        i = n
        while await READ_ONCE(getattr(me.vm.memory, f"a{i}")):
            i -= 1

    def writer(j: int) -> Body:
        async def body(me: Any) -> None:
            before = await READ_ONCE(getattr(me.vm.memory, f"a{j - 1}"))
            await WRITE_ONCE(getattr(me.vm.memory, f"a{j}"), before + 1)

        return body

    array: dict[str, Any] = {f"a{i}": 0 for i in range(n + 1)}
    return machine([reader, *(writer(j) for j in range(1, n + 1))], automata=automata, **array)


def inc(n: int) -> World:
    """x = x + 2**i in two steps, n threads."""

    def process(i: int) -> Body:
        async def body(me: Any) -> None:
            value = await READ_ONCE(me.vm.memory.x)
            await WRITE_ONCE(me.vm.memory.x, value + 2**i)

        return body

    return machine([process(i) for i in range(n)], x=0)


def ainc(n: int) -> World:
    """An atomic add each: n!, every order."""
    return machine([straight(add("x", 1))] * n, x=0)


def cas(n: int) -> World:
    """Who turns 0 into its own number?  n: all who lose only read."""
    return machine([straight(swap("x", 0, i)) for i in range(1, n + 1)], x=0)


def casrot(n: int) -> World:
    """Thread i turns i-1 into i: who comes too early fails, and only reads."""
    return machine([straight(swap("x", i - 1, i)) for i in range(1, n + 1)], x=0)


def wainc(n: int) -> World:
    """A plain store among n atomic adds: (n+1)!."""
    return machine([straight(store("x", 42)), *[straight(add("x", 1))] * n], x=0)


# ---- locks ----------------------------------------------------------------------------------------------------------------


def lockinc(n: int) -> World:
    """x = x + 1 under a lock, n threads: n!, the orders in which the lock is taken."""

    async def body(me: Any) -> None:
        async with Lock(me.vm.memory.mutex).held_by(me):
            value = await READ_ONCE(me.vm.memory.x)
            await WRITE_ONCE(me.vm.memory.x, value + 1)

    return machine([body] * n, mutex="", x=0)


def taking(*names: str) -> Body:
    """Takes the locks in this order and gives them back."""

    async def body(me: Any) -> None:
        held = [Lock(getattr(me.vm.memory, name)) for name in names]
        for lock in held:
            await lock.acquire(me)
        for lock in reversed(held):
            await lock.release()

    return body


def dining(n: int) -> World:
    """n philosophers, left fork first: 2**n - 1, in exactly one of which all of them starve."""
    forks = [f"fork{i}" for i in range(n)]
    cells: dict[str, Any] = dict.fromkeys(forks, "")
    return machine([taking(forks[i], forks[(i + 1) % n]) for i in range(n)], **cells)


def abba() -> World:
    """Two locks in opposite order: 3, one of which deadlocks."""
    return machine([taking("a", "b"), taking("b", "a")], a="", b="")


def filesystem(n: int) -> World:
    """Flanagan and Godefroid's example (POPL 2005): n processes, 32 inodes, 26 blocks; no two conflict below 14."""
    inodes, blocks = 32, 26

    def process(t: int) -> Body:
        async def body(me: Any) -> None:
            memory = me.vm.memory
            i = t % inodes
            async with Lock(getattr(memory, f"inode_lock{i}")).held_by(me):
                if await READ_ONCE(getattr(memory, f"inode{i}")) == 0:
                    b = 2 * i % blocks
                    while True:
                        async with Lock(getattr(memory, f"block_lock{b}")).held_by(me):
                            if not await READ_ONCE(getattr(memory, f"busy{b}")):
                                await WRITE_ONCE(getattr(memory, f"busy{b}"), 1)
                                await WRITE_ONCE(getattr(memory, f"inode{i}"), b + 1)
                                break
                        b = (b + 1) % blocks

        return body

    cells: dict[str, Any] = {f"inode{i}": 0 for i in range(inodes)} | {f"inode_lock{i}": "" for i in range(inodes)}
    cells |= {f"busy{b}": 0 for b in range(blocks)} | {f"block_lock{b}": "" for b in range(blocks)}
    return machine([process(t) for t in range(n)], **cells)


def indexer(n: int) -> World:
    """Flanagan and Godefroid's hash table (POPL 2005): n threads insert 4 words each; no collisions below 12."""
    size = 128

    def process(t: int) -> Body:
        async def body(me: Any) -> None:
            for m in range(1, 5):
                w = 11 * m + t
                h = 7 * w % size
                while await cmpxchg(getattr(me.vm.memory, f"table{h}"), 0, w):
                    h = (h + 1) % size

        return body

    table: dict[str, Any] = {f"table{h}": 0 for h in range(size)}
    return machine([process(t) for t in range(n)], **table)


def popl() -> World:
    """The example of the optimal DPOR paper (POPL 2014): 5; source sets give up 5 more half way, wakeup trees none."""

    async def r(me: Any) -> None:
        if await READ_ONCE(me.vm.memory.y) == 0:
            await WRITE_ONCE(me.vm.memory.z, 1)

    async def s(me: Any) -> None:
        if await READ_ONCE(me.vm.memory.z) == 1 and await READ_ONCE(me.vm.memory.y) == 0:
            await WRITE_ONCE(me.vm.memory.x, 2)

    return machine([straight(store("x", 1)), straight(store("y", 1)), r, s], x=0, y=0, z=0)


# ---- messages -------------------------------------------------------------------------------------------------------------


def post(message: int, mailbox: str) -> Body:
    """Append a message, a positive number, to a FIFO mailbox: draw the next place, then fill it."""

    async def body(me: Any) -> None:
        place = await atomic_fetch_add(1, getattr(me.vm.memory, f"{mailbox}_tail"))
        await WRITE_ONCE(getattr(me.vm.memory, f"{mailbox}_{place}"), message)

    return body


def arrived(cell: Cell) -> Op:
    """Wait until a place of a mailbox is filled; returns the message."""
    return await_bits(cell, -1)


def independent_receivers() -> World:
    """Two senders, each to a receiver of its own; both receivers then tell the parent, who takes what comes: 2.

    A mailbox whose order is observed is a FIFO of places: whoever posts draws the next place from the mailbox's tail and fills
    it, and the owner waits for its places one after the other.  So two posts to one mailbox conflict (at its tail), a post
    and the receipt of another message do not, as in a queue.  Only the order of the two posts to the parent can differ.
    The program is one of Concuerror's DPOR tests.
    """

    def relay(n: int) -> Body:
        tell = post(n, "parent")

        async def body(me: Any) -> None:
            await arrived(getattr(me.vm.memory, f"receiver{n}_0"))
            await tell(me)

        return body

    async def parent(me: Any) -> None:
        first = await arrived(me.vm.memory.parent_0)
        me.seen = (first, await arrived(me.vm.memory.parent_1))

    def send(n: int) -> Body:
        return post(3, f"receiver{n}")

    mailboxes: dict[str, Any] = {f"receiver{n}_{place}": 0 for n in (1, 2) for place in ("0", "tail")}
    return machine([parent, relay(1), relay(2), send(1), send(2)], parent_tail=0, parent_0=0, parent_1=0, **mailboxes)


def indifferent_senders(n: int) -> World:
    """n senders to one receiver, which asks for message 1, then for message 2, ...: 1, whatever the order of arrival.

    A selective receive takes the message that it names from anywhere in the mailbox.  If a mailbox is read in no other way, its
    order cannot be observed, and it is a set: one cell per message that may be in it.  (As a FIFO of places it would have n!
    classes, one per order at its tail, and that is what a search without observers executes.)
    The program is one of Concuerror's DPOR tests.
    """

    async def receiver(me: Any) -> None:
        for i in range(1, n + 1):
            me.seen = (*me.seen, await arrived(getattr(me.vm.memory, f"message{i}")))

    senders = [straight(store(f"message{i}", i)) for i in range(1, n + 1)]
    mailbox: dict[str, Any] = {f"message{i}": 0 for i in range(1, n + 1)}
    return machine([receiver, *senders], **mailbox)
