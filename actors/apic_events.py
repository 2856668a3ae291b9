"""What its APIC does to a vCPU: INIT and SIPI, mp_state, NMIs, injection, KVM_RUN up to the guest.  [x86.c, lapic.c, 6.16]

All of it runs on the vCPU's thread, or in an ioctl that holds its mutex.
"""

from __future__ import annotations

from actors.actor import Actor
from actors.apic_irq import kvm_apic_ack_interrupt, kvm_apic_has_interrupt
from actors.apic_regs import RESET_CS, RESET_IP, ApicVcpu
from actors.apic_timer import apic_has_pending_timer, kvm_inject_apic_timer_irqs
from actors.apic_write import kvm_lapic_reset
from actors.lapic import KVM_APIC_INIT, KVM_APIC_SIPI
from actors.ops import READ_ONCE, WRITE_ONCE, set_bit, smp_rmb, test_and_clear_bit, xchg
from actors.requests import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    kvm_check_request,
    kvm_make_request,
)

KVM_MP_STATE_AP_RESET_HOLD = 9
#: what KVM_SET_MP_STATE takes
MP_STATES = (
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_AP_RESET_HOLD,
)
_HALTED = (KVM_MP_STATE_HALTED, KVM_MP_STATE_AP_RESET_HOLD)


# ---- INIT and SIPI ----------------------------------------------------------------------------------------------------------


async def kvm_apic_accept_events(me: Actor, vcpu: ApicVcpu) -> None:
    """Act on INIT, then on SIPI, each bit taken by itself.  [lapic.c, since 1e17a6f8721c, 6.0]"""
    apic = vcpu.apic
    if not await READ_ONCE(apic.pending_events):
        return
    if await test_and_clear_bit(KVM_APIC_INIT, apic.pending_events):
        await vcpu.vm.calls.accept_init(me, vcpu)
    if await test_and_clear_bit(KVM_APIC_SIPI, apic.pending_events):
        await vcpu.vm.calls.accept_sipi(me, vcpu)


async def accept_init(me: Actor, vcpu: ApicVcpu) -> None:
    """The INIT half: reset; the BSP runs on at the reset vector, an AP waits for SIPI.  [kvm_apic_accept_events]"""
    await vcpu.vm.calls.kvm_vcpu_reset(me, vcpu, True)
    await kvm_set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE if vcpu.is_bsp else KVM_MP_STATE_INIT_RECEIVED)


async def accept_sipi(me: Actor, vcpu: ApicVcpu) -> None:
    """The SIPI half: start at the vector if the vCPU waits for it, or drop it.  [kvm_apic_accept_events]"""
    if await READ_ONCE(vcpu.mp_state) != KVM_MP_STATE_INIT_RECEIVED:
        return
    await smp_rmb()  # the bit before the vector
    vector: int = await READ_ONCE(vcpu.apic.sipi_vector)
    vcpu.cs, vcpu.ip = vector << 8, 0
    await kvm_set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE)


async def kvm_vcpu_reset(me: Actor, vcpu: ApicVcpu, init_event: bool) -> None:
    """The APIC, the events, CS:IP and IF; KVM_REQ_NMI stays.  [x86.c]"""
    await kvm_lapic_reset(me, vcpu, init_event)
    await WRITE_ONCE(vcpu.nmi_queued, 0)
    vcpu.nmi_pending, vcpu.nmi_injected, vcpu.nmi_masked, vcpu.interrupt = 0, False, False, -1
    vcpu.cs, vcpu.ip, vcpu.if_flag = RESET_CS, RESET_IP, False


# ---- mp_state ---------------------------------------------------------------------------------------------------------------


async def kvm_set_mp_state(vcpu: ApicVcpu, state: int) -> None:
    """Every way to RUNNABLE ends a paravirtual kick.  [x86.h, e9cb61055fee, 6.15]"""
    await WRITE_ONCE(vcpu.mp_state, state)
    if state == KVM_MP_STATE_RUNNABLE:
        await vcpu.vm.calls.clear_pv_unhalted(vcpu)


async def clear_pv_unhalted(vcpu: ApicVcpu) -> None:
    """The kick has been used, or is not needed any more.  [kvm_set_mp_state]"""
    await WRITE_ONCE(vcpu.pv_unhalted, False)


async def kvm_arch_vcpu_ioctl_get_mpstate(me: Actor, vcpu: ApicVcpu) -> int:
    """KVM_GET_MP_STATE: it accepts INIT and SIPI; a vCPU that was kicked reads as RUNNABLE.  [x86.c]"""
    await vcpu.vm.calls.kvm_apic_accept_events(me, vcpu)
    state: int = await READ_ONCE(vcpu.mp_state)
    return KVM_MP_STATE_RUNNABLE if state in _HALTED and await READ_ONCE(vcpu.pv_unhalted) else state


async def kvm_arch_vcpu_ioctl_set_mpstate(vcpu: ApicVcpu, state: int) -> bool:
    """KVM_SET_MP_STATE; SIPI_RECEIVED is INIT_RECEIVED and a pending SIPI.  False: EINVAL.  [x86.c]"""
    if state not in MP_STATES:
        return False
    await vcpu.vm.calls.set_mpstate(vcpu, state)
    await kvm_make_request(KVM_REQ_EVENT, vcpu)
    return True


async def set_mpstate(vcpu: ApicVcpu, state: int) -> None:
    """The obsolete SIPI_RECEIVED becomes a latched SIPI since 66450a21f996."""
    if state == KVM_MP_STATE_SIPI_RECEIVED:
        await kvm_set_mp_state(vcpu, KVM_MP_STATE_INIT_RECEIVED)
        await set_bit(KVM_APIC_SIPI, vcpu.apic.pending_events)
    else:
        await kvm_set_mp_state(vcpu, state)


# ---- NMI --------------------------------------------------------------------------------------------------------------------


async def process_nmi(vcpu: ApicVcpu) -> None:
    """Queued NMIs become pending: two, or one while NMIs are masked or one is being injected; more collapse.  [x86.c]"""
    limit = 1 if vcpu.nmi_masked or vcpu.nmi_injected else 2
    vcpu.nmi_pending = min(vcpu.nmi_pending + await xchg(vcpu.nmi_queued, 0), limit)
    if vcpu.nmi_pending:
        await kvm_make_request(KVM_REQ_EVENT, vcpu)


def kvm_get_nr_pending_nmis(vcpu: ApicVcpu) -> int:
    """What KVM_GET_VCPU_EVENTS shows.  [x86.c]"""
    return vcpu.nmi_pending


async def kvm_nmi_allowed(vcpu: ApicVcpu) -> bool:
    """May an NMI be injected?  [vmx.c vmx_nmi_allowed]"""
    return not vcpu.nmi_masked and not vcpu.nmi_injected


# ---- run and sleep ----------------------------------------------------------------------------------------------------------


async def kvm_arch_interrupt_allowed(vcpu: ApicVcpu) -> bool:
    """IF, and nothing on its way in already.  [vmx.c vmx_interrupt_allowed, x86.c kvm_event_needs_reinjection]"""
    return vcpu.if_flag


async def kvm_vcpu_has_events(vcpu: ApicVcpu) -> bool:
    """Is there something to wake up for?  KVM_REQ_NMI counts, whether or not NMIs are masked.  [x86.c]"""
    calls = vcpu.vm.calls
    if await READ_ONCE(vcpu.apic.pending_events):
        return True
    if await calls.nmi_wakes(vcpu):
        return True
    return bool(await kvm_arch_interrupt_allowed(vcpu) and await kvm_apic_has_interrupt(vcpu) >= 0)


async def nmi_wakes(vcpu: ApicVcpu) -> bool:
    """An NMI that has just arrived, or one that may be injected.  [kvm_vcpu_has_events]"""
    if await READ_ONCE(vcpu.requests) >> KVM_REQ_NMI & 1:
        return True
    return bool(vcpu.nmi_pending) and await kvm_nmi_allowed(vcpu)


async def kvm_arch_vcpu_runnable(vcpu: ApicVcpu) -> bool:
    """Is there a reason not to sleep?  [x86.c]"""
    if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_RUNNABLE or await READ_ONCE(vcpu.pv_unhalted):
        return True
    return bool(await vcpu.vm.calls.kvm_vcpu_has_events(vcpu))  # kvm_vcpu_check_block() asks for the timer itself


async def run_once(me: Actor, vcpu: ApicVcpu) -> None:
    """KVM_RUN with a signal pending: all work on events, and back before the first guest instruction.  [x86.c vcpu_run]"""
    calls = vcpu.vm.calls
    await calls.vcpu_run_prologue(me, vcpu)
    state = await READ_ONCE(vcpu.mp_state)
    if state == KVM_MP_STATE_UNINITIALIZED:
        await calls.kvm_apic_accept_events(me, vcpu)
        return  # EAGAIN
    if state == KVM_MP_STATE_RUNNABLE:
        await vcpu_enter_guest(me, vcpu)
    elif await calls.kvm_arch_vcpu_runnable(vcpu):
        await vcpu_unblocked(me, vcpu)
    if vcpu.apic.timer is not None and await apic_has_pending_timer(vcpu.apic):
        await kvm_inject_apic_timer_irqs(vcpu)


async def vcpu_run_prologue(me: Actor, vcpu: ApicVcpu) -> None:
    """KVM_RUN begins: nothing to do since 66450a21f996."""


async def vcpu_unblocked(me: Actor, vcpu: ApicVcpu) -> None:
    """After the sleep; what woke a halted vCPU need not be there any more, nor have been for it.  [x86.c vcpu_block]"""
    await vcpu.vm.calls.kvm_apic_accept_events(me, vcpu)
    if await READ_ONCE(vcpu.mp_state) in _HALTED:
        await vcpu.vm.calls.vcpu_unhalt(vcpu)


async def vcpu_unhalt(vcpu: ApicVcpu) -> None:
    """The guest goes on after its HLT.  [vcpu_block]"""
    await kvm_set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE)


async def vcpu_enter_guest(me: Actor, vcpu: ApicVcpu) -> None:
    """Requests, events, injection; the entry itself is called off, and what was injected stays queued.  [x86.c]"""
    calls = vcpu.vm.calls
    if await kvm_check_request(KVM_REQ_NMI, vcpu):
        await calls.process_nmi(vcpu)
    if not await kvm_check_request(KVM_REQ_EVENT, vcpu):
        return
    await calls.kvm_apic_accept_events(me, vcpu)
    if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
        return
    await calls.kvm_check_and_inject_events(vcpu)
    if vcpu.nmi_injected or vcpu.interrupt >= 0:
        await kvm_make_request(KVM_REQ_EVENT, vcpu)  # cancel_injection()


async def kvm_check_and_inject_events(vcpu: ApicVcpu) -> None:
    """What is on its way in goes on; else an NMI, else the highest interrupt.  [x86.c]"""
    if vcpu.nmi_injected:
        vcpu.nmi_masked = True  # inject_nmi() again: the guest was not entered with it
        return
    if vcpu.interrupt >= 0:
        return
    if vcpu.nmi_pending and await kvm_nmi_allowed(vcpu):
        vcpu.nmi_pending -= 1
        vcpu.nmi_injected = vcpu.nmi_masked = True  # inject_nmi() sets the mask, before the guest is entered
        return
    vector = await kvm_apic_has_interrupt(vcpu)
    if vector >= 0 and await kvm_arch_interrupt_allowed(vcpu):
        await kvm_apic_ack_interrupt(vcpu.apic, vector)
        vcpu.interrupt = vector


def deliver_injected(vcpu: ApicVcpu) -> int | str | None:
    """The guest enters its handler: the vector, "nmi", or None if nothing was injected.  [VM entry]"""
    if vcpu.nmi_injected:
        vcpu.nmi_injected = False
        return "nmi"
    vector, vcpu.interrupt = vcpu.interrupt, -1
    return vector if vector >= 0 else None
