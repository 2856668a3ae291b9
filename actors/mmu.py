"""KVM's own translations: shadow ptes, their reverse map, TLBs, and the mmu notifier that keeps them in step with the host.

One guest page, mapped by one spte that all vCPUs share (two-dimensional paging, one root).  As it is here the machine is 3.8's:
TLBs are flushed before mmu_lock is released, sptes hold no page reference.  What 2.6.27 did otherwise is in actors.mmu_2008.
[arch/x86/kvm/mmu.c, virt/kvm/kvm_main.c, include/linux/kvm_host.h]
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from actors.actor import Actor, Cell
from actors.host_mm import HostMM, get_user_pages
from actors.ops import (
    CALL_QUEUED,
    IN_GUEST,
    IPI_PENDING,
    IRQS_OFF,
    READ_ONCE,
    WRITE_ONCE,
    Op,
    await_masked,
    cmpxchg,
    cpu_rmw,
    local_load,
    local_rmw,
    send_ipi,
    set_bit,
    smp_mb,
    smp_rmb,
    smp_store_release,
    xchg,
)
from actors.pcpu import Pcpu
from actors.requests import EXITING_GUEST_MODE, IN_GUEST_MODE, OUTSIDE_GUEST_MODE, kvm_check_request
from actors.sync import Lock

KVM_REQ_TLB_FLUSH = 0
RETRY, MAPPED = 0, 1  # what a fault handler says

#: An EPT entry: read, write, execute, and in bits 5:3 the memory type 6, write-back.
EPT_RWX_WB, EPT_MEMORY_TYPE = 0x37, 0x38
PT_WRITABLE_MASK, PT_ACCESSED_SHIFT = 2, 5
KVM_PAGES_PER_HPAGE = 512
PAGE_SHIFT = 12
HVA = 0x1000  # where the guest page is in the VMM's address space
HVA_B = 0x5000  # where another one is, in the set-ups that have it
PAGE_B = 9  # and the host page behind it


def make_spte(pfn: int) -> int:
    """An spte that maps page `pfn`.  [mmu.c set_spte]"""
    return pfn << PAGE_SHIFT | EPT_RWX_WB


def spte_to_pfn(spte: int) -> int:
    """The page that an spte maps; 0: none.  [mmu.c]"""
    return spte >> PAGE_SHIFT


class Mmu(Actor):
    """struct kvm's part: mmu_lock, the notifier's sequence and count, the spte and its reverse map.

    `other`: the guest has another page, at HVA_B, with a reverse map of its own.  It is mapped by "spte_b", an spte of its own,
    or by "spte" once the guest's page table says so.
    `mapped`: the page that it maps at first.  `slot`: is there a memory slot for the address?  None: always.
    `huge`: the spte maps a 2 MiB page.  Its reverse map is then one of lpage_info[].rmap_pde, by index in a slot that begins at
    `base_gfn`, a guest frame number; `gfn` is the page's.
    """

    def __init__(
        self,
        vm: Any,
        name: str,
        *,
        huge: bool = False,
        base_gfn: int = 0,
        gfn: int = 0,
        mapped: int = 0,
        slot: bool | None = None,
        other: str = "",
    ) -> None:
        super().__init__(vm, name)
        self.mmu_lock_word = self.cell("mmu_lock", "")
        self.mmu_lock: Any = Lock(self.mmu_lock_word)
        self.seq = self.cell("mmu_notifier_seq", 0)
        self.count = self.cell("mmu_notifier_count", 0)
        self.spte = self.cell("spte", vm.calls.make_spte(mapped) if mapped else 0)
        self.rmap = self.cell("rmap", "spte" if mapped and not huge else "")
        self.base_gfn, self.gfn = base_gfn, gfn
        self.rmap_lock_word = self.cell("rmap_lock", "")
        self.rmap_lock = Lock(self.rmap_lock_word)  # PowerPC's
        self.tlbs_dirty = self.cell("tlbs_dirty", 0)
        self.range = (self.cell("mmu_notifier_range_start", 0), self.cell("mmu_notifier_range_end", 0))
        self.requests_word = self.cell("requests_lock", "")
        self.requests_lock = Lock(self.requests_word)
        self.active = self.cell("mn_active_invalidate_count", 0)
        self.mn_invalidate_word = self.cell("mn_invalidate_lock", "")
        self.mn_invalidate_lock = Lock(self.mn_invalidate_word)
        self.slot = None if slot is None else self.cell("memslot", slot)
        self.rmap_pde = [self.cell(f"rmap_pde{i}", "") for i in range(2)] if huge else []
        self.rmap_b = self.cell("rmap_b", "spte" if other == "spte_b" else "") if other else None
        self.spte_b = self.cell("spte_b", vm.calls.make_spte(PAGE_B)) if other == "spte_b" else None

    def use_lock(self, lock: Any, free: Any) -> None:
        """Another kind of spinlock for mmu_lock, with the word that means that it is free."""
        self.mmu_lock = lock(self.mmu_lock_word)
        self.mmu_lock_word.init = self.mmu_lock_word.value = free

    def rmapp(self, pfn: int = 0) -> Cell:
        """The reverse map of the page.  [mmu.c gfn_to_rmap]"""
        if pfn == PAGE_B and self.rmap_b is not None:
            return self.rmap_b
        return self.rmap_pde[gfn_to_index(self)] if self.rmap_pde else self.rmap

    def spte_in(self, rmapp: Cell) -> Cell:
        """The spte that is in this reverse map if any is."""
        return self.spte_b if self.spte_b is not None and rmapp is self.rmap_b else self.spte

    def value_name(self, cell: Cell, value: Any) -> str:
        """How a value of these cells is written."""
        if cell.name.startswith("spte"):
            return spte_name(value)
        if cell.name.startswith("rmap") and cell.name != "rmap_lock":
            return value or "empty"
        if cell.name == "mmu_lock" and isinstance(value, int):  # actors.mmu_lifetime's, with tickets
            return f"ticket {value >> 8 & 0xFF}, serving {value & 0xFF}"
        return str(value) if value != "" else "free"


def spte_name(spte: int) -> str:
    """An spte or a TLB entry in words."""
    if not spte:
        return "none"
    return f"page {spte_to_pfn(spte)}" + ("" if spte & 1 << PT_ACCESSED_SHIFT else ", bit 5 clear")


class MmuPcpu(Pcpu):
    """A physical CPU that also answers smp_call_function(): the sender waits until the handler has run."""

    def call_function(self) -> Op:
        """Queue a call: the IPI that tells of it follows.  [smp.c generic_exec_single]"""
        return cpu_rmw(self.cpu, "or", CALL_QUEUED)

    def called(self) -> Op:
        """Wait for the answer.  [smp.c csd_lock_wait]"""
        return await_masked(self.cpu, CALL_QUEUED, 0)

    def local_irq_enable(self) -> Op:
        """Handlers of pending IPIs run now, and answer."""
        return local_rmw(self.cpu, "irq_enable")


class MmuThread(Actor):
    """A thread that works on the VM's memory: `body(thread)`; `mmu` and `mm` are what it works on, `hva` the range."""

    def __init__(
        self, vm: Any, name: str, mmu: Mmu, mm: HostMM, body: Callable[[Any], Any], hva: tuple[int, int] = (HVA, HVA + 0x1000)
    ) -> None:
        super().__init__(vm, name)
        self.hva = hva
        self.mmu = mmu
        self.mm = mm
        self.body = body

    def run(self) -> Any:
        """The body is the thread."""
        return self.body(self)


class MmuVcpu(MmuThread):
    """A vCPU as far as memory goes: mode and requests, and a TLB that holds one translation.  `inside`: it is in the guest."""

    def __init__(self, vm: Any, i: int, mmu: Mmu, mm: HostMM, body: Callable[[Any], Any], *, inside: bool = False) -> None:
        super().__init__(vm, f"vcpu{i}", mmu, mm, body)
        self.id = i
        self.pcpu = MmuPcpu(vm, f"pcpu{i}")
        self.pcpu.cpu.init = self.pcpu.cpu.value = IN_GUEST | IRQS_OFF if inside else 0
        self.mode = self.cell("mode", IN_GUEST_MODE if inside else OUTSIDE_GUEST_MODE)
        self.requests = self.cell("requests", 0)
        self.tlb = self.cell("tlb", mmu.spte.init if inside else 0)
        vm.vcpus.append(self)

    def value_name(self, cell: Cell, value: Any) -> str:
        """How a value of these cells is written."""
        if cell is self.tlb:
            return spte_name(value)
        if cell is self.requests:
            return "TLB_FLUSH" if value else "0"
        return {0: "OUTSIDE", 1: "IN_GUEST", 2: "EXITING"}[value]


# ---- the guest: entry, walk, exit ---------------------------------------------------------------------------------------


async def vcpu_in_guest(vcpu: MmuVcpu) -> None:
    """A vCPU that computes in the guest on a translation from its TLB until an IPI makes it leave; it does not come back."""
    await vcpu.pcpu.run_until_interrupt()
    await leave_guest(vcpu)


async def vcpu_run(vcpu: MmuVcpu) -> None:
    """Enter the guest again and again; an EPT violation ends it: the fault is another set-up's matter."""
    while True:
        vcpu.checkpoint("vcpu_run")
        if not await vcpu_enter_guest(vcpu):
            return


async def vcpu_enter_guest(vcpu: MmuVcpu) -> bool:
    """Flush if asked to, enter, use the page; False if there is no translation.  [x86.c vcpu_enter_guest]"""
    if await kvm_check_request(KVM_REQ_TLB_FLUSH, vcpu):  # type: ignore[arg-type]  # any actor with `requests`
        await local_rmw(vcpu.tlb, "xchg", 0)  # kvm_x86_ops->tlb_flush()
    await vcpu.pcpu.local_irq_disable()
    await smp_store_release(vcpu.mode, IN_GUEST_MODE)
    await smp_mb()  # mode before requests: pairs with the barrier in make_all_cpus_request()
    if await READ_ONCE(vcpu.requests):
        await WRITE_ONCE(vcpu.mode, OUTSIDE_GUEST_MODE)
        await vcpu.pcpu.local_irq_enable()
        return True
    spte = -1
    if not await vcpu.pcpu.vm_enter() & IPI_PENDING:
        spte = await local_load(vcpu.tlb)
        if not spte:
            spte = await vcpu.vm.calls.walk(vcpu)
            if spte:
                await local_rmw(vcpu.tlb, "xchg", spte)
        if spte:
            await vcpu.pcpu.run_until_interrupt()
        await vcpu.pcpu.vm_exit()
    await WRITE_ONCE(vcpu.mode, OUTSIDE_GUEST_MODE)
    await vcpu.pcpu.local_irq_enable()
    return bool(spte)


async def walk(vcpu: Any) -> int:
    """The hardware looks for a translation; an EPT without accessed bits is only read."""
    spte: int = await READ_ONCE(vcpu.mmu.spte)
    return spte


async def leave_guest(vcpu: MmuVcpu) -> None:
    """VM exit, and IRQs on.  [x86.c vcpu_enter_guest]"""
    await vcpu.pcpu.vm_exit()
    await WRITE_ONCE(vcpu.mode, OUTSIDE_GUEST_MODE)
    await vcpu.pcpu.local_irq_enable()


# ---- the fault ----------------------------------------------------------------------------------------------------------


async def fault_until_mapped(vcpu: MmuVcpu) -> None:
    """EPT violations of one instruction: a fault that has to be tried again comes back from the guest."""
    while True:
        vcpu.checkpoint("EPT violation")
        if await vcpu.vm.calls.tdp_page_fault(vcpu) == MAPPED:
            return


async def tdp_page_fault(vcpu: Any) -> int:
    """Ask the host for the page; map it unless the host has begun to take it away since.  [mmu.c tdp_page_fault]"""
    mmu: Mmu = vcpu.mmu
    mmu_seq = await READ_ONCE(mmu.seq)
    await smp_rmb()
    pfn = await get_user_pages(vcpu)
    await mmu.mmu_lock.acquire(vcpu)
    if await vcpu.vm.calls.mmu_notifier_retry(vcpu, mmu_seq):
        await mmu.mmu_lock.release()
        await vcpu.mm.put_page(pfn)  # kvm_release_pfn_clean()
        return RETRY
    await mmu_set_spte(vcpu, pfn)
    await mmu.mmu_lock.release()
    return MAPPED


async def kvm_mmu_pte_write(vcpu: Any) -> None:
    """A guest pte was emulated: map speculatively what it points to.  [mmu.c kvm_mmu_pte_write, update_pte, 2.6.27]"""
    mmu, calls = vcpu.mmu, vcpu.vm.calls
    mmu_seq = await READ_ONCE(mmu.seq)  # mmu_guess_page_from_pte_write()
    await smp_rmb()
    pfn = await get_user_pages(vcpu)
    await mmu.mmu_lock.acquire(vcpu)
    if not await calls.update_pte_retry(vcpu, mmu_seq):
        await vcpu.mm.get_page(pfn)  # kvm_get_pfn()
        await mmu_set_spte(vcpu, pfn)
    await mmu.mmu_lock.release()
    await vcpu.mm.put_page(pfn)


async def mmu_notifier_retry(me: Any, mmu_seq: int) -> bool:
    """Count first, sequence second.  [kvm_host.h mmu_notifier_retry]"""
    if await READ_ONCE(me.mmu.count):
        return True
    await smp_rmb()
    return bool(await READ_ONCE(me.mmu.seq) != mmu_seq)


async def update_pte_retry(me: Any, mmu_seq: int) -> bool:
    """The same question on the speculative path.  [paging_tmpl.h FNAME(update_pte)]"""
    return bool(await me.vm.calls.mmu_notifier_retry(me, mmu_seq))


async def mmu_set_spte(me: Any, pfn: int) -> None:
    """Map the page, remember where.  [mmu.c mmu_set_spte, rmap_add]"""
    mmu: Mmu = me.mmu
    old = await READ_ONCE(mmu.spte)
    if old and spte_to_pfn(old) != pfn:
        await me.vm.calls.unmap_other_pfn(me, mmu.rmapp(spte_to_pfn(old)))
        old = 0
    await WRITE_ONCE(mmu.spte, me.vm.calls.make_spte(pfn))
    if not old and not await READ_ONCE(mmu.rmapp(pfn)):
        await WRITE_ONCE(mmu.rmapp(pfn), "spte")
    await me.vm.calls.release_mapped_pfn(me, pfn, bool(old))


async def release_mapped_pfn(me: Any, pfn: int, was_mapped: bool) -> None:
    """The end of mmu_set_spte(): the fault's reference is dropped.  [kvm_release_pfn_clean, since acb66dd051d0]"""
    await me.mm.put_page(pfn)


async def unmap_other_pfn(me: Any, rmapp: Cell) -> None:
    """The spte maps another page: drop it, and flush.  [mmu.c mmu_set_spte, since 91546356d0e5]"""
    await me.vm.calls.drop_spte(me, rmapp)
    await me.vm.calls.kvm_flush_remote_tlbs(me)


async def drop_spte(me: Any, rmapp: Cell) -> None:
    """Clear the spte, tell the page that it is dirty, forget the spte.  [mmu.c mmu_spte_clear_track_bits, rmap_remove, 3.8]"""
    old: int = await xchg(me.mmu.spte_in(rmapp), 0)
    await me.vm.calls.kvm_set_pfn_dirty(me, old)
    await WRITE_ONCE(rmapp, "")


async def kvm_set_pfn_dirty(me: Any, spte: int) -> None:
    """SetPageDirty() unless the spte says that nothing was written; only where the host looks.  [kvm_main.c]"""
    if me.mm.dirty is not None and me.vm.calls.is_dirty(spte):
        await set_bit(0, me.mm.dirty)


def is_dirty(spte: int) -> bool:
    """Without dirty bits: if it could have been written to.  [mmu.c is_writable_pte]"""
    return bool(spte & PT_WRITABLE_MASK)


# ---- what the host asks for -----------------------------------------------------------------------------------------------

Handler = Callable[[Any, Cell], Awaitable[int]]


def gfn_to_index(mmu: Mmu) -> int:
    """The index of a huge page in its slot.  [kvm_host.h gfn_to_index]"""
    return mmu.gfn // KVM_PAGES_PER_HPAGE - mmu.base_gfn // KVM_PAGES_PER_HPAGE


def handled_index(mmu: Mmu) -> int | None:
    """Which huge page's reverse map kvm_handle_hva() looks at."""
    return gfn_to_index(mmu)


async def kvm_handle_hva(me: Any, handler: Handler) -> int:
    """Call `handler` on the reverse maps of the address, that of the small page and that of the huge one.  [mmu.c]"""
    mmu: Mmu = me.mmu
    start, end = me.hva
    if mmu.rmap_b is not None and start <= HVA_B < end:
        return await handler(me, mmu.rmap_b)
    if not start <= HVA < end or (mmu.slot is not None and not await READ_ONCE(mmu.slot)):
        return 0
    young_or_flush = await handler(me, mmu.rmap)
    if mmu.rmap_pde and (index := me.vm.calls.handled_index(mmu)) is not None:
        young_or_flush |= await handler(me, mmu.rmap_pde[index])
    return young_or_flush


async def kvm_unmap_rmapp(me: Any, rmapp: Cell) -> int:
    """Drop every spte of a reverse map; does the TLB have to be flushed?  [mmu.c]"""
    need_tlb_flush = 0
    while await READ_ONCE(rmapp):
        await me.vm.calls.drop_spte(me, rmapp)
        need_tlb_flush = 1
    return need_tlb_flush


async def kvm_age_rmapp(me: Any, rmapp: Cell) -> int:
    """EPT without accessed bits: the page counts as used if it was mapped; unmap it.  [mmu.c, since 6316e1c8c6af]"""
    return await kvm_unmap_rmapp(me, rmapp)


async def kvm_unmap_hva(me: Any) -> int:
    """Drop every spte of the address; does the TLB have to be flushed?  [mmu.c]"""
    return await kvm_handle_hva(me, me.vm.calls.kvm_unmap_rmapp)


# ---- TLBs of other CPUs -------------------------------------------------------------------------------------------------


async def kvm_flush_remote_tlbs(me: Any) -> None:
    """Ask every vCPU to flush; those in the guest have left it when this returns.  [kvm_main.c make_all_cpus_request, 3.8]"""
    dirty_count = await READ_ONCE(me.mmu.tlbs_dirty)
    await smp_mb()  # the sptes before the requests
    inside = []
    for vcpu in me.vm.vcpus:
        await set_bit(KVM_REQ_TLB_FLUSH, vcpu.requests)
        await smp_mb()  # the request before the mode: pairs with the barrier in vcpu_enter_guest()
        if vcpu is not me and await cmpxchg(vcpu.mode, IN_GUEST_MODE, EXITING_GUEST_MODE) != OUTSIDE_GUEST_MODE:
            inside.append(vcpu.pcpu)
    await me.vm.calls.smp_call_function_many(me, inside)
    await cmpxchg(me.mmu.tlbs_dirty, dirty_count, 0)


async def smp_call_function_many(me: Any, pcpus: list[MmuPcpu]) -> None:
    """Interrupt these CPUs and wait until each has run the handler, ack_flush().  [smp.c]"""
    for pcpu in pcpus:
        await pcpu.call_function()
        await send_ipi(pcpu.name)
    for pcpu in pcpus:
        await pcpu.called()
