"""vCPUs that fault on one guest page while the host takes the page away: KVM's sequence and count protocol.

Commit e930bffe95e1, "KVM: Synchronize guest physical memory map to host virtual memory map" (2008).  A fault reads
`mmu_notifier_seq` before it asks the host which page there is, and looks again under mmu_lock before it maps the page; an
invalidation raises `mmu_notifier_count` while it runs and `mmu_notifier_seq` at its end.  TLBs are left out.
"""

from __future__ import annotations

from typing import Any

from actors.actor import Cell
from actors.ops import READ_ONCE, WRITE_ONCE, await_bits, smp_rmb, smp_wmb
from actors.sync import Lock
from actors.thread import Thread
from actors.vm import Vm
from racevisor.monitor import Monitor, Violation
from racevisor.step import Step
from racevisor.world import World


class NoSpteMapsAFreedPage(Monitor):
    """Pages are numbered in the order in which they back the guest page; `freed` is the last one given back."""

    check = "N-I1"

    def __init__(self, sptes: list[Cell], freed: Cell) -> None:
        super().__init__([*sptes, freed])
        self.sptes = sptes
        self.freed = freed

    def on_step(self, step: Step) -> Violation | None:
        """Judge the state after a step on an spte or on the page."""
        for spte in self.sptes:
            if 0 < spte.value <= self.freed.value:
                return Violation(self.check, f"{spte.label} maps page {spte.value}, which the host has freed")
        return None


def mmu_notifier(vcpus: int = 2, *, retry: bool = True, invalidations: int = 1, memory: str = "sc") -> World:
    """`vcpus` vCPUs fault, the host invalidates the range `invalidations` times; `retry=False` leaves the check out.

    Each vCPU has a shadow root, so an spte, of its own.  The rmap chain holds the vCPUs whose spte maps the page.
    """
    vm = Vm()
    kvm: Any = vm.guest_memory(mmu_lock="", seq=0, count=0, rmap=(), pte=1, freed=0)
    lock = Lock(kvm.mmu_lock)

    async def tdp_page_fault(vcpu: Thread) -> None:
        spte = sptes[vcpu.name]
        while True:
            vcpu.checkpoint("fault")
            seq = await READ_ONCE(kvm.seq)
            await smp_rmb()
            pfn = await await_bits(kvm.pte, -1)  # gfn_to_pfn(): waits for the page to come back
            await lock.acquire(vcpu)
            if retry and (await READ_ONCE(kvm.count) or await READ_ONCE(kvm.seq) != seq):
                await lock.release()
                continue
            await WRITE_ONCE(kvm.rmap, (*await READ_ONCE(kvm.rmap), vcpu.name))
            await WRITE_ONCE(spte, pfn)
            await lock.release()
            vcpu.checkpoint("access")
            if await READ_ONCE(spte):
                return

    async def reclaim(host: Any) -> None:
        for page in range(1, invalidations + 1):
            await lock.acquire(host)  # kvm_mmu_notifier_invalidate_range_start()
            await WRITE_ONCE(kvm.count, 1)
            host.chain = await READ_ONCE(kvm.rmap)
            while host.chain:
                host.page = page
                host.checkpoint("zap")
                await WRITE_ONCE(sptes[host.chain[0]], 0)
                host.chain = host.chain[1:]
            await WRITE_ONCE(kvm.rmap, ())
            await lock.release()
            await WRITE_ONCE(kvm.pte, 0)
            await WRITE_ONCE(kvm.freed, page)
            await lock.acquire(host)  # kvm_mmu_notifier_invalidate_range_end()
            await WRITE_ONCE(kvm.seq, page)
            await smp_wmb()
            await WRITE_ONCE(kvm.count, 0)
            await lock.release()
            await WRITE_ONCE(kvm.pte, page + 1)

    threads = [Thread(vm, f"vcpu{i}", tdp_page_fault) for i in range(vcpus)]
    sptes = {thread.name: thread.cell("spte") for thread in threads}
    Thread(vm, "host", reclaim, chain=(), page=0)
    vm.interchangeable([[thread] for thread in threads])
    return World(vm, memory, monitors=[NoSpteMapsAFreedPage([*sptes.values()], kvm.freed)], automata=True)
