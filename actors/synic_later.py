"""Other ways to deliver a SynIC message: beside the guest, as later kernels do, as it would be right.  [arch/x86/kvm/hyperv.c]"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.actor import Actor
from actors.hrtimer import EAGAIN, HrTimer, send_and_count, stimer_start
from actors.hv_vcpu import HvVcpu
from actors.ops import READ_ONCE, WRITE_ONCE, cmpxchg, smp_mb, smp_wmb, xchg
from actors.synic import (
    EFAULT,
    EINVAL,
    ENOENT,
    HVMSG_NONE,
    HVMSG_TIMER_EXPIRED,
    MSG_PENDING,
    SLOT_SIZE,
    TIMER_PAYLOAD_SIZE,
    VECTOR,
    Synic,
    kvm_apic_set_irq,
    kvm_vcpu_read_guest_page,
    kvm_vcpu_write_guest_page,
    mark_pending,
    raise_sint,
    synic_deliver_msg,
    synic_eom,
    synic_set_irq,
    synic_set_simp,
    timer_message,
)


# ---- delivery beside the guest: in the timer's interrupt, on another physical CPU
async def expires_in_interrupt(stimer: HrTimer) -> None:
    """stimer_timer_callback() that delivers by itself."""
    if not await READ_ONCE(stimer.enable):
        return
    await stimer.vm.calls.stimer_expiration(stimer, stimer)
    if await READ_ONCE(stimer.enable) and not await READ_ONCE(stimer.msg_pending):
        await stimer_start(stimer, stimer)


async def fire_again(me: Actor, stimer: HrTimer, vcpu_kick: bool) -> None:
    """stimer_mark_pending() for it: a retry is an interrupt of the timer, at once."""
    await stimer.hrtimer_start()


BESIDE: dict[str, Callable[..., Any]] = {"stimer_timer_callback": expires_in_interrupt, "stimer_mark_pending": fire_again}


async def deliver_msg_tlfs(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The order that is right beside the guest: mark, full barrier, take by cmpxchg, unmark.  [Hyper-V TLFS]"""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    if not await READ_ONCE(synic.memslot):
        return -EFAULT
    slot = synic.slots[sint]
    await WRITE_ONCE(slot.flags, MSG_PENDING)
    await smp_mb()
    if await cmpxchg(slot.type, HVMSG_NONE, HVMSG_TIMER_EXPIRED) != HVMSG_NONE:
        return -EAGAIN
    await WRITE_ONCE(slot.flags, 0)
    await WRITE_ONCE(slot.size, TIMER_PAYLOAD_SIZE)
    await WRITE_ONCE(slot.payload, message)
    return await raise_sint(me, synic, sint)


# ---- later fixes
async def send_msg_no_retry(me: Actor, stimer: HrTimer) -> int:
    """A periodic tick that finds the slot busy is dropped, not owed.  [hyperv.c stimer_send_msg since 7deec5e0df74]"""
    exp_time = await READ_ONCE(stimer.exp_time)
    deliver = stimer.vm.calls.synic_deliver_msg
    r: int = await deliver(me, stimer.vcpu.synic, stimer.sint, stimer.message(exp_time), stimer.periodic)
    return r


async def mark_if_enabled(me: Actor, stimer: HrTimer) -> None:
    """A disabled timer has nothing to do.  [hyperv.c since 013cc6ebbf41]"""
    if await READ_ONCE(stimer.enable):
        await stimer.vm.calls.stimer_mark_pending(me, stimer, False)


async def only_the_guest_enables(host: bool) -> bool:
    """What userspace restores is not a start.  [hyperv.c stimer_set_count since d6800af51c76]"""
    return not host


async def set_irq_if_lapic(me: Actor, synic: Synic, sint: int) -> int:
    """Asks for the LAPIC first.  [hyperv.c synic_set_irq since 7ec37d1cbe17; that it ends the VM as well is left out]"""
    if not synic.vcpu.lapic_in_kernel:
        return -EINVAL
    return await synic_set_irq(me, synic, sint)


async def stimer_notify_direct(me: Actor, stimer: HrTimer) -> int:
    """Direct mode: a vector of the timer's own, whatever the SINT says, and no message.  [hyperv.c since 8644f771e07c]"""
    return int(not await kvm_apic_set_irq(me, stimer.vcpu, VECTOR))


async def notify_direct_if_lapic(me: Actor, stimer: HrTimer) -> int:
    """The same, which asks for the LAPIC first.  [hyperv.c stimer_notify_direct, 5.17]"""
    return await stimer_notify_direct(me, stimer) if stimer.vcpu.lapic_in_kernel else 0


TODAY: dict[str, Callable[..., Any]] = {
    "stimer_send_msg": send_msg_no_retry,
    "stimer_mark_if_enabled": mark_if_enabled,
    "stimer_count_enables": only_the_guest_enables,
    "synic_set_irq": set_irq_if_lapic,
}


# ---- a message page that is zeroed
async def simp_zeroes(vcpu: HvVcpu, enable: bool) -> None:
    """Without KVM_CAP_HYPERV_SYNIC2, enabling the page zeroes all of it first.  [hyperv.c synic_set_msr, kvm_clear_guest]

    What somebody looks at is zeroed here: type, flags and payload of the slots that the machine names.
    """
    slots = [vcpu.synic.slots[sint] for sint in sorted(vcpu.synic.named)]
    zeroes = [pair for slot in slots for pair in ((slot.type, HVMSG_NONE), (slot.flags, 0), (slot.payload, ""))]
    if enable and await kvm_vcpu_write_guest_page(vcpu.synic, *zeroes):
        return  # 1, #GP: there is no such page
    await synic_set_simp(vcpu, enable)


# ---- doubtful points: what would be right
async def written_is_delivered(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """A message that is in the slot is not owed, even if its interrupt could not be raised."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    seen = await kvm_vcpu_read_guest_page(synic, synic.slots[sint].type)
    if seen < 0:
        return seen
    if seen != HVMSG_NONE:
        return await mark_pending(synic, synic.slots[sint].flags)
    r = await kvm_vcpu_write_guest_page(synic, *timer_message(synic, sint * SLOT_SIZE, message))
    if r < 0:
        return r
    await raise_sint(me, synic, sint)
    return 0


async def simp_retries(vcpu: HvVcpu, enable: bool) -> None:
    """Enabling the message page retries what was owed while there was none."""
    await synic_set_simp(vcpu, enable)
    await synic_eom(vcpu)


async def memslot_retries(me: Actor, vcpu: HvVcpu) -> None:
    """New memslots retry what was owed while there was no page; the write to the memslots was a full barrier."""
    for stimer in vcpu.stimers:
        if await READ_ONCE(stimer.msg_pending):
            await vcpu.vm.calls.stimer_mark_pending(me, stimer, True)


async def owes_before_it_looks(me: Actor, stimer: HrTimer) -> None:
    """stimer_expiration() with a full barrier behind "I owe": pairs with the one in memslot_retries()."""
    await xchg(stimer.msg_pending, True)
    if not await send_and_count(me, stimer):
        await WRITE_ONCE(stimer.msg_pending, False)
        if not stimer.periodic:
            await WRITE_ONCE(stimer.enable, False)


async def asks_scontrol(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """No message while the guest has the SynIC disabled."""
    if not await READ_ONCE(synic.scontrol):
        return -ENOENT
    return await synic_deliver_msg(me, synic, sint, message)


async def type_last(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """What announces the message is stored last, for a guest that polls the page from another vCPU."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    seen = await kvm_vcpu_read_guest_page(synic, slot.type)
    if seen < 0:
        return seen
    if seen != HVMSG_NONE:
        return await mark_pending(synic, slot.flags)
    (announcement, *rest) = timer_message(synic, sint * SLOT_SIZE, message)
    r = await kvm_vcpu_write_guest_page(synic, *rest)
    if r < 0:
        return r
    await smp_wmb()
    r = await kvm_vcpu_write_guest_page(synic, announcement)
    return r if r < 0 else await raise_sint(me, synic, sint)
