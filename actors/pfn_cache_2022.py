"""The gfn_to_pfn_cache as it came back in 5.17 (982ed0de4753), before 93984f19e7bc and 58cd407ca4c6 repaired it in 2022.

Read from the lines that 58cd407ca4c6 removes.  Left out: the cache kept a reference of its page until a later patch of the same
series, so that a missed invalidation left it with an old page, not with a freed one; and a lookup that was tried again leaked
its reference.  [virt/kvm/pfncache.c]
"""

from __future__ import annotations

from typing import Any

from actors.host_mm import get_user_pages
from actors.mmu_later import retry_hva
from actors.ops import READ_ONCE, WRITE_ONCE, smp_rmb
from actors.pfn_cache import PFN_ERR, PfnCache, gpc_map, gpc_unmap


async def refresh_unserialized(vcpu: Any) -> None:
    """Whoever comes refreshes.  [pfncache.c kvm_gfn_to_pfn_cache_refresh, before 93984f19e7bc]"""
    await vcpu.vm.calls.__kvm_gpc_refresh(vcpu)


async def refresh_2022(vcpu: Any) -> None:
    """Valid first, and filled in later: the notifier may clear it meanwhile.  [pfncache.c kvm_gfn_to_pfn_cache_refresh]"""
    gpc: PfnCache = vcpu.gpc
    await gpc.lock.write_lock()
    vcpu.old_pfn = await READ_ONCE(gpc.pfn)
    vcpu.old_khva = await READ_ONCE(gpc.khva)
    if await READ_ONCE(gpc.valid):
        await gpc.lock.write_unlock()
        return
    await WRITE_ONCE(gpc.pfn, PFN_ERR)
    await WRITE_ONCE(gpc.khva, 0)
    await WRITE_ONCE(gpc.valid, True)
    await gpc.lock.write_unlock()
    await hva_to_pfn_retry_2022(vcpu)
    if vcpu.new_pfn == vcpu.old_pfn:
        vcpu.new_khva = vcpu.old_khva
        vcpu.old_khva = 0
    else:
        await gpc_map(gpc, vcpu.new_pfn)
        vcpu.new_khva = vcpu.new_pfn
    await gpc.lock.write_lock()
    await WRITE_ONCE(gpc.pfn, vcpu.new_pfn)  # gpc->valid may have been cleared by now
    await WRITE_ONCE(gpc.khva, vcpu.new_khva)
    await gpc.lock.write_unlock()
    await vcpu.mm.put_page(vcpu.new_pfn)
    if vcpu.old_khva:
        await gpc_unmap(gpc, vcpu.old_pfn)  # gpc_release_pfn_and_khva()


async def hva_to_pfn_retry_2022(vcpu: Any) -> None:
    """The question of the faults, under mmu_lock: the notifier raises the count after it looked at the cache.  [pfncache.c]"""
    while True:
        vcpu.checkpoint("hva_to_pfn_retry")
        mmu_seq = await READ_ONCE(vcpu.mmu.seq)
        await smp_rmb()
        vcpu.new_pfn = await get_user_pages(vcpu)
        async with vcpu.mmu.mmu_lock.held_by(vcpu):
            retry = await retry_hva(vcpu, mmu_seq)
        if not retry:
            return
        await vcpu.mm.put_page(vcpu.new_pfn)
        vcpu.new_pfn = PFN_ERR
