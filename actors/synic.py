"""The synthetic interrupt controller of Hyper-V guests, and its page of message slots.  [arch/x86/kvm/hyperv.c]

The message page (SIM page) is guest memory: 16 slots of 256 bytes, slot s at s * 256.  Offsets within a slot: 0 message_type
(u32, 0 is empty), 4 payload_size (u8), 5 message_flags (u8, bit 0: pending), 6 reserved, 8 sender, 16 payload.  Each is a cell,
for each is accessed by itself; the 24 bytes of payload that a timer uses are one, and what lies behind them ("tail") another.

The protocol [Hyper-V TLFS, inter-partition communication]: a guest empties a slot (type = NONE), full barrier, reads the pending
bit, and writes the EOM register if it is set.  KVM retries an owed message on the guest's EOI of the slot's vector, and on EOM.

SIEFP, SVERSION, the event-flag page, notifiers of GSIs and exits to userspace (KVM_EXIT_HYPERV_SYNIC) do not exist: delivery of
a message asks for none of them.  kvm->srcu, which is held while the page is copied, is the subject of another scenario.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from actors.actor import Actor, Cell
from actors.hrtimer import EAGAIN, KVM_REQ_HV_STIMER, HrTimer
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, cmpxchg, set_bit
from actors.requests import KVM_REQ_EVENT, kvm_make_request, kvm_vcpu_kick

ENOENT, EFAULT, EINVAL = 2, 14, 22

HVMSG_NONE, HVMSG_UNMAPPED_GPA, HVMSG_TIMER_EXPIRED = 0, 0x80000000, 0x80000010
MSG_PENDING = 1  # message_flags.msg_pending
SLOTS, SLOT_SIZE, HEADER_SIZE, TIMER_PAYLOAD_SIZE = 16, 256, 16, 24
#: Fields of a slot in the order of their addresses: (offset of the first byte, offset behind the last byte).
LAYOUT = {
    "type": (0, 4),
    "size": (4, 5),
    "flags": (5, 6),
    "reserved": (6, 8),
    "sender": (8, HEADER_SIZE),
    "payload": (HEADER_SIZE, HEADER_SIZE + TIMER_PAYLOAD_SIZE),
    "tail": (HEADER_SIZE + TIMER_PAYLOAD_SIZE, SLOT_SIZE),
}

#: SINT registers; vectors below 16 are no vectors, and a source is masked until the guest writes it
SINT_VECTOR, SINT_MASKED, SINT_AUTO_EOI, FIRST_VALID_VECTOR = 0xFF, 1 << 16, 1 << 17, 16
#: Linux's vector for VMBus messages [HYPERVISOR_CALLBACK_VECTOR], and its slot [VMBUS_MESSAGE_SINT], which timers share with it
VECTOR, SINT, LAST_SINT = 0xF3, 2, 15


class Slot:
    """One message slot: a cell per field."""

    def __init__(self, synic: Synic, sint: int) -> None:
        self.cells: dict[str, Cell] = {field: synic.cell(f"{field}{sint}", "" if field == "payload" else 0) for field in LAYOUT}
        self.type, self.size, self.flags = (self.cells[field] for field in ("type", "size", "flags"))
        self.payload, self.tail = self.cells["payload"], self.cells["tail"]


class _Names(dict[str, Mapping[Any, str]]):
    """Names of types and flags for whatever slot the field is of."""

    def __init__(self, **fields: Mapping[Any, str]) -> None:
        super().__init__({f"{field}{sint}": names for field, names in fields.items() for sint in range(SLOTS)})


class Synic(Actor):
    """One vCPU's controller; `sints`: the SINT registers that the guest has set; the others are masked, as after a reset.

    `simp` and `scontrol` are the enable bits of those registers.  `memslot`: is there a memslot for the message page?  `dirty`:
    the page's bit in the dirty bitmap, which exists only while userspace logs (`dirty_log`).
    """

    vcpu: Any
    value_names: ClassVar[Mapping[str, Mapping[Any, str]]] = _Names(
        type={HVMSG_NONE: "NONE", HVMSG_UNMAPPED_GPA: "UNMAPPED_GPA", HVMSG_TIMER_EXPIRED: "TIMER"},
        flags={0: "0", MSG_PENDING: "PENDING"},
        payload={"": "nothing"},
        sint={
            VECTOR: f"{VECTOR:#x}",
            SINT_MASKED: "MASKED",
            VECTOR | SINT_MASKED: "MASKED",
            VECTOR | SINT_AUTO_EOI: f"{VECTOR:#x}|AUTO_EOI",
        },
    )

    def __init__(self, vm: Any, name: str, sints: Mapping[int, int], *, dirty_log: bool = False) -> None:
        super().__init__(vm, name)
        self.named = frozenset(sints)
        self.scontrol = self.cell("scontrol", True)
        self.simp = self.cell("simp", True)
        self.memslot = self.cell("memslot", True)
        self.dirty_log = dirty_log
        self.dirty = self.cell("dirty", 0)
        registers = {nr: sints.get(nr, SINT_MASKED) for nr in range(SLOTS)}
        self.sint = {nr: self.cell(f"sint{nr}", register) for nr, register in registers.items()}
        live = [r for r in registers.values() if not r & SINT_MASKED]
        # bitmaps of 256 bits, as tuples of vectors
        self.vec_bitmap = self.cell("vec_bitmap", tuple(sorted({r & SINT_VECTOR for r in live})))
        auto_eoi = tuple(sorted({r & SINT_VECTOR for r in live if r & SINT_AUTO_EOI}))
        self.auto_eoi_bitmap = self.cell("auto_eoi_bitmap", auto_eoi)
        self.slots = {nr: Slot(self, nr) for nr in range(SLOTS)}

    def cell_at(self, offset: int) -> Cell:
        """The field that the byte at this offset of the page belongs to."""
        slot = self.slots[offset // SLOT_SIZE]
        byte = offset % SLOT_SIZE
        return next(slot.cells[field] for field, (first, end) in LAYOUT.items() if first <= byte < end)


# ---- the page, as the host reaches it -------------------------------------------------------------------------------------


async def kvm_vcpu_read_guest_page(synic: Synic, cell: Cell) -> int:
    """Copy a number from the page, or -EFAULT if no memslot holds it.  [kvm_main.c, __copy_from_user; types are not negative]"""
    if not await READ_ONCE(synic.memslot):
        return -EFAULT
    value: int = await READ_ONCE(cell)
    return value


async def kvm_vcpu_write_guest_page(synic: Synic, *stores: tuple[Cell, Any]) -> int:
    """Copy to the page, then mark it dirty.  [kvm_main.c __kvm_write_guest_page, __copy_to_user, mark_page_dirty_in_slot]"""
    if not await READ_ONCE(synic.memslot):
        return -EFAULT
    for cell, value in stores:
        await WRITE_ONCE(cell, value)
    await synic.vm.calls.mark_page_dirty(synic)
    return 0


async def mark_page_dirty(synic: Synic) -> None:
    """The page's bit in memslot->dirty_bitmap, if there is one.  [kvm_main.c mark_page_dirty_in_slot]"""
    if synic.dirty_log:
        await set_bit(0, synic.dirty)


def timer_message(synic: Synic, offset: int, message: str) -> list[tuple[Cell, Any]]:
    """Header and payload of a timer message, 40 bytes, in the order of their addresses.  [hyperv.c stimer_prepare_msg]"""
    fields = {"type": HVMSG_TIMER_EXPIRED, "size": TIMER_PAYLOAD_SIZE, "flags": 0, "reserved": 0, "sender": 0, "payload": message}
    return [(synic.cell_at(offset + LAYOUT[field][0]), value) for field, value in fields.items()]


# ---- delivery -------------------------------------------------------------------------------------------------------------


async def synic_deliver_msg(me: Actor, synic: Synic, sint: int, message: str, no_retry: bool = False) -> int:
    """Look, then either mark the slot or fill it; nothing is atomic.  [hyperv.c, 3a0e7731724f; no_retry since 7deec5e0df74]"""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    seen = await kvm_vcpu_read_guest_page(synic, synic.slots[sint].type)
    if seen < 0:
        return seen
    if seen != HVMSG_NONE:
        if no_retry:
            return 0
        return await mark_pending(synic, synic.slots[sint].flags)
    r = await kvm_vcpu_write_guest_page(synic, *timer_message(synic, sint * SLOT_SIZE, message))
    return r if r < 0 else await raise_sint(me, synic, sint)


async def mark_pending(synic: Synic, flags: Cell, value: int = MSG_PENDING) -> int:
    """The slot is busy: the whole byte of flags is written.  [the middle of hyperv.c synic_deliver_msg, 3a0e7731724f]"""
    r = await kvm_vcpu_write_guest_page(synic, (flags, value))
    return r if r < 0 else -EAGAIN


async def raise_sint(me: Actor, synic: Synic, sint: int) -> int:
    """The end of synic_deliver_msg(): what synic_set_irq() returned, as an error or 0.  [hyperv.c]"""
    r: int = await synic.vm.calls.synic_set_irq(me, synic, sint)
    return r if r < 0 else 0 if r else -EFAULT


async def synic_set_irq(me: Actor, synic: Synic, sint: int) -> int:
    """A fixed, edge interrupt to the own vCPU.  [hyperv.c]"""
    register = await READ_ONCE(synic.sint[sint])
    if register & SINT_MASKED:
        return -ENOENT
    me.note("kvm_hv_synic_set_irq", sint=sint)
    return await kvm_apic_set_irq(me, synic.vcpu, register & SINT_VECTOR)


async def kvm_apic_set_irq(me: Actor, vcpu: Any, vector: int) -> int:
    """Into IRR, request, kick: 1.  [lapic.c __apic_accept_irq; 0 for a LAPIC that its guest has disabled, which is left out]"""
    if not vcpu.lapic_in_kernel:
        await WRITE_ONCE(vcpu.oops, True)
        await await_eq(vcpu.oops, False)  # nothing ends it: a dead thread
    await vcpu.vm.calls.apic_test_and_set_irr(vcpu.apic, vector)
    await kvm_make_request(KVM_REQ_EVENT, vcpu)
    await kvm_vcpu_kick(me, vcpu)
    return 1


# ---- acknowledgement ------------------------------------------------------------------------------------------------------


async def kvm_hv_notify_acked_sint(vcpu: Any, sint: int) -> None:
    """The guest acknowledged this source: retry what is owed there.  [hyperv.c, 3a0e7731724f]"""
    for stimer in vcpu.stimers:
        if await is_owed(stimer, sint):
            await vcpu.vm.calls.stimer_mark_pending(vcpu, stimer, False)


async def is_owed(stimer: HrTimer, sint: int) -> bool:
    """Does this timer owe a message for this source?  [hyperv.c kvm_hv_notify_acked_sint]

    C looks at the source, which is fixed here, last.  What it has loaded from the timer of another source tells nothing and
    changes nothing; EOM, which asks for all 16 sources, would do so 15 times for each timer.
    """
    if stimer.sint != sint:
        return False
    return bool(await READ_ONCE(stimer.msg_pending) and await READ_ONCE(stimer.enable))


async def synic_eom(vcpu: Any) -> None:
    """The guest wrote EOM: all sources count as acknowledged.  [hyperv.c synic_set_msr, HV_X64_MSR_EOM]"""
    for sint in range(SLOTS):
        await vcpu.vm.calls.kvm_hv_notify_acked_sint(vcpu, sint)


async def kvm_hv_synic_send_eoi(vcpu: Any, vector: int) -> None:
    """The guest's EOI of this vector: its sources are acknowledged.  [hyperv.c, called from lapic.c apic_set_eoi]"""
    for sint, register in vcpu.synic.sint.items():
        if synic_get_sint_vector(await READ_ONCE(register)) == vector:
            await vcpu.vm.calls.kvm_hv_notify_acked_sint(vcpu, sint)


# ---- registers: the guest's writes, on the vCPU's thread ------------------------------------------------------------------


def synic_get_sint_vector(register: int) -> int:
    """The vector of a source, -1 if it is masked.  [hyperv.c]"""
    return -1 if register & SINT_MASKED else register & SINT_VECTOR


async def synic_set_scontrol(vcpu: Any, enable: bool) -> None:
    """Kept, and read by nobody but the guest and userspace.  [hyperv.c synic_set_msr, HV_X64_MSR_SCONTROL]"""
    await WRITE_ONCE(vcpu.synic.scontrol, enable)


async def synic_set_simp(vcpu: Any, enable: bool) -> None:
    """The guest wrote SIMP; with KVM_CAP_HYPERV_SYNIC2 the page is not zeroed.  [hyperv.c synic_set_msr, HV_X64_MSR_SIMP]"""
    await WRITE_ONCE(vcpu.synic.simp, enable)


async def synic_set_sint(vcpu: Any, sint: int, data: int) -> int:
    """The guest wrote SINTn: 1 (#GP) if it names no vector and is not masked.  [hyperv.c; KVM_REQ_SCAN_IOAPIC is left out]"""
    if data & SINT_VECTOR < FIRST_VALID_VECTOR and not data & SINT_MASKED:
        return 1
    return await set_sint(vcpu, sint, data)


async def set_sint(vcpu: Any, sint: int, data: int) -> int:
    """The write, and both bitmaps for the vector that was there and the one that is.  [hyperv.c synic_set_sint]"""
    register = vcpu.synic.sint[sint]
    old_vector = await READ_ONCE(register) & SINT_VECTOR
    await WRITE_ONCE(register, data)
    await synic_update_vector(vcpu.synic, old_vector)
    await synic_update_vector(vcpu.synic, data & SINT_VECTOR)
    return 0


async def synic_update_vector(synic: Synic, vector: int) -> None:
    """Is the vector any source's, and any auto-EOI source's?  [hyperv.c; APICv, which auto-EOI inhibits, is left out]"""
    if vector < FIRST_VALID_VECTOR:
        return
    for bitmap, flag in ((synic.vec_bitmap, 0), (synic.auto_eoi_bitmap, SINT_AUTO_EOI)):
        connected = False
        for register in synic.sint.values():
            value = await READ_ONCE(register)
            if synic_get_sint_vector(value) == vector and value & flag == flag:
                connected = True
                break
        others = tuple(v for v in await READ_ONCE(bitmap) if v != vector)
        await WRITE_ONCE(bitmap, tuple(sorted((*others, vector))) if connected else others)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        synic_deliver_msg,
        synic_set_irq,
        mark_page_dirty,
        kvm_hv_notify_acked_sint,
        synic_eom,
        synic_set_simp,
        synic_set_sint,
    )
}


# ---- 4.19 -----------------------------------------------------------------------------------------------------------------


async def deliver_msg_419(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """Takes the slot by an atomic cmpxchg, marks it only after that failed.  [hyperv.c synic_deliver_msg, 4.19]"""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    if not await READ_ONCE(synic.memslot):  # kvm_vcpu_gfn_to_page(); the page stays mapped from here on
        return -EFAULT
    slot = synic.slots[sint]
    if await cmpxchg(slot.type, HVMSG_NONE, HVMSG_TIMER_EXPIRED) != HVMSG_NONE:
        await WRITE_ONCE(slot.flags, await READ_ONCE(slot.flags) | MSG_PENDING)  # a bit field: load, or, store
        r = -EAGAIN
    else:
        await WRITE_ONCE(slot.payload, message)
        await WRITE_ONCE(slot.type, HVMSG_TIMER_EXPIRED)  # once more
        await WRITE_ONCE(slot.size, TIMER_PAYLOAD_SIZE)
        r = await raise_sint(me, synic, sint)
    await synic.vm.calls.mark_page_dirty(synic)
    return r


async def notify_acked_sint_419(vcpu: Any, sint: int) -> None:
    """Takes the pending bit back, whoever set it; then a bit for each timer that owes, and one request.  [hyperv.c, 4.19]"""
    await synic_clear_sint_msg_pending(vcpu.synic, sint)
    stimers_pending = 0
    for stimer in vcpu.stimers:
        if await is_owed(stimer, sint):
            await set_bit(stimer.index, vcpu.stimer_pending_bitmap)
            stimers_pending += 1
    if stimers_pending:
        await kvm_make_request(KVM_REQ_HV_STIMER, vcpu)


async def synic_clear_sint_msg_pending(synic: Synic, sint: int) -> None:
    """A bit field in guest memory: load, and, store; dirty even if it was clear.  [hyperv.c, 4.19, for an enabled page]

    For a source that the machine does not name C does so as well: a zero over a zero in a slot that nobody looks at.
    """
    if sint not in synic.named:
        return
    if not await READ_ONCE(synic.simp) or not await READ_ONCE(synic.memslot):
        return
    flags = synic.slots[sint].flags
    await WRITE_ONCE(flags, await READ_ONCE(flags) & ~MSG_PENDING)
    await synic.vm.calls.mark_page_dirty(synic)


BEFORE: dict[str, Callable[..., Any]] = {
    "synic_deliver_msg": deliver_msg_419,
    "kvm_hv_notify_acked_sint": notify_acked_sint_419,
}
