"""The vCPU: the VMM's vCPU thread, its KVM_RUN loop, and the guest program while it is entered.  [arch/x86/kvm/x86.c]

The order of accesses is that of the run loop shared by 3.8 to today; where versions differ, a scenario replaces the function
through `vm.calls`.
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor
from actors.guest import GuestContext, GuestProgram, Insn, halt, irq_handler, nmi_handler
from actors.lapic import (
    Lapic,
    apic_send_ipi,
    apic_set_eoi,
    kvm_apic_has_interrupt,
    kvm_get_apic_interrupt,
)
from actors.ops import IPI_PENDING, READ_ONCE, WRITE_ONCE, await_eq, clear_bit, smp_mb, smp_store_release, xchg
from actors.pcpu import Pcpu
from actors.requests import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_UNHALT,
    MP_STATE_NAMES,
    OUTSIDE_GUEST_MODE,
    kvm_check_request,
    kvm_make_request,
)
from actors.sync import TASK_INTERRUPTIBLE, TASK_RUNNING, Lock

EINTR, EAGAIN = 4, 11
RESET_CS_BASE = 0xFFFF0000


class Vcpu(Actor):
    """One virtual CPU and its thread; `id` is also its APIC id, vCPU 0 is the bootstrap processor."""

    def __init__(self, vm: Any, name: str, vcpu_id: int, apic: Lapic, pcpu: Pcpu) -> None:
        super().__init__(vm, name)
        self.id = vcpu_id
        self.is_bsp = vcpu_id == 0
        self.apic = apic
        self.pcpu = pcpu
        apic.vcpu = self
        self.mode = self.cell("mode", OUTSIDE_GUEST_MODE)
        self.requests = self.cell("requests", 0)
        self.mp_state = self.cell("mp_state", KVM_MP_STATE_RUNNABLE if self.is_bsp else KVM_MP_STATE_UNINITIALIZED)
        self.regs = self.cell("regs", (0, 0))  # (resets so far, CS base): what the next VM entry loads
        self.nmi_queued = self.cell("nmi_queued", 0)
        self.wait_task = self.cell("wait_task", False)
        self.task_state = self.cell("task_state", TASK_RUNNING)
        self.sigpending = self.cell("sigpending", False)
        self.mutex_word = self.cell("mutex", "")
        self.mutex = Lock(self.mutex_word)
        self.stop = self.cell("stop", False)
        self.stopped = self.cell("stopped", False)
        #: Guest programs by CS base; what is not listed halts.
        self.programs: dict[int, GuestProgram] = {}
        self.irq_handler: GuestProgram = irq_handler
        self.guest = GuestContext()
        self.if_flag: bool
        self.irq_window: bool
        self.generation: int
        self.queued_vector: int
        self.nmi_pending: int
        self.nmi_queued_inject: bool
        self.private(generation=-1, if_flag=False, queued_vector=-1, nmi_pending=0, nmi_queued_inject=False, irq_window=False)

    def close(self) -> None:
        self.guest.close()

    def local_state(self) -> tuple[Any, ...]:
        """All that this thread remembers at a checkpoint."""
        return (*(getattr(self, name) for name in self.state), self.guest.position())

    async def run(self) -> None:
        """The VMM's vCPU thread: KVM_RUN until told to stop, wait to be resumed, again."""
        while True:
            self.checkpoint("userspace")
            await kvm_arch_vcpu_ioctl_run(self)
            if await READ_ONCE(self.sigpending):
                await WRITE_ONCE(self.sigpending, False)
                if await READ_ONCE(self.stop):
                    await smp_store_release(self.stopped, True)
                    await await_eq(self.stop, False)
                    await smp_store_release(self.stopped, False)

    def waits_for(self) -> str:
        """Why this vCPU does not go on, for a stuck machine: read from its cells once nothing moves."""
        state = self.mp_state.value
        if self.stopped.value:
            return "stopped by userspace"
        if state in (KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED):
            return f"{MP_STATE_NAMES[state]}, waits for {'SIPI' if state == KVM_MP_STATE_INIT_RECEIVED else 'INIT'}"
        if state == KVM_MP_STATE_HALTED:
            return f"HALTED at CS base {self.regs.value[1]:#x}, waits for an interrupt"
        return f"{MP_STATE_NAMES[state]} at CS base {self.regs.value[1]:#x}"


async def kvm_arch_vcpu_ioctl_run(vcpu: Vcpu) -> int:
    """KVM_RUN.  [x86.c kvm_arch_vcpu_ioctl_run; the mutex is taken in kvm_main.c kvm_vcpu_ioctl]"""
    async with vcpu.mutex.held_by(vcpu):
        if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_UNINITIALIZED:
            await kvm_vcpu_block(vcpu, "kvm_arch_vcpu_ioctl_run")
            await vcpu.vm.calls.kvm_apic_accept_events(vcpu, vcpu)
            await clear_bit(KVM_REQ_UNHALT, vcpu.requests)
            return -EAGAIN
        await vcpu.vm.calls.vcpu_run_prologue(vcpu)
        return await vcpu_run(vcpu)


async def vcpu_run_prologue(vcpu: Vcpu) -> None:
    """Nothing to do at the start of vcpu_run() since 66450a21f996."""


async def vcpu_run(vcpu: Vcpu) -> int:
    """Enter the guest or block, until something wants userspace.  [x86.c __vcpu_run, today vcpu_run]"""
    while True:
        vcpu.checkpoint("vcpu_run")
        if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_RUNNABLE:
            r = await vcpu_enter_guest(vcpu)
        else:
            r = await vcpu_block(vcpu)
        if r <= 0:
            return r
        if await READ_ONCE(vcpu.sigpending):
            return -EINTR


async def vcpu_block(vcpu: Vcpu) -> int:
    """Sleep, then look at what woke us.  [the else branch of __vcpu_run, 3.8 to 6.1]"""
    await kvm_vcpu_block(vcpu, "vcpu_run")
    if await kvm_check_request(KVM_REQ_UNHALT, vcpu):
        r: int = await vcpu.vm.calls.vcpu_unblocked(vcpu)
        return r
    return 1


async def vcpu_unblocked(vcpu: Vcpu) -> int:
    """After the sleep: accept INIT and SIPI, un-halt.  [the switch in __vcpu_run since 66450a21f996]"""
    await vcpu.vm.calls.kvm_apic_accept_events(vcpu, vcpu)
    state = await READ_ONCE(vcpu.mp_state)
    if state == KVM_MP_STATE_HALTED:
        await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE)
    elif state not in (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_INIT_RECEIVED):
        return -EINTR
    return 1


async def kvm_vcpu_block(vcpu: Vcpu, caller: str) -> None:
    """Sleep until runnable: the task state is set before the condition is read.  [kvm_main.c kvm_vcpu_block]"""
    await WRITE_ONCE(vcpu.wait_task, True)
    while True:
        vcpu.checkpoint(f"kvm_vcpu_block from {caller}")
        await xchg(vcpu.task_state, TASK_INTERRUPTIBLE)  # set_current_state(): store and full barrier
        if await vcpu.vm.calls.kvm_arch_vcpu_runnable(vcpu):
            await kvm_make_request(KVM_REQ_UNHALT, vcpu)
            break
        if await READ_ONCE(vcpu.sigpending):
            break
        await await_eq(vcpu.task_state, TASK_RUNNING)  # schedule()
    vcpu.checkpoint(f"woken in {caller}")
    await WRITE_ONCE(vcpu.task_state, TASK_RUNNING)
    await WRITE_ONCE(vcpu.wait_task, False)


async def kvm_arch_vcpu_runnable(vcpu: Vcpu) -> bool:
    """Is there a reason not to sleep?  [x86.c, 3.10 and later]"""
    if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_RUNNABLE:
        return True
    if await vcpu.vm.calls.kvm_apic_has_events(vcpu):
        return True
    if await READ_ONCE(vcpu.nmi_queued):
        return True
    return await kvm_arch_interrupt_allowed(vcpu) and await kvm_apic_has_interrupt(vcpu.apic) >= 0


async def kvm_apic_has_events(vcpu: Vcpu) -> bool:
    """INIT or SIPI latched?  [lapic.h]"""
    return bool(await READ_ONCE(vcpu.apic.pending_events))


async def kvm_arch_interrupt_allowed(vcpu: Vcpu) -> bool:
    """RFLAGS.IF of the guest; a reset clears it."""
    await load_regs(vcpu)
    return vcpu.if_flag and vcpu.queued_vector < 0


async def load_regs(vcpu: Vcpu) -> None:
    """Take up the register state; another program runs if the vCPU was reset since."""
    generation, cs_base = await READ_ONCE(vcpu.regs)
    if generation != vcpu.generation:
        if generation:
            vcpu.if_flag = False  # a reset clears it; at the start it is what the scenario says
        vcpu.generation = generation
        vcpu.guest.start(vcpu.programs.get(cs_base, halt), cs_base)
        vcpu.queued_vector, vcpu.nmi_pending, vcpu.nmi_queued_inject, vcpu.irq_window = -1, 0, False, False


async def kvm_vcpu_reset(vcpu: Vcpu) -> None:
    """CPU registers as INIT leaves them: CS base 0xFFFF0000, IF clear.  [x86.c kvm_vcpu_reset]"""
    generation, _ = await READ_ONCE(vcpu.regs)
    await WRITE_ONCE(vcpu.regs, (generation + 1, RESET_CS_BASE))
    await kvm_make_request(KVM_REQ_EVENT, vcpu)


async def kvm_vcpu_deliver_sipi_vector(vcpu: Vcpu, vector: int) -> None:
    """CS:IP = V00:0000.  [x86.c kvm_vcpu_deliver_sipi_vector]"""
    generation, _ = await READ_ONCE(vcpu.regs)
    await WRITE_ONCE(vcpu.regs, (generation + 1, vector << 12))


async def vcpu_enter_guest(vcpu: Vcpu) -> int:
    """Service requests, inject, enter, leave, handle the exit.  [x86.c vcpu_enter_guest]"""
    if await READ_ONCE(vcpu.requests) and await kvm_check_request(KVM_REQ_NMI, vcpu):
        vcpu.nmi_pending = min(2, vcpu.nmi_pending + await xchg(vcpu.nmi_queued, 0))  # process_nmi()
        await kvm_make_request(KVM_REQ_EVENT, vcpu)
    if await kvm_check_request(KVM_REQ_EVENT, vcpu):
        if not await vcpu.vm.calls.vcpu_enter_guest_event(vcpu):
            return 1  # INIT_RECEIVED now: the loop blocks
        await inject_pending_event(vcpu)
    vcpu.checkpoint("entry")
    await vcpu.pcpu.local_irq_disable()
    vcpu.checkpoint("IRQs off")
    await smp_store_release(vcpu.mode, IN_GUEST_MODE)
    await smp_mb()  # mode before requests: pairs with the barrier in kvm_vcpu_kick()
    if await READ_ONCE(vcpu.mode) == EXITING_GUEST_MODE or await READ_ONCE(vcpu.requests) or await READ_ONCE(vcpu.sigpending):
        await WRITE_ONCE(vcpu.mode, OUTSIDE_GUEST_MODE)
        await vcpu.pcpu.local_irq_enable()
        if vcpu.queued_vector >= 0 or vcpu.nmi_queued_inject:
            await kvm_make_request(KVM_REQ_EVENT, vcpu)  # cancel_injection(): what was queued is injected next time
        return 1
    await load_regs(vcpu)
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
    return await handle_exit(vcpu, insn) if insn else 1


async def vcpu_enter_guest_event(vcpu: Vcpu) -> bool:
    """KVM_REQ_EVENT: accept INIT and SIPI; False if the vCPU must not enter now.  [since 66450a21f996]"""
    await vcpu.vm.calls.kvm_apic_accept_events(vcpu, vcpu)
    return bool(await READ_ONCE(vcpu.mp_state) != KVM_MP_STATE_INIT_RECEIVED)


async def inject_pending_event(vcpu: Vcpu) -> None:
    """Queue an NMI or the highest interrupt for the next VM entry.  [x86.c inject_pending_event]"""
    if vcpu.queued_vector >= 0 or vcpu.nmi_queued_inject:
        return
    if vcpu.nmi_pending:
        vcpu.nmi_pending -= 1
        vcpu.nmi_queued_inject = True
        return
    allowed = await kvm_arch_interrupt_allowed(vcpu)
    vector = await kvm_apic_has_interrupt(vcpu.apic)
    if vector >= 0:
        if allowed:
            await kvm_get_apic_interrupt(vcpu.apic, vector)
            vcpu.queued_vector = vector
            vcpu.note("kvm_inj_virq", vcpu=vcpu.id, vector=vector)
        else:
            vcpu.irq_window = True


async def run_guest(vcpu: Vcpu) -> Insn | None:
    """Guest mode: one instruction a step until one is intercepted (returned) or an interrupt arrives (None)."""
    guest = vcpu.guest
    if vcpu.nmi_queued_inject:
        vcpu.nmi_queued_inject = False
        guest.interrupt(nmi_handler, "nmi")
    elif vcpu.queued_vector >= 0:
        vcpu.queued_vector = -1
        guest.interrupt(vcpu.irq_handler, "irq")
    while True:
        if await vcpu.pcpu.interrupt_window() & IPI_PENDING:
            return None
        insn = guest.fetch()
        if insn.kind == "compute":
            await vcpu.pcpu.run_until_interrupt()
            return None
        if insn.kind == "sti" or insn.kind == "cli":
            vcpu.if_flag = insn.kind == "sti"
            guest.retire()
            if vcpu.if_flag and vcpu.irq_window:
                vcpu.irq_window = False
                return Insn("irq_window")
        elif insn.op is not None:
            guest.retire(await insn.op)
        else:
            return insn


async def handle_exit(vcpu: Vcpu, insn: Insn) -> int:
    """The exit handlers.  [vmx.c vmx_handle_exit]"""
    if insn.kind == "irq_window":
        await kvm_make_request(KVM_REQ_EVENT, vcpu)
        return 1
    vcpu.guest.retire()
    if insn.kind == "hlt":
        r: int = await vcpu.vm.calls.kvm_emulate_halt(vcpu)
        return r
    if insn.kind == "icr":
        dest, mode, vector, level, shorthand = insn.args
        await apic_send_ipi(vcpu, dest, mode, vector, level, shorthand)
    elif insn.kind == "eoi":
        await apic_set_eoi(vcpu, vcpu.apic)
    return 1


async def kvm_emulate_halt(vcpu: Vcpu) -> int:
    """HLT with an in-kernel APIC: the vCPU blocks in the run loop.  [x86.c kvm_emulate_halt]"""
    await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_HALTED)
    return 1
