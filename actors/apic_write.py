"""Writes to the APIC: its registers by MMIO and MSR, the ICR, IA32_APIC_BASE, reset.  [lapic.c, 6.16]

All run on the APIC's own vCPU, or in an ioctl that holds its mutex; the interrupts that a write sends go wherever they go.
"""

from __future__ import annotations

from actors.actor import Actor
from actors.apic_irq import apic_set_eoi, apic_set_tpr, apic_update_ppr, kvm_apic_update_apicv
from actors.apic_map import DIRTY, LapicIrq
from actors.apic_regs import (
    APIC_BASE_RESERVED,
    APIC_DEFAULT_PHYS_BASE,
    APIC_DEST_LOGICAL,
    APIC_DFR,
    APIC_DFR_FLAT,
    APIC_EOI,
    APIC_ESR,
    APIC_ICR,
    APIC_ICR2,
    APIC_ICR_BUSY,
    APIC_ICR_HIGH,
    APIC_ID,
    APIC_INT_ASSERT,
    APIC_INT_LEVELTRIG,
    APIC_LDR,
    APIC_LDR_MASK,
    APIC_LVR,
    APIC_LVR_DIRECTED_EOI,
    APIC_LVT0,
    APIC_LVT_MASKED,
    APIC_LVT_WRITABLE,
    APIC_LVTT,
    APIC_MODE_EXTINT_LVT,
    APIC_SELF_IPI,
    APIC_SPIV,
    APIC_SPIV_APIC_ENABLED,
    APIC_SPIV_DIRECTED_EOI,
    APIC_TASKPRI,
    APIC_TDCR,
    APIC_TMICT,
    APIC_VECTOR_MASK,
    MSR_IA32_APICBASE_BSP,
    MSR_IA32_APICBASE_ENABLE,
    X2APIC_ENABLE,
    X2APIC_ICR_RESERVED_BITS,
    ApicKvm,
    ApicVcpu,
    LocalApic,
    apic_x2apic_mode,
    kvm_apic_calc_x2apic_ldr,
    kvm_apic_hw_enabled,
    kvm_apic_sw_enabled,
    kvm_lapic_get_reg,
    kvm_lapic_set_reg,
)
from actors.apic_timer import apic_update_lvtt, write_timer
from actors.guest import APIC_DEST_SELF
from actors.ops import READ_ONCE, WRITE_ONCE, smp_store_release

# ---- registers --------------------------------------------------------------------------------------------------------------


async def mark_apic_map_dirty(kvm: ApicKvm) -> None:
    """Something that the map is made of has changed: who changed it makes the map anew before it goes on.  [lapic.c]"""
    await smp_store_release(kvm.apic_map_dirty, DIRTY)


async def set_and_mark(apic: LocalApic, offset: int, value: int) -> None:
    """Store a register that the map is made of.  [kvm_apic_set_xapic_id, kvm_apic_set_ldr, kvm_apic_set_dfr]"""
    await kvm_lapic_set_reg(apic, offset, value)
    await apic.vm.calls.mark_apic_map_dirty(apic.vcpu.kvm)


async def apic_set_spiv(apic: LocalApic, value: int) -> None:
    """SVR; bit 8 is the software enable.  [lapic.c]"""
    enabled = bool(value & APIC_SPIV_APIC_ENABLED)
    await kvm_lapic_set_reg(apic, APIC_SPIV, value)
    if enabled != await kvm_apic_sw_enabled(apic):
        await WRITE_ONCE(apic.sw_enabled, enabled)
        await apic.vm.calls.mark_apic_map_dirty(apic.vcpu.kvm)


async def write_spiv(me: Actor, apic: LocalApic, value: int) -> None:
    """case APIC_SPIV: disabling masks all LVT registers, and enabling does not unmask them."""
    mask = 0x3FF
    if await kvm_lapic_get_reg(apic, APIC_LVR) & APIC_LVR_DIRECTED_EOI:
        mask |= APIC_SPIV_DIRECTED_EOI
    await apic_set_spiv(apic, value & mask)
    if not value & APIC_SPIV_APIC_ENABLED:
        for lvt in apic.lvt:
            await kvm_lapic_set_reg(apic, lvt, await kvm_lapic_get_reg(apic, lvt) | APIC_LVT_MASKED)
        await apic_update_lvtt(apic)
        if apic.timer is not None:
            await WRITE_ONCE(apic.timer.pending, 0)


async def write_lvt(apic: LocalApic, offset: int, value: int) -> None:
    """The LVT registers: masked while the APIC is software disabled, and without the bits that do not exist."""
    if not await kvm_apic_sw_enabled(apic):
        value |= APIC_LVT_MASKED
    await kvm_lapic_set_reg(apic, offset, value & APIC_LVT_WRITABLE[offset])
    if offset == APIC_LVTT:
        await apic_update_lvtt(apic)


async def kvm_lapic_reg_write(me: Actor, apic: LocalApic, offset: int, value: int) -> bool:
    """One 32-bit write; False if the register does not exist, is read-only, or refuses the value.  [lapic.c]"""
    accepted = await write_register(me, apic, offset, value)
    await apic.vm.calls.kvm_recalculate_apic_map(me, apic.vcpu.kvm)
    return accepted


async def write_register(me: Actor, apic: LocalApic, offset: int, value: int) -> bool:
    """The switch in kvm_lapic_reg_write()."""
    x2apic = await apic_x2apic_mode(apic)
    if offset == APIC_TASKPRI:
        await apic_set_tpr(apic, value & 0xFF)
    elif offset == APIC_EOI:
        await apic_set_eoi(me, apic)
    elif offset == APIC_SPIV:
        await apic.vm.calls.write_spiv(me, apic, value)
    elif offset in apic.lvt:
        await write_lvt(apic, offset, value)
    elif offset == APIC_ESR:
        return not (x2apic and value)  # KVM has no error model: it stays 0
    elif offset == APIC_SELF_IPI:
        if not x2apic or value & ~APIC_VECTOR_MASK:
            return False
        await kvm_apic_send_ipi(me, apic, APIC_DEST_SELF << 18 | value, 0)
    elif offset in (APIC_TMICT, APIC_TDCR):
        await write_timer(apic, offset, value)
    elif x2apic:
        return False  # the others cannot be written in x2APIC mode, the ICR not by this way
    elif offset == APIC_ID:
        await set_and_mark(apic, APIC_ID, value & 0xFF000000)
    elif offset == APIC_LDR:
        await set_and_mark(apic, APIC_LDR, value & APIC_LDR_MASK)
    elif offset == APIC_DFR:
        await set_and_mark(apic, APIC_DFR, value | 0x0FFFFFFF)
    elif offset == APIC_ICR:
        value &= ~APIC_ICR_BUSY
        await kvm_apic_send_ipi(me, apic, value, await kvm_lapic_get_reg(apic, APIC_ICR2))
        await kvm_lapic_set_reg(apic, APIC_ICR, value)
    elif offset == APIC_ICR2:
        await kvm_lapic_set_reg(apic, APIC_ICR2, value & 0xFF000000)
    else:
        return False
    return True


async def apic_mmio_write(me: Actor, apic: LocalApic, offset: int, value: int) -> bool:
    """A guest's 32-bit store to the xAPIC page; nothing says that a register is not there.  False: no APIC answers.  [lapic.c]"""
    if not await kvm_apic_hw_enabled(apic) or await apic_x2apic_mode(apic):
        return False
    await kvm_lapic_reg_write(me, apic, offset, value)
    return True


async def kvm_x2apic_msr_write(me: Actor, apic: LocalApic, offset: int, value: int) -> bool:
    """WRMSR 0x800 + offset/16; False means #GP.  [lapic.c kvm_x2apic_msr_write, kvm_lapic_msr_write]"""
    if not await apic_x2apic_mode(apic):
        return False
    if offset == APIC_ICR:
        return await kvm_x2apic_icr_write(me, apic, value)
    return not value >> 32 and await kvm_lapic_reg_write(me, apic, offset, value)


async def kvm_x2apic_icr_write(me: Actor, apic: LocalApic, value: int) -> bool:
    """The 64-bit ICR; the busy bit is accepted, and dropped.  [lapic.c]"""
    if value & X2APIC_ICR_RESERVED_BITS:
        return False
    value &= ~APIC_ICR_BUSY
    await kvm_apic_send_ipi(me, apic, value & 0xFFFFFFFF, value >> 32)
    await kvm_lapic_set_reg(apic, APIC_ICR, value & 0xFFFFFFFF)
    await kvm_lapic_set_reg(apic, APIC_ICR_HIGH, value >> 32)
    return True


async def kvm_apic_send_ipi(me: Actor, apic: LocalApic, icr_low: int, icr_high: int) -> None:
    """What an ICR value asks for.  [lapic.c]"""
    irq = LapicIrq(
        vector=icr_low & APIC_VECTOR_MASK,
        delivery_mode=icr_low >> 8 & 7,
        dest_id=icr_high if await apic_x2apic_mode(apic) else icr_high >> 24,
        logical=bool(icr_low & APIC_DEST_LOGICAL),
        level=bool(icr_low & APIC_INT_ASSERT),
        trig_mode=bool(icr_low & APIC_INT_LEVELTRIG),
        shorthand=icr_low >> 18 & 3,
    )
    await apic.vm.calls.kvm_irq_delivery_to_apic(me, apic.vcpu.kvm, apic.vcpu, irq)


# ---- IA32_APIC_BASE and reset -----------------------------------------------------------------------------------------------


async def kvm_apic_set_base(me: Actor, vcpu: ApicVcpu, value: int, host_initiated: bool) -> bool:
    """IA32_APIC_BASE; False if it is refused.  A guest may not go from x2APIC to xAPIC, nor from off to x2APIC.  [lapic.c]"""
    old = await READ_ONCE(vcpu.apic_base)
    if old == value:
        return True
    x2apic, enabled = value & X2APIC_ENABLE, value & MSR_IA32_APICBASE_ENABLE
    if value & APIC_BASE_RESERVED or (x2apic and not enabled):
        return False
    if not host_initiated:
        if old & X2APIC_ENABLE and enabled and not x2apic:
            return False
        if not old & MSR_IA32_APICBASE_ENABLE and x2apic:
            return False
    await change_apic_base(vcpu, old, value)
    await vcpu.vm.calls.kvm_recalculate_apic_map(me, vcpu.kvm)
    return True


async def change_apic_base(vcpu: ApicVcpu, old: int, value: int) -> None:
    """The ids that a change of mode gives.  [lapic.c __kvm_apic_set_base]"""
    apic = vcpu.apic
    await WRITE_ONCE(vcpu.apic_base, value)
    changed = old ^ value
    if changed & MSR_IA32_APICBASE_ENABLE:
        if value & MSR_IA32_APICBASE_ENABLE:
            await set_and_mark(apic, APIC_ID, (vcpu.id & 0xFF) << 24)
        else:
            await vcpu.vm.calls.mark_apic_map_dirty(vcpu.kvm)
    if changed & X2APIC_ENABLE:
        if value & X2APIC_ENABLE:
            await kvm_lapic_set_reg(apic, APIC_ID, vcpu.id)
            await set_and_mark(apic, APIC_LDR, kvm_apic_calc_x2apic_ldr(vcpu.id))
        elif value & MSR_IA32_APICBASE_ENABLE:
            await set_and_mark(apic, APIC_ID, (vcpu.id & 0xFF) << 24)


async def kvm_lapic_reset(me: Actor, vcpu: ApicVcpu, init_event: bool) -> None:
    """RESET, or INIT, which keeps IA32_APIC_BASE and the id, and with them x2APIC mode.  [lapic.c]"""
    apic = vcpu.apic
    if not init_event:
        base = APIC_DEFAULT_PHYS_BASE | MSR_IA32_APICBASE_ENABLE | (MSR_IA32_APICBASE_BSP if vcpu.is_bsp else 0)
        await change_apic_base(vcpu, await READ_ONCE(vcpu.apic_base), base)
    if apic.timer is not None:
        await WRITE_ONCE(apic.timer.expires, None)  # hrtimer_cancel()
    if not init_event:
        await set_and_mark(apic, APIC_ID, (vcpu.id & 0xFF) << 24)
    for lvt in apic.lvt:
        await kvm_lapic_set_reg(apic, lvt, APIC_LVT_MASKED)
    await apic_update_lvtt(apic)
    if vcpu.is_bsp:
        await kvm_lapic_set_reg(apic, APIC_LVT0, APIC_MODE_EXTINT_LVT)
    x2apic = await apic_x2apic_mode(apic)
    await set_and_mark(apic, APIC_DFR, APIC_DFR_FLAT)
    await apic_set_spiv(apic, 0xFF)
    await kvm_lapic_set_reg(apic, APIC_TASKPRI, 0)
    if not x2apic:
        await set_and_mark(apic, APIC_LDR, 0)
    for offset in (APIC_ESR, APIC_ICR, APIC_ICR_HIGH if x2apic else APIC_ICR2, APIC_TDCR, APIC_TMICT):
        await kvm_lapic_set_reg(apic, offset, 0)
    for r in apic.regs:
        await WRITE_ONCE(apic.irr[r], 0)
        await WRITE_ONCE(apic.isr[r], 0)
        await WRITE_ONCE(apic.tmr[r], 0)
    await kvm_apic_update_apicv(apic)
    if apic.timer is not None:
        await WRITE_ONCE(apic.timer.pending, 0)
    await apic_update_ppr(apic)
    await WRITE_ONCE(apic.apic_arb_prio, 0)
    await vcpu.vm.calls.kvm_recalculate_apic_map(me, vcpu.kvm)
