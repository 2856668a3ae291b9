"""The first and the last callback: a notifier that is registered before mmu_lock is ready, and an mm that goes before its sptes.

[virt/kvm/kvm_main.c kvm_create_vm, kvm_destroy_vm; mm/mmu_notifier.c; mm/mmap.c exit_mmap; 2.6.27]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.actor import Cell
from actors.mmu import MmuThread
from actors.ops import READ_ONCE, WRITE_ONCE, Code, Op, Order, atomic_fetch_add, await_masked

Functions = dict[str, Callable[..., Any]]
TICKET = 0x100  # the next ticket is in the upper byte, who is served in the lower one


class TicketSpinlock:
    """x86's spinlock of 2.6.27: a word of zeros is free, so a lock that nobody has initialised works.  [spinlock.h]"""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    async def acquire(self, who: object) -> None:
        """Take a ticket, wait for it.  [__ticket_spin_lock]"""
        taken: int = await atomic_fetch_add(TICKET, self.cell)
        await await_masked(self.cell, TICKET - 1, taken // TICKET % TICKET)

    def release(self) -> Op:
        """Serve the next; nobody else writes this byte.  [__ticket_spin_unlock]"""
        return Op(Code.RMW, self.cell, "add", 1, order=Order.FULL)

    def held_by(self, who: object) -> Any:
        """Critical section."""
        return _Held(self, who)


class _Held:
    def __init__(self, lock: TicketSpinlock, who: object) -> None:
        self.lock, self.who = lock, who

    async def __aenter__(self) -> None:
        await self.lock.acquire(self.who)

    async def __aexit__(self, exc_type: type[BaseException] | None, *_rest: object) -> None:
        if exc_type is None:
            await self.lock.release()


def is_free(word: Any) -> bool:
    """Is the next ticket the one that is served?"""
    return not isinstance(word, str) and word // TICKET % TICKET == word % TICKET


def spin_lock_init(cell: Cell) -> Op:
    """A plain store, whoever holds the lock."""
    return WRITE_ONCE(cell, 0)


class Lifetime(MmuThread):
    """A thread that makes or ends the VM, or works on its mm meanwhile; `notifier` and `inode` belong to the machine."""

    def __init__(self, *args: Any, notifier: Cell, inode: Cell) -> None:
        super().__init__(*args)
        self.notifier, self.inode = notifier, inode


# ---- the beginning


async def mmu_notifier_register(me: Lifetime) -> None:
    """Under mmap_sem and all locks of the mm, so that no range is half way through.  [mmu_notifier.c]"""
    async with me.mm.mmap_sem.held_by(me):
        await WRITE_ONCE(me.notifier, True)


async def kvm_create_vm(me: Lifetime) -> None:
    """The lock, then the notifier.  [kvm_main.c, 3.8]"""
    await spin_lock_init(me.mmu.mmu_lock_word)
    await mmu_notifier_register(me)


async def kvm_create_vm_2008(me: Lifetime) -> None:
    """The notifier, then the lock that its callbacks take.  [kvm_main.c, 2.6.27; still so in 2.6.35]"""
    await mmu_notifier_register(me)
    await spin_lock_init(me.mmu.mmu_lock_word)


async def kvm_create_vm_before(me: Lifetime) -> None:
    """No notifier.  [kvm_main.c, 2.6.26]"""
    await spin_lock_init(me.mmu.mmu_lock_word)


async def create_and_use(me: Lifetime) -> None:
    """KVM_CREATE_VM, and the first use of mmu_lock after it."""
    await me.vm.calls.kvm_create_vm(me)
    async with me.mmu.mmu_lock.held_by(me):
        pass


async def munmap_of_another_thread(me: Lifetime) -> None:
    """Another thread of the VMM unmaps anything.  [mmap.c do_munmap, mmu_notifier.h mm_has_notifiers]"""
    async with me.mm.mmap_sem.held_by(me):
        if await READ_ONCE(me.notifier):
            await me.vm.calls.kvm_mmu_notifier_invalidate_range_start(me)
        if await READ_ONCE(me.notifier):
            await me.vm.calls.kvm_mmu_notifier_invalidate_range_end(me)


# ---- the end


async def do_exit(me: Lifetime) -> None:
    """The VMM's last thread: its memory goes, then its files, of which the VM is one.  [exit.c exit_mm, exit_files]"""
    await exit_mmap(me)
    await kvm_destroy_vm(me)


async def exit_mmap(me: Lifetime) -> None:
    """Notifiers are told that it ends, and hear of nothing after that.  [mmap.c, mmu_notifier.c __mmu_notifier_release]"""
    await WRITE_ONCE(me.notifier, False)
    await me.vm.calls.kvm_mmu_notifier_release(me)
    page: int = await READ_ONCE(me.mm.pte)
    await WRITE_ONCE(me.mm.pte, 0)  # unmap_vmas()
    await me.mm.put_page(page)  # the last reference calls free_huge_page(), which looks at the inode: a monitor judges
    await WRITE_ONCE(me.inode, False)  # remove_vma(): fput() of the hugetlbfs file


async def kvm_destroy_vm(me: Lifetime) -> None:
    """What is still mapped is dropped here.  [kvm_main.c, kvm_arch_destroy_vm, mmu.c kvm_mmu_zap_all]"""
    await kvm_mmu_zap_all(me)


async def kvm_mmu_zap_all(me: Any) -> None:
    """Drop every spte, flush.  [mmu.c, kvm_arch_flush_shadow, 2.6.29]"""
    async with me.mmu.mmu_lock.held_by(me):
        if await READ_ONCE(me.mmu.rmap):
            await me.vm.calls.drop_spte(me, me.mmu.rmap)
    await me.vm.calls.kvm_flush_remote_tlbs(me)


async def kvm_mmu_notifier_release(me: Any) -> None:
    """The last chance before the pages go.  [kvm_main.c, since 85db06e51442]"""
    await kvm_mmu_zap_all(me)


async def no_release(me: Any) -> None:
    """There is no such callback.  [kvm_main.c kvm_mmu_notifier_ops, 2.6.27]"""


LIFETIME: Functions = {f.__name__: f for f in (kvm_create_vm, kvm_mmu_notifier_release)}
LIFETIME_2008: Functions = {"kvm_create_vm": kvm_create_vm_2008, "kvm_mmu_notifier_release": no_release}
LIFETIME_BEFORE: Functions = {"kvm_create_vm": kvm_create_vm_before, "kvm_mmu_notifier_release": no_release}
