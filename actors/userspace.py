"""The VMM's main thread: ioctls on vCPUs while their threads are stopped, as a monitor does around a live migration."""

from __future__ import annotations

from actors.lapic import KVM_APIC_SIPI
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, set_bit, smp_mb
from actors.requests import (
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_REQ_EVENT,
    kvm_make_request,
    kvm_vcpu_kick,
)
from actors.thread import Thread
from actors.vcpu import Vcpu


class Userspace(Thread):
    """A thread of the VMM that runs the script it is given."""

    async def pause(self, vcpu: Vcpu) -> None:
        """Signal the vCPU thread and wait until it is out of KVM_RUN.  [QEMU pause_all_vcpus]"""
        await WRITE_ONCE(vcpu.stop, True)
        await smp_mb()
        await WRITE_ONCE(vcpu.sigpending, True)  # pthread_kill(SIG_IPI)
        await kvm_vcpu_kick(self, vcpu)  # signal_wake_up(): wakes a sleeper, interrupts a runner
        await await_eq(vcpu.stopped, True)

    async def resume(self, vcpu: Vcpu) -> None:
        """Let the vCPU thread call KVM_RUN again."""
        await WRITE_ONCE(vcpu.stop, False)
        await smp_mb()


async def kvm_arch_vcpu_ioctl_get_mpstate(me: Userspace, vcpu: Vcpu) -> int:
    """KVM_GET_MP_STATE: latched events are acted on first, for the old ABI does not carry them.  [x86.c]"""
    async with vcpu.mutex.held_by(me):
        await vcpu.vm.calls.get_mpstate_accept(me, vcpu)
        state: int = await READ_ONCE(vcpu.mp_state)
        return state


async def get_mpstate_accept(me: Userspace, vcpu: Vcpu) -> None:
    """KVM_GET_MP_STATE calls kvm_apic_accept_events() since 66450a21f996."""
    await vcpu.vm.calls.kvm_apic_accept_events(me, vcpu)


async def kvm_arch_vcpu_ioctl_set_mpstate(me: Userspace, vcpu: Vcpu, state: int) -> None:
    """KVM_SET_MP_STATE.  [x86.c]"""
    async with vcpu.mutex.held_by(me):
        await vcpu.vm.calls.set_mpstate(vcpu, state)
        await kvm_make_request(KVM_REQ_EVENT, vcpu)


async def set_mpstate(vcpu: Vcpu, state: int) -> None:
    """The obsolete SIPI_RECEIVED becomes a latched SIPI since 66450a21f996."""
    if state == KVM_MP_STATE_SIPI_RECEIVED:
        await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_INIT_RECEIVED)
        await set_bit(KVM_APIC_SIPI, vcpu.apic.pending_events)
    else:
        await WRITE_ONCE(vcpu.mp_state, state)
