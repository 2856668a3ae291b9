"""The mutants of the mmu notifier: each is one mistake, in a function that is named like the one it replaces.

One blank line between functions, so that many are seen on one screen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors import mmu_notifier as kvm
from actors.actor import Cell
from actors.host_mm import get_user_pages
from actors.mmu import (
    KVM_REQ_TLB_FLUSH,
    MAPPED,
    PAGE_SHIFT,
    PT_ACCESSED_SHIFT,
    RETRY,
    Mmu,
    kvm_handle_hva,
    kvm_unmap_hva,
    make_spte,
    mmu_set_spte,
)
from actors.ops import READ_ONCE, WRITE_ONCE, clear_bit, cmpxchg, send_ipi, set_bit, smp_mb, smp_wmb


# fmt: off
def fault(*order: str) -> Callable[..., Any]:
    """tdp_page_fault() with its accesses in this order: "seq", "gup", "check", "lock"; what is missing is left out."""

    async def tdp_page_fault(vcpu: Any) -> int:
        mmu: Mmu = vcpu.mmu
        seq = pfn = 0
        for access in order:
            if access == "seq":
                seq = await READ_ONCE(mmu.seq)
            elif access == "gup":
                pfn = await get_user_pages(vcpu)
            elif access == "lock":
                await mmu.mmu_lock.acquire(vcpu)
            elif await vcpu.vm.calls.mmu_notifier_retry(vcpu, seq):
                if "lock" in order[:order.index("check")]:
                    await mmu.mmu_lock.release()
                if order[-1] != "keep":
                    await vcpu.mm.put_page(pfn)
                return RETRY
        await mmu_set_spte(vcpu, pfn)
        await mmu.mmu_lock.release()
        return MAPPED

    tdp_page_fault.__name__ = f"fault_{'_'.join(order)}"
    return tdp_page_fault

async def m4_only_seq(me: Any, mmu_seq: int) -> bool:
    """mmu_notifier_retry() that does not look at the count."""
    return bool(await READ_ONCE(me.mmu.seq) != mmu_seq)

async def m5_only_count(me: Any, mmu_seq: int) -> bool:
    """mmu_notifier_retry() that does not look at the sequence."""
    return bool(await READ_ONCE(me.mmu.count))

async def m7_seq_after_unlock(me: Any) -> None:
    """invalidate_page() that raises the sequence too late."""
    async with me.mmu.mmu_lock.held_by(me):
        if await kvm_unmap_hva(me):
            await me.vm.calls.kvm_flush_remote_tlbs(me)
    await kvm.seq_inc(me)

async def m8_no_unmap(me: Any, rmapp: Cell) -> int:
    """kvm_unmap_rmapp(): does nothing."""
    return 0

async def m9_no_flush(me: Any) -> None:
    """kvm_flush_remote_tlbs(): does nothing."""

async def m10_flush_later(me: Any) -> None:
    """kvm_flush_remote_tlbs(): each vCPU flushes before its next entry, whenever that is."""
    for vcpu in me.vm.vcpus:
        await set_bit(KVM_REQ_TLB_FLUSH, vcpu.requests)
        await smp_mb()

async def m10_no_ack(me: Any, pcpus: list[Any]) -> None:
    """smp_call_function_many(): does not wait."""
    for pcpu in pcpus:
        await pcpu.call_function()
        await send_ipi(pcpu.name)

async def m13_count_first(me: Any) -> None:
    """range_end(): the count goes down before the sequence goes up."""
    async with me.mmu.mmu_lock.held_by(me):
        await kvm.count_add(me, -1)
        await smp_wmb()
        await kvm.seq_inc(me)

async def no_wmb(me: Any) -> None:
    """range_end() without smp_wmb()."""
    async with me.mmu.mmu_lock.held_by(me):
        await kvm.seq_inc(me)
        await kvm.count_add(me, -1)

async def m14_seq_first(me: Any, mmu_seq: int) -> bool:
    """mmu_notifier_retry(): the sequence, then the count."""
    if await READ_ONCE(me.mmu.seq) != mmu_seq:
        return True
    return bool(await READ_ONCE(me.mmu.count))

def m18_no_huge(mmu: Mmu) -> None:
    """kvm_handle_hva(): only the small pages' reverse map."""

async def m22_two_halves(me: Any, rmapp: Cell) -> None:
    """drop_spte() on a 32-bit host, the upper half first: for a moment the spte maps another page."""
    await WRITE_ONCE(me.mmu.spte, HALF)
    await WRITE_ONCE(me.mmu.spte, 0)
    await WRITE_ONCE(rmapp, "")

HALF = make_spte(0)  # present, page frame bits 32 and up cleared

def make_npt_spte(pfn: int) -> int:
    """A page-table entry with accessed bit: present, writable, user, accessed, dirty."""
    return pfn << PAGE_SHIFT | 0x67

async def age_accessed_bit(me: Any, rmapp: Cell) -> int:
    """[mmu.c kvm_age_rmapp, 3.8, with shadow_accessed_mask]"""
    if not await READ_ONCE(rmapp) or not await READ_ONCE(me.mmu.spte) >> PT_ACCESSED_SHIFT & 1:
        return 0
    await clear_bit(PT_ACCESSED_SHIFT, me.mmu.spte)
    return 1

async def walk_sets_accessed(vcpu: Any) -> int:
    """The hardware walks, and marks the entry in one locked step; if it has changed, it walks again."""
    while True:
        spte: int = await READ_ONCE(vcpu.mmu.spte)
        young = spte | 1 << PT_ACCESSED_SHIFT
        if not spte or spte == young or await cmpxchg(vcpu.mmu.spte, spte, young) == spte:
            return young if spte else 0

async def m24_young_no_flush(me: Any) -> None:
    """clear_flush_young() without the flush."""
    async with me.mmu.mmu_lock.held_by(me):
        await kvm_handle_hva(me, me.vm.calls.kvm_age_rmapp)

async def invalidate_elsewhere(me: Any) -> None:
    """A munmap() of other addresses that has begun, and is not finished while we look."""
    await me.vm.calls.kvm_mmu_notifier_invalidate_range_start(me)

async def m25_no_flush(me: Any, rmapp: Cell) -> None:
    """mmu_set_spte() over an spte of another page: the old one is dropped, and nobody flushes."""
    await me.vm.calls.drop_spte(me, rmapp)

async def m26_clean(me: Any) -> int:
    """The callbacks do not look at tlbs_dirty."""
    return 0

async def m30_range_replaced(me: Any) -> None:
    """invalidate_range_start() of 5.12 that forgets the ranges that are under way."""
    async with me.mmu.mmu_lock.held_by(me):
        await kvm.count_add(me, 1)
        for cell, bound in zip(me.mmu.range, me.hva, strict=True):
            await WRITE_ONCE(cell, bound)
        if await kvm_unmap_hva(me):
            await me.vm.calls.kvm_flush_remote_tlbs(me)

async def invalidate_other_range(me: Any) -> None:
    """A munmap() of other addresses, from its beginning to its end."""
    await me.vm.calls.kvm_mmu_notifier_invalidate_range_start(me)
    await me.vm.calls.kvm_mmu_notifier_invalidate_range_end(me)

# fmt: on
