"""Who races over an APIC: a vCPU that sleeps between interrupts, devices, vCPUs that change their address and send."""

from __future__ import annotations

from typing import Any

from actors.actor import Actor
from actors.apic_events import deliver_injected, kvm_set_mp_state, vcpu_enter_guest
from actors.apic_map import CLEAN, DIRTY, SW_DISABLED, UPDATE_IN_PROGRESS, ApicMap, LapicIrq, make_apic_map
from actors.apic_regs import APIC_EOI, APIC_LDR, ApicKvm, ApicVcpu, LocalApic
from actors.apic_write import kvm_lapic_reg_write
from actors.devices import Device
from actors.guest import APIC_DM_FIXED, APIC_DM_NMI
from actors.lapic import apic_search_irr
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, clear_bit, cmpxchg, smp_mb, smp_store_release, xchg
from actors.requests import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    kvm_make_request,
    kvm_vcpu_kick,
)
from actors.sync import TASK_INTERRUPTIBLE, TASK_RUNNING


class Line(Device):
    """A device whose interrupt goes to `vcpu`; see Device for the rest."""

    def __init__(self, vcpu: ApicVcpu, name: str, vector: int, *, level: bool = False, nmi: bool = False) -> None:
        super().__init__(vcpu.vm, name, vcpu.index, vector, level=level, nmi=nmi)
        self.vcpu = vcpu

    async def run(self) -> None:
        """Raise it once; a level interrupt is outstanding until its EOI comes back.  [ioapic.c ioapic_service]"""
        if self.level:
            await xchg(self.remote_irr, True)  # under ioapic->lock, whose unlock is before the delivery
        mode = APIC_DM_NMI if self.nmi else APIC_DM_FIXED
        await self.vm.calls.apic_accept_irq(self, self.vcpu.apic, mode, self.vector, True, self.level)


def one_vcpu(vm: Any, vectors: tuple[int, ...]) -> ApicVcpu:
    """A machine of one vCPU, in HLT with interrupts on: only `vectors` may be sent to it."""
    vcpu = ApicVcpu(ApicKvm(vm), 0, LocalApic(vm, "lapic0", vectors, enabled=True), sleeps_between_interrupts, taken=())
    vcpu.private(if_flag=True)
    vcpu.mp_state.init = KVM_MP_STATE_HALTED
    return vcpu


async def sleeps_between_interrupts(vcpu: Any) -> None:
    """HLT, handler, EOI or IRET, HLT again.  Private `taken`: the vectors, and "nmi", in the order of their handlers."""
    while True:
        await kvm_vcpu_block(vcpu)
        await vcpu.vm.calls.vcpu_unhalt(vcpu)
        while True:
            vcpu.checkpoint("entry")
            await vcpu_enter_guest(vcpu, vcpu)
            event = deliver_injected(vcpu)
            if event is None:
                break
            vcpu.taken = (*vcpu.taken, event)
            if event == "nmi":
                vcpu.nmi_masked = False  # IRET
                await kvm_make_request(KVM_REQ_EVENT, vcpu)  # the NMI window
            else:
                await kvm_lapic_reg_write(vcpu, vcpu.apic, APIC_EOI, 0)
        await kvm_set_mp_state(vcpu, KVM_MP_STATE_HALTED)


async def kvm_vcpu_block(vcpu: Any) -> None:
    """Sleep until there is a reason not to: the task state is set before the condition is read.  [kvm_main.c, 6.16]"""
    await WRITE_ONCE(vcpu.wait_task, True)
    while True:
        vcpu.checkpoint("kvm_vcpu_block")
        await xchg(vcpu.task_state, TASK_INTERRUPTIBLE)
        if await vcpu.vm.calls.kvm_arch_vcpu_runnable(vcpu):
            break
        await await_eq(vcpu.task_state, TASK_RUNNING)  # schedule()
    await WRITE_ONCE(vcpu.task_state, TASK_RUNNING)
    await WRITE_ONCE(vcpu.wait_task, False)


# ---- addresses --------------------------------------------------------------------------------------------------------------


def vcpus_without_address(vm: Any, count: int, vector: int) -> list[ApicVcpu]:
    """`count` vCPUs in xAPIC mode whose guests have not written LDR yet; the map says so."""
    phys = tuple((i, i) for i in range(count))
    kvm = ApicKvm(vm, apic_map=tuple(ApicMap(255, SW_DISABLED, phys, ())))
    vcpus = []
    for i in range(count):
        apic = LocalApic(vm, f"lapic{i}", (vector,), apic_id=i, enabled=True)
        vcpus.append(ApicVcpu(kvm, i, apic, takes_an_address, vector=vector, reached=-1))
        vcpus[-1].mp_state.init = KVM_MP_STATE_RUNNABLE
    return vcpus


async def takes_an_address(vcpu: Any) -> None:
    """Write LDR, as every CPU does when it starts, and then send to that address.  Private `reached`: how many took it."""
    bit = 1 << vcpu.index
    await kvm_lapic_reg_write(vcpu, vcpu.apic, APIC_LDR, bit << 24)
    irq = LapicIrq(vcpu.vector, APIC_DM_FIXED, bit, logical=True)
    vcpu.reached = await vcpu.vm.calls.kvm_irq_delivery_to_apic(vcpu, vcpu.kvm, vcpu, irq)


# ---- as it was, or as it must not be ----------------------------------------------------------------------------------------


async def clear_irr_fenced(apic: LocalApic, vector: int) -> None:
    """What the kernel does, with the order that it takes from x86 written down."""
    await WRITE_ONCE(apic.irr_pending, False)
    await smp_mb()  # smp_mb__before_atomic()
    await clear_bit(vector & 31, apic.irr[vector >> 5])
    if await apic_search_irr(apic) != -1:
        await WRITE_ONCE(apic.irr_pending, True)


async def clear_irr_without_rescan(apic: LocalApic, vector: int) -> None:
    """The hint is cleared with the vector, whatever else is pending."""
    await WRITE_ONCE(apic.irr_pending, False)
    await clear_bit(vector & 31, apic.irr[vector >> 5])


async def clear_irr_hint_last(apic: LocalApic, vector: int) -> None:
    """Clear, rescan, and then the hint as the scan found it."""
    await clear_bit(vector & 31, apic.irr[vector >> 5])
    await WRITE_ONCE(apic.irr_pending, await apic_search_irr(apic) != -1)


async def inject_nmi_flag(me: Actor, vcpu: Any) -> int:
    """A flag, not a count: two at a time are one.  [x86.c kvm_inject_nmi before 7460fb4a3400, 3.2]"""
    await WRITE_ONCE(vcpu.nmi_queued, 1)
    await kvm_make_request(KVM_REQ_NMI, vcpu)
    await kvm_vcpu_kick(me, vcpu)
    return 1


async def process_nmi_in_two_steps(vcpu: ApicVcpu) -> None:
    """The count is read, and then cleared: what was queued between is gone."""
    queued = await READ_ONCE(vcpu.nmi_queued)
    await WRITE_ONCE(vcpu.nmi_queued, 0)
    vcpu.nmi_pending = min(vcpu.nmi_pending + queued, 1 if vcpu.nmi_masked or vcpu.nmi_injected else 2)
    if vcpu.nmi_pending:
        await kvm_make_request(KVM_REQ_EVENT, vcpu)


async def recalculate_unlocked(me: Actor, kvm: ApicKvm) -> None:
    """As it is, without apic_map_lock."""
    if await READ_ONCE(kvm.apic_map_dirty) == CLEAN:
        return
    if await cmpxchg(kvm.apic_map_dirty, DIRTY, UPDATE_IN_PROGRESS) == CLEAN:
        return
    new = await make_apic_map(kvm)
    await smp_store_release(kvm.apic_map, None if new is None else tuple(new))
    await cmpxchg(kvm.apic_map_dirty, UPDATE_IN_PROGRESS, CLEAN)
