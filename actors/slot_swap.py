"""The swap of slot arrays, and two kinds of thread that must not have it come between two of their own steps.

A vCPU that makes the first shadow root allocates rmaps, and stores them in slots that readers can reach: an update that copied
the slots before must not publish them after ("slots_arch_lock", b10a038e84d1).  An invalidation takes mmu_lock and counts itself
only if a slot has the range, so its start and its end must find the same slots ("mn_active_invalidate_count", 52ac8b358b0c).
Modelled: one swap, of one slot that is created, deleted or has its flags changed; a deletion has two of them, each like this.

[virt/kvm/kvm_main.c, arch/x86/kvm/mmu/mmu.c, 6.16]
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor, Cell
from actors.memslots import FREED, Oops, Task
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, smp_mb, smp_store_release, xchg
from actors.srcu import Srcu, srcu_read_lock, srcu_read_unlock, synchronize_srcu_expedited
from actors.sync import Lock

THERE, NO_SLOT = "slot", "no slot"


class Swapped(Actor):
    """Slots as far as their swap goes: `slots` is slot 0 in each of the two arrays, `rmap` its arch.rmap there."""

    def __init__(self, vm: Any, name: str, slots: tuple[str, str], readers: list[str]) -> None:
        super().__init__(vm, name)
        self.memslots = self.cell("memslots", 0)  # which of the two arrays is active
        self.slots = tuple(self.cell(f"slots{i}[0]", slot) for i, slot in enumerate(slots))
        self.rmap = tuple(self.cell(f"slots{i}[0].rmap", "") for i in range(2))
        self.shadow_root_allocated = self.cell("shadow_root_allocated", 0)
        self.slots_lock, self.slots_arch_lock = Lock(self.cell("slots_lock", "")), Lock(self.cell("slots_arch_lock", ""))
        self.mmu_lock, self.mn_invalidate_lock = Lock(self.cell("mmu_lock", "")), Lock(self.cell("mn_invalidate_lock", ""))
        self.mn_active_invalidate_count = self.cell("mn_active_invalidate_count", 0)
        self.mmu_invalidate_in_progress = self.cell("mmu_invalidate_in_progress", 0)
        self.rcuwait = self.cell("mn_memslots_update_rcuwait", "")  # who sleeps
        self.task_state = self.cell("task_state", "running")  # of that one
        self.srcu = Srcu(vm, "srcu", readers)

    def value_name(self, cell: Cell, value: Any) -> str:
        """Arrays by name, and words for nothing."""
        if cell is self.memslots:
            return f"slots{value}"
        if value == "":
            return "NULL" if cell.name.endswith("rmap") else "nobody" if cell is self.rcuwait else "free"
        return str(value)


def swapped(vm: Any) -> Swapped:
    """The VM's slots."""
    kvm: Swapped = vm.by_name["kvm"]
    return kvm


# ---- the update


async def changes_slot(me: Task) -> str:
    """KVM_SET_USER_MEMORY_REGION, as far as the swap goes: copy, publish, wait, free."""
    kvm, calls = swapped(me.vm), me.vm.calls
    async with kvm.slots_lock.held_by(me):
        old = await READ_ONCE(kvm.memslots)
        await calls.copy_and_swap(me, old)
        await WRITE_ONCE(kvm.rmap[old], FREED)  # the copy of the slot that nobody reads any more
    return "changed"


async def copy_slot(kvm: Swapped, old: int) -> None:
    """kvm_copy_memslot(): the arch fields too."""
    await WRITE_ONCE(kvm.rmap[1 - old], await READ_ONCE(kvm.rmap[old]))


async def copy_and_swap(me: Task, old: int) -> None:
    """slots_arch_lock from before the copy until the pointer is stored; the swap drops it.  [kvm_main.c kvm_set_memslot]"""
    kvm, calls = swapped(me.vm), me.vm.calls
    await calls.slots_arch_lock(me)
    await copy_slot(kvm, old)
    await calls.kvm_swap_active_memslots(me, 1 - old)


async def kvm_swap_active_memslots(me: Task, new: int) -> None:
    """Not while an invalidation is between its start and its end; the arch lock is dropped before the grace period."""
    kvm, calls = swapped(me.vm), me.vm.calls
    await calls.publish_slots(me, new)
    await calls.slots_arch_unlock(me)
    await synchronize_srcu_expedited(me, kvm.srcu)


async def publish_slots(me: Task, new: int) -> None:
    """Sleep until no invalidation is under way, then store the pointer with mn_invalidate_lock held."""
    kvm, calls = swapped(me.vm), me.vm.calls
    await kvm.mn_invalidate_lock.acquire(me)
    await smp_store_release(kvm.rcuwait, me.name)  # prepare_to_rcuwait()
    while await READ_ONCE(kvm.mn_active_invalidate_count):
        await calls.sleep_unlocked(me)
        await kvm.mn_invalidate_lock.acquire(me)
    await smp_store_release(kvm.rcuwait, "")  # finish_rcuwait()
    await smp_store_release(kvm.memslots, new)  # rcu_assign_pointer()
    await kvm.mn_invalidate_lock.release()


async def sleep_unlocked(me: Task) -> None:
    """The state before the lock is dropped: who ends an invalidation later than that wakes us."""
    kvm = swapped(me.vm)
    await set_current_state(kvm)
    await kvm.mn_invalidate_lock.release()
    await await_eq(kvm.task_state, "running")  # schedule()


async def set_current_state(kvm: Swapped) -> None:
    """set_current_state(TASK_UNINTERRUPTIBLE)."""
    await WRITE_ONCE(kvm.task_state, "sleeping")
    await smp_mb()


async def slots_arch_lock(me: Task) -> None:
    """mutex_lock(&kvm->slots_arch_lock)."""
    await swapped(me.vm).slots_arch_lock.acquire(me)


async def slots_arch_unlock(me: Task) -> None:
    """mutex_unlock(&kvm->slots_arch_lock)."""
    await swapped(me.vm).slots_arch_lock.release()


# ---- a vCPU that makes the first shadow root


async def mmu_first_shadow_root_alloc(me: Task) -> None:
    """Allocate the rmaps of all slots, once.  The pointer to the slots is read with slots_arch_lock held.  [mmu.c]"""
    kvm, calls = swapped(me.vm), me.vm.calls
    if await READ_ONCE(kvm.shadow_root_allocated):
        return
    await calls.slots_arch_lock(me)
    if not await READ_ONCE(kvm.shadow_root_allocated):
        await memslot_rmap_alloc(kvm, await READ_ONCE(kvm.memslots))
        await smp_store_release(kvm.shadow_root_allocated, 1)
    await calls.slots_arch_unlock(me)


async def memslot_rmap_alloc(kvm: Swapped, active: int) -> None:
    """[x86.c]"""
    rmap = await READ_ONCE(kvm.rmap[active])
    if rmap == FREED:
        raise Oops(f"M-I1: memslot_rmap_alloc() finds slots{active}, which is freed")
    if not rmap:
        await WRITE_ONCE(kvm.rmap[active], "rmap")


async def makes_root(me: Task) -> str:
    """A vCPU loads its first root, then maps a page, which needs the rmap.  [mmu.c mmu_alloc_shadow_roots, rmap_add]"""
    kvm = swapped(me.vm)
    idx = await srcu_read_lock(me, kvm.srcu)
    await me.vm.calls.mmu_first_shadow_root_alloc(me)
    active = await READ_ONCE(kvm.memslots)
    rmap = await READ_ONCE(kvm.rmap[active])
    if rmap != "rmap":
        raise Oops(f"arch: rmap_add() finds slots{active}[0].rmap {rmap or 'NULL'}, and rmaps were allocated")
    await srcu_read_unlock(me, kvm.srcu, idx)
    return "mapped"


# ---- an invalidation


async def range_hits(me: Task) -> bool:
    """Does a slot have the range?  [kvm_handle_hva_range, 6.16: mmu_lock is taken only then]"""
    kvm = swapped(me.vm)
    return bool(await READ_ONCE(kvm.slots[await READ_ONCE(kvm.memslots)]) == THERE)


async def count_add(me: Task, n: int) -> None:
    """kvm_mmu_invalidate_begin() or _end(), if a slot has the range."""
    kvm = swapped(me.vm)
    idx = await srcu_read_lock(me, kvm.srcu)
    if await range_hits(me):
        async with kvm.mmu_lock.held_by(me):
            await WRITE_ONCE(kvm.mmu_invalidate_in_progress, await READ_ONCE(kvm.mmu_invalidate_in_progress) + n)
    await srcu_read_unlock(me, kvm.srcu, idx)


async def kvm_mmu_notifier_invalidate_range_start(me: Task) -> None:
    """[kvm_main.c, 6.16]"""
    kvm = swapped(me.vm)
    async with kvm.mn_invalidate_lock.held_by(me):
        count = await READ_ONCE(kvm.mn_active_invalidate_count)
        await WRITE_ONCE(kvm.mn_active_invalidate_count, count + 1)
    await count_add(me, 1)


async def kvm_mmu_notifier_invalidate_range_end(me: Task) -> None:
    """[kvm_main.c, 6.16]"""
    kvm = swapped(me.vm)
    await count_add(me, -1)
    async with kvm.mn_invalidate_lock.held_by(me):
        count = await READ_ONCE(kvm.mn_active_invalidate_count)
        await WRITE_ONCE(kvm.mn_active_invalidate_count, count - 1)
    if count == 1:
        await smp_mb()  # rcuwait_wake_up(): the count before the look who waits
        if await READ_ONCE(kvm.rcuwait):
            await xchg(kvm.task_state, "running")


async def invalidates(me: Task) -> str:
    """munmap() of a range of the VMM: its pages are freed between start and end.  [mm/memory.c unmap_vmas]"""
    await kvm_mmu_notifier_invalidate_range_start(me)
    await kvm_mmu_notifier_invalidate_range_end(me)
    return "unmapped"


#: what a scenario may replace
FUNCTIONS = {
    f.__name__: f
    for f in (
        copy_and_swap,
        kvm_swap_active_memslots,
        mmu_first_shadow_root_alloc,
        publish_slots,
        sleep_unlocked,
        slots_arch_lock,
        slots_arch_unlock,
    )
}


# ---- as it was, or as it must not be


async def publish_at_once(me: Task, new: int) -> None:
    """Nobody waits for invalidations.  [install_new_memslots, 5.13]"""
    await smp_store_release(swapped(me.vm).memslots, new)


async def publish_after_a_look(me: Task, new: int) -> None:
    """Wait for invalidations, drop the lock, then store: another may have started."""
    kvm = swapped(me.vm)
    await kvm.mn_invalidate_lock.acquire(me)
    await smp_store_release(kvm.rcuwait, me.name)
    while await READ_ONCE(kvm.mn_active_invalidate_count):
        await sleep_unlocked(me)
        await kvm.mn_invalidate_lock.acquire(me)
    await smp_store_release(kvm.rcuwait, "")
    await kvm.mn_invalidate_lock.release()
    await smp_store_release(kvm.memslots, new)


async def sleep_late(me: Task) -> None:
    """The state after the lock is dropped: the wake-up may be gone by then."""
    kvm = swapped(me.vm)
    await kvm.mn_invalidate_lock.release()
    await set_current_state(kvm)
    await await_eq(kvm.task_state, "running")


async def no_arch_lock(me: Task) -> None:
    """There is no such lock.  [5.13]"""


async def swap_under_arch_lock(me: Task, new: int) -> None:
    """The arch lock is kept over the grace period."""
    kvm, calls = swapped(me.vm), me.vm.calls
    await calls.publish_slots(me, new)
    await synchronize_srcu_expedited(me, kvm.srcu)
    await calls.slots_arch_unlock(me)


async def copy_and_lock_late(me: Task, old: int) -> None:
    """The arch lock is taken after the copy."""
    kvm, calls = swapped(me.vm), me.vm.calls
    await copy_slot(kvm, old)
    await calls.slots_arch_lock(me)
    await calls.kvm_swap_active_memslots(me, 1 - old)


async def alloc_in_what_was_active(me: Task) -> None:
    """The pointer to the slots is read before the arch lock is taken."""
    kvm, calls = swapped(me.vm), me.vm.calls
    if await READ_ONCE(kvm.shadow_root_allocated):
        return
    active = await READ_ONCE(kvm.memslots)
    await calls.slots_arch_lock(me)
    if not await READ_ONCE(kvm.shadow_root_allocated):
        await memslot_rmap_alloc(kvm, active)
        await smp_store_release(kvm.shadow_root_allocated, 1)
    await calls.slots_arch_unlock(me)
