"""Other ways to deliver a SynIC message: beside the guest, and as later kernels do.  [arch/x86/kvm/hyperv.c]"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors import hrtimer
from actors.actor import Actor
from actors.hrtimer import HrTimer, stimer_start
from actors.ops import READ_ONCE, WRITE_ONCE, cmpxchg, smp_mb
from actors.synic import (
    EAGAIN,
    ENOENT,
    HVMSG_NONE,
    HVMSG_TIMER_EXPIRED,
    MSG_PENDING,
    TIMER_PAYLOAD_SIZE,
    Synic,
    raise_sint,
    synic_set_irq,
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
    synic = stimer.vcpu.synic
    if stimer.periodic and await READ_ONCE(synic.simp) and await READ_ONCE(synic.slots[stimer.sint].type) != HVMSG_NONE:
        return 0
    return await hrtimer.stimer_send_msg(me, stimer)


async def mark_if_enabled(me: Actor, stimer: HrTimer) -> None:
    """A disabled timer has nothing to do.  [hyperv.c since 013cc6ebbf41]"""
    if await READ_ONCE(stimer.enable):
        await stimer.vm.calls.stimer_mark_pending(me, stimer, False)


async def only_the_guest_enables(host: bool) -> bool:
    """What userspace restores is not a start.  [hyperv.c stimer_set_count since d6800af51c76]"""
    return not host


async def stimer_notify_direct(me: Actor, stimer: HrTimer) -> int:
    """Direct mode: the timer's own vector and no message.  [hyperv.c since 8644f771e07c]"""
    return 0 if await synic_set_irq(me, stimer.vcpu.synic, stimer.sint) > 0 else 1


TODAY: dict[str, Callable[..., Any]] = {
    "stimer_send_msg": send_msg_no_retry,
    "stimer_mark_if_enabled": mark_if_enabled,
    "stimer_count_enables": only_the_guest_enables,
}
