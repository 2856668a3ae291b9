"""KVM's callbacks of the mmu notifier, as in 3.8: what the host calls when it takes a page away.

Each reads like its C function.  A scenario replaces them by name.  [virt/kvm/kvm_main.c]
"""

from __future__ import annotations

from typing import Any

from actors import mmu as machine
from actors.actor import Cell
from actors.mmu import PT_WRITABLE_MASK, Mmu, kvm_handle_hva, kvm_unmap_hva, spte_to_pfn
from actors.ops import READ_ONCE, WRITE_ONCE, smp_store_release, smp_wmb, xchg


async def seq_inc(me: Any) -> None:
    """kvm->mmu_notifier_seq++: a load and a store."""
    await WRITE_ONCE(me.mmu.seq, await READ_ONCE(me.mmu.seq) + 1)


async def count_add(me: Any, n: int) -> None:
    """kvm->mmu_notifier_count++ or --: a load and a store."""
    await WRITE_ONCE(me.mmu.count, await READ_ONCE(me.mmu.count) + n)


async def kvm_tlbs_dirty(me: Any) -> int:
    """kvm->tlbs_dirty: sptes that were dropped without a flush.  [kvm_main.c, since a4ee1ca4a36e; gone in 6.16]"""
    dirty: int = await READ_ONCE(me.mmu.tlbs_dirty)
    return dirty


async def kvm_mmu_notifier_invalidate_page(me: Any) -> None:
    """The pte is clear, the page still allocated until this returns.  [kvm_main.c, 3.8]"""
    async with me.mmu.mmu_lock.held_by(me):
        await seq_inc(me)
        if await kvm_unmap_hva(me) | await me.vm.calls.kvm_tlbs_dirty(me):
            await me.vm.calls.kvm_flush_remote_tlbs(me)


async def kvm_mmu_notifier_invalidate_range_start(me: Any) -> None:
    """Ptes are about to be cleared; no spte is made until the end.  [kvm_main.c, 3.8]"""
    async with me.mmu.mmu_lock.held_by(me):
        await count_add(me, 1)
        if await kvm_unmap_hva(me) | await me.vm.calls.kvm_tlbs_dirty(me):
            await me.vm.calls.kvm_flush_remote_tlbs(me)


async def kvm_mmu_notifier_invalidate_range_end(me: Any) -> None:
    """The pages may have been freed by now: who looked them up before must see a new sequence.  [kvm_main.c]"""
    async with me.mmu.mmu_lock.held_by(me):
        await seq_inc(me)
        await smp_wmb()  # for those who ask without mmu_lock: they see the count or the new sequence
        await count_add(me, -1)
    await READ_ONCE(me.mmu.count)  # BUG_ON(count < 0): it sees what others did since


async def kvm_mmu_notifier_change_pte(me: Any, pfn: int) -> None:
    """The address has another page now, write-protected.  [kvm_main.c, since 3da0dd433dc3]"""
    async with me.mmu.mmu_lock.held_by(me):
        await seq_inc(me)

        async def kvm_set_pte_rmapp(me: Any, rmapp: Cell) -> int:
            """Point the sptes to the new page.  [mmu.c]"""
            mmu: Mmu = me.mmu
            if not await READ_ONCE(rmapp):
                return 0
            await me.vm.calls.kvm_set_pfn_dirty(me, await xchg(mmu.spte, 0))  # mmu_spte_clear_track_bits()
            await WRITE_ONCE(mmu.spte, me.vm.calls.make_spte(pfn) & ~PT_WRITABLE_MASK)
            await me.vm.calls.kvm_flush_remote_tlbs(me)
            return 0

        await kvm_handle_hva(me, kvm_set_pte_rmapp)


async def kvm_mmu_notifier_clear_flush_young(me: Any) -> int:
    """Was the page used since the last time?  [kvm_main.c, 3.8]"""
    async with me.mmu.mmu_lock.held_by(me):
        young = await kvm_handle_hva(me, me.vm.calls.kvm_age_rmapp)
        if young:
            await me.vm.calls.kvm_flush_remote_tlbs(me)
    return young


async def invlpg(me: Any) -> None:
    """KVM itself drops the spte: the guest said INVLPG.  [paging_tmpl.h FNAME(invlpg), since 4539b35881ae]"""
    mmu: Mmu = me.mmu
    async with mmu.mmu_lock.held_by(me):
        if spte_to_pfn(await READ_ONCE(mmu.spte)):
            await me.vm.calls.drop_spte(me, mmu.rmapp())
            await me.vm.calls.kvm_flush_remote_tlbs(me)


async def sync_page(me: Any) -> None:
    """The guest has changed the pte behind an spte: drop it, leave the flush to others.  [paging_tmpl.h FNAME(sync_page), 3.8]"""
    mmu: Mmu = me.mmu
    async with mmu.mmu_lock.held_by(me):
        if spte_to_pfn(await READ_ONCE(mmu.spte)):
            await me.vm.calls.drop_spte(me, mmu.rmapp())
            await WRITE_ONCE(mmu.tlbs_dirty, await READ_ONCE(mmu.tlbs_dirty) + 1)


async def install_memslot(me: Any) -> None:
    """KVM_SET_USER_MEMORY_REGION makes a slot visible.  [kvm_main.c install_new_memslots]"""
    await smp_store_release(me.mmu.slot, True)


#: What a variant may replace.
FUNCTIONS = {
    f.__name__: f
    for f in (
        kvm_mmu_notifier_invalidate_page,
        kvm_mmu_notifier_invalidate_range_start,
        kvm_mmu_notifier_invalidate_range_end,
        kvm_mmu_notifier_change_pte,
        kvm_mmu_notifier_clear_flush_young,
        kvm_tlbs_dirty,
        invlpg,
        sync_page,
        install_memslot,
        machine.tdp_page_fault,
        machine.mmu_notifier_retry,
        machine.update_pte_retry,
        machine.release_mapped_pfn,
        machine.unmap_other_pfn,
        machine.drop_spte,
        machine.kvm_set_pfn_dirty,
        machine.is_dirty,
        machine.handled_index,
        machine.kvm_age_rmapp,
        machine.make_spte,
        machine.kvm_unmap_rmapp,
        machine.walk,
        machine.kvm_flush_remote_tlbs,
        machine.smp_call_function_many,
    )
}
