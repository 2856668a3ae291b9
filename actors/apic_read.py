"""Reads of the APIC's registers.  [lapic.c, 6.16]"""

from __future__ import annotations

from actors.apic_irq import apic_update_ppr
from actors.apic_regs import (
    APIC_ARBPRI,
    APIC_DFR,
    APIC_ICR,
    APIC_ICR2,
    APIC_ICR_HIGH,
    APIC_IRR,
    APIC_ISR,
    APIC_PROCPRI,
    APIC_TMCCT,
    APIC_TMR,
    LocalApic,
    apic_x2apic_mode,
    kvm_apic_hw_enabled,
    kvm_lapic_get_reg,
)
from actors.apic_timer import apic_get_tmcct
from actors.ops import READ_ONCE

_NOT_IN_X2APIC = (APIC_ARBPRI, APIC_DFR, APIC_ICR2)


async def kvm_lapic_reg_read(apic: LocalApic, offset: int) -> int | None:
    """A 32-bit register; None if there is none to read at `offset`.  [kvm_lapic_reg_read, kvm_lapic_readable_reg_mask]"""
    if offset in _NOT_IN_X2APIC and await apic_x2apic_mode(apic):
        return None
    for first, words in ((APIC_ISR, apic.isr), (APIC_TMR, apic.tmr), (APIC_IRR, apic.irr)):
        if first <= offset < first + 0x80 and not offset & 0xF:
            r = offset - first >> 4
            word: int = await READ_ONCE(words[r]) if r in words else 0
            return word
    if offset == APIC_ARBPRI:
        return 0
    if offset == APIC_TMCCT:
        return await apic_get_tmcct(apic)
    if offset == APIC_PROCPRI:
        await apic_update_ppr(apic)
    if offset not in apic.reg or offset == APIC_ICR_HIGH:
        return None
    return await kvm_lapic_get_reg(apic, offset)


async def apic_mmio_read(apic: LocalApic, offset: int) -> int | None:
    """A guest's 32-bit load from the xAPIC page: ones where no APIC answers, None where it has no register.  [lapic.c]"""
    if not await kvm_apic_hw_enabled(apic) or await apic_x2apic_mode(apic):
        return 0xFFFFFFFF  # KVM_X86_QUIRK_LAPIC_MMIO_HOLE
    return await kvm_lapic_reg_read(apic, offset)


async def kvm_x2apic_msr_read(apic: LocalApic, offset: int) -> int | None:
    """RDMSR 0x800 + offset/16: the ICR with 64 bits; None is #GP.  [lapic.c]"""
    if not await apic_x2apic_mode(apic):
        return None
    if offset == APIC_ICR:
        return await kvm_lapic_get_reg(apic, APIC_ICR_HIGH) << 32 | await kvm_lapic_get_reg(apic, APIC_ICR)
    return await kvm_lapic_reg_read(apic, offset)
