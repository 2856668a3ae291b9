"""A vCPU with a SynIC, reduced to what its messages need: requests, interrupts, HLT, and a guest that handles messages.

The loop is that of x86.c (vcpu_run, vcpu_enter_guest) without signals, INIT and SIPI; the order of its accesses is the kernel's.
Guest code runs in steps between VM entry and VM exit on the vCPU's own thread: nothing that this thread does for the host can
interleave with it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ClassVar

from actors.guest import GuestProgram, Insn
from actors.hrtimer import KVM_REQ_HV_STIMER
from actors.lapic import Lapic, apic_search_irr, kvm_apic_has_interrupt
from actors.ops import (
    IPI_PENDING,
    READ_ONCE,
    WRITE_ONCE,
    await_eq,
    clear_bit,
    smp_mb,
    smp_store_release,
    xchg,
)
from actors.pcpu import Pcpu
from actors.requests import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_REQ_EVENT,
    OUTSIDE_GUEST_MODE,
    kvm_check_request,
    kvm_make_request,
)
from actors.sync import TASK_INTERRUPTIBLE, TASK_RUNNING
from actors.synic import Synic, kvm_hv_synic_send_eoi, synic_set_scontrol
from actors.vcpu import Vcpu


class HvVcpu(Vcpu):
    """A vCPU whose guest runs `main` and handles interrupts with `handler`; interrupts are off in the handler.

    `prologue`: what the VMM does on this thread before its first KVM_RUN.  `uninitialized`: KVM_RUN only waits for an INIT.
    `empty_slot` and `signal_eom`: how its guest takes a message.
    `taken`: the messages that its guest took out of slots.  `eoms`: how often it wrote EOM.  `faults`: how often a write was #GP.
    `refused`: how often this thread delivered and found the slot busy, as far as is counted.
    `eagain`: how often KVM_RUN came back with -EAGAIN though no INIT had come.
    `lapic_in_kernel`: false if userspace emulates the LAPIC.  `oops`: a thread followed the NULL pointer.
    """

    bit_names: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "requests": {KVM_REQ_EVENT: "EVENT", KVM_REQ_HV_STIMER: "HV_STIMER"},
    }
    main: GuestProgram
    handler: GuestProgram
    halted: bool
    taken: tuple[str, ...]
    eoms: int
    eagain: int
    faults: int
    refused: int

    def __init__(self, vm: Any, vcpu_id: int, synic: Synic, vectors: tuple[int, ...]) -> None:
        apic, pcpu = Lapic(vm, f"lapic{vcpu_id}", vectors), Pcpu(vm, f"pcpu{vcpu_id}")
        super().__init__(vm, f"vcpu{vcpu_id}", vcpu_id, apic, pcpu)
        vm.vcpus.append(self)
        self.synic = synic
        synic.vcpu = self
        self.stimers: list[Any] = []
        self.prologue: Callable[[HvVcpu], Coroutine[Any, Any, None]] | None = None
        self.uninitialized = False
        self.empty_slot = vm.calls.guest_empty_slot
        self.signal_eom = vm.calls.guest_signal_eom
        self.stimer_pending_bitmap = self.cell("stimer_pending", 0)
        self.lapic_in_kernel = True
        self.oops = self.cell("oops", False)
        self.private(halted=False, taken=(), eoms=0, eagain=0, faults=0, refused=0)

    async def run(self) -> None:
        """KVM_RUN, again and again.  [x86.c kvm_arch_vcpu_ioctl_run, vcpu_run]"""
        if self.prologue is not None:
            await self.prologue(self)
        while self.uninitialized and self.eagain < 2:  # userspace calls again for ever; two rounds tell what it gets
            self.checkpoint("uninitialized")
            await hv_vcpu_block(self)
            self.eagain += 1
        if self.uninitialized:
            return
        self.guest.start(self.main, 0)
        while True:
            self.checkpoint("vcpu_run")
            if self.halted:
                await hv_vcpu_block(self)
            else:
                await hv_vcpu_enter_guest(self)


async def hv_vcpu_block(vcpu: HvVcpu) -> None:
    """Sleep until runnable.  [kvm_main.c kvm_vcpu_block]"""
    await WRITE_ONCE(vcpu.wait_task, True)
    while True:
        vcpu.checkpoint("kvm_vcpu_block")
        await xchg(vcpu.task_state, TASK_INTERRUPTIBLE)  # set_current_state(): store and full barrier
        if await hv_vcpu_runnable(vcpu):
            break
        await await_eq(vcpu.task_state, TASK_RUNNING)  # schedule()
    vcpu.checkpoint("woken")
    await WRITE_ONCE(vcpu.task_state, TASK_RUNNING)
    await WRITE_ONCE(vcpu.wait_task, False)
    vcpu.halted = False


async def hv_vcpu_runnable(vcpu: HvVcpu) -> bool:
    """An interrupt, or a timer that wants service.  [x86.c kvm_vcpu_has_events, hyperv.h kvm_hv_has_stimer_pending]"""
    if await kvm_apic_has_interrupt(vcpu.apic) >= 0:
        return True
    return bool(await READ_ONCE(vcpu.stimer_pending_bitmap))


async def hv_vcpu_enter_guest(vcpu: HvVcpu) -> None:
    """Service requests, inject, enter, leave, handle the exit.  [x86.c vcpu_enter_guest]"""
    if await kvm_check_request(KVM_REQ_HV_STIMER, vcpu):
        await vcpu.vm.calls.kvm_hv_process_stimers(vcpu)
    if await kvm_check_request(KVM_REQ_EVENT, vcpu):
        await inject_pending_event(vcpu)
    vcpu.checkpoint("entry")
    await vcpu.pcpu.local_irq_disable()
    vcpu.checkpoint("IRQs off")
    await smp_store_release(vcpu.mode, IN_GUEST_MODE)
    await smp_mb()  # mode before requests: pairs with the barrier in kvm_vcpu_kick()
    if await READ_ONCE(vcpu.mode) == EXITING_GUEST_MODE or await READ_ONCE(vcpu.requests):
        await WRITE_ONCE(vcpu.mode, OUTSIDE_GUEST_MODE)
        await vcpu.pcpu.local_irq_enable()
        return  # what is queued for injection stays queued
    insn = None
    if not await vcpu.pcpu.vm_enter() & IPI_PENDING:
        vcpu.note("kvm_entry", vcpu=vcpu.id)
        insn = await run_guest(vcpu)
        await vcpu.pcpu.vm_exit()
    reason = insn.kind if insn else "external_interrupt"
    vcpu.note("kvm_exit", vcpu=vcpu.id, reason=reason)
    vcpu.checkpoint(f"VM exit: {reason}")  # the instruction is that at which the guest stands
    await WRITE_ONCE(vcpu.mode, OUTSIDE_GUEST_MODE)
    await vcpu.pcpu.local_irq_enable()
    if insn:
        await handle_exit(vcpu, insn)


async def inject_pending_event(vcpu: HvVcpu) -> None:
    """Queue the highest interrupt for the entry, or ask for an exit when the guest can take it.  [x86.c]"""
    if vcpu.queued_vector >= 0:
        return
    vector = await kvm_apic_has_interrupt(vcpu.apic)
    if vector < 0:
        return
    if len(vcpu.guest.stack) > 1:  # in a handler: interrupts are off
        vcpu.irq_window = True
        return
    await kvm_apic_ack_interrupt(vcpu, vector)
    vcpu.queued_vector = vector
    vcpu.note("kvm_inj_virq", vcpu=vcpu.id, vector=vector)


async def kvm_apic_ack_interrupt(vcpu: HvVcpu, vector: int) -> None:
    """Out of IRR; into service, unless a source of that vector is auto-EOI.  [lapic.c kvm_get_apic_interrupt]"""
    apic = vcpu.apic
    await WRITE_ONCE(apic.irr_pending, False)
    await clear_bit(vector & 31, apic.irr[vector >> 5])
    if await apic_search_irr(apic) != -1:
        await WRITE_ONCE(apic.irr_pending, True)
    if vector in await READ_ONCE(vcpu.synic.auto_eoi_bitmap):
        return
    await WRITE_ONCE(apic.isr, (*await READ_ONCE(apic.isr), vector))


async def apic_set_eoi(vcpu: HvVcpu) -> None:
    """Out of service; the SynIC hears of it; look for the next.  [lapic.c apic_set_eoi]"""
    in_service: tuple[int, ...] = await READ_ONCE(vcpu.apic.isr)
    if not in_service:
        return
    vector = max(in_service)
    await WRITE_ONCE(vcpu.apic.isr, tuple(v for v in in_service if v != vector))
    vcpu.note("kvm_eoi", apicid=vcpu.id, vector=vector)
    if vector in await READ_ONCE(vcpu.synic.vec_bitmap):
        await kvm_hv_synic_send_eoi(vcpu, vector)
    await kvm_make_request(KVM_REQ_EVENT, vcpu)


async def run_guest(vcpu: HvVcpu) -> Insn | None:
    """Guest mode: one instruction a step until one is intercepted (returned) or an interrupt arrives (None)."""
    guest = vcpu.guest
    if vcpu.queued_vector >= 0:
        vcpu.queued_vector = -1
        guest.interrupt(vcpu.handler, "irq")
    while True:
        if vcpu.irq_window and len(guest.stack) == 1:
            vcpu.irq_window = False
            return Insn("irq_window")
        if await vcpu.pcpu.interrupt_window() & IPI_PENDING:
            return None
        insn = guest.fetch()
        if insn.kind == "compute":
            await vcpu.pcpu.run_until_interrupt()
            return None
        if insn.op is None:
            return insn
        guest.retire(await insn.op)


async def handle_exit(vcpu: HvVcpu, insn: Insn) -> None:
    """The exit handlers."""
    if insn.kind == "irq_window":
        await kvm_make_request(KVM_REQ_EVENT, vcpu)
        return
    vcpu.guest.retire()
    if insn.kind == "hlt":
        vcpu.halted = True
    elif insn.kind == "eoi":
        await apic_set_eoi(vcpu)
    elif insn.kind == "eom":
        vcpu.eoms += 1
        await vcpu.vm.calls.synic_eom(vcpu)
    elif insn.kind == "simp":
        await vcpu.vm.calls.synic_set_simp(vcpu, True)
    elif insn.kind == "scontrol":
        await synic_set_scontrol(vcpu, insn.args[0])
    elif insn.kind == "sint" and await vcpu.vm.calls.synic_set_sint(vcpu, *insn.args):
        vcpu.faults += 1  # kvm_inject_gp(); the guest expects it (wrmsr_safe) and goes on
        vcpu.note("kvm_inj_exception", vector=13)
