"""Slot updates that are wrong: each leaves out, adds or moves one thing, and a scenario says what comes of it."""

from __future__ import annotations

from actors.memslots import (
    ENOMEM,
    KVM_MEMSLOT_INVALID,
    Memslots,
    Region,
    Slot,
    Updater,
    copy_memslots,
    gfn_to_memslot,
    install_new_memslots,
    invalidate_memslot,
    kfree,
    kvm_free_physmem_slot,
    kvm_set_memslot,
    logging_begins,
    publish,
)
from actors.slot_readers import VcpuTask, kvm_mmu_slot_remove_write_access, kvm_vcpu_block


async def m1_no_first_wait(me: Updater, copy: str) -> None:
    """invalidate_memslot() without its grace period."""
    old = await publish(me, copy)
    await me.vm.calls.kvm_arch_flush_shadow(me)
    await kfree(me, old)


async def m2_no_second_wait(me: Updater, copy: str) -> str:
    """install_new_memslots() without its grace period."""
    return await publish(me, copy)


async def m3_flush_first(me: Updater, copy: str) -> None:
    """invalidate_memslot(), flushing before the slot is INVALID."""
    await me.vm.calls.kvm_arch_flush_shadow(me)
    old = await publish(me, copy)
    await me.vm.calls.synchronize_memslots(me)
    await kfree(me, old)


async def m4_free_early(me: Updater, copy: str) -> None:
    """invalidate_memslot(), freeing before the grace period."""
    old = await publish(me, copy)
    await kfree(me, old)
    await me.vm.calls.synchronize_memslots(me)
    await me.vm.calls.kvm_arch_flush_shadow(me)


async def install_and_free(me: Updater, mem: Region, old: Slot, new: Slot, copy: str, flush: bool = False) -> int:
    """The rest of kvm_set_memslot() once the copy is there."""
    replaced = await install_new_memslots(me, copy)
    if flush:
        await me.vm.calls.kvm_arch_flush_shadow(me)
    await me.vm.calls.kvm_arch_commit_memory_region(me, mem, old)
    await kvm_free_physmem_slot(me, old, new)
    await kfree(me, replaced)
    return 0


async def m5_publish_then_flush(me: Updater, mem: Region, old: Slot, new: Slot) -> int:
    """kvm_set_memslot() in one step: gone, then torn down."""
    copy = await copy_memslots(me, mem.slot, new)
    return -ENOMEM if copy is None else await install_and_free(me, mem, old, new, copy, flush=True)


async def m6_flush_then_publish(me: Updater, mem: Region, old: Slot, new: Slot) -> int:
    """kvm_set_memslot() in one step: torn down, then gone."""
    await me.vm.calls.kvm_arch_flush_shadow(me)
    copy = await copy_memslots(me, mem.slot, new)
    return -ENOMEM if copy is None else await install_and_free(me, mem, old, new, copy)


async def m11_sees_invalid(kvm: Memslots, gfn: int) -> bool:
    """kvm_is_visible_gfn() for INVALID slots too."""
    return await gfn_to_memslot(kvm, gfn) is not None


async def m12_hides_invalid(kvm: Memslots, gfn: int) -> Slot | None:
    """gfn_to_memslot() that finds no INVALID slot."""
    slot = await gfn_to_memslot(kvm, gfn)
    return None if slot is None or slot.flags & KVM_MEMSLOT_INVALID else slot


async def m14_flush_before_logging(me: Updater, mem: Region, old: Slot, new: Slot) -> int:
    """kvm_set_memslot(): writable mappings go before the bitmap is there, as under the semaphore."""
    if logging_begins(old, new):
        await me.vm.calls.kvm_arch_flush_shadow(me)
    return await kvm_set_memslot(me, mem, old, new)


async def protect_early(me: Updater, mem: Region, old: Slot, new: Slot) -> int:
    """The same, and they are write-protected before the bitmap is there, not by the commit after it."""
    if logging_begins(old, new):
        await kvm_mmu_slot_remove_write_access(me, mem.slot)
    return await m14_flush_before_logging(me, mem, old, new)


def never_begins(old: Slot, new: Slot) -> bool:
    """No flush when logging begins."""
    return False


async def m17_slots_lock_inside(vcpu: VcpuTask, idx: int) -> None:
    """slots_lock in the read section."""
    calls = vcpu.vm.calls
    await calls.slots_lock(vcpu, vcpu.kvm)
    await calls.slots_unlock(vcpu, vcpu.kvm)
    await calls.vcpu_read_unlock(vcpu, idx)
    await kvm_vcpu_block(vcpu)


async def m18_halts_inside(vcpu: VcpuTask, idx: int) -> None:
    """HLT in the read section."""
    await kvm_vcpu_block(vcpu)
    await vcpu.vm.calls.vcpu_read_unlock(vcpu, idx)


async def m21_copies_early(me: Updater, mem: Region) -> int:
    """The ioctl copies before it takes slots_lock."""
    calls = me.vm.calls
    old, new = await calls.new_slot(me, mem)
    copy = await copy_memslots(me, mem.slot, new if mem.npages else None)
    await calls.slots_lock(me, me.kvm)
    r: int = await calls.check_region(me, mem) or await m21_goes_on(me, mem, old, new, copy)
    await calls.slots_unlock(me, me.kvm)
    return r


async def checks_early(me: Updater, mem: Region) -> int:
    """The ioctl checks before it takes slots_lock."""
    calls = me.vm.calls
    r: int = await calls.check_region(me, mem)
    await calls.slots_lock(me, me.kvm)
    if not r:
        old, new = await calls.new_slot(me, mem)
        r = await calls.kvm_set_memslot(me, mem, old, new)
    await calls.slots_unlock(me, me.kvm)
    return r


async def m21_goes_on(me: Updater, mem: Region, old: Slot, new: Slot, copy: str | None) -> int:
    """kvm_set_memslot() with a copy that was made before."""
    if copy is not None and not mem.npages:
        await invalidate_memslot(me, copy)
        copy = await copy_memslots(me, mem.slot, new)
    return -ENOMEM if copy is None else await install_and_free(me, mem, old, new, copy, flush=logging_begins(old, new))
