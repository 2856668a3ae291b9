"""Room for shadow pages, made by a fault that holds mmu_lock only for reading (5.10 to 6.0).

The TDP MMU's faults run side by side, with mmu_lock held for reading.  Nested guests still have shadow pages, kept in a list that
mmu_lock guards; if there are too many the oldest go.  Until 47b0c2e4c220 (2022) every fault saw to that, a TDP fault too.
[arch/x86/kvm/mmu/mmu.c direct_page_fault, kvm_tdp_mmu_page_fault, make_mmu_pages_available; the order was read in 6.16, the
commit in the stable list's copy.  The notifier's question comes before it, in both, and has no part in it]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from actors.actor import Actor, Cell
from actors.ops import READ_ONCE, WRITE_ONCE, atomic_fetch_add
from actors.rwlock import MOST_NAMED, READER, WRITER, RwLock


class ShadowPages(Actor):
    """The list of shadow pages, oldest last, and how often each was freed; no more may be allocated.  `faults`: how many run."""

    bit_names: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "mmu_lock": {0: "writer", **{i: f"fault{i - 1} reads" for i in range(1, 6)}}
    }

    def __init__(self, vm: Any, name: str, faults: int = 0) -> None:
        super().__init__(vm, name)
        self.lock_word = self.cell("mmu_lock", 0)
        self.mmu_lock = RwLock(self.lock_word, counted=faults > MOST_NAMED)
        self.active = self.cell("active_mmu_pages", ("sp1", "sp2", "sp3"))
        self.available = self.cell("n_available", 0)
        self.freed = {sp: self.cell(f"{sp}_freed", 0) for sp in ("sp1", "sp2", "sp3")}

    def value_name(self, cell: Cell, value: Any) -> str:
        """Who holds the lock, by name or by number."""
        if cell is not self.lock_word:
            return str(value)
        if self.mmu_lock.counted:
            return "writer" if value & WRITER else f"{value // READER} read"
        names = self.bit_names["mmu_lock"]
        return "|".join(name for bit, name in names.items() if value >> bit & 1) or "0"


class TdpFault(Actor):
    """A vCPU that faults once in the TDP MMU; `bit` is its own in the lock."""

    def __init__(self, vm: Any, i: int, pages: ShadowPages) -> None:
        super().__init__(vm, f"fault{i}")
        self.pages = pages
        self.bit = WRITER << 1 + i

    def run(self) -> Any:
        """The fault."""
        return kvm_tdp_mmu_page_fault(self)


async def kvm_tdp_mmu_page_fault(me: Any) -> None:
    """mmu_lock is held for reading.  [mmu.c]"""
    await me.pages.mmu_lock.read_lock(me.bit)
    await me.vm.calls.room_for_tdp_fault(me)
    await me.pages.mmu_lock.read_unlock(me.bit)


async def room_for_tdp_fault(me: Any) -> None:
    """A TDP fault allocates no shadow page.  [mmu.c, since 47b0c2e4c220]"""


async def make_mmu_pages_available(me: Any) -> None:
    """Zap the oldest shadow page: for those who hold mmu_lock for writing.  [mmu.c, kvm_mmu_zap_oldest_mmu_pages]"""
    pages: ShadowPages = me.pages
    if await READ_ONCE(pages.available):
        return
    active: tuple[str, ...] = await READ_ONCE(pages.active)
    if not active:
        return  # so many at once that none is left: list_empty(&kvm->arch.active_mmu_pages)
    await WRITE_ONCE(pages.active, active[:-1])
    await atomic_fetch_add(1, pages.freed[active[-1]])
    await WRITE_ONCE(pages.available, await READ_ONCE(pages.available) + 1)
