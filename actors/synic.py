"""The synthetic interrupt controller of Hyper-V guests, and its page of message slots.  [arch/x86/kvm/hyperv.c]

The message page (SIM page) is guest memory: 16 slots of 256 bytes.  Offsets within a slot: 0 message_type (u32, 0 is empty),
4 payload_size (u8), 5 message_flags (u8, bit 0: pending), 16 payload; 24 bytes of it are a timer's.  Each of these is a cell, for
each is accessed by itself.  Only slots that a machine names exist: KVM reads and writes no other.

The protocol [Hyper-V TLFS, inter-partition communication]: a guest empties a slot (type = NONE), full barrier, reads the pending
bit, and writes the EOM register if it is set.  KVM retries an owed message on the guest's EOI of the slot's vector, and on EOM.

SCONTROL, SIEFP and the event-flag page do not exist: delivery of a message asks for none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from actors.actor import Actor, Cell
from actors.hrtimer import HrTimer
from actors.ops import READ_ONCE, WRITE_ONCE, cmpxchg
from actors.requests import KVM_REQ_EVENT, kvm_make_request, kvm_vcpu_kick

ENOENT, EAGAIN, EFAULT = 2, 11, 14

HVMSG_NONE, HVMSG_UNMAPPED_GPA, HVMSG_TIMER_EXPIRED = 0, 0x80000000, 0x80000010
MSG_PENDING = 1  # message_flags.msg_pending
SLOT_SIZE, HEADER_SIZE, TIMER_PAYLOAD_SIZE = 256, 16, 24
#: Fields of a slot in the order of their addresses: (offset of the first byte, offset behind the last byte).
LAYOUT = {"type": (0, 4), "size": (4, 5), "flags": (5, 6), "payload": (HEADER_SIZE, 40), "tail": (40, SLOT_SIZE)}

SINT_VECTOR, SINT_MASKED, SINT_AUTO_EOI = 0xFF, 1 << 16, 1 << 17
#: Linux's vector for VMBus messages [HYPERVISOR_CALLBACK_VECTOR], and its slot [VMBUS_MESSAGE_SINT], which timers share with it
VECTOR, SINT = 0xF3, 2


class Slot:
    """One message slot: a cell per field."""

    def __init__(self, synic: Synic, sint: int) -> None:
        self.type, self.size, self.flags, self.payload, self.tail = (
            synic.cell(f"{field}{sint}", "" if field == "payload" else 0) for field in LAYOUT
        )
        self.cells: dict[str, Cell] = dict(zip(LAYOUT, (self.type, self.size, self.flags, self.payload, self.tail), strict=True))


class _Names(dict[str, Mapping[Any, str]]):
    """Names of types and flags for whatever slot the field is of."""

    def __init__(self, **fields: Mapping[Any, str]) -> None:
        super().__init__({f"{field}{sint}": names for field, names in fields.items() for sint in range(16)})


class Synic(Actor):
    """One vCPU's controller; `sints`: the slots that exist, by number, with the initial SINT register of each."""

    vcpu: Any
    value_names: ClassVar[Mapping[str, Mapping[Any, str]]] = _Names(
        type={HVMSG_NONE: "NONE", HVMSG_UNMAPPED_GPA: "UNMAPPED_GPA", HVMSG_TIMER_EXPIRED: "TIMER"},
        flags={0: "0", MSG_PENDING: "PENDING"},
        payload={"": "nothing"},
        sint={VECTOR: f"{VECTOR:#x}", VECTOR | SINT_MASKED: "MASKED", VECTOR | SINT_AUTO_EOI: f"{VECTOR:#x}|AUTO_EOI"},
    )

    def __init__(self, vm: Any, name: str, sints: Mapping[int, int]) -> None:
        super().__init__(vm, name)
        self.simp = self.cell("simp", True)  # SIMP.enable
        self.sint = {nr: self.cell(f"sint{nr}", register) for nr, register in sints.items()}
        self.slots = {nr: Slot(self, nr) for nr in sints}

    def cell_at(self, offset: int) -> Cell:
        """The field that the byte at this offset of the page belongs to."""
        slot = self.slots[offset // SLOT_SIZE]
        byte = offset % SLOT_SIZE
        return next(slot.cells[field] for field, (first, end) in LAYOUT.items() if first <= byte < end)


# ---- delivery -------------------------------------------------------------------------------------------------------------


async def kvm_vcpu_write_guest_page(synic: Synic, offset: int, message: str) -> None:
    """Copy header and payload of a timer message to the page, in the order of the addresses.  [kvm_main.c, __copy_to_user]"""
    fields = {"type": HVMSG_TIMER_EXPIRED, "size": TIMER_PAYLOAD_SIZE, "flags": 0, "payload": message}
    for field, value in fields.items():
        await WRITE_ONCE(synic.cell_at(offset + LAYOUT[field][0]), value)


async def synic_deliver_msg(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """Look, then either mark the slot or fill it; nothing is atomic.  [hyperv.c, 3a0e7731724f]"""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    if await READ_ONCE(slot.type) != HVMSG_NONE:
        await WRITE_ONCE(slot.flags, MSG_PENDING)
        return -EAGAIN
    await kvm_vcpu_write_guest_page(synic, sint * SLOT_SIZE, message)
    return await raise_sint(me, synic, sint)


async def raise_sint(me: Actor, synic: Synic, sint: int) -> int:
    """The end of synic_deliver_msg(): what synic_set_irq() returned, as an error or 0.  [hyperv.c]"""
    r = await synic_set_irq(me, synic, sint)
    return r if r < 0 else 0 if r else -EFAULT


async def synic_set_irq(me: Actor, synic: Synic, sint: int) -> int:
    """A fixed, edge interrupt to the own vCPU.  [hyperv.c synic_set_irq, lapic.c __apic_accept_irq, 4.19]"""
    register = await READ_ONCE(synic.sint[sint])
    if register & SINT_MASKED:
        return -ENOENT
    vcpu = synic.vcpu
    await vcpu.vm.calls.apic_test_and_set_irr(vcpu.apic, register & SINT_VECTOR)
    await kvm_make_request(KVM_REQ_EVENT, vcpu)
    await kvm_vcpu_kick(me, vcpu)
    me.note("kvm_hv_synic_set_irq", sint=sint)
    return 1


# ---- acknowledgement ------------------------------------------------------------------------------------------------------


async def kvm_hv_notify_acked_sint(vcpu: Any, sint: int) -> None:
    """The guest acknowledged this source: retry what is owed there.  [hyperv.c, 3a0e7731724f]"""
    for stimer in vcpu.stimers:
        await retry_if_owed(vcpu, stimer, sint)


async def retry_if_owed(vcpu: Any, stimer: HrTimer, sint: int) -> None:
    """One timer of kvm_hv_notify_acked_sint().  [hyperv.c]"""
    if await READ_ONCE(stimer.msg_pending) and await READ_ONCE(stimer.enable) and stimer.sint == sint:
        await vcpu.vm.calls.stimer_mark_pending(vcpu, stimer, False)


async def synic_eom(vcpu: Any) -> None:
    """The guest wrote EOM: all sources count as acknowledged.  [hyperv.c synic_set_msr, HV_X64_MSR_EOM]"""
    for sint in vcpu.synic.slots:
        await vcpu.vm.calls.kvm_hv_notify_acked_sint(vcpu, sint)


async def kvm_hv_synic_send_eoi(vcpu: Any, vector: int) -> None:
    """The guest's EOI of this vector: its sources are acknowledged.  [hyperv.c, called from lapic.c apic_set_eoi]"""
    for sint, register in vcpu.synic.sint.items():
        value = await READ_ONCE(register)
        if not value & SINT_MASKED and value & SINT_VECTOR == vector:
            await vcpu.vm.calls.kvm_hv_notify_acked_sint(vcpu, sint)


async def synic_set_simp(vcpu: Any, enable: bool) -> None:
    """The guest wrote SIMP; with KVM_CAP_HYPERV_SYNIC2 the page is not zeroed.  [hyperv.c synic_set_msr, HV_X64_MSR_SIMP]"""
    await WRITE_ONCE(vcpu.synic.simp, enable)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (synic_deliver_msg, kvm_hv_notify_acked_sint, synic_eom, synic_set_simp)
}


# ---- 4.19 -----------------------------------------------------------------------------------------------------------------


async def deliver_msg_419(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """Takes the slot by an atomic cmpxchg, marks it only after that failed.  [hyperv.c synic_deliver_msg, 4.19]"""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    if await cmpxchg(slot.type, HVMSG_NONE, HVMSG_TIMER_EXPIRED) != HVMSG_NONE:
        await WRITE_ONCE(slot.flags, await READ_ONCE(slot.flags) | MSG_PENDING)  # a bit field: load, or, store
        return -EAGAIN
    await WRITE_ONCE(slot.payload, message)
    await WRITE_ONCE(slot.type, HVMSG_TIMER_EXPIRED)  # once more
    await WRITE_ONCE(slot.size, TIMER_PAYLOAD_SIZE)
    return await raise_sint(me, synic, sint)


async def notify_acked_sint_419(vcpu: Any, sint: int) -> None:
    """Takes the pending bit back, whoever set it, then retries.  [hyperv.c kvm_hv_notify_acked_sint, 4.19]"""
    if await READ_ONCE(vcpu.synic.simp):
        await synic_clear_sint_msg_pending(vcpu.synic, sint)
    for stimer in vcpu.stimers:
        await retry_if_owed(vcpu, stimer, sint)


async def synic_clear_sint_msg_pending(synic: Synic, sint: int) -> None:
    """A bit field in guest memory: load, and, store.  [hyperv.c, 4.19]"""
    flags = synic.slots[sint].flags
    await WRITE_ONCE(flags, await READ_ONCE(flags) & ~MSG_PENDING)


BEFORE: dict[str, Callable[..., Any]] = {
    "synic_deliver_msg": deliver_msg_419,
    "kvm_hv_notify_acked_sint": notify_acked_sint_419,
}
