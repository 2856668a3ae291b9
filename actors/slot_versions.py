"""Other versions of the slot update and of the dirty log: before SRCU, and after the repairs of later years."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors import memslots, slot_readers
from actors.actor import Actor
from actors.memslots import (
    EINVAL,
    ENOMEM,
    KVM_MEM_LOG_DIRTY_PAGES,
    Region,
    Slot,
    Updater,
    check_region,
    copy_memslots,
    kfree,
    kvm_arch_prepare_memory_region,
    kvm_free_physmem_slot,
    logging_begins,
    publish,
    slot_of,
    table_of,
)
from actors.ops import READ_ONCE, WRITE_ONCE
from actors.slot_readers import ShadowMmu, kvm_mmu_slot_remove_write_access
from actors.srcu import synchronize_srcu_flip_only

# ---- before: slots are changed in place, while slots_lock keeps every vCPU out and mmu_lock the notifiers


async def set_memslot_before(me: Updater, mem: Region, old: Slot, new: Slot) -> int:
    """One array, changed in place.  [kvm_main.c __kvm_set_memory_region, 2.6.33]"""
    kvm = me.kvm
    array = kvm.arrays["slots1"]
    if not new.npages or logging_begins(old, new):
        await me.vm.calls.kvm_arch_flush_shadow(me)
    if await kvm_arch_prepare_memory_region(me):
        return -ENOMEM
    mmu: ShadowMmu = me.vm.by_name["mmu"]
    async with mmu.mmu_lock.held_by(me):
        await WRITE_ONCE(array[mem.slot], tuple(new if new.npages else old._replace(npages=0, flags=new.flags)))
    await kvm_free_physmem_slot(me, old, new)
    if not new.npages:
        async with mmu.mmu_lock.held_by(me):
            await WRITE_ONCE(array[mem.slot], tuple(new))
    return 0


async def get_dirty_log_before(me: Updater, n: int) -> int:
    """Write-protect, copy, clear; nobody writes meanwhile.  [x86.c kvm_vm_ioctl_get_dirty_log, 2.6.33]"""
    slot = await slot_of(me.kvm, "slots1", n)
    if await table_of(me.kvm, slot.dirty_bitmap):
        await kvm_mmu_slot_remove_write_access(me)
        await WRITE_ONCE(me.kvm.tables[slot.dirty_bitmap], 0)
    return 0


# ---- the dirty log under SRCU


async def swap_bitmap(me: Updater, n: int, slot: Slot) -> int:
    """Publish an array with an empty bitmap; the full one is nobody's but ours when this returns."""
    copy = await copy_memslots(me, n, slot._replace(dirty_bitmap=me.dirty_bitmap))
    if copy is None:
        return -ENOMEM
    old = await publish(me, copy)
    await me.vm.calls.synchronize_memslots(me)
    await kfree(me, old)
    return 0


async def get_dirty_log(me: Updater, n: int) -> int:
    """Write-protect, then swap: a write fault between them marks the bitmap that is on its way out.  [x86.c, b050b015abbe]"""
    array = await READ_ONCE(me.kvm.memslots)
    slot = await slot_of(me.kvm, array, n)
    r = 0
    if await table_of(me.kvm, slot.dirty_bitmap):
        await kvm_mmu_slot_remove_write_access(me)
        r = await swap_bitmap(me, n, slot)
        await table_of(me.kvm, slot.dirty_bitmap)  # copy_to_user()
    return r


async def get_dirty_log_swap_first(me: Updater, n: int) -> int:
    """Swap, then write-protect: what is written before that is reported, what is written after it faults.  [edde99ce0529]"""
    array = await READ_ONCE(me.kvm.memslots)
    slot = await slot_of(me.kvm, array, n)
    r = 0
    if await table_of(me.kvm, slot.dirty_bitmap):
        r = await swap_bitmap(me, n, slot)
        await kvm_mmu_slot_remove_write_access(me)
        await table_of(me.kvm, slot.dirty_bitmap)  # copy_to_user()
    return r


async def kvm_vm_ioctl_get_dirty_log(me: Updater, n: int) -> int:
    """KVM_GET_DIRTY_LOG.  [x86.c]"""
    calls = me.vm.calls
    await calls.slots_lock(me, me.kvm)
    r: int = await calls.get_dirty_log(me, n)
    await calls.slots_unlock(me, me.kvm)
    return r


# ---- later


def moves_or_deletes(old: Slot, new: Slot) -> bool:
    """Is the slot first made INVALID?  Also if it moves.  [kvm_main.c __kvm_set_memory_region, 3.8]"""
    return not new.npages or bool(old.npages and new.base_gfn != old.base_gfn)


async def commit_flushes_moved(me: Updater, old: Slot, new: Slot) -> None:
    """Meant for the MMIO sptes of a new slot, it meets the old ones of a moved slot.  [kvm_main.c, 3.2]"""
    if new.npages and new.base_gfn != old.base_gfn:
        await me.vm.calls.kvm_arch_flush_shadow(me)


async def check_region_today(me: Updater, mem: Region) -> int:
    """Unknown flags, deleting nothing, another hva: all refused; and what is deleted overlaps nobody.  [kvm_main.c, 6.16]"""
    kvm = me.kvm
    if mem.flags & ~KVM_MEM_LOG_DIRTY_PAGES:
        return -EINVAL
    array = await READ_ONCE(kvm.memslots)
    old = await slot_of(kvm, array, mem.slot)
    if not mem.npages:
        return 0 if old.npages else -EINVAL
    if old.npages and mem.hva != old.hva:
        return -EINVAL
    return await check_region(me, mem)


async def set_memslot_today(me: Updater, mem: Region, old: Slot, new: Slot) -> int:
    """Two arrays that take turns: the old one is kept, and is put back if a later step fails.  [kvm_set_memslot, 6.16]"""
    calls = me.vm.calls
    two_steps = moves_or_deletes(old, new)
    copy = await copy_memslots(me, mem.slot, None if two_steps else new)
    if copy is None:
        return -ENOMEM
    spare = copy
    if two_steps:
        spare = await calls.install_new_memslots(me, copy)
        await calls.kvm_arch_flush_shadow(me)
    failed = await kvm_arch_prepare_memory_region(me)
    if failed and not two_steps:
        await kfree(me, copy)
        return -ENOMEM
    if two_steps and not failed:
        await WRITE_ONCE(me.kvm.arrays[spare][mem.slot], tuple(new))
    replaced = await calls.install_new_memslots(me, spare)
    if not failed:
        await kvm_free_physmem_slot(me, old, new)
    await kfree(me, replaced)
    if logging_begins(old, new):
        await kvm_mmu_slot_remove_write_access(me)
    return -ENOMEM if failed else 0


async def nothing(me: Actor, *_more: object) -> None:
    """Left out."""


async def synchronize_flip_only(me: Updater) -> None:
    """A grace period that does not ask the CPUs."""
    await synchronize_srcu_flip_only(me, me.kvm.srcu)


#: what a scenario about slots may replace; the reference is the patch with vCPUs under SRCU, as 2.6.34 shipped it
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        memslots.__kvm_set_memory_region,
        memslots.check_region,
        memslots.commit_memory_region,
        memslots.gfn_to_hva,
        memslots.gfn_to_memslot,
        memslots.install_new_memslots,
        memslots.invalidate_memslot,
        memslots.kvm_is_visible_gfn,
        memslots.kvm_set_memory_region,
        memslots.kvm_set_memslot,
        memslots.logging_begins,
        memslots.new_slot,
        memslots.rcu_assign_pointer,
        memslots.slots_lock,
        memslots.slots_unlock,
        memslots.synchronize_memslots,
        memslots.wants_invalid_step,
        slot_readers.kvm_arch_flush_shadow,
        slot_readers.notifier_read_lock,
        slot_readers.notifier_read_unlock,
        slot_readers.notifier_skips,
        slot_readers.vcpu_read_lock,
        slot_readers.vcpu_read_unlock,
        get_dirty_log,
    )
} | {"flush_after_zap": slot_readers.kvm_flush_remote_tlbs, "vcpu_uses_slots_lock": slot_readers.unlocks_then_halts}
