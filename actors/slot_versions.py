"""Other versions of the slot update and of the dirty log: before SRCU, and after the repairs of later years."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors import memslots, slot_readers
from actors.actor import Actor
from actors.memslots import (
    BITS_PER_LONG,
    EINVAL,
    ENOMEM,
    FREED,
    KVM_MEM_LOG_DIRTY_PAGES,
    NONE,
    Memslots,
    Region,
    Slot,
    Updater,
    bitmap_word,
    check_overlaps,
    copy_memslots,
    kfree,
    kvm_arch_prepare_memory_region,
    kvm_free_physmem_slot,
    logging_begins,
    malformed,
    publish,
    slot_of,
    table_of,
)
from actors.ops import READ_ONCE, WRITE_ONCE, set_bit, xchg
from actors.slot_readers import (
    kvm_arch_commit_memory_region,
    kvm_flush_remote_tlbs,
    kvm_mmu_slot_remove_write_access,
    machine,
)
from actors.srcu import synchronize_srcu_flip_only

# ---- before: slots are changed in place, while slots_lock keeps every vCPU out and mmu_lock the notifiers


async def set_memslot_before(me: Updater, mem: Region, old: Slot, new: Slot) -> int:
    """One array, changed in place; if the architecture fails, the slot is put back.  [__kvm_set_memory_region, 2.6.33]"""
    kvm, calls = me.kvm, me.vm.calls
    _, mmu = machine(me.vm)
    entry = kvm.arrays["slots1"][mem.slot]
    if not new.npages or logging_begins(old, new):
        await calls.kvm_arch_flush_shadow(me)
    async with mmu.mmu_lock.held_by(me):
        await WRITE_ONCE(entry, tuple(new if new.npages else new._replace(rmap=old.rmap)))
    if await kvm_arch_prepare_memory_region(me):  # kvm_arch_set_memory_region() is both halves
        async with mmu.mmu_lock.held_by(me):
            await WRITE_ONCE(entry, tuple(old))
        return -ENOMEM
    await calls.kvm_arch_commit_memory_region(me, mem, old)
    await kvm_free_physmem_slot(me, old, new)
    if not new.npages:
        async with mmu.mmu_lock.held_by(me):
            await WRITE_ONCE(entry, tuple(old._replace(npages=0, rmap=NONE, dirty_bitmap=NONE)))
    return 0


async def get_dirty_log_before(me: Updater, n: int) -> int:
    """Copy to userspace, write-protect, clear; nobody writes meanwhile.  [x86.c kvm_vm_ioctl_get_dirty_log, 2.6.33]"""
    slot = await slot_of(me.kvm, "slots1", n)
    if await table_of(me.kvm, slot.dirty_bitmap):
        await kvm_mmu_slot_remove_write_access(me, n)
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


async def copy_to_user(me: Updater, bitmap: str) -> None:
    """What was dirty is userspace's now, and the bitmap nobody's."""
    await table_of(me.kvm, bitmap)
    await WRITE_ONCE(me.kvm.tables[bitmap], FREED)  # vfree()


async def get_dirty_log(me: Updater, n: int) -> int:
    """Write-protect, then swap: a write fault between them marks the bitmap that is on its way out.  [x86.c, 2.6.34]"""
    array = await READ_ONCE(me.kvm.memslots)
    slot = await slot_of(me.kvm, array, n)
    r = 0
    if await table_of(me.kvm, slot.dirty_bitmap):
        await kvm_mmu_slot_remove_write_access(me, n)
        r = await swap_bitmap(me, n, slot)
        await copy_to_user(me, slot.dirty_bitmap)
    return r


async def get_dirty_log_swap_first(me: Updater, n: int) -> int:
    """Swap, then write-protect: what is written before that is reported, what is written after it faults.  [edde99ce0529]"""
    array = await READ_ONCE(me.kvm.memslots)
    slot = await slot_of(me.kvm, array, n)
    r = 0
    if await table_of(me.kvm, slot.dirty_bitmap):
        r = await swap_bitmap(me, n, slot)
        await kvm_mmu_slot_remove_write_access(me, n)
        await copy_to_user(me, slot.dirty_bitmap)
    return r


async def get_dirty_log_protect(me: Updater, n: int) -> int:
    """No swap of slots: each word is taken by xchg(), then its pages are write-protected; TLBs before mmu_lock is dropped.

    [x86.c kvm_vm_ioctl_get_dirty_log, 3.8; 6.16's kvm_get_dirty_log_protect() flushes after mmu_lock]
    """
    kvm = me.kvm
    _, mmu = machine(me.vm)
    array = await READ_ONCE(kvm.memslots)
    slot = await slot_of(kvm, array, n)
    async with mmu.mmu_lock.held_by(me):
        if await table_of(kvm, slot.dirty_bitmap):
            mask = await xchg(kvm.tables[slot.dirty_bitmap], 0)
            for gfn, spte in mmu.sptes.items():  # kvm_mmu_write_protect_pt_masked(): by rmap, so by slot
                if slot.holds(gfn) and mask >> gfn - slot.base_gfn & 1 and (value := await READ_ONCE(spte)).endswith("w"):
                    await WRITE_ONCE(spte, value[:-1])
            await kvm_flush_remote_tlbs(me)
    return 0


async def mark_by_set_bit(kvm: Memslots, bitmap: str, nr: int) -> None:
    """set_bit_le(): nobody's mark is lost, and none by the xchg() of who reads the log.  [mark_page_dirty_in_slot, 3.8]"""
    name = bitmap_word(bitmap, nr)
    await table_of(kvm, name)
    await set_bit(nr % BITS_PER_LONG, kvm.tables[name])


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


async def commit_flushes_moved(me: Updater, mem: Region, old: Slot) -> None:
    """A flush after a slot is created or moved, meant for MMIO sptes, meets the old mappings of a moved one.  [x86.c, 3.8]"""
    await kvm_arch_commit_memory_region(me, mem, old)
    if mem.npages and mem.base_gfn != old.base_gfn:
        await me.vm.calls.kvm_arch_flush_shadow(me)


async def check_region_today(me: Updater, mem: Region) -> int:
    """Unknown flags, deleting nothing, another hva or size are refused; what is deleted overlaps nobody.  [kvm_main.c, 6.16]"""
    kvm = me.kvm
    if mem.flags & ~KVM_MEM_LOG_DIRTY_PAGES or malformed(mem):
        return -EINVAL
    array = await READ_ONCE(kvm.memslots)
    old = await slot_of(kvm, array, mem.slot)
    if not mem.npages:
        return 0 if old.npages else -EINVAL
    if old.npages and (mem.hva != old.hva or mem.npages != old.npages):
        return -EINVAL
    moves = not old.npages or mem.base_gfn != old.base_gfn
    return await check_overlaps(me, mem, array) if moves else 0


async def set_memslot_today(me: Updater, mem: Region, old: Slot, new: Slot) -> int:
    """Two arrays that take turns: the old one is kept, and is put back if a later step fails.  [kvm_set_memslot, 6.16]"""
    calls = me.vm.calls
    if new == old:
        return 0  # nothing to change
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
    if logging_begins(old, new):
        await kvm_mmu_slot_remove_write_access(me, mem.slot)  # kvm_mmu_slot_apply_flags()
    if not failed:
        await kvm_free_physmem_slot(me, old, new)
    await kfree(me, replaced)  # in C it is brought up to date, and kept for the next time
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
        slot_readers.kvm_arch_commit_memory_region,
        slot_readers.kvm_arch_flush_shadow,
        slot_readers.mark_in_bitmap,
        slot_readers.notifier_read_lock,
        slot_readers.notifier_read_unlock,
        slot_readers.notifier_skips,
        slot_readers.vcpu_read_lock,
        slot_readers.vcpu_read_unlock,
        get_dirty_log,
    )
} | {"flush_after_zap": slot_readers.kvm_flush_remote_tlbs, "vcpu_uses_slots_lock": slot_readers.unlocks_then_halts}
