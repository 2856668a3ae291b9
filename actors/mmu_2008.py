"""What 2.6.26 and 2.6.27 did otherwise: before the mmu notifier, and the notifier as it was committed.

In both every spte holds a reference of its page, taken by the fault and dropped by rmap_remove().
[arch/x86/kvm/mmu.c, virt/kvm/kvm_main.c, 2.6.26 and e930bffe95e1]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.actor import Cell
from actors.host_mm import get_user_pages
from actors.mmu import (
    KVM_PAGES_PER_HPAGE,
    KVM_REQ_TLB_FLUSH,
    MAPPED,
    PT_ACCESSED_SHIFT,
    Mmu,
    kvm_handle_hva,
    kvm_unmap_hva,
    mmu_set_spte,
    spte_to_pfn,
)
from actors.mmu_notifier import count_add, seq_inc
from actors.ops import READ_ONCE, WRITE_ONCE, clear_bit, test_and_set_bit

Functions = dict[str, Callable[..., Any]]

# ---- every spte holds a reference, until acb66dd051d0 (2.6.32)


async def spte_keeps_reference(me: Any, pfn: int, was_mapped: bool) -> None:
    """The end of mmu_set_spte(): the fault's reference is the new spte's.  [mmu.c, 2.6.27]"""
    if was_mapped:
        await me.mm.put_page(pfn)


async def rmap_remove(me: Any, rmapp: Cell) -> None:
    """The page is told that it was written to, loses its reference, and is forgotten.  [mmu.c rmap_remove, 2.6.27]"""
    spte = await READ_ONCE(me.mmu.spte_in(rmapp))
    await me.vm.calls.kvm_set_pfn_dirty(me, spte)  # kvm_release_pfn_dirty()
    await me.mm.put_page(spte_to_pfn(spte))
    await WRITE_ONCE(rmapp, "")


async def drop_spte_2008(me: Any, rmapp: Cell) -> None:
    """The reference goes first, the spte is cleared last.  [mmu.c kvm_unmap_rmapp, 2.6.27]"""
    await rmap_remove(me, rmapp)
    await WRITE_ONCE(me.mmu.spte_in(rmapp), 0)  # set_shadow_pte()


async def unmap_other_pfn_2008(me: Any, rmapp: Cell) -> None:
    """The old page is forgotten, the spte is overwritten later, and nobody flushes.  [mmu.c mmu_set_spte, 2.6.27]"""
    await rmap_remove(me, rmapp)


REFERENCES: Functions = {"release_mapped_pfn": spte_keeps_reference, "drop_spte": drop_spte_2008}
OVERWRITE: Functions = {"unmap_other_pfn": unmap_other_pfn_2008}

# ---- before: the host takes pages away and tells nobody


async def tdp_page_fault_before(vcpu: Any) -> int:
    """The reference that the lookup took is all that protects the page.  [mmu.c tdp_page_fault, 2.6.26]"""
    pfn = await get_user_pages(vcpu)
    await vcpu.mmu.mmu_lock.acquire(vcpu)
    await mmu_set_spte(vcpu, pfn)
    await vcpu.mmu.mmu_lock.release()
    return MAPPED


async def not_told(me: Any, *_page: int) -> int:
    """No notifier is registered."""
    return 0


async def never_retry(me: Any, mmu_seq: int) -> bool:
    """There is no sequence yet."""
    return False


NO_NOTIFIER: Functions = {
    "tdp_page_fault": tdp_page_fault_before,
    "update_pte_retry": never_retry,
    "kvm_mmu_notifier_invalidate_page": not_told,
    "kvm_mmu_notifier_invalidate_range_start": not_told,
    "kvm_mmu_notifier_invalidate_range_end": not_told,
    "kvm_mmu_notifier_change_pte": not_told,
    "kvm_mmu_notifier_clear_flush_young": not_told,
}

# ---- after: TLBs are flushed once mmu_lock is released


async def invalidate_page_2008(me: Any) -> None:
    """A second invalidator finds no spte, and does not wait for this one's flush.  [kvm_main.c, 2.6.27]"""
    async with me.mmu.mmu_lock.held_by(me):
        await seq_inc(me)
        need_tlb_flush = await kvm_unmap_hva(me)
    if need_tlb_flush:
        await me.vm.calls.kvm_flush_remote_tlbs(me)


async def invalidate_range_start_2008(me: Any) -> None:
    """[kvm_main.c, 2.6.27]"""
    async with me.mmu.mmu_lock.held_by(me):
        await count_add(me, 1)
        need_tlb_flush = await kvm_unmap_hva(me)
    if need_tlb_flush:
        await me.vm.calls.kvm_flush_remote_tlbs(me)


async def invalidate_range_end_2008(me: Any) -> None:
    """No smp_wmb() yet.  [kvm_main.c, 2.6.27]"""
    async with me.mmu.mmu_lock.held_by(me):
        await seq_inc(me)
        await count_add(me, -1)
    await READ_ONCE(me.mmu.count)


async def clear_flush_young_2008(me: Any) -> int:
    """[kvm_main.c, 2.6.27]"""
    async with me.mmu.mmu_lock.held_by(me):
        young = await kvm_handle_hva(me, me.vm.calls.kvm_age_rmapp)
    if young:
        await me.vm.calls.kvm_flush_remote_tlbs(me)
    return young


async def change_pte_2008(me: Any, pfn: int) -> None:
    """Without the callback the host calls invalidate_page().  [mmu_notifier.c __mmu_notifier_change_pte, 2.6.32]"""
    await me.vm.calls.kvm_mmu_notifier_invalidate_page(me)


async def age_bit_5(me: Any, rmapp: Cell) -> int:
    """Clear the accessed bit, which in an EPT entry belongs to the memory type.  [mmu.c kvm_age_rmapp, 2.6.27]"""
    if not await READ_ONCE(rmapp) or not await READ_ONCE(me.mmu.spte) >> PT_ACCESSED_SHIFT & 1:
        return 0
    await clear_bit(PT_ACCESSED_SHIFT, me.mmu.spte)
    return 1


async def flush_2008(me: Any) -> None:
    """A vCPU that has the request already is left out, and so is waiting for it.  [kvm_main.c kvm_flush_remote_tlbs, 2.6.27]"""
    others = []
    for vcpu in me.vm.vcpus:
        if not await test_and_set_bit(KVM_REQ_TLB_FLUSH, vcpu.requests) and vcpu is not me:
            others.append(vcpu.pcpu)
    await me.vm.calls.smp_call_function_many(me, others)


async def flush_requests_lock(me: Any) -> None:
    """Who comes second waits for the first.  [kvm_main.c make_all_cpus_request, 84261923d3dd]"""
    async with me.mmu.requests_lock.held_by(me):
        await flush_2008(me)


def index_by_offset(mmu: Mmu) -> int:
    """gfn_offset / 512: wrong if base_gfn is not a multiple of 512.  [mmu.c kvm_handle_hva, 2.6.27]"""
    return (mmu.gfn - mmu.base_gfn) // KVM_PAGES_PER_HPAGE


async def invlpg_2008(me: Any) -> None:
    """Only the own TLB is flushed.  [paging_tmpl.h FNAME(shadow_invlpg_entry), until 4539b35881ae]"""
    mmu: Mmu = me.mmu
    async with mmu.mmu_lock.held_by(me):
        if spte_to_pfn(await READ_ONCE(mmu.spte)):
            await me.vm.calls.drop_spte(me, mmu.rmapp())


FLUSH_OUTSIDE: Functions = {
    "kvm_mmu_notifier_invalidate_page": invalidate_page_2008,
    "kvm_mmu_notifier_invalidate_range_start": invalidate_range_start_2008,
    "kvm_mmu_notifier_clear_flush_young": clear_flush_young_2008,
}
COMMITTED: Functions = {
    **REFERENCES,
    "kvm_mmu_notifier_invalidate_range_end": invalidate_range_end_2008,
    "kvm_mmu_notifier_change_pte": change_pte_2008,
    "kvm_age_rmapp": age_bit_5,
    "kvm_flush_remote_tlbs": flush_2008,
    **OVERWRITE,
    "handled_index": index_by_offset,
    "invlpg": invlpg_2008,
}
