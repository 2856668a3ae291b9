"""Posted interrupts: a bitmap in memory and a notification instead of a request and a kick.  [arch/x86/kvm/vmx/posted_intr.c]

The sender sets the vector's bit in PIR, then ON; who set ON first sends a notification, but only if the vCPU is in guest mode.
In guest mode the CPU takes it without a VM exit: it clears ON and moves PIR to the virtual APIC.  In the host the notification is
lost, and KVM does the same by hand before it enters.  No request is made, so nothing else makes the vCPU look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.actor import Actor, Cell
from actors.ops import READ_ONCE, WRITE_ONCE, clear_bit, send_ipi, smp_mb, test_and_set_bit, xchg
from actors.requests import IN_GUEST_MODE, KVM_REQ_EVENT, kvm_vcpu_wake_up
from actors.run_loop import VcpuLoop, after_vm_exit

POSTED_INTR_ON = 0  # bit of the control word


class PiDesc(Actor):
    """A vCPU's posted-interrupt descriptor: `pir`, one bit per vector (of two), and `control` with the ON bit."""

    pir: Cell
    control: Cell

    def __init__(self, vm: Any, vcpu_id: int) -> None:
        super().__init__(vm, f"pi_desc{vcpu_id}")
        self.pir = self.cell("pir", 0)
        self.control = self.cell("control", 0)


async def vcpu_run_posted(vcpu: Any) -> None:
    """The run loop with APICv.  [x86.c vcpu_run, vcpu_enter_guest, 6.16]

    Private `irr`: what reached the virtual APIC; `halts`: the guest halts once if it has no interrupt by then;
    `halted`: it has just done so.
    """
    while True:
        vcpu.checkpoint("vcpu_run")
        if await vcpu.vm.calls.kvm_check_request(KVM_REQ_EVENT, vcpu):
            await take_pir(vcpu)
        if not await vcpu.vm.calls.vcpu_enter_guest(vcpu):
            continue
        await vcpu.here().enter_with_notification()
        vcpu.note("kvm_entry", vcpu=vcpu.id)
        while True:
            vcpu.checkpoint("guest")
            if vcpu.halts and not vcpu.irr:
                vcpu.halts, vcpu.halted = False, True
                break
            await vcpu.here().run_until_interrupt()
            if await vcpu.vm.calls.guest_interrupted(vcpu):
                break
        await vcpu.here().vm_exit()
        await after_vm_exit(vcpu)
        if vcpu.halted:
            await vcpu.vm.calls.kvm_vcpu_block(vcpu)
            vcpu.halted = False


async def guest_interrupted(vcpu: Any) -> bool:
    """The CPU processes the notification; True if it has to leave the guest.  [Intel SDM 30.6 Posted-Interrupt Processing]"""
    await vcpu.here().acknowledge()
    await clear_bit(POSTED_INTR_ON, vcpu.pi_desc.control)
    await take_pir(vcpu)
    return False


async def vmx_sync_pir_to_irr(vcpu: Any) -> None:
    """What the CPU would do, by hand: clear ON, then take PIR.  [vmx.c vmx_sync_pir_to_irr, 6.16]"""
    if await READ_ONCE(vcpu.pi_desc.control) >> POSTED_INTR_ON & 1:
        await clear_bit(POSTED_INTR_ON, vcpu.pi_desc.control)
        await smp_mb()  # smp_mb__after_atomic()
        await take_pir(vcpu)


async def take_pir(vcpu: Any) -> None:
    """PIR to IRR.  [lapic.c __kvm_apic_update_irr, 6.16: xchg only where a bit is set]"""
    if await READ_ONCE(vcpu.pi_desc.pir):
        vcpu.irr |= await xchg(vcpu.pi_desc.pir, 0)


async def pi_has_pending_interrupt(vcpu: Any) -> bool:
    """kvm_vcpu_check_block(): IRR or PID.ON.  [posted_intr.c pi_has_pending_interrupt; SN is left out]"""
    return bool(vcpu.irr) or bool(await READ_ONCE(vcpu.pi_desc.control) >> POSTED_INTR_ON & 1)


async def vmx_deliver_posted_interrupt(me: Actor, vcpu: Any, vector: int) -> None:
    """The sender.  [vmx/common.h __vmx_deliver_posted_interrupt, 6.16]"""
    if await test_and_set_bit(vector, vcpu.pi_desc.pir):
        return
    if await test_and_set_bit(POSTED_INTR_ON, vcpu.pi_desc.control):
        return  # whoever set ON has sent the notification, or the vCPU will look
    await vcpu.vm.calls.kvm_vcpu_trigger_posted_interrupt(me, vcpu)


async def kvm_vcpu_trigger_posted_interrupt(me: Actor, vcpu: VcpuLoop) -> None:
    """Notify a vCPU in guest mode, wake one that sleeps; any other will look.  [vmx/common.h, 6.16]"""
    if await READ_ONCE(vcpu.mode) == IN_GUEST_MODE:
        await send_ipi(await READ_ONCE(vcpu.cpu))
    else:
        await kvm_vcpu_wake_up(me, vcpu)


#: what a scenario may replace
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        guest_interrupted,
        pi_has_pending_interrupt,
        vmx_deliver_posted_interrupt,
        vmx_sync_pir_to_irr,
        kvm_vcpu_trigger_posted_interrupt,
    )
}


# ---- as it was, or as it must not be -------------------------------------------------------------------------------------------


async def deliver_on_first(me: Actor, vcpu: Any, vector: int) -> None:
    """ON before PIR."""
    old = await test_and_set_bit(POSTED_INTR_ON, vcpu.pi_desc.control)
    await test_and_set_bit(vector, vcpu.pi_desc.pir)
    if not old:
        await vcpu.vm.calls.kvm_vcpu_trigger_posted_interrupt(me, vcpu)


async def deliver_unordered(me: Actor, vcpu: Any, vector: int) -> None:
    """PIR and ON by plain stores, so that nothing orders them before the load of mode."""
    pir = await READ_ONCE(vcpu.pi_desc.pir)
    await WRITE_ONCE(vcpu.pi_desc.pir, pir | 1 << vector)
    await WRITE_ONCE(vcpu.pi_desc.control, 1 << POSTED_INTR_ON)
    await vcpu.vm.calls.kvm_vcpu_trigger_posted_interrupt(me, vcpu)


async def deliver_with_request(me: Actor, vcpu: Any, vector: int) -> None:
    """KVM_REQ_EVENT with every interrupt.  [vmx.c vmx_deliver_posted_interrupt, 3.10 to 4.9; always by kick here]"""
    if await test_and_set_bit(vector, vcpu.pi_desc.pir):
        return
    await test_and_set_bit(POSTED_INTR_ON, vcpu.pi_desc.control)
    await vcpu.vm.calls.kvm_make_request(KVM_REQ_EVENT, vcpu)
    await vcpu.vm.calls.kvm_vcpu_kick(me, vcpu)


async def leave_the_guest(vcpu: Any) -> bool:
    """A kick is an ordinary interrupt, and forces a VM exit."""
    return True


async def sync_pir_first(vcpu: Any) -> None:
    """PIR before ON."""
    if await READ_ONCE(vcpu.pi_desc.control) >> POSTED_INTR_ON & 1:
        await take_pir(vcpu)
        await clear_bit(POSTED_INTR_ON, vcpu.pi_desc.control)
        await smp_mb()


async def blind_to_pir(vcpu: Any) -> bool:
    """kvm_vcpu_check_block() that looks at IRR alone."""
    return bool(vcpu.irr)
