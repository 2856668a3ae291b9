"""A gfn_to_pfn_cache: a page of guest memory that KVM itself keeps mapped, invalidated by the mmu notifier without mmu_lock.

It follows the sequence-and-count pattern of the faults, with another lock (gpc->lock) and another count: the notifier clears
gpc->valid before it takes mmu_lock, so a refresh has to ask for mn_active_invalidate_count, which is raised before that.
[virt/kvm/pfncache.c, 6.16; what came before is in actors.pfn_cache_2022]

One cache, so kvm->gpc_lock and the list are left out; its address does not change, and neither do the memory slots.  kmap() is
taken for a mapping that ends with its kunmap(), as it does for memory that only memremap() can map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from actors import mmu_later as later
from actors.actor import Actor, Cell
from actors.host_mm import HostMM, get_user_pages
from actors.mmu import HVA, Mmu, MmuThread
from actors.ops import READ_ONCE, WRITE_ONCE, Op, atomic_fetch_add, smp_rmb
from actors.rwlock import MOST_NAMED, WRITER, RwLock
from actors.sync import Lock

PFN_ERR = 0  # KVM_PFN_ERR_FAULT, and no mapping


class PfnCache(Actor):
    """struct gfn_to_pfn_cache; `pages` may be mapped, page 1 is so at first.  `khva` is named for the page that it maps.

    `users`: how many vCPUs take its lock for reading.
    """

    bit_names: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "lock": {0: "writer", 1: "vcpu0 reads", 2: "vcpu1 reads", 3: "vcpu2 reads", 4: "vcpu3 reads", 8: "notifier reads"}
    }

    def __init__(self, vm: Any, name: str, pages: int = 2, users: int = 0) -> None:
        super().__init__(vm, name)
        self.lock_word = self.cell("lock", 0)
        self.lock = RwLock(self.lock_word, counted=users > MOST_NAMED)
        self.refresh_word = self.cell("refresh_lock", "")
        self.refresh_lock = Lock(self.refresh_word)
        self.valid = self.cell("valid", True)
        self.pfn = self.cell("pfn", 1)
        self.khva = self.cell("khva", 1)
        self.maps = {pfn: self.cell(f"page{pfn}_maps", int(pfn == 1)) for pfn in range(1, pages + 1)}
        self.memory = {pfn: self.cell(f"page{pfn}" if pfn else "NULL", 0) for pfn in range(pages + 1)}

    def value_name(self, cell: Cell, value: Any) -> str:
        """How a value of these cells is written."""
        if cell.name in ("pfn", "khva"):
            return f"page {value}" if value else ("none" if cell.name == "pfn" else "NULL")
        if cell.name == "lock":
            return "free" if not value else "written" if value & WRITER else "read"
        return str(value) if value != "" else "free"


class CacheInvalidator(MmuThread):
    """A thread of the host's that takes the page away; a reader of gpc->lock too."""

    def __init__(self, vm: Any, name: str, gpc: PfnCache, mmu: Mmu, mm: HostMM, body: Callable[[Any], Any], *, far: bool) -> None:
        super().__init__(vm, name, mmu, mm, body, (HVA << 4, HVA << 5) if far else (HVA, HVA + 0x1000))
        self.gpc = gpc
        self.bit = WRITER << 8


class CacheUser(Actor):
    """A vCPU thread that uses the cache once, and what it remembers of a refresh."""

    old_pfn: int
    old_khva: int
    new_pfn: int
    new_khva: int

    def __init__(self, vm: Any, i: int, gpc: PfnCache, mmu: Mmu, mm: HostMM) -> None:
        super().__init__(vm, f"vcpu{i}")
        self.gpc, self.mmu, self.mm = gpc, mmu, mm
        self.bit = WRITER << 1 + i
        self.private(old_pfn=PFN_ERR, old_khva=0, new_pfn=PFN_ERR, new_khva=0)
        vm.vcpus.append(self)

    def run(self) -> Any:
        """Use the cache."""
        return use_cache(self)


async def use_cache(vcpu: CacheUser) -> None:
    """What every user does: check, else refresh and check again.  [xen.c kvm_xen_update_runstate_guest]"""
    gpc = vcpu.gpc
    while True:
        vcpu.old_pfn = vcpu.old_khva = vcpu.new_pfn = vcpu.new_khva = 0
        vcpu.checkpoint("kvm_gpc_check")
        await gpc.lock.read_lock(vcpu.bit)
        if await READ_ONCE(gpc.valid):  # kvm_gpc_check()
            khva = await READ_ONCE(gpc.khva)
            await READ_ONCE(gpc.memory[khva])  # the access: a monitor judges this step
            await gpc.lock.read_unlock(vcpu.bit)
            return
        await gpc.lock.read_unlock(vcpu.bit)
        await vcpu.vm.calls.kvm_gpc_refresh(vcpu)


def gpc_map(gpc: PfnCache, pfn: int) -> Op:
    """Map the page into the kernel.  [pfncache.c gpc_map]"""
    return atomic_fetch_add(1, gpc.maps[pfn])


def gpc_unmap(gpc: PfnCache, pfn: int) -> Op:
    """[pfncache.c gpc_unmap]"""
    return atomic_fetch_add(-1, gpc.maps[pfn])


async def kvm_gpc_refresh(vcpu: Any) -> None:
    """One refresh at a time.  [pfncache.c kvm_gpc_refresh; the mutex is of 93984f19e7bc]"""
    await vcpu.gpc.refresh_lock.acquire(vcpu)
    await vcpu.vm.calls.__kvm_gpc_refresh(vcpu)
    await vcpu.gpc.refresh_lock.release()


async def __kvm_gpc_refresh(vcpu: Any) -> None:
    """Look the page up again unless somebody else has.  [pfncache.c __kvm_gpc_refresh]"""
    gpc: PfnCache = vcpu.gpc
    await gpc.lock.write_lock()
    vcpu.old_pfn = await READ_ONCE(gpc.pfn)
    vcpu.old_khva = await READ_ONCE(gpc.khva)
    if await READ_ONCE(gpc.valid):
        await gpc.lock.write_unlock()
        return
    await vcpu.vm.calls.hva_to_pfn_retry(vcpu)
    unmap_old = vcpu.old_pfn != await READ_ONCE(gpc.pfn)
    await gpc.lock.write_unlock()
    if unmap_old and vcpu.old_khva:
        await gpc_unmap(gpc, vcpu.old_pfn)


async def hva_to_pfn_retry(vcpu: Any) -> None:
    """Called, and left, with gpc->lock held; the lookup and the mapping may sleep.  [pfncache.c hva_to_pfn_retry]"""
    gpc: PfnCache = vcpu.gpc
    await WRITE_ONCE(gpc.valid, False)
    while True:
        vcpu.checkpoint("hva_to_pfn_retry")
        mmu_seq = await READ_ONCE(vcpu.mmu.seq)
        await smp_rmb()
        await look_up(vcpu)
        await gpc.lock.write_lock()
        if not await vcpu.vm.calls.mmu_notifier_retry_cache(vcpu, mmu_seq):
            break
    await WRITE_ONCE(gpc.valid, True)
    await WRITE_ONCE(gpc.pfn, vcpu.new_pfn)
    await WRITE_ONCE(gpc.khva, vcpu.new_khva)
    await vcpu.mm.put_page(vcpu.new_pfn)  # kvm_release_page_clean(): from here on the notifier tells


async def look_up(vcpu: Any) -> None:
    """The inside of the loop: give back what the last round found, look up, map.  [pfncache.c hva_to_pfn_retry]"""
    gpc: PfnCache = vcpu.gpc
    await gpc.lock.write_unlock()
    if vcpu.new_pfn:
        if vcpu.new_khva != vcpu.old_khva:
            await gpc_unmap(gpc, vcpu.new_pfn)
        await vcpu.mm.put_page(vcpu.new_pfn)
    vcpu.new_pfn = await get_user_pages(vcpu)
    if vcpu.new_pfn == await READ_ONCE(gpc.pfn):
        vcpu.new_khva = vcpu.old_khva
    else:
        await gpc_map(gpc, vcpu.new_pfn)
        vcpu.new_khva = vcpu.new_pfn


async def mmu_notifier_retry_cache(me: Any, mmu_seq: int) -> bool:
    """mn_active_invalidate_count first, the sequence second.  [pfncache.c]"""
    if await READ_ONCE(me.mmu.active):
        return True
    await smp_rmb()
    return bool(await READ_ONCE(me.mmu.seq) != mmu_seq)


async def gfn_to_pfn_cache_invalidate_start(me: Any) -> None:
    """Look with the lock for reading, and again with the lock for writing.  [pfncache.c]"""
    gpc: PfnCache = me.gpc
    start, end = me.hva
    await gpc.lock.read_lock(me.bit)
    wanted = await READ_ONCE(gpc.valid) and await READ_ONCE(gpc.pfn) and start <= HVA < end
    await gpc.lock.read_unlock(me.bit)
    if not wanted:
        return
    await gpc.lock.write_lock()
    if await READ_ONCE(gpc.valid) and await READ_ONCE(gpc.pfn):
        await WRITE_ONCE(gpc.valid, False)
    await gpc.lock.write_unlock()


async def invalidate_range_start(me: Any) -> None:
    """Count, then the caches, then the sptes.  [kvm_main.c kvm_mmu_notifier_invalidate_range_start, 6.16]"""
    await later.active_add(me, 1)
    await me.vm.calls.gfn_to_pfn_cache_invalidate_start(me)
    if await later.slot_there(me):
        await later.range_start_5_12(me)


#: What a variant may replace.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "kvm_gpc_refresh": kvm_gpc_refresh,
    "__kvm_gpc_refresh": __kvm_gpc_refresh,
    "hva_to_pfn_retry": hva_to_pfn_retry,
    "mmu_notifier_retry_cache": mmu_notifier_retry_cache,
    "gfn_to_pfn_cache_invalidate_start": gfn_to_pfn_cache_invalidate_start,
    later.START: invalidate_range_start,
    later.END: later.range_end_5_14,
}
