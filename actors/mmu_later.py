"""What later kernels and PowerPC do otherwise than 3.8: faults that starve, memory slots, flushes that are left to others.

[virt/kvm/kvm_main.c, arch/x86/kvm/mmu.c, arch/powerpc/kvm; each function names its commit, those after 2010 from memory: the code
was read in 3.8 and 6.16]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors import mmu_notifier as kvm
from actors.actor import Cell
from actors.host_mm import get_user_pages
from actors.mmu import HVA, MAPPED, RETRY, Mmu, kvm_unmap_hva, kvm_unmap_rmapp, mmu_set_spte
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, smp_rmb, smp_store_release


# ---- later fixes
async def age_always_old(me: Any, rmapp: Cell) -> int:
    """An EPT entry has no accessed bit: say that the page is old.  [mmu.c kvm_age_rmapp, 534e38b447df]"""
    return 0


async def range_start_5_12(me: Any) -> None:
    """Keep the range that covers all that is under way.  [kvm_main.c, since 4a42d848db95]"""
    mmu: Mmu = me.mmu
    async with mmu.mmu_lock.held_by(me):
        await kvm.count_add(me, 1)
        for cell, bound, wider in zip(mmu.range, me.hva, (min, max), strict=True):
            if await READ_ONCE(mmu.count) > 1:
                bound = wider(bound, await READ_ONCE(cell))
            await WRITE_ONCE(cell, bound)
        if await kvm_unmap_hva(me) | await me.vm.calls.kvm_tlbs_dirty(me):
            await me.vm.calls.kvm_flush_remote_tlbs(me)


async def retry_hva(me: Any, mmu_seq: int) -> bool:
    """Only an invalidation of this address makes the fault wait.  [kvm_host.h mmu_notifier_retry_hva, since 4a42d848db95]"""
    start, end = me.mmu.range
    if await READ_ONCE(me.mmu.count) and await READ_ONCE(start) <= HVA < await READ_ONCE(end):
        return True
    return bool(await READ_ONCE(me.mmu.seq) != mmu_seq)


async def fault_6_16(vcpu: Any) -> int:
    """Two early questions that save a lookup and a lock, and the one that counts.  [mmu.c kvm_mmu_faultin_pfn, 6.16]"""
    mmu: Mmu = vcpu.mmu
    mmu_seq = await READ_ONCE(mmu.seq)
    await smp_rmb()
    if await retry_hva(vcpu, mmu_seq):  # mmu_invalidate_retry_gfn_unsafe()
        return RETRY
    pfn = await get_user_pages(vcpu)
    if await retry_hva(vcpu, mmu_seq):
        await vcpu.mm.put_page(pfn)
        return RETRY
    await mmu.mmu_lock.acquire(vcpu)
    if await retry_hva(vcpu, mmu_seq):
        await mmu.mmu_lock.release()
        await vcpu.mm.put_page(pfn)
        return RETRY
    await mmu_set_spte(vcpu, pfn)
    await mmu.mmu_lock.release()
    return MAPPED


async def range_start_elided(me: Any) -> None:
    """No slot, no lock, no count.  [kvm_main.c __kvm_handle_hva_range, since 071064f14d87]"""
    if await slot_there(me):
        await kvm.kvm_mmu_notifier_invalidate_range_start(me)


async def range_end_elided(me: Any) -> None:
    """The same question again, and perhaps another answer."""
    if await slot_there(me):
        await kvm.kvm_mmu_notifier_invalidate_range_end(me)


async def slot_there(me: Any) -> bool:
    """Is there a slot for the address?  In most set-ups it is always there."""
    return me.mmu.slot is None or bool(await READ_ONCE(me.mmu.slot))


async def active_add(me: Any, n: int) -> None:
    """mn_active_invalidate_count: whether there is a slot or not.  [kvm_main.c, since 52ac8b358b0c]"""
    async with me.mmu.mn_invalidate_lock.held_by(me):
        await WRITE_ONCE(me.mmu.active, await READ_ONCE(me.mmu.active) + n)


async def range_start_5_14(me: Any) -> None:
    """[kvm_main.c kvm_mmu_notifier_invalidate_range_start, since 52ac8b358b0c]"""
    await active_add(me, 1)
    await range_start_elided(me)


async def range_end_5_14(me: Any) -> None:
    """[kvm_main.c kvm_mmu_notifier_invalidate_range_end, since 52ac8b358b0c]"""
    await range_end_elided(me)
    await active_add(me, -1)


async def install_memslot_5_14(me: Any) -> None:
    """Slots do not change while anything is invalidated.  [kvm_main.c install_new_memslots, since 52ac8b358b0c]"""
    mmu = me.mmu
    while True:
        await mmu.mn_invalidate_lock.acquire(me)
        if not await READ_ONCE(mmu.active):
            break
        await mmu.mn_invalidate_lock.release()
        await await_eq(mmu.active, 0)  # rcuwait
    await smp_store_release(mmu.slot, True)
    await mmu.mn_invalidate_lock.release()


# ---- without mmu_lock: a lock per reverse map, as on PowerPC
async def unmap_rmapp_powerpc(me: Any, rmapp: Cell) -> int:
    """[book3s_64_mmu_hv.c kvm_unmap_rmapp, 3.8; its lock of the hash entry is left out]"""
    async with me.mmu.rmap_lock.held_by(me):
        return await kvm_unmap_rmapp(me, rmapp)


async def fault_powerpc(vcpu: Any) -> int:
    """The question is asked under the reverse map's lock.  [book3s_hv_rm_mmu.c kvmppc_do_h_enter, 3.8]"""
    mmu: Mmu = vcpu.mmu
    mmu_seq = await READ_ONCE(mmu.seq)
    await smp_rmb()
    pfn = await get_user_pages(vcpu)
    await mmu.rmap_lock.acquire(vcpu)
    if await vcpu.vm.calls.mmu_notifier_retry(vcpu, mmu_seq):
        await mmu.rmap_lock.release()
        await vcpu.mm.put_page(pfn)
        return RETRY
    await mmu_set_spte(vcpu, pfn)
    await mmu.rmap_lock.release()
    return MAPPED


Functions = dict[str, Callable[..., Any]]

START, END = "kvm_mmu_notifier_invalidate_range_start", "kvm_mmu_notifier_invalidate_range_end"
PAGE = "kvm_mmu_notifier_invalidate_page"
EPT_ALWAYS_OLD: Functions = {"kvm_age_rmapp": age_always_old}
RANGE_KEPT: Functions = {START: range_start_5_12}
HVA_RANGE: Functions = {**RANGE_KEPT, "mmu_notifier_retry": retry_hva}
EARLY: Functions = {**HVA_RANGE, "tdp_page_fault": fault_6_16}
ELIDED: Functions = {START: range_start_elided, END: range_end_elided}
ACTIVE: Functions = {START: range_start_5_14, END: range_end_5_14, "install_memslot": install_memslot_5_14}
LOCKLESS: Functions = {"kvm_unmap_rmapp": unmap_rmapp_powerpc, "tdp_page_fault": fault_powerpc}
