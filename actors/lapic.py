"""The local APIC: what senders write into it and what its own vCPU takes out.  [arch/x86/kvm/lapic.c]

Registers of 32 bits are cells (vector v lives in register v >> 5); only the registers that a machine's interrupt sources can
touch exist, since an access to a register that nobody sets changes nothing and tells nothing.  Taken as given: APIC software
enabled, physical destination mode, directed EOI off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from actors.actor import Actor, Cell
from actors.guest import (
    APIC_BROADCAST,
    APIC_DEST_ALLBUT,
    APIC_DEST_ALLINC,
    APIC_DEST_SELF,
    APIC_DM_FIXED,
    APIC_DM_INIT,
    APIC_DM_NMI,
    APIC_DM_STARTUP,
    X2APIC_BROADCAST,
)
from actors.ops import READ_ONCE, WRITE_ONCE, atomic_fetch_add, clear_bit, set_bit, smp_rmb, smp_wmb, test_and_set_bit, xchg
from actors.requests import (
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    Requested,
    kvm_make_request,
    kvm_vcpu_kick,
)

if TYPE_CHECKING:
    from actors.vcpu import Vcpu

KVM_APIC_INIT, KVM_APIC_SIPI = 0, 1
XAPIC_IDS = 255  # 0 to 0xFE


class Receiver(Protocol):
    """What a sender and a scan of the IRR need of an APIC: Lapic has it, and actors.apic_regs.LocalApic."""

    vm: Any
    name: str
    vcpu: Any
    pending_events: Cell
    sipi_vector: Cell
    irr_pending: Cell
    regs: tuple[int, ...]
    irr: dict[int, Cell]
    tmr: dict[int, Cell]


class NmiReceiver(Requested, Protocol):
    """What the sender of an NMI needs of a vCPU."""

    nmi_queued: Cell


class Lapic(Actor):
    """One local APIC; `vcpu` is its owner.  `vectors`: the fixed vectors that may ever be sent to it."""

    vcpu: Vcpu

    def __init__(self, vm: Any, name: str, vectors: tuple[int, ...] = ()) -> None:
        super().__init__(vm, name)
        self.pending_events = self.cell("pending_events")
        self.sipi_vector = self.cell("sipi_vector")
        self.icr = self.cell("icr")
        self.irr_pending = self.cell("irr_pending", False)
        self.regs = tuple(sorted({v >> 5 for v in vectors}, reverse=True))  # scanned from the highest down
        self.irr = {r: self.cell(f"irr{r}") for r in self.regs}
        self.tmr = {r: self.cell(f"tmr{r}") for r in self.regs}
        self.isr = self.cell("isr", ())  # only touched by its own vCPU: vectors in service, one cell


# ---- sender side: runs on whatever thread sends ---------------------------------------------------------------------------


async def apic_send_ipi(me: Vcpu, dest: int, mode: int, vector: int, level: bool, shorthand: int) -> None:
    """Deliver the IPI that an ICR write asks for.  [lapic.c apic_send_ipi, irq_comm.c kvm_irq_delivery_to_apic]"""
    await WRITE_ONCE(me.apic.icr, vector | mode << 8)
    for vcpu in _destinations(me, dest, shorthand):
        await me.vm.calls.apic_accept_irq(me, vcpu.apic, mode, vector, level, False)


def _destinations(me: Vcpu, dest: int, shorthand: int) -> list[Vcpu]:
    """Whom an ICR write names.  [lapic.c kvm_apic_match_dest; a single one is looked up, as in kvm_irq_delivery_to_apic_fast]"""
    vcpus: list[Vcpu] = me.vm.vcpus
    if shorthand == APIC_DEST_SELF:
        return [me]
    if shorthand == APIC_DEST_ALLBUT:
        return [vcpu for vcpu in vcpus if vcpu is not me]
    # A vCPU's number is its APIC ID.  Where those do not fit into 8 bits, the guest has switched all of them to x2APIC mode.
    if shorthand == APIC_DEST_ALLINC or dest == (APIC_BROADCAST if len(vcpus) <= XAPIC_IDS else X2APIC_BROADCAST):
        return vcpus
    return vcpus[dest : dest + 1]


async def apic_accept_irq(me: Actor, apic: Lapic, mode: int, vector: int, level: bool, trig_mode: bool) -> int:
    """`me` delivers one interrupt message to `apic`; returns 1 if accepted.  [lapic.c __apic_accept_irq]"""
    calls = apic.vm.calls
    if mode == APIC_DM_FIXED:
        accepted: int = await calls.apic_dm_fixed(me, apic, vector, trig_mode)
    elif mode == APIC_DM_NMI:
        accepted = await kvm_inject_nmi(me, apic.vcpu)
    elif mode == APIC_DM_INIT:
        if trig_mode and not level:
            return 0  # INIT level de-assert: ignored
        accepted = await calls.apic_dm_init(me, apic)
    elif mode == APIC_DM_STARTUP:
        accepted = await calls.apic_dm_startup(me, apic, vector)
    else:
        raise ValueError(f"{me.name} sends delivery mode {mode} to {apic.name}; modelled: fixed 0, NMI 4, INIT 5, startup 6")
    me.note("kvm_apic_accept_irq", apicid=apic.vcpu.id, mode=mode, vector=vector, accepted=accepted)
    return accepted


async def apic_dm_fixed(me: Actor, apic: Receiver, vector: int, trig_mode: bool) -> int:
    """case APIC_DM_FIXED: TMR before IRR, so that whoever sees the interrupt knows its trigger mode.  [a5d36f82c4f3]"""
    if vector >> 5 not in apic.irr:
        raise ValueError(
            f"{me.name} sends vector {vector:#x} to {apic.name}, whose machine was made without it\n"
            f"  name every vector that may be sent:  vm.add_vcpus(n, vectors=({vector:#x},))"
        )
    if trig_mode:
        await set_bit(vector & 31, apic.tmr[vector >> 5])
    else:
        await clear_bit(vector & 31, apic.tmr[vector >> 5])
    if await apic.vm.calls.apic_test_and_set_irr(apic, vector):
        return 0  # coalesced with one that is still pending
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def apic_test_and_set_irr(apic: Receiver, vector: int) -> int:
    """IRR bit first, hint second: the clearer goes the other way round.  [lapic.c apic_set_irr since f210f7572bed]"""
    old = await test_and_set_bit(vector & 31, apic.irr[vector >> 5])
    await WRITE_ONCE(apic.irr_pending, True)
    return old


async def kvm_inject_nmi(me: Actor, vcpu: NmiReceiver) -> int:
    """case APIC_DM_NMI.  [x86.c kvm_inject_nmi]"""
    await atomic_fetch_add(1, vcpu.nmi_queued)
    await kvm_make_request(KVM_REQ_NMI, vcpu)
    await kvm_vcpu_kick(me, vcpu)
    return 1


async def apic_dm_init(me: Actor, apic: Receiver) -> int:
    """case APIC_DM_INIT since 66450a21f996: latch the event; the plain store wipes an older SIPI on purpose."""
    await WRITE_ONCE(apic.pending_events, 1 << KVM_APIC_INIT)
    await smp_wmb()  # the event before the request: pairs with the barrier in kvm_check_request()
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def apic_dm_startup(me: Actor, apic: Receiver, vector: int) -> int:
    """case APIC_DM_STARTUP since 66450a21f996."""
    await WRITE_ONCE(apic.sipi_vector, vector)
    await smp_wmb()  # the vector before the bit: pairs with smp_rmb() in kvm_apic_accept_events()
    await set_bit(KVM_APIC_SIPI, apic.pending_events)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


# ---- sender side of 3.8: mp_state is the sender's to write, and the hint comes first -----------------------------------------


async def dm_init_before(me: Actor, apic: Receiver) -> int:
    """case APIC_DM_INIT: races with the target's own stores.  [lapic.c __apic_accept_irq, 3.8]"""
    await WRITE_ONCE(apic.vcpu.mp_state, KVM_MP_STATE_INIT_RECEIVED)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def dm_startup_before(me: Actor, apic: Receiver, vector: int) -> int:
    """case APIC_DM_STARTUP: dropped unless INIT is seen.  [lapic.c __apic_accept_irq, 3.8]"""
    if await READ_ONCE(apic.vcpu.mp_state) != KVM_MP_STATE_INIT_RECEIVED:
        return 0
    await WRITE_ONCE(apic.sipi_vector, vector)
    await WRITE_ONCE(apic.vcpu.mp_state, KVM_MP_STATE_SIPI_RECEIVED)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def m24_hint_first(apic: Receiver, vector: int) -> int:
    """The hint before the bit: I-M24.  [lapic.c apic_test_and_set_irr, 3.8 to 3.18]"""
    await WRITE_ONCE(apic.irr_pending, True)
    return await test_and_set_bit(vector & 31, apic.irr[vector >> 5])


# ---- target side: runs on the APIC's own vCPU thread, or on an ioctl that holds the vCPU's mutex --------------------------


async def kvm_apic_accept_events(me: Actor, vcpu: Vcpu) -> None:
    """Act on INIT and SIPI from a private copy of the event word.  [lapic.c, 3.11: 299018f44ac5]"""
    apic = vcpu.apic
    if not await READ_ONCE(apic.pending_events):
        return
    pe = await xchg(apic.pending_events, 0)
    if pe & 1 << KVM_APIC_INIT:
        await accept_init(me, vcpu)
    if pe & 1 << KVM_APIC_SIPI and await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
        await smp_rmb()  # the bit before the vector
        await accept_sipi(me, vcpu)


async def accept_init(me: Actor, vcpu: Vcpu) -> None:
    """The INIT half of kvm_apic_accept_events(): reset, then wait for SIPI (AP) or restart (BSP)."""
    calls = vcpu.vm.calls
    await kvm_lapic_reset(vcpu.apic)
    await calls.kvm_vcpu_reset(vcpu)
    me.note("init_processed", vcpu=vcpu.id)
    await WRITE_ONCE(vcpu.mp_state, calls.mp_state_after_init(vcpu))


def mp_state_after_init(vcpu: Vcpu) -> int:
    """BSP: RUNNABLE at the reset vector.  AP: wait for SIPI."""
    return KVM_MP_STATE_RUNNABLE if vcpu.is_bsp else KVM_MP_STATE_INIT_RECEIVED


async def accept_sipi(me: Actor, vcpu: Vcpu) -> None:
    """The SIPI half of kvm_apic_accept_events(): start at the vector."""
    vector = await READ_ONCE(vcpu.apic.sipi_vector)
    await vcpu.vm.calls.kvm_vcpu_deliver_sipi_vector(vcpu, vector)
    me.note("sipi_processed", vcpu=vcpu.id, vector=vector)
    await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE)


async def kvm_lapic_reset(apic: Lapic) -> None:
    """INIT's effect on the registers that are modelled.  [lapic.c kvm_lapic_reset]"""
    await WRITE_ONCE(apic.icr, 0)
    await WRITE_ONCE(apic.isr, ())
    for reg in apic.regs:
        await WRITE_ONCE(apic.irr[reg], 0)
        await WRITE_ONCE(apic.tmr[reg], 0)
    await WRITE_ONCE(apic.irr_pending, False)


async def apic_search_irr(apic: Receiver) -> int:
    """The highest vector in IRR, or -1.  [lapic.c find_highest_vector]"""
    for reg in apic.regs:
        word: int = await READ_ONCE(apic.irr[reg])
        if word:
            return reg * 32 + word.bit_length() - 1
    return -1


async def apic_find_highest_irr(apic: Receiver) -> int:
    """As apic_search_irr(), spared when the hint says there is nothing.  [lapic.c]"""
    if not await READ_ONCE(apic.irr_pending):
        return -1
    return await apic_search_irr(apic)


async def kvm_apic_has_interrupt(apic: Lapic) -> int:
    """The vector to inject now, or -1: above the processor priority.  [lapic.c; TPR stays 0 here]"""
    vector = await apic_find_highest_irr(apic)
    if vector < 0:
        return -1
    in_service: tuple[int, ...] = await READ_ONCE(apic.isr)
    ppr = max(in_service, default=0) & 0xF0
    return vector if vector & 0xF0 > ppr else -1


async def kvm_get_apic_interrupt(apic: Lapic, vector: int) -> None:
    """Move `vector` from IRR to ISR: hint false, clear, rescan, hint true if any.  [lapic.c apic_clear_irr, apic_set_isr]"""
    await WRITE_ONCE(apic.irr_pending, False)
    await clear_bit(vector & 31, apic.irr[vector >> 5])
    if await apic_search_irr(apic) != -1:
        await WRITE_ONCE(apic.irr_pending, True)
    in_service = await READ_ONCE(apic.isr)
    await WRITE_ONCE(apic.isr, (*in_service, vector))


async def apic_set_eoi(me: Vcpu, apic: Lapic) -> None:
    """The guest's EOI: drop the highest vector in service; tell the IOAPIC if it was level triggered.  [lapic.c]"""
    in_service: tuple[int, ...] = await READ_ONCE(apic.isr)
    if not in_service:
        return
    vector = max(in_service)
    await WRITE_ONCE(apic.isr, tuple(v for v in in_service if v != vector))
    me.note("kvm_eoi", apicid=me.id, vector=vector)
    if await READ_ONCE(apic.tmr[vector >> 5]) >> (vector & 31) & 1:
        await kvm_ioapic_update_eoi(me, vector)
    await kvm_make_request(KVM_REQ_EVENT, me)


async def kvm_ioapic_update_eoi(me: Actor, vector: int) -> None:
    """EOI broadcast: the IOAPIC entries of that vector may fire again.  [ioapic.c]"""
    for device in me.vm.devices:
        if device.vector == vector and device.level:
            await WRITE_ONCE(device.remote_irr, False)
