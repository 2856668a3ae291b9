"""What could be written wrongly in the delivery of a SynIC message, one thing at a time.  [arch/x86/kvm/hyperv.c]"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor
from actors.guest import GuestCpu
from actors.hrtimer import EAGAIN, HrTimer, send_and_count, stimer_mark_pending
from actors.hv_vcpu import HvVcpu
from actors.ops import READ_ONCE, WRITE_ONCE, cmpxchg, smp_mb
from actors.synic import (
    ENOENT,
    HVMSG_NONE,
    HVMSG_TIMER_EXPIRED,
    MSG_PENDING,
    SLOT_SIZE,
    TIMER_PAYLOAD_SIZE,
    Synic,
    is_owed,
    kvm_vcpu_read_guest_page,
    kvm_vcpu_write_guest_page,
    mark_page_dirty,
    mark_pending,
    raise_sint,
    set_sint,
    synic_clear_sint_msg_pending,
    timer_message,
)


# fmt: off
# ---- the same accesses as synic_deliver_msg() in another order, or one missing
async def m4_no_mark(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """A busy slot is not marked."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    seen = await kvm_vcpu_read_guest_page(synic, synic.slots[sint].type)
    if seen < 0:
        return seen
    if seen != HVMSG_NONE:
        return -EAGAIN
    r = await kvm_vcpu_write_guest_page(synic, *timer_message(synic, sint * SLOT_SIZE, message))
    return r if r < 0 else await raise_sint(me, synic, sint)

async def m10_irq_first(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The interrupt before the message."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    seen = await kvm_vcpu_read_guest_page(synic, synic.slots[sint].type)
    if seen < 0:
        return seen
    if seen != HVMSG_NONE:
        return await mark_pending(synic, synic.slots[sint].flags)
    r = await raise_sint(me, synic, sint)
    return r or await kvm_vcpu_write_guest_page(synic, *timer_message(synic, sint * SLOT_SIZE, message))

async def m10_irq_first_tlfs(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The interrupt as soon as the slot is taken, in the order of the TLFS otherwise."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    await WRITE_ONCE(slot.flags, MSG_PENDING)
    await smp_mb()
    if await cmpxchg(slot.type, HVMSG_NONE, HVMSG_TIMER_EXPIRED) != HVMSG_NONE:
        return -EAGAIN
    r = await raise_sint(me, synic, sint)
    await WRITE_ONCE(slot.flags, 0)
    await WRITE_ONCE(slot.size, TIMER_PAYLOAD_SIZE)
    await WRITE_ONCE(slot.payload, message)
    return r

async def m11_one_byte(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """Of message_type, only the low byte is read."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    seen = await kvm_vcpu_read_guest_page(synic, synic.slots[sint].type)
    if seen < 0:
        return seen
    if seen & 0xFF != HVMSG_NONE:
        return await mark_pending(synic, synic.slots[sint].flags)
    r = await kvm_vcpu_write_guest_page(synic, *timer_message(synic, sint * SLOT_SIZE, message))
    return r if r < 0 else await raise_sint(me, synic, sint)

async def m12_offset(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The slot is looked for at sint * 16."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    if await READ_ONCE(synic.cell_at(sint * 16)):  # whatever is there: four bytes of another slot
        return await mark_pending(synic, synic.cell_at(sint * 16 + 5))
    r = await kvm_vcpu_write_guest_page(synic, *timer_message(synic, sint * 16, message))
    return r if r < 0 else await raise_sint(me, synic, sint)

async def m12_whole_slot(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """All 256 bytes of the slot are written."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    seen = await kvm_vcpu_read_guest_page(synic, slot.type)
    if seen < 0:
        return seen
    if seen != HVMSG_NONE:
        return await mark_pending(synic, slot.flags)
    r = await kvm_vcpu_write_guest_page(synic, *timer_message(synic, sint * SLOT_SIZE, message), (slot.tail, 0))
    return r if r < 0 else await raise_sint(me, synic, sint)

async def m13_flags_stay(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """A delivered message leaves the flags byte as it is."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    seen = await kvm_vcpu_read_guest_page(synic, slot.type)
    if seen < 0:
        return seen
    if seen != HVMSG_NONE:
        return await mark_pending(synic, slot.flags)
    fields = [(cell, value) for cell, value in timer_message(synic, sint * SLOT_SIZE, message) if cell is not slot.flags]
    r = await kvm_vcpu_write_guest_page(synic, *fields)
    return r if r < 0 else await raise_sint(me, synic, sint)

async def m15_garbage(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The reserved bits of the flags come from an uninitialised stack variable, as they do in the patch and in 5.17."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    seen = await kvm_vcpu_read_guest_page(synic, synic.slots[sint].type)
    if seen < 0:
        return seen
    if seen != HVMSG_NONE:
        return await mark_pending(synic, synic.slots[sint].flags, 0xA4 | MSG_PENDING)
    r = await kvm_vcpu_write_guest_page(synic, *timer_message(synic, sint * SLOT_SIZE, message))
    return r if r < 0 else await raise_sint(me, synic, sint)

async def dirty_first(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The page is marked dirty before it is written, and then no more."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    seen = await kvm_vcpu_read_guest_page(synic, synic.slots[sint].type)
    if seen != HVMSG_NONE:
        return seen if seen < 0 else await mark_pending(synic, synic.slots[sint].flags)
    await mark_page_dirty(synic)
    for cell, value in timer_message(synic, sint * SLOT_SIZE, message):
        await WRITE_ONCE(cell, value)
    return await raise_sint(me, synic, sint)

async def never_dirty(synic: Synic) -> None:
    """The page is not marked dirty."""


# ---- what stands around it
async def m5_not_owed(me: Actor, stimer: HrTimer) -> None:
    """stimer_expiration() that does not note down what it owes."""
    if not await send_and_count(me, stimer) and not stimer.periodic:
        await WRITE_ONCE(stimer.enable, False)

async def m5_forgets(me: Actor, stimer: HrTimer) -> None:
    """stimer_expiration() that owes nothing any more once it has tried."""
    await WRITE_ONCE(stimer.msg_pending, True)
    r = await send_and_count(me, stimer)
    await WRITE_ONCE(stimer.msg_pending, False)
    if not r and not stimer.periodic:
        await WRITE_ONCE(stimer.enable, False)

async def m7_no_kick(me: Actor, stimer: HrTimer, vcpu_kick: bool) -> None:
    """stimer_mark_pending() that never kicks."""
    await stimer_mark_pending(me, stimer, False)

async def m9_acks_sint0(vcpu: HvVcpu) -> None:
    """EOM acknowledges source 0 only."""
    await vcpu.vm.calls.kvm_hv_notify_acked_sint(vcpu, 0)

async def m14_ack_clears(vcpu: HvVcpu, sint: int) -> None:
    """The acknowledgement takes the pending bit back, as 4.19 does, and retries as the patch does."""
    await synic_clear_sint_msg_pending(vcpu.synic, sint)
    for stimer in vcpu.stimers:
        if await is_owed(stimer, sint):
            await vcpu.vm.calls.stimer_mark_pending(vcpu, stimer, False)

async def no_mfence(cpu: GuestCpu, slot: Any, seen: int) -> bool:
    """The guest's barrier is missing."""
    await cpu.store(slot.type, HVMSG_NONE)
    return True

async def any_vector(vcpu: HvVcpu, sint: int, data: int) -> int:
    """A SINT takes vectors that are no interrupts."""
    return await set_sint(vcpu, sint, data)
# fmt: on
