"""A vCPU with a SynIC, reduced to what its messages need: requests, interrupts, HLT, and a guest that handles messages.

The loop is that of x86.c (vcpu_run, vcpu_enter_guest) without signals, INIT and SIPI; the order of its accesses is the kernel's.
Guest code runs in steps between VM entry and VM exit on the vCPU's own thread: nothing that this thread does for the host can
interleave with it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ClassVar

from actors.guest import GuestCpu, GuestProgram, Insn
from actors.hrtimer import KVM_REQ_HV_STIMER, stimer_set_config, stimer_set_count
from actors.lapic import Lapic, apic_search_irr, kvm_apic_has_interrupt
from actors.ops import (
    IPI_PENDING,
    READ_ONCE,
    WRITE_ONCE,
    await_bits,
    await_eq,
    clear_bit,
    cmpxchg,
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
from actors.synic import (
    HVMSG_NONE,
    MSG_PENDING,
    SINT,
    SINT_AUTO_EOI,
    SINT_MASKED,
    SINT_VECTOR,
    VECTOR,
    Synic,
    kvm_hv_synic_send_eoi,
)
from actors.vcpu import Vcpu


class HvVcpu(Vcpu):
    """A vCPU whose guest runs `main` and handles interrupts with `handler`; interrupts are off in the handler.

    `prologue`: what the VMM does on this thread before its first KVM_RUN.  `uninitialized`: KVM_RUN only waits for an INIT.
    `empty_slot` and `signal_eom`: how its guest takes a message.
    `taken`: the messages that its guest took out of slots.  `eoms`: how often it wrote EOM.
    `eagain`: how often KVM_RUN came back with -EAGAIN though no INIT had come.
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
        self.private(halted=False, taken=(), eoms=0, eagain=0)

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
    vcpu.note("kvm_exit", vcpu=vcpu.id, reason=insn.kind if insn else "external_interrupt")
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
    """Out of IRR; into service, unless the SynIC's source is auto-EOI.  [lapic.c kvm_apic_ack_interrupt, apic_clear_irr]"""
    apic = vcpu.apic
    await WRITE_ONCE(apic.irr_pending, False)
    await clear_bit(vector & 31, apic.irr[vector >> 5])
    if await apic_search_irr(apic) != -1:
        await WRITE_ONCE(apic.irr_pending, True)
    for register in vcpu.synic.sint.values():
        value = await READ_ONCE(register)
        if value & SINT_AUTO_EOI and not value & SINT_MASKED and value & SINT_VECTOR == vector:
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
    elif insn.kind == "sint":
        await WRITE_ONCE(vcpu.synic.sint[SINT], insn.args[0])


# ---- what a guest does with a message -------------------------------------------------------------------------------------


def taker(vcpu: HvVcpu, *steps: str) -> GuestProgram:
    """A handler of these steps: "eoi", "take" (the slot's message, if there is one) and "eom" (without being asked to)."""

    async def handler(cpu: GuestCpu) -> None:
        for step in steps:
            if step == "take":
                await take_message(cpu, vcpu)
            else:
                await Insn(step)

    return handler


async def take_message(cpu: GuestCpu, vcpu: HvVcpu) -> None:
    """Copy the message out and empty the slot.  [Linux vmbus_on_msg_dpc; kvm-unit-tests hyperv_stimer.c process_stimer_msg]"""
    slot = vcpu.synic.slots[SINT]
    seen = await cpu.load(slot.type)
    if seen == HVMSG_NONE:
        return
    payload = await cpu.load(slot.payload)
    if await vcpu.empty_slot(cpu, slot, seen):
        vcpu.taken = (*vcpu.taken, payload)
        await vcpu.signal_eom(cpu, slot)


async def guest_empty_slot(cpu: GuestCpu, slot: Any, seen: int) -> bool:
    """A plain store and a full barrier, for a page that only one CPU touches.  [hyperv_stimer.c process_stimer_msg]"""
    await cpu.store(slot.type, HVMSG_NONE)
    await cpu.mfence()  # the slot is empty before the pending bit is read
    return True


async def guest_cmpxchg_slot(cpu: GuestCpu, slot: Any, seen: int) -> bool:
    """By cmpxchg, for another CPU may have emptied it.  [Linux drivers/hv vmbus_signal_eom]"""
    if await Insn("memory", op=cmpxchg(slot.type, seen, HVMSG_NONE)) != seen:
        return False
    await cpu.mfence()
    return True


async def guest_signal_eom(cpu: GuestCpu, slot: Any) -> None:
    """EOM, if the slot says that more is waiting."""
    if await cpu.load(slot.flags) & MSG_PENDING:
        await Insn("eom")


async def never_looks(cpu: GuestCpu, slot: Any) -> None:
    """A guest that breaks the protocol."""


UNSEEN = "unseen"  # a message that was taken without a look at its payload


async def computing(cpu: GuestCpu) -> None:
    """Runs for ever; only an interrupt is seen."""
    cpu.here("computing")
    await cpu.compute()


def before_idle(vcpu: HvVcpu, *steps: str) -> GuestProgram:
    """The steps, then HLT for ever."""

    async def main(cpu: GuestCpu) -> None:
        for step in steps:
            if step == "take":
                await take_message(cpu, vcpu)
            elif step == "unmask":
                await Insn("sint", (VECTOR,))
            else:
                await Insn(step)
        while True:
            cpu.here("idle")
            await cpu.hlt()

    return main


async def walk_page(me: Any) -> None:
    """vCPU1 empties the slot if there is something in it, whatever it is."""
    slot = me.vm.vcpus[0].synic.slots[SINT]
    seen = await READ_ONCE(slot.type)
    if seen != HVMSG_NONE and await cmpxchg(slot.type, seen, HVMSG_NONE) == seen:
        me.taken = (*me.taken, UNSEEN)


async def poll_page(me: Any) -> None:
    """The same, once there is something: vCPU1 polls."""
    slot = me.vm.vcpus[0].synic.slots[SINT]
    seen = await await_bits(slot.type, -1)
    if await cmpxchg(slot.type, seen, HVMSG_NONE) == seen:
        me.taken = (*me.taken, UNSEEN)


async def read_and_eom(me: Any) -> None:
    """vCPU1 reads vCPU0's page, twice; its EOM goes to its own SynIC, where nothing is owed.  [Linux vmbus_wait_for_unload]"""
    slot = me.vm.vcpus[0].synic.slots[SINT]
    for _ in range(2):
        seen = await READ_ONCE(slot.type)
        if seen == HVMSG_NONE:
            continue
        payload = await READ_ONCE(slot.payload)
        if await cmpxchg(slot.type, seen, HVMSG_NONE) == seen:
            me.taken = (*me.taken, payload)
            await smp_mb()
            await READ_ONCE(slot.flags)


async def zero_config(vcpu: HvVcpu) -> None:
    """Userspace zeroes the registers of a new vCPU, as QEMU does.  [MSR writes on the vCPU's thread]"""
    await stimer_set_config(vcpu, vcpu.stimers[0], False)


async def restore_timer(vcpu: HvVcpu) -> None:
    """Userspace restores a timer that has fired: CONFIG with auto-enable set and enable clear, then COUNT."""
    await stimer_set_config(vcpu, vcpu.stimers[0], False)
    await stimer_set_count(vcpu, vcpu.stimers[0], 1, True)


FUNCTIONS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (guest_empty_slot, guest_signal_eom)}
