"""What happens to an interrupt in one APIC: TMR and IRR, priority, acknowledge, EOI.  [lapic.c, 6.16]

The sender's side runs on whatever thread sends, the rest on the APIC's own vCPU (or an ioctl that holds its mutex): ISR, TPR and
PPR have one writer, IRR and TMR have many, and that is where the order of accesses matters.
"""

from __future__ import annotations

from actors.actor import Actor
from actors.apic_regs import (
    APIC_DM_EXTINT,
    APIC_DM_LOWEST,
    APIC_DM_REMRD,
    APIC_DM_SMI,
    APIC_LVT_LEVEL_TRIGGER,
    APIC_LVT_MASKED,
    APIC_LVTPC,
    APIC_PROCPRI,
    APIC_TASKPRI,
    APIC_VECTOR_MASK,
    ApicVcpu,
    LocalApic,
    apic_enabled,
    apic_test_vector,
    cells_missing,
    kvm_apic_hw_enabled,
    kvm_lapic_get_reg,
    kvm_lapic_set_reg,
)
from actors.guest import APIC_DM_FIXED, APIC_DM_INIT, APIC_DM_NMI, APIC_DM_STARTUP
from actors.lapic import Receiver, apic_find_highest_irr, apic_search_irr, kvm_ioapic_update_eoi
from actors.ops import READ_ONCE, WRITE_ONCE, atomic_fetch_add, clear_bit, set_bit
from actors.requests import KVM_REQ_EVENT, kvm_make_request, kvm_vcpu_kick

# ---- sender side ------------------------------------------------------------------------------------------------------------


async def apic_accept_irq(me: Actor, apic: LocalApic, mode: int, vector: int, level: bool, trig_mode: bool) -> int:
    """`me` delivers one interrupt message to `apic`: 1 if it was taken.  [lapic.c __apic_accept_irq]"""
    calls, taken = apic.vm.calls, 0
    if mode in (APIC_DM_FIXED, APIC_DM_LOWEST):
        if mode == APIC_DM_LOWEST:
            await atomic_fetch_add(1, apic.apic_arb_prio)
        if not calls.deasserted(level, trig_mode) and await apic_enabled(apic):
            taken = await calls.apic_dm_fixed(me, apic, vector, trig_mode)
    elif mode == APIC_DM_REMRD:
        taken = await calls.apic_dm_remrd(me, apic)
    elif mode == APIC_DM_NMI:
        taken = await calls.kvm_inject_nmi(me, apic.vcpu)
    elif mode == APIC_DM_INIT:
        if level or not trig_mode:
            taken = await calls.apic_dm_init(me, apic)
    elif mode == APIC_DM_STARTUP:
        taken = await calls.apic_dm_startup(me, apic, vector)
    elif mode not in (APIC_DM_SMI, APIC_DM_EXTINT):  # no SMM here, and an ExtINT only comes from LINT0
        raise ValueError(f"{me.name} sends delivery mode {mode} to {apic.name}; there are 0 to 7")
    me.note("kvm_apic_accept_irq", apicid=apic.vcpu.id, mode=mode, vector=vector, accepted=taken)
    return taken


def deasserted(level: bool, trig_mode: bool) -> bool:
    """A level interrupt without the assert bit is none; that bit means nothing to an edge.  [__apic_accept_irq]"""
    return trig_mode and not level


async def apic_dm_fixed(me: Actor, apic: LocalApic, vector: int, trig_mode: bool) -> int:
    """case APIC_DM_FIXED: TMR before IRR, so that whoever sees the interrupt knows its trigger mode.  [a5d36f82c4f3]

    A vector that is pending already is taken all the same, and the vCPU is told again.
    """
    calls = apic.vm.calls
    if vector >> 5 not in apic.irr:
        raise cells_missing(apic, vector)
    await calls.apic_set_tmr(apic, vector, trig_mode)
    await calls.kvm_lapic_set_irr(apic, vector)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def apic_set_tmr(apic: Receiver, vector: int, trig_mode: bool) -> None:
    """The trigger mode of what is about to become pending; no write if it is that already.  [__apic_accept_irq]"""
    word = apic.tmr[vector >> 5]
    if await apic_test_vector(word, vector) != trig_mode:
        await (set_bit(vector & 31, word) if trig_mode else clear_bit(vector & 31, word))


async def kvm_lapic_set_irr(apic: Receiver, vector: int) -> None:
    """IRR bit first, hint second: the clearer goes the other way round.  [lapic.h]"""
    await set_bit(vector & 31, apic.irr[vector >> 5])
    await WRITE_ONCE(apic.irr_pending, True)


async def apic_dm_remrd(me: Actor, apic: LocalApic) -> int:
    """case APIC_DM_REMRD, which hardware has not: KVM's paravirtual kick of a halted vCPU.  [6aef266c6e17, 3.12]"""
    await WRITE_ONCE(apic.vcpu.pv_unhalted, True)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def kvm_apic_local_deliver(me: Actor, apic: LocalApic, lvt: int) -> int:
    """An interrupt of the APIC's own: what LVT register `lvt` says.  [lapic.c; a PMI masks its register, Intel]"""
    value = await kvm_lapic_get_reg(apic, lvt)
    if not await kvm_apic_hw_enabled(apic) or value & APIC_LVT_MASKED:
        return 0
    taken: int = await apic.vm.calls.apic_accept_irq(
        me, apic, value >> 8 & 7, value & APIC_VECTOR_MASK, True, bool(value & APIC_LVT_LEVEL_TRIGGER)
    )
    if taken and lvt == APIC_LVTPC:
        await kvm_lapic_set_reg(apic, lvt, value | APIC_LVT_MASKED)
    return taken


# ---- priority ---------------------------------------------------------------------------------------------------------------


async def apic_find_highest_isr(apic: LocalApic) -> int:
    """The highest vector in service, or -1; remembered while it is the one that was acked last.  [lapic.c]"""
    if not apic.vcpu.isr_count:
        return -1
    if apic.vcpu.highest_isr_cache != -1:
        return apic.vcpu.highest_isr_cache
    for r in apic.regs:
        word: int = await READ_ONCE(apic.isr[r])
        if word:
            return r * 32 + word.bit_length() - 1
    return -1


def processor_priority(tpr: int, isrv: int) -> int:
    """PPR of a TPR and the highest vector in service (0: none).  [Intel SDM vol. 3, 10.8.3.1]"""
    return tpr & 0xFF if tpr & 0xF0 >= isrv & 0xF0 else isrv & 0xF0


async def calc_ppr(apic: LocalApic) -> tuple[bool, int]:
    """Bring PPR up to date: (was it lowered, PPR).  [lapic.c __apic_update_ppr]"""
    old = await kvm_lapic_get_reg(apic, APIC_PROCPRI)
    tpr = await kvm_lapic_get_reg(apic, APIC_TASKPRI)
    ppr: int = apic.vm.calls.processor_priority(tpr, max(await apic_find_highest_isr(apic), 0))
    if ppr != old:
        await kvm_lapic_set_reg(apic, APIC_PROCPRI, ppr)
    return ppr < old, ppr


async def apic_has_interrupt_for_ppr(apic: LocalApic, ppr: int) -> int:
    """The highest vector pending if its class is above PPR, or -1.  [lapic.c]"""
    highest = await apic_find_highest_irr(apic)
    return highest if apic.vm.calls.above_ppr(highest, ppr) else -1


def above_ppr(vector: int, ppr: int) -> bool:
    """May `vector` (-1: none) be delivered?  It is its class that counts.  [apic_has_interrupt_for_ppr]"""
    return vector != -1 and vector & 0xF0 > ppr


async def apic_update_ppr(apic: LocalApic) -> None:
    """PPR may have been lowered: whatever may be delivered now is to be looked at.  [lapic.c]"""
    lowered, ppr = await calc_ppr(apic)
    if lowered and await apic_has_interrupt_for_ppr(apic, ppr) != -1:
        await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)


async def apic_set_tpr(apic: LocalApic, tpr: int) -> None:
    """TPR.  [lapic.c]"""
    await kvm_lapic_set_reg(apic, APIC_TASKPRI, tpr)
    await apic_update_ppr(apic)


async def kvm_apic_has_interrupt(vcpu: ApicVcpu) -> int:
    """The vector to inject now, or -1.  [lapic.c; software disabled or not]"""
    if not await kvm_apic_hw_enabled(vcpu.apic):
        return -1
    _, ppr = await calc_ppr(vcpu.apic)
    return await apic_has_interrupt_for_ppr(vcpu.apic, ppr)


# ---- acknowledge and EOI ----------------------------------------------------------------------------------------------------


async def kvm_apic_ack_interrupt(apic: LocalApic, vector: int) -> None:
    """Move `vector` from IRR to ISR.  [lapic.c]"""
    await apic.vm.calls.apic_clear_irr(apic, vector)
    await apic_set_isr(apic, vector)
    await calc_ppr(apic)


async def apic_clear_irr(apic: LocalApic, vector: int) -> None:
    """Hint false, clear, rescan, hint true if any is left.  [lapic.c]"""
    await WRITE_ONCE(apic.irr_pending, False)
    await clear_bit(vector & 31, apic.irr[vector >> 5])
    if await apic_search_irr(apic) != -1:
        await WRITE_ONCE(apic.irr_pending, True)


async def apic_set_isr(apic: LocalApic, vector: int) -> None:
    """It is above all in service, or it would not have been injected.  [lapic.c]"""
    word = apic.isr[vector >> 5]
    old = await READ_ONCE(word)
    if old >> (vector & 31) & 1:
        return
    await WRITE_ONCE(word, old | 1 << (vector & 31))
    apic.vcpu.isr_count += 1
    apic.vcpu.highest_isr_cache = vector


async def apic_clear_isr(apic: LocalApic, vector: int) -> None:
    """Out of service.  [lapic.c]"""
    word = apic.isr[vector >> 5]
    old = await READ_ONCE(word)
    if old >> (vector & 31) & 1:
        await WRITE_ONCE(word, old & ~(1 << (vector & 31)))
        apic.vcpu.isr_count -= 1
        apic.vcpu.highest_isr_cache = -1


async def apic_set_eoi(me: Actor, apic: LocalApic) -> int:
    """EOI: the highest vector in service is done; the I/O APIC hears of it.  Returns it, -1 if there was none.  [lapic.c]"""
    calls = apic.vm.calls
    vector: int = await calls.eoi_vector(apic)
    if vector == -1:
        return vector
    me.note("kvm_eoi", apicid=apic.vcpu.id, vector=vector)
    await apic_clear_isr(apic, vector)
    await apic_update_ppr(apic)
    await calls.kvm_ioapic_send_eoi(me, apic, vector)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    return vector


async def eoi_vector(apic: LocalApic) -> int:
    """What an EOI ends.  [apic_set_eoi]"""
    return await apic_find_highest_isr(apic)


async def kvm_ioapic_send_eoi(me: Actor, apic: LocalApic, vector: int) -> None:
    """EOI broadcast of a level interrupt.  [lapic.c]"""
    if not me.vm.devices:
        return  # split irqchip: userspace has none either
    if await apic_test_vector(apic.tmr[vector >> 5], vector):
        await kvm_ioapic_update_eoi(me, vector)


async def count_vectors(apic: LocalApic) -> int:
    """How many vectors are in service.  [lapic.c count_vectors]"""
    count = 0
    for r in apic.regs:
        word: int = await READ_ONCE(apic.isr[r])
        count += word.bit_count()
    return count


async def kvm_apic_update_apicv(apic: LocalApic) -> None:
    """After all registers were replaced: the hint is true until a scan says otherwise, nothing is remembered.  [lapic.c]"""
    await WRITE_ONCE(apic.irr_pending, True)
    apic.vcpu.isr_count = await count_vectors(apic)
    apic.vcpu.highest_isr_cache = -1
