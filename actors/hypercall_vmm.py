"""Who else touches the bytes of a hypercall: the VMM's threads, and other CPUs of the guest."""

from __future__ import annotations

from typing import Any

from actors.actor import Actor, Cell
from actors.hypercall import FREED, INT3, PARA_PAGE, TEXT_PAGE, Code, Kvm
from actors.ops import CALL_QUEUED, READ_ONCE, WRITE_ONCE, await_eq, send_ipi, smp_mb, smp_store_release, xchg
from actors.thread import Thread

ALL_PAGES = 1 << TEXT_PAGE | 1 << PARA_PAGE


class Migration(Actor):
    """The VMM's migration thread: copy while the guest runs, stop it, copy what is dirty, go on at another host.

    `ships`: the cells of each page; `rounds`: how often the dirty log is taken while the guest runs.
    """

    def __init__(self, vm: Any, kvm: Kvm, host: str, ships: dict[int, list[Cell]], rounds: int = 0) -> None:
        super().__init__(vm, "migration")
        self.kvm = kvm
        self.host = host
        self.ships = ships
        self.rounds = rounds
        self.image: Code
        self.private(image=())

    @property
    def cells(self) -> list[Cell]:
        """All that is shipped."""
        return [cell for cells in self.ships.values() for cell in cells]

    async def copy(self, pages: int) -> None:
        """Read the pages of a dirty log."""
        image = list(self.image) or [""] * len(self.cells)
        nr = 0
        for page, cells in self.ships.items():
            for cell in cells:
                if pages >> page & 1:
                    image[nr] = await READ_ONCE(cell)
                nr += 1
        self.image = tuple(image)

    async def get_dirty_log(self) -> int:
        """Take the dirty log under kvm->lock.  [kvm_main.c kvm_vm_ioctl_get_dirty_log]"""
        async with self.kvm.lock.held_by(self):
            dirty: int = await xchg(self.kvm.dirty, 0)
        return dirty

    async def run(self) -> None:
        """Some rounds while the guest runs, the last one while it is stopped."""
        await self.copy(ALL_PAGES)
        for _ in range(self.rounds):
            await self.copy(await self.get_dirty_log())
        for vcpu in self.vm.vcpus:
            await WRITE_ONCE(vcpu.stop, True)
            await smp_mb()
            await send_ipi(vcpu.pcpu.name)  # of a signal
            await await_eq(vcpu.stopped, True)
        await self.copy(await self.get_dirty_log())
        for cell, value in zip(self.cells, self.image, strict=True):
            await WRITE_ONCE(cell, value)  # the destination's memory
        await WRITE_ONCE(self.kvm.spte, False)
        await WRITE_ONCE(self.kvm.host, self.host)
        for vcpu in self.vm.vcpus:
            await smp_store_release(vcpu.stop, False)


def kvm_of(me: Thread) -> Kvm:
    """The VM's part in the host."""
    kvm: Kvm = me.vm.by_name["kvm"]
    return kvm


class Userspace(Thread):
    """A thread of the VMM; `csd` is that of the function calls it makes in the kernel."""

    csd = CALL_QUEUED << 15


async def delete_slot(me: Userspace) -> None:
    """The slot goes under kvm->lock, and its pages are freed after it.  [kvm_main.c kvm_vm_ioctl_set_memory_region, 2007]"""
    kvm = kvm_of(me)
    async with kvm.lock.held_by(me):
        await WRITE_ONCE(kvm.slot, False)  # *memslot = new
        await me.vm.calls.kvm_flush_remote_tlbs(me)
    await xchg(kvm.pages, FREED)  # kvm_free_physmem_slot(): __free_page()


async def reader(me: Thread) -> None:
    """Another CPU of the guest reads its text as data."""
    for cell in kvm_of(me).text[:3]:
        await READ_ONCE(cell)


async def swapper(me: Thread) -> None:
    """Another CPU of the guest unmaps the second page of the site, and maps it again."""
    await WRITE_ONCE(kvm_of(me).pte, False)
    await WRITE_ONCE(kvm_of(me).pte, True)


async def rewriter(me: Thread) -> None:
    """Another CPU of the guest rewrites `mov %eax,(%rcx)` into a hypercall, with one store of one byte."""
    await WRITE_ONCE(kvm_of(me).text[0], "0f")


async def poker(me: Thread) -> None:
    """Another CPU of the guest puts a breakpoint over the hypercall.  [alternative.c text_poke_bp: int3 comes first]"""
    await WRITE_ONCE(kvm_of(me).text[0], INT3)
