"""Who reads memory slots: vCPUs that fault, mmu notifiers, and the teardown of mappings.  [arch/x86/kvm/mmu.c, 2.6.34]

A shadow page table entry (spte) is the hva that it maps and "w" if writable.  A TLB flush is one step: the IPI that every CPU
in guest mode answers before the sender goes on, and that others make up for before they enter the guest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from actors.actor import Actor, Cell
from actors.memslots import (
    BITS_PER_LONG,
    KVM_MEMSLOT_INVALID,
    NONE,
    READER,
    WRITER,
    Memslots,
    Oops,
    Region,
    Slot,
    Task,
    Updater,
    bitmap_word,
    gfn_to_memslot,
    memslot_id,
    slot_of,
    table_of,
)
from actors.ops import READ_ONCE, WRITE_ONCE, atomic_fetch_add, await_eq, await_masked, smp_rmb, smp_store_release, xchg
from actors.srcu import srcu_read_lock, srcu_read_unlock
from actors.sync import Lock


class ShadowMmu(Actor):
    """Shadow pages of the VM, and the host's pages that they map: `sptes` as hva or "", by gfn."""

    def __init__(self, vm: Any, name: str, sptes: dict[int, str], pages: Iterable[int], shadow_page: bool = False) -> None:
        super().__init__(vm, name)
        self.mmu_lock = Lock(self.cell("mmu_lock", ""))
        self.seq = self.cell("notifier_seq", 0)
        self.sptes: dict[int, Cell] = {gfn: self.cell(f"spte[{gfn}]", spte) for gfn, spte in sptes.items()}
        self.slot_bitmap = self.cell("slot_bitmap", 1 if any(sptes.values()) else 0)  # of the one shadow page that has them
        self.root: Cell | None = self.cell("root", "") if shadow_page else None
        self.ptes: dict[int, Cell] = {hva: self.cell(f"pte[{hva}]", "present") for hva in pages}
        self.pages: dict[int, Cell] = {hva: self.cell(f"page[{hva}]", "") for hva in pages}

    def value_name(self, cell: Cell, value: Any) -> str:
        """What is mapped, and how."""
        name = cell.name
        if name == "slot_bitmap":
            return "|".join(f"slot {nr}" for nr in range(value.bit_length()) if value >> nr & 1) or "no slot"
        if name.startswith("spte"):
            return f"hva {value[0]}{', writable' * value.endswith('w')}" if value else "none"
        return str(value) if value != "" else "free" if name == "mmu_lock" else "none"


class VcpuTask(Task):
    """A vCPU thread; `tlb` is the one translation that its TLB holds."""

    def __init__(self, vm: Any, number: int, body: Callable[[Any], Any], kvm: Memslots, mmu: ShadowMmu, tlb: str) -> None:
        super().__init__(vm, f"vcpu{number}", body)
        self.kvm, self.mmu, self.bit = kvm, mmu, 1 << number
        self.tlb = self.cell("tlb", tlb)
        self.irq = self.cell("irq", "")


class Notifier(Task):
    """A host task that takes a page away from the VMM."""

    def __init__(self, vm: Any, name: str, body: Callable[[Any], Any], kvm: Memslots, mmu: ShadowMmu) -> None:
        super().__init__(vm, name, body)
        self.kvm, self.mmu = kvm, mmu


def machine(vm: Any) -> tuple[Memslots, ShadowMmu]:
    """The two parts of a VM that are about slots."""
    return vm.by_name["kvm"], vm.by_name["mmu"]


# ---- a vCPU's read section: SRCU since f656ce0185ca; the semaphore before, and still with the patch alone


async def vcpu_read_lock(vcpu: VcpuTask) -> int:
    """vcpu->srcu_idx = srcu_read_lock(&kvm->srcu).  [x86.c __vcpu_run, 2.6.34]"""
    return await srcu_read_lock(vcpu, vcpu.kvm.srcu)


async def vcpu_read_unlock(vcpu: VcpuTask, idx: int) -> None:
    """srcu_read_unlock(&kvm->srcu, vcpu->srcu_idx)."""
    await srcu_read_unlock(vcpu, vcpu.kvm.srcu, idx)


async def vcpu_down_read(vcpu: VcpuTask) -> int:
    """down_read(&kvm->slots_lock): a look, and a wait while somebody writes.  [x86.c __vcpu_run, 2.6.33]"""
    await READ_ONCE(vcpu.kvm.slots_rwsem)
    if vcpu.kvm.counted:
        await await_masked(vcpu.kvm.slots_rwsem, WRITER, 0, add=READER)
    else:
        await await_masked(vcpu.kvm.slots_rwsem, WRITER, 0, set=vcpu.bit)
    return 0


async def vcpu_up_read(vcpu: VcpuTask, idx: int) -> None:
    """up_read(&kvm->slots_lock)."""
    if vcpu.kvm.counted:
        await atomic_fetch_add(-READER, vcpu.kvm.slots_rwsem)
    else:
        await await_masked(vcpu.kvm.slots_rwsem, vcpu.bit, vcpu.bit, clear=vcpu.bit)


async def slots_down_write(me: Task, kvm: Memslots) -> None:
    """down_write(&kvm->slots_lock): no vCPU handles an exit from here on.

    Where readers are counted the writer is so too, before it waits for those that came first: hundreds of vCPUs would starve it
    otherwise.  With few that is one step, for a search.  [arch/x86/include/asm/rwsem.h __down_write_nested: xadd, then the queue]
    """
    if kvm.counted:
        await atomic_fetch_add(WRITER, kvm.slots_rwsem)
        await await_masked(kvm.slots_rwsem, -1, WRITER)
    else:
        await await_masked(kvm.slots_rwsem, 2 * WRITER - 1, 0, set=WRITER)


async def slots_up_write(me: Task, kvm: Memslots) -> None:
    """up_write(&kvm->slots_lock)."""
    await await_masked(kvm.slots_rwsem, WRITER, WRITER, clear=WRITER)


async def notifier_read_lock(me: Notifier) -> int:
    """srcu_read_lock(&kvm->srcu).  [kvm_main.c kvm_mmu_notifier_invalidate_page, 2.6.34]"""
    return await srcu_read_lock(me, me.kvm.srcu)


async def notifier_read_unlock(me: Notifier, idx: int) -> None:
    """srcu_read_unlock(&kvm->srcu, idx)."""
    await srcu_read_unlock(me, me.kvm.srcu, idx)


async def no_read_lock(me: Task) -> int:
    """Read without a read section."""
    return 0


async def no_read_unlock(me: Task, idx: int) -> None:
    """As there was none."""


# ---- a page fault


async def gfn_to_pfn(vcpu: VcpuTask, gfn: int) -> int | None:
    """The host page of a guest frame, which is its hva here; get_user_pages() may sleep.  [kvm_main.c]"""
    hva: int | None = await vcpu.vm.calls.gfn_to_hva(vcpu.kvm, gfn)
    if hva is None or await READ_ONCE(vcpu.mmu.ptes[hva]) != "present":
        return None
    return hva


async def gfn_to_rmap(kvm: Memslots, gfn: int) -> str:
    """The rmap of a frame; the kernel does not look whether there is a slot.  [mmu.c, 2.6.34]"""
    slot: Slot | None = await kvm.vm.calls.gfn_to_memslot(kvm, gfn)
    if slot is None:
        raise Oops(f"M-I4: gfn_to_rmap() of gfn {gfn} finds no slot, and dereferences NULL")
    return slot.rmap


async def mark_page_dirty(kvm: Memslots, gfn: int) -> None:
    """Log a write, if the slot is logged.  [kvm_main.c, 2.6.34]"""
    slot = await gfn_to_memslot(kvm, gfn)
    if slot is not None and slot.dirty_bitmap:
        await kvm.vm.calls.mark_in_bitmap(kvm, slot.dirty_bitmap, gfn - slot.base_gfn)


async def mark_in_bitmap(kvm: Memslots, bitmap: str, nr: int) -> None:
    """A test, then __set_bit(), which is a load and a store: another who marks a page of the same word is lost."""
    name, bit = bitmap_word(bitmap, nr), nr % BITS_PER_LONG
    if not await table_of(kvm, name) >> bit & 1:
        word = await table_of(kvm, name)
        await WRITE_ONCE(kvm.tables[name], word | 1 << bit)


async def page_header_update_slot(mmu: ShadowMmu, kvm: Memslots, gfn: int) -> None:
    """Note in the shadow page that it maps a page of this slot: dirty logging looks there.  [mmu.c, 2.6.34]"""
    slot = await memslot_id(kvm, gfn)
    await WRITE_ONCE(mmu.slot_bitmap, await READ_ONCE(mmu.slot_bitmap) | 1 << slot)  # __set_bit()


async def tdp_page_fault(vcpu: VcpuTask, gfn: int) -> str:
    """A write fault: look the page up, then map it, unless a notifier came between.  [mmu.c tdp_page_fault, 2.6.34]"""
    kvm, mmu = vcpu.kvm, vcpu.mmu
    seq = await READ_ONCE(mmu.seq)
    await smp_rmb()
    pfn = await gfn_to_pfn(vcpu, gfn)
    if pfn is None:
        return "no page"
    async with mmu.mmu_lock.held_by(vcpu):
        if await READ_ONCE(mmu.seq) != seq:  # mmu_notifier_retry()
            return "retries"
        await mark_page_dirty(kvm, gfn)
        await WRITE_ONCE(mmu.sptes[gfn], f"{pfn}w")
        await page_header_update_slot(mmu, kvm, gfn)
        rmap = await gfn_to_rmap(kvm, gfn)  # rmap_add()
        await table_of(kvm, rmap)
        await WRITE_ONCE(kvm.tables[rmap], f"spte[{gfn}]")
    return "mapped"


async def vcpu_faults(vcpu: VcpuTask) -> str:
    """An exit for a page fault on frame 0, handled in a read section."""
    calls = vcpu.vm.calls
    idx = await calls.vcpu_read_lock(vcpu)
    end = await tdp_page_fault(vcpu, 0)
    await calls.vcpu_read_unlock(vcpu, idx)
    return end


async def mmu_alloc_roots(vcpu: VcpuTask) -> str:
    """CR3 is loaded: a shadow page for the guest's page table in frame 0.  [mmu.c mmu_check_root, mmu_alloc_roots]"""
    calls, kvm, mmu = vcpu.vm.calls, vcpu.kvm, vcpu.mmu
    idx = await calls.vcpu_read_lock(vcpu)
    end = "triple fault"
    if await calls.kvm_is_visible_gfn(kvm, 0):
        async with mmu.mmu_lock.held_by(vcpu):
            assert mmu.root is not None
            await WRITE_ONCE(mmu.root, "gfn 0")
            await gfn_to_rmap(kvm, 0)  # account_shadowed()
            end = "has a root"
    await calls.vcpu_read_unlock(vcpu, idx)
    return end


# ---- teardown


async def rmap_remove(kvm: Memslots, gfn: int) -> None:
    """Forget a mapping.  [mmu.c]"""
    rmap = await gfn_to_rmap(kvm, gfn)
    if await table_of(kvm, rmap) == NONE:
        raise Oops(f"M-I4: rmap_remove() of gfn {gfn} finds {rmap} empty: BUG()")
    await WRITE_ONCE(kvm.tables[rmap], NONE)


async def kvm_flush_remote_tlbs(me: Actor) -> None:
    """Every vCPU's TLB is empty when this returns.  [kvm_main.c]"""
    for actor in me.vm.actors:
        if isinstance(actor, VcpuTask):
            await xchg(actor.tlb, "")


async def kvm_mmu_zap_pages(me: Updater) -> None:
    """Unlink every mapping, rmap first; mmu_lock is held.  [mmu.c kvm_mmu_page_unlink_children]"""
    kvm, mmu = machine(me.vm)
    for gfn, spte in mmu.sptes.items():
        if await READ_ONCE(spte):
            await rmap_remove(kvm, gfn)
            await WRITE_ONCE(spte, "")


async def unaccount_shadowed(me: Updater) -> None:
    """The root is no more; its slot is looked up once more.  [mmu.c]"""
    kvm, mmu = machine(me.vm)
    if mmu.root is not None and await READ_ONCE(mmu.root):
        await gfn_to_rmap(kvm, 0)  # stands for the slot's lpage_info
        await WRITE_ONCE(mmu.root, "")


async def kvm_arch_flush_shadow(me: Updater) -> None:
    """Zap every shadow page of the VM; TLBs are flushed before mmu_lock is dropped.

    [x86.c; mmu.c kvm_mmu_zap_all and kvm_mmu_zap_page, 2.6.34; the flush is in kvm_mmu_commit_zap_page since 2.6.36]
    """
    _, mmu = machine(me.vm)
    async with mmu.mmu_lock.held_by(me):
        await kvm_mmu_zap_pages(me)
        await me.vm.calls.flush_after_zap(me)
        await unaccount_shadowed(me)


async def flush_shadow_tlb_late(me: Updater) -> None:
    """kvm_arch_flush_shadow(), with the TLB flush after mmu_lock is dropped: a notifier finds nothing to flush meanwhile."""
    _, mmu = machine(me.vm)
    async with mmu.mmu_lock.held_by(me):
        await kvm_mmu_zap_pages(me)
        await unaccount_shadowed(me)
    await me.vm.calls.flush_after_zap(me)


async def kvm_handle_hva(me: Notifier, hva: int) -> bool:
    """Unmap what maps a page of the VMM, INVALID slots included.  [mmu.c kvm_handle_hva, 2.6.34]"""
    kvm, mmu = me.kvm, me.mmu
    array = await READ_ONCE(kvm.memslots)
    flush = False
    for i in range(len(kvm.arrays[array])):
        slot = await slot_of(kvm, array, i)
        if not slot.hva <= hva < slot.hva + slot.npages or me.vm.calls.notifier_skips(slot):
            continue
        mapped = await table_of(kvm, slot.rmap)
        if mapped:  # "spte[0]"
            gfn = int(mapped[5:-1])
            await rmap_remove(kvm, gfn)
            await WRITE_ONCE(mmu.sptes[gfn], "")
            flush = True
    return flush


def notifier_skips(slot: Slot) -> bool:
    """Is the slot nothing to the notifier?  No slot is."""
    return False


async def kvm_mmu_notifier_invalidate_page(me: Notifier, hva: int) -> None:
    """The host's page table entry is gone, the page is not yet free.  [kvm_main.c, 2.6.34]"""
    calls, mmu = me.vm.calls, me.mmu
    idx = await calls.notifier_read_lock(me)
    async with mmu.mmu_lock.held_by(me):
        seq = await READ_ONCE(mmu.seq)
        await WRITE_ONCE(mmu.seq, seq + 1)
        flush = await kvm_handle_hva(me, hva)
    await calls.notifier_read_unlock(me, idx)
    if flush:
        await kvm_flush_remote_tlbs(me)


async def try_to_unmap(me: Notifier) -> str:
    """Page 0 is reclaimed: unmapped in the VMM, then in its guest, then freed.  [mm/rmap.c try_to_unmap_one]"""
    hva = 0
    await xchg(me.mmu.ptes[hva], "none")
    await kvm_mmu_notifier_invalidate_page(me, hva)
    await smp_store_release(me.mmu.pages[hva], "freed")
    return "page is free"


# ---- a vCPU that sleeps while it reads


async def kvm_read_guest(vcpu: VcpuTask, gfn: int) -> str:
    """Copy from guest memory; the page is on disk, and the thread sleeps until it is there.  [kvm_main.c]"""
    hva = await vcpu.vm.calls.gfn_to_hva(vcpu.kvm, gfn)
    if hva is None:
        return "bad address"
    await await_eq(vcpu.mmu.pages[hva], "read")
    return "read"


async def vcpu_reads_and_halts(vcpu: VcpuTask) -> str:
    """Emulation reads guest memory; slots_lock is needed for something else; HLT.  [x86.c __vcpu_run, 2.6.34]"""
    calls = vcpu.vm.calls
    idx = await calls.vcpu_read_lock(vcpu)
    end = await kvm_read_guest(vcpu, 0)
    await calls.vcpu_uses_slots_lock(vcpu, idx)
    return end


async def disk(me: Notifier) -> str:
    """The page arrives."""
    await xchg(me.mmu.pages[0], "read")
    return "done"


async def unlocks_then_halts(vcpu: VcpuTask, idx: int) -> None:
    """The read section ends before anything that may wait for an update."""
    calls = vcpu.vm.calls
    await calls.vcpu_read_unlock(vcpu, idx)
    await calls.slots_lock(vcpu, vcpu.kvm)
    await calls.slots_unlock(vcpu, vcpu.kvm)
    await kvm_vcpu_block(vcpu)


async def kvm_vcpu_block(vcpu: VcpuTask) -> None:
    """Sleep until an interrupt.  [kvm_main.c]"""
    vcpu.end = "halted"
    await await_eq(vcpu.irq, "pending")


# ---- the dirty log


async def kvm_mmu_slot_remove_write_access(me: Updater, slot: int) -> None:
    """Write-protect what is in shadow pages that map the slot, and flush; with mmu_lock, as callers do.  [mmu.c, 2.6.34]"""
    _, mmu = machine(me.vm)
    async with mmu.mmu_lock.held_by(me):
        if await READ_ONCE(mmu.slot_bitmap) >> slot & 1:
            for spte in mmu.sptes.values():
                value = await READ_ONCE(spte)
                if value.endswith("w"):
                    await WRITE_ONCE(spte, value[:-1])
        await kvm_flush_remote_tlbs(me)


async def kvm_arch_commit_memory_region(me: Updater, mem: Region, old: Slot) -> None:
    """Whatever was asked for: what is mapped becomes read-only, now that the new slot is published.  [x86.c, 2.6.34]"""
    await kvm_mmu_slot_remove_write_access(me, mem.slot)


async def vcpu_writes(vcpu: VcpuTask) -> str:
    """The guest stores to frame 0: through the TLB, through the page tables, or by a fault."""
    if (await READ_ONCE(vcpu.tlb)).endswith("w"):
        return "wrote by TLB"
    if (await READ_ONCE(vcpu.mmu.sptes[0])).endswith("w"):
        return "wrote by spte"
    return await vcpu_faults(vcpu)


def skips_invalid(slot: Slot) -> bool:
    """An INVALID slot is nothing to the notifier."""
    return bool(slot.flags & KVM_MEMSLOT_INVALID)
