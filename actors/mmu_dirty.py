"""What the guest writes to a page, and how the host learns of it: the dirty bit of an spte, and the page's own.

Where the hardware keeps no dirty bits (EPT until Haswell) an spte counts as dirty if it can be written through; where it does,
the CPU sets the bit in the spte, in a locked step of its own, before the first store through a translation.
[arch/x86/kvm/mmu.c mmu_spte_clear_track_bits, 3.8; rmap_remove, 2.6.27; Intel SDM vol. 3, 28.2.4]
"""

from __future__ import annotations

from typing import Any

from actors.actor import Cell
from actors.mmu import PAGE_SHIFT, MmuVcpu, leave_guest
from actors.ops import READ_ONCE, WRITE_ONCE, cmpxchg, local_load, local_rmw

PT_DIRTY_MASK = 1 << 6


async def vcpu_stores(vcpu: MmuVcpu) -> None:
    """In the guest, with the page in its TLB: one store, then it computes until an IPI makes it leave."""
    if await vcpu.vm.calls.may_store(vcpu):
        await WRITE_ONCE(vcpu.mm.contents, 1)  # type: ignore[arg-type]  # a set-up with vCPUs that store has it
    await vcpu.pcpu.run_until_interrupt()
    await leave_guest(vcpu)


async def may_store(vcpu: Any) -> bool:
    """The TLB says that the page can be written to: nothing else is looked at."""
    return True


async def set_dirty_bit(vcpu: Any) -> bool:
    """The CPU marks the entry before its first store; if the entry has changed it faults, and stores nothing here."""
    cached: int = await local_load(vcpu.tlb)
    if await cmpxchg(vcpu.mmu.spte, cached, cached | PT_DIRTY_MASK) != cached:
        return False
    await local_rmw(vcpu.tlb, "xchg", cached | PT_DIRTY_MASK)
    return True


def make_clean_spte(pfn: int) -> int:
    """Present, writable, user, accessed, not dirty."""
    return pfn << PAGE_SHIFT | 0x27


def hardware_dirty(spte: int) -> bool:
    """The CPU has set the bit.  [mmu.c shadow_dirty_mask]"""
    return bool(spte & PT_DIRTY_MASK)


async def drop_spte_not_atomically(me: Any, rmapp: Cell) -> None:
    """drop_spte() that reads and then clears: what the CPU sets between the two is lost."""
    spte = me.mmu.spte_in(rmapp)
    old = await READ_ONCE(spte)
    await WRITE_ONCE(spte, 0)
    await me.vm.calls.kvm_set_pfn_dirty(me, old)
    await WRITE_ONCE(rmapp, "")


async def not_transferred(me: Any, spte: int) -> None:
    """kvm_set_pfn_dirty(): does nothing."""


async def drop_spte_reference_first(me: Any, rmapp: Cell) -> None:
    """rmap_remove() of 2.6.27 that drops the reference and then says that the page is dirty."""
    spte = me.mmu.spte_in(rmapp)
    old = await READ_ONCE(spte)
    await me.mm.put_page(old >> PAGE_SHIFT)
    await me.vm.calls.kvm_set_pfn_dirty(me, old)
    await WRITE_ONCE(rmapp, "")
    await WRITE_ONCE(spte, 0)


HARDWARE = {"may_store": set_dirty_bit, "make_spte": make_clean_spte, "is_dirty": hardware_dirty}
