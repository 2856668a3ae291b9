"""The host's memory management as far as an mmu notifier sees it: one page of the VMM's address space, and who takes it away.

The page at the address is page 1; what comes after it is page 2, then 3.  A page that was freed is not handed out again under
its old number, so a use after free is told from a use of the new page.  Each page has its reference count; the mapping holds one.

What takes a page away calls KVM as the kernel does: invalidate_page() after the pte was cleared, under the page-table lock;
invalidate_range_start() before, invalidate_range_end() after the pages may have been freed.
[mm/rmap.c try_to_unmap_one, mm/memory.c unmap_vmas and zap_pte_range, mm/ksm.c replace_page, 2.6.27 to 3.8]
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor, Cell
from actors.ops import READ_ONCE, WRITE_ONCE, Op, atomic_fetch_add, await_bits, cmpxchg, xchg
from actors.sync import Lock

PAGE1, PAGE2 = 1, 2
UNUSED = 1  # references of a page that was allocated and is mapped nowhere yet


class HostMM(Actor):
    """The VMM's mm: the pte of one address, its page-table lock, and the reference counts of the `pages` that may back it."""

    def __init__(self, vm: Any, name: str, pages: int = 2) -> None:
        super().__init__(vm, name)
        self.ptl_word = self.cell("ptl", "")
        self.ptl = Lock(self.ptl_word)
        self.pte = self.cell("pte", PAGE1)
        self.refs: dict[int, Cell] = {pfn: self.cell(f"page{pfn}_refs", UNUSED) for pfn in range(PAGE1, PAGE1 + pages)}

    def get_page(self, pfn: int) -> Op:
        """Take a reference.  [mm.h get_page]"""
        return atomic_fetch_add(1, self.refs[pfn])

    def put_page(self, pfn: int) -> Op:
        """Drop a reference; the last one frees the page.  [swap.c put_page]"""
        return atomic_fetch_add(-1, self.refs[pfn])

    def value_name(self, cell: Cell, value: Any) -> str:
        """How a value of these cells is written."""
        if cell is self.pte:
            return f"page {value}" if value else "none"
        return str(value) if value != "" else "free"


async def get_user_pages(me: Any) -> int:
    """The page at the address, with a reference; sleeps until it is there.  [memory.c get_user_pages, follow_page]"""
    mm: HostMM = me.mm
    while True:
        await mm.ptl.acquire(me)
        pfn: int = await READ_ONCE(mm.pte)
        if pfn:
            await mm.get_page(pfn)
        await mm.ptl.release()
        if pfn:
            return pfn
        await await_bits(mm.pte, -1)  # handle_mm_fault(): swap-in, or the end of a migration


async def try_to_unmap(me: Any) -> int:
    """Clear the pte, tell KVM; the page, which is returned, stays allocated until KVM has answered.  [rmap.c try_to_unmap_one]"""
    mm: HostMM = me.mm
    async with mm.ptl.held_by(me):
        page: int = await xchg(mm.pte, 0)  # ptep_clear_flush()
        if page:
            await me.vm.calls.kvm_mmu_notifier_invalidate_page(me)
    return page


async def reclaim(me: Any) -> None:
    """Swap the page out, and in again at its next use: another page then.  [vmscan.c shrink_page_list]"""
    page = await try_to_unmap(me)
    if page:
        await page_freeze_refs(me, page)


async def page_freeze_refs(me: Any, page: int) -> None:
    """Free the page if nobody else has a reference; else it stays, and its address gets it back.  [pagemap.h]"""
    mm: HostMM = me.mm
    freed = await cmpxchg(mm.refs[page], 1, 0) == 1
    await WRITE_ONCE(mm.pte, page + 1 if freed else page)


async def migrate(me: Any) -> None:
    """Move the page; who wants it meanwhile sleeps on the migration entry.  [migrate.c unmap_and_move]"""
    await reclaim(me)  # the same accesses: try_to_unmap(), migrate_page_move_mapping(), remove_migration_ptes()


async def munmap(me: Any) -> None:
    """munmap(), then mmap() of the same address and its first use.  [memory.c unmap_vmas, zap_pte_range]"""
    calls, mm = me.vm.calls, me.mm
    await calls.kvm_mmu_notifier_invalidate_range_start(me)
    async with mm.ptl.held_by(me):
        page = await xchg(mm.pte, 0)
    if page:
        await mm.put_page(page)  # tlb_finish_mmu()
    await calls.kvm_mmu_notifier_invalidate_range_end(me)
    if page:
        await WRITE_ONCE(mm.pte, page + 1)


async def ksm_replace_page(me: Any) -> None:
    """Put a shared, write-protected page in place of the page.  [ksm.c replace_page, 2.6.32 to 3.6]"""
    mm: HostMM = me.mm
    async with mm.ptl.held_by(me):
        await xchg(mm.pte, PAGE2)  # ptep_clear_flush() and set_pte_at(): nobody looks between them without the lock
        await me.vm.calls.kvm_mmu_notifier_change_pte(me, PAGE2)
        await mm.put_page(PAGE1)


async def age_and_reclaim(me: Any) -> None:
    """Was the page used?  It is swapped out in either case, as under memory pressure.  [rmap.c page_referenced_one]"""
    mm: HostMM = me.mm
    async with mm.ptl.held_by(me):
        await me.vm.calls.kvm_mmu_notifier_clear_flush_young(me)
    await reclaim(me)
