"""All-CPU requests that wait: a page may be freed once no vCPU can still use it.  [virt/kvm/kvm_main.c, arch/x86/kvm/mmu/mmu.c]

Two kinds of user: a guest that has the translation in its TLB, and a vCPU thread that walks the shadow page table without a lock,
with IRQs off.  Whoever frees takes the translation away first, then asks every vCPU to flush, and waits until each physical CPU
on which one was not OUTSIDE_GUEST_MODE has answered an IPI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.actor import Actor
from actors.ops import IPI_PENDING, READ_ONCE, WRITE_ONCE, Code, Op, Order, send_ipi, smp_mb, smp_store_release
from actors.pcpu import Pcpu
from actors.requests import (
    KVM_REQ_TLB_FLUSH,
    OUTSIDE_GUEST_MODE,
    READING_SHADOW_PAGE_TABLES,
    kvm_vcpu_wake_up,
)
from actors.run_loop import VcpuLoop, after_vm_exit, kvm_vcpu_exiting_guest_mode, local_irq_enable
from actors.sync import Lock

FREED = "freed"


class Mmu(Actor):
    """One shadow page table entry, the page it leads to, and the lock of 2009 around all-CPU requests."""

    def __init__(self, vm: Any) -> None:
        super().__init__(vm, "mmu")
        self.spte = self.cell("spte", "present")
        self.page = self.cell("page", "in use")
        self.lock_word = self.cell("requests_lock", "")
        self.requests_lock = Lock(self.lock_word)
        self.vcpus: list[VcpuLoop] = []  # of the VM


def mmu_of(vm: Any) -> Mmu:
    """The VM's one."""
    mmu: Mmu = vm.by_name["mmu"]
    return mmu


# ---- who uses the page -------------------------------------------------------------------------------------------------------


async def vcpu_run_with_tlb(vcpu: Any) -> None:
    """KVM_RUN of a guest that touches the page, until its first exit.  [x86.c vcpu_run, vcpu_enter_guest, 6.16]

    Private `tlb`: is the translation cached?  `running`: the guest runs already; else it has halted.
    """
    if vcpu.running:
        await guest_touches_page(vcpu)
        await vcpu.here().vm_exit()
    else:
        await vcpu.vm.calls.kvm_vcpu_block(vcpu)
        while True:
            vcpu.checkpoint("vcpu_run")
            if await vcpu.vm.calls.kvm_check_request(KVM_REQ_TLB_FLUSH, vcpu):
                vcpu.tlb = False
            if await vcpu.vm.calls.vcpu_enter_guest(vcpu):
                break
        if not await vcpu.here().vm_enter() & IPI_PENDING:
            vcpu.note("kvm_entry", vcpu=vcpu.id)
            await guest_touches_page(vcpu)
            await vcpu.here().vm_exit()
    await after_vm_exit(vcpu)


async def guest_touches_page(vcpu: Any) -> None:
    """Guest mode: through the TLB, or through a walk; then it computes, unless the walk ends in a page fault."""
    if vcpu.tlb or await READ_ONCE(mmu_of(vcpu.vm).spte) == "present":
        await READ_ONCE(mmu_of(vcpu.vm).page)
        vcpu.tlb = True
        vcpu.checkpoint("guest computes")
        await vcpu.here().run_until_interrupt()


async def kvm_mmu_walk(vcpu: VcpuLoop) -> None:
    """A lockless walk on an exit, say for an MMIO fault.  [mmu.c get_mmio_spte, walk_shadow_page_get_mmio_spte]"""
    mmu = mmu_of(vcpu.vm)
    await vcpu.vm.calls.walk_shadow_page_lockless_begin(vcpu)
    if await READ_ONCE(mmu.spte) == "present":
        await READ_ONCE(mmu.page)
    await vcpu.vm.calls.walk_shadow_page_lockless_end(vcpu)


async def walk_shadow_page_lockless_begin(vcpu: VcpuLoop) -> None:
    """IRQs off, so that the IPI waits for us; mode before the sptes.  [mmu.c walk_shadow_page_lockless_begin, 6.16]"""
    await vcpu.here().local_irq_disable()
    await WRITE_ONCE(vcpu.mode, READING_SHADOW_PAGE_TABLES)
    await smp_mb()  # smp_store_mb()


async def walk_shadow_page_lockless_end(vcpu: VcpuLoop) -> None:
    """The sptes before mode.  [mmu.c walk_shadow_page_lockless_end, 6.16]"""
    await smp_store_release(vcpu.mode, OUTSIDE_GUEST_MODE)
    await local_irq_enable(vcpu)


# ---- who frees it ------------------------------------------------------------------------------------------------------------


async def zap_and_free(me: Any) -> None:
    """Take the translation away, flush, free the page.  [mmu.c kvm_mmu_commit_zap_page]"""
    mmu = mmu_of(me.vm)
    await WRITE_ONCE(mmu.spte, "zapped")
    await me.vm.calls.kvm_flush_remote_tlbs(me)
    await WRITE_ONCE(mmu.page, FREED)


async def flush(me: Any) -> None:
    """Another thread that flushes at the same time, for a change of its own."""
    await me.vm.calls.kvm_flush_remote_tlbs(me)


async def kvm_flush_remote_tlbs(me: Any) -> None:
    """[kvm_main.c kvm_flush_remote_tlbs, 6.16]"""
    await me.vm.calls.kvm_make_all_cpus_request(me, KVM_REQ_TLB_FLUSH)


async def kvm_make_all_cpus_request(me: Any, req: int) -> None:
    """Ask every vCPU; one call to all CPUs that have to answer, and wait for it.  [kvm_main.c, 6.16: KVM_REQUEST_WAIT]"""
    cpus: list[Pcpu] = []
    for vcpu in mmu_of(me.vm).vcpus:
        if await me.vm.calls.kvm_make_vcpu_request(me, vcpu, req):
            cpus.append(vcpu.pcpus[await READ_ONCE(vcpu.cpu)])
    await me.vm.calls.smp_call_function_many(me, cpus)


async def kvm_make_vcpu_request(me: Actor, vcpu: VcpuLoop, req: int) -> bool:
    """Request, then: has its CPU to answer?  Sleepers are not woken.  [kvm_main.c, 6.16: KVM_REQUEST_NO_WAKEUP]"""
    await vcpu.vm.calls.kvm_make_request(req, vcpu)
    return bool(await vcpu.vm.calls.kvm_request_needs_ipi(vcpu))


async def kvm_request_needs_ipi(vcpu: VcpuLoop) -> bool:
    """EXITING and READING have to answer as well: they are not out yet.  [kvm_main.c, 6.16, with KVM_REQUEST_WAIT]"""
    return await kvm_vcpu_exiting_guest_mode(vcpu) != OUTSIDE_GUEST_MODE


async def smp_call_function_many(me: Any, cpus: list[Pcpu]) -> None:
    """Queue a call on each, send IPIs, wait until each has run it.  [kernel/smp.c, wait = true]"""
    names = " ".join(pcpu.name for pcpu in cpus)
    for pcpu in cpus:
        await pcpu.queue_call(me.csd)
        me.checkpoint(f"{pcpu.name} of {names}")  # all that is alive is in the label
        await send_ipi(pcpu.name)
    for pcpu in cpus:
        await pcpu.wait_for_call(me.csd)
        me.checkpoint(f"{pcpu.name} of {names} has answered")


#: what a scenario may replace
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        kvm_flush_remote_tlbs,
        kvm_make_all_cpus_request,
        kvm_make_vcpu_request,
        kvm_request_needs_ipi,
        smp_call_function_many,
        walk_shadow_page_lockless_begin,
        walk_shadow_page_lockless_end,
    )
}


# ---- as it was, or as it must not be -------------------------------------------------------------------------------------------


async def make_all_cpus_request_coalesced(me: Any, req: int) -> None:
    """A vCPU whose bit is set already is passed over: somebody else asks it.  [kvm_main.c make_all_vcpus_request, 2.6.30]"""
    cpus: list[Pcpu] = []
    for vcpu in mmu_of(me.vm).vcpus:
        old: int = await Op(Code.RMW, vcpu.requests, "or", 1 << req, order=Order.FULL)  # test_and_set_bit()
        if old >> req & 1:
            continue
        cpus.append(vcpu.pcpus[await READ_ONCE(vcpu.cpu)])
    await me.vm.calls.smp_call_function_many(me, cpus)


async def make_all_cpus_request_locked(me: Any, req: int) -> None:
    """The same under kvm->requests_lock, held until all have answered.  [kvm_main.c, 2.6.32, 84261923d3dd]"""
    async with mmu_of(me.vm).requests_lock.held_by(me):
        await make_all_cpus_request_coalesced(me, req)


async def make_vcpu_request_and_wake(me: Actor, vcpu: VcpuLoop, req: int) -> bool:
    """Without KVM_REQUEST_NO_WAKEUP: a sleeper is woken, and needs no IPI."""
    await vcpu.vm.calls.kvm_make_request(req, vcpu)
    if await kvm_vcpu_wake_up(me, vcpu):
        return False
    return bool(await vcpu.vm.calls.kvm_request_needs_ipi(vcpu))


async def call_without_wait(me: Any, cpus: list[Pcpu]) -> None:
    """smp_call_function_many() with wait = false."""
    for pcpu in cpus:
        await pcpu.queue_call(me.csd)
        await send_ipi(pcpu.name)
