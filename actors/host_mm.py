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
from actors.ops import READ_ONCE, WRITE_ONCE, Op, atomic_fetch_add, await_bits, cmpxchg, test_and_clear_bit, xchg
from actors.sync import Lock

PAGE1, PAGE2 = 1, 2
UNUSED = 1  # references of a page that was allocated and is mapped nowhere yet


class HostMM(Actor):
    """The VMM's mm: the pte of one address, its page-table lock, and the reference counts of the `pages` that may back it.

    `first`: the page that backs it first.  `written`: page 1 has contents that the guest may change and that must not be lost;
    PageDirty says that swap does not have them.
    """

    def __init__(self, vm: Any, name: str, pages: int = 2, *, first: int = PAGE1, written: bool = False) -> None:
        super().__init__(vm, name)
        self.ptl_word = self.cell("ptl", "")
        self.ptl = Lock(self.ptl_word)
        self.pte = self.cell("pte", first)
        self.refs: dict[int, Cell] = {pfn: self.cell(f"page{pfn}_refs", UNUSED) for pfn in range(first, first + pages)}
        self.dirty = self.cell("PageDirty", 0) if written else None
        self.contents = self.cell("contents", 0) if written else None
        self.swap = self.cell("swap", 0) if written else None
        self.mmap_sem_word = self.cell("mmap_sem", "")
        self.mmap_sem = Lock(self.mmap_sem_word)

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


async def pageout_and_reclaim(me: Any) -> None:
    """Swap the page out: write it if it is dirty, free it if it is not dirty then.  [vmscan.c shrink_page_list, 2.6.27]"""
    mm: Any = me.mm
    page = await try_to_unmap(me)
    if not page:
        return
    if await READ_ONCE(mm.dirty):  # PageDirty()
        await test_and_clear_bit(0, mm.dirty)  # pageout(): clear_page_dirty_for_io()
        await WRITE_ONCE(mm.swap, await READ_ONCE(mm.contents))
    freed = await cmpxchg(mm.refs[page], 1, 0) == 1  # page_freeze_refs()
    if freed and await READ_ONCE(mm.dirty):  # __remove_mapping(): the count first, this second
        await WRITE_ONCE(mm.refs[page], 1)  # page_unfreeze_refs(): somebody wrote to it and then dropped his reference
        freed = False
    await WRITE_ONCE(mm.pte, page + 1 if freed else page)


async def migrate(me: Any) -> None:
    """Move the page; who wants it meanwhile sleeps on the migration entry.  [migrate.c unmap_and_move]"""
    await reclaim(me)  # the same accesses: try_to_unmap(), migrate_page_move_mapping(), remove_migration_ptes()


async def munmap(me: Any) -> None:
    """munmap(), then mmap() of the same address and its first use; or MADV_DONTNEED.  [memory.c unmap_vmas, zap_pte_range]"""
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
