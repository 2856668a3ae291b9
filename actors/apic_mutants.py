"""APICs that are broken on purpose, each in one place: what recorded vectors have to notice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from actors.actor import Actor
from actors.apic_events import kvm_set_mp_state, kvm_vcpu_has_events
from actors.apic_irq import kvm_lapic_set_irr
from actors.apic_map import CLEAN, LapicIrq, kvm_apic_match_dest, kvm_irq_delivery_to_apic, make_apic_map
from actors.apic_regs import (
    APIC_LVT_MASKED,
    APIC_PROCPRI,
    APIC_SPIV_APIC_ENABLED,
    ApicKvm,
    ApicVcpu,
    LocalApic,
    apic_test_vector,
    kvm_lapic_get_reg,
    kvm_lapic_set_reg,
)
from actors.apic_write import write_spiv
from actors.guest import APIC_BROADCAST, X2APIC_BROADCAST
from actors.lapic import KVM_APIC_INIT, KVM_APIC_SIPI, Receiver
from actors.ops import (
    READ_ONCE,
    WRITE_ONCE,
    clear_bit,
    set_bit,
    smp_store_release,
    smp_wmb,
    test_and_clear_bit,
    test_and_set_bit,
    xchg,
)
from actors.requests import (
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED,
    KVM_REQ_EVENT,
    kvm_make_request,
    kvm_vcpu_kick,
)


class Broken(NamedTuple):
    """What is wrong with it, and the functions that make it so."""

    about: str
    replaces: Mapping[str, Callable[..., Any]]


# ---- priority ---------------------------------------------------------------------------------------------------------------


def ppr_without_isr(tpr: int, isrv: int) -> int:
    """What is in service is forgotten."""
    return tpr & 0xFF


def ppr_with_low_nibble(tpr: int, isrv: int) -> int:
    """The whole vector in service instead of its class."""
    return tpr & 0xFF if tpr & 0xF0 >= isrv & 0xF0 else isrv


def vector_above_ppr(vector: int, ppr: int) -> bool:
    """The vector is compared with PPR, not its class."""
    return vector > ppr


async def lowest_vector_in_service(apic: LocalApic) -> int:
    """EOI ends what is lowest."""
    for r in reversed(apic.regs):
        word: int = await READ_ONCE(apic.isr[r])
        if word:
            return r * 32 + (word & -word).bit_length() - 1
    return -1


# ---- IRR and TMR ------------------------------------------------------------------------------------------------------------


async def tmr_after_irr(me: Actor, apic: LocalApic, vector: int, trig_mode: bool) -> int:
    """TMR after IRR, and so not for a vector that is pending already.  [__apic_accept_irq before a5d36f82c4f3]"""
    if await test_and_set_bit(vector & 31, apic.irr[vector >> 5]):
        return 1
    await WRITE_ONCE(apic.irr_pending, True)
    await apic.vm.calls.apic_set_tmr(apic, vector, trig_mode)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def tmr_stays_level(apic: Receiver, vector: int, trig_mode: bool) -> None:
    """An edge interrupt does not clear the TMR bit of a level one."""
    word = apic.tmr[vector >> 5]
    if trig_mode and not await apic_test_vector(word, vector):
        await set_bit(vector & 31, word)


async def low_vectors_refused(me: Actor, apic: LocalApic, vector: int, trig_mode: bool) -> int:
    """Vectors 0 to 15 are illegal, as the SDM has it."""
    if vector < 16:
        return 0
    await apic.vm.calls.apic_set_tmr(apic, vector, trig_mode)
    await kvm_lapic_set_irr(apic, vector)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def irr_kept(apic: LocalApic, vector: int) -> None:
    """An interrupt that is acknowledged stays pending."""


def level_always_asserted(level: bool, trig_mode: bool) -> bool:
    """A level interrupt counts when it is de-asserted, too."""
    return False


def edge_needs_assert(level: bool, trig_mode: bool) -> bool:
    """An edge interrupt without the assert bit is dropped."""
    return not level


# ---- software disable -------------------------------------------------------------------------------------------------------


async def disable_drops_irr(me: Actor, apic: LocalApic, value: int) -> None:
    """Software disable forgets what is pending."""
    await write_spiv(me, apic, value)
    if not value & APIC_SPIV_APIC_ENABLED:
        for r in apic.regs:
            await WRITE_ONCE(apic.irr[r], 0)


async def enable_unmasks_lvt(me: Actor, apic: LocalApic, value: int) -> None:
    """Software enable unmasks the LVT registers."""
    await write_spiv(me, apic, value)
    if value & APIC_SPIV_APIC_ENABLED:
        for lvt in apic.lvt:
            await kvm_lapic_set_reg(apic, lvt, await kvm_lapic_get_reg(apic, lvt) & ~APIC_LVT_MASKED)


# ---- INIT, SIPI, mp_state ---------------------------------------------------------------------------------------------------


async def sipi_before_init(me: Actor, vcpu: ApicVcpu) -> None:
    """Of the two that are pending, SIPI is taken first."""
    if await test_and_clear_bit(KVM_APIC_SIPI, vcpu.apic.pending_events):
        await vcpu.vm.calls.accept_sipi(me, vcpu)
    if await test_and_clear_bit(KVM_APIC_INIT, vcpu.apic.pending_events):
        await vcpu.vm.calls.accept_init(me, vcpu)


async def init_keeps_sipi(me: Actor, apic: Receiver) -> int:
    """An INIT does not drop the SIPI before it."""
    await set_bit(KVM_APIC_INIT, apic.pending_events)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def first_sipi_wins(me: Actor, apic: Receiver, vector: int) -> int:
    """A second SIPI does not change the vector, as on hardware."""
    if not await READ_ONCE(apic.pending_events) >> KVM_APIC_SIPI & 1:
        await WRITE_ONCE(apic.sipi_vector, vector)
    await set_bit(KVM_APIC_SIPI, apic.pending_events)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def bsp_waits_for_sipi(me: Actor, vcpu: ApicVcpu) -> None:
    """INIT makes the BSP wait for a SIPI."""
    await vcpu.vm.calls.kvm_vcpu_reset(me, vcpu, True)
    await kvm_set_mp_state(vcpu, KVM_MP_STATE_INIT_RECEIVED)


async def sipi_remembered(me: Actor, vcpu: ApicVcpu) -> None:
    """A SIPI that comes before any INIT is kept for later."""
    if await test_and_clear_bit(KVM_APIC_INIT, vcpu.apic.pending_events):
        await vcpu.vm.calls.accept_init(me, vcpu)
    if await READ_ONCE(vcpu.mp_state) != KVM_MP_STATE_UNINITIALIZED:
        if await test_and_clear_bit(KVM_APIC_SIPI, vcpu.apic.pending_events):
            await vcpu.vm.calls.accept_sipi(me, vcpu)


async def dropped_sipi_sleeps_on(vcpu: ApicVcpu) -> bool:
    """Only an INIT is a reason to wake up."""
    if await READ_ONCE(vcpu.apic.pending_events) == 1 << KVM_APIC_SIPI:
        await clear_bit(KVM_APIC_SIPI, vcpu.apic.pending_events)
    return await kvm_vcpu_has_events(vcpu)


async def kick_forgotten(me: Actor, apic: LocalApic) -> int:
    """A paravirtual kick is an interrupt without a vector, and wakes nobody."""
    return 1


# ---- NMI --------------------------------------------------------------------------------------------------------------------


async def one_nmi(vcpu: ApicVcpu) -> None:
    """One NMI is pending at most, ever."""
    vcpu.nmi_pending = min(vcpu.nmi_pending + await xchg(vcpu.nmi_queued, 0), 1)
    if vcpu.nmi_pending:
        await kvm_make_request(KVM_REQ_EVENT, vcpu)


async def two_nmis(vcpu: ApicVcpu) -> None:
    """Two NMIs are pending, also while NMIs are masked."""
    vcpu.nmi_pending = min(vcpu.nmi_pending + await xchg(vcpu.nmi_queued, 0), 2)
    if vcpu.nmi_pending:
        await kvm_make_request(KVM_REQ_EVENT, vcpu)


async def masked_nmi_sleeps_on(vcpu: ApicVcpu) -> bool:
    """An NMI that is masked wakes nobody."""
    return bool(vcpu.nmi_pending) and not vcpu.nmi_masked and not vcpu.nmi_injected


# ---- destinations -----------------------------------------------------------------------------------------------------------


async def ipi_0xff_is_broadcast(me: Actor, kvm: ApicKvm, source: ApicVcpu | None, irq: LapicIrq) -> int:
    """0xff is everybody to an x2APIC, too, by an IPI."""
    if irq.dest_id == APIC_BROADCAST:
        irq = irq._replace(dest_id=X2APIC_BROADCAST)
    return await kvm_irq_delivery_to_apic(me, kvm, source, irq)


async def all_but_nobody(vcpu: ApicVcpu, source: ApicVcpu | None, irq: LapicIrq) -> bool:
    """ "All but self" is all."""
    return irq.shorthand == 3 or await kvm_apic_match_dest(vcpu, source, irq)


async def lowest_by_ppr(irq: LapicIrq, candidates: list[ApicVcpu]) -> ApicVcpu:
    """Lowest priority by PPR, as the SDM has it."""
    priorities = [(await kvm_lapic_get_reg(vcpu.apic, APIC_PROCPRI), n) for n, vcpu in enumerate(candidates)]
    return candidates[min(priorities)[1]]


async def hash_over_present(kvm: ApicKvm, irq: LapicIrq, cluster: dict[int, int], bits: list[int]) -> list[int]:
    """Vector hashing over the APICs that are there, not over the bits addressed."""
    bits = [bit for bit in bits if bit in cluster]
    return bits and [bits[irq.vector % len(bits)]]


async def map_never_remade(kvm: ApicKvm) -> None:
    """What changes an APIC's address does not say so."""


def _broken(**replaces: Callable[..., Any]) -> Broken:
    about = next(iter(replaces.values())).__doc__ or ""
    return Broken(about.split("  [")[0].strip(), replaces)


#: by name: what the recorded vectors catch
BROKEN: dict[str, Broken] = {
    "ppr_without_isr": _broken(processor_priority=ppr_without_isr),
    "ppr_with_low_nibble": _broken(processor_priority=ppr_with_low_nibble),
    "vector_above_ppr": _broken(above_ppr=vector_above_ppr),
    "eoi_of_lowest": _broken(eoi_vector=lowest_vector_in_service),
    "tmr_after_irr": _broken(apic_dm_fixed=tmr_after_irr),
    "tmr_stays_level": _broken(apic_set_tmr=tmr_stays_level),
    "low_vectors_refused": _broken(apic_dm_fixed=low_vectors_refused),
    "irr_kept": _broken(apic_clear_irr=irr_kept),
    "level_always_asserted": _broken(deasserted=level_always_asserted),
    "edge_needs_assert": _broken(deasserted=edge_needs_assert),
    "disable_drops_irr": _broken(write_spiv=disable_drops_irr),
    "enable_unmasks_lvt": _broken(write_spiv=enable_unmasks_lvt),
    "sipi_before_init": _broken(kvm_apic_accept_events=sipi_before_init),
    "init_keeps_sipi": _broken(apic_dm_init=init_keeps_sipi),
    "first_sipi_wins": _broken(apic_dm_startup=first_sipi_wins),
    "bsp_waits_for_sipi": _broken(accept_init=bsp_waits_for_sipi),
    "sipi_remembered": _broken(kvm_apic_accept_events=sipi_remembered),
    "dropped_sipi_sleeps_on": _broken(kvm_vcpu_has_events=dropped_sipi_sleeps_on),
    "kick_forgotten": _broken(apic_dm_remrd=kick_forgotten),
    "one_nmi": _broken(process_nmi=one_nmi),
    "two_nmis": _broken(process_nmi=two_nmis),
    "masked_nmi_sleeps_on": _broken(nmi_wakes=masked_nmi_sleeps_on),
    "ipi_0xff_is_broadcast": _broken(kvm_irq_delivery_to_apic=ipi_0xff_is_broadcast),
    "all_but_nobody": _broken(kvm_apic_match_dest=all_but_nobody),
    "lowest_by_ppr": _broken(lowest_prio=lowest_by_ppr),
    "hash_over_present": _broken(apic_map_lowest_prio=hash_over_present),
    "map_never_remade": _broken(mark_apic_map_dirty=map_never_remade),
}


# ---- broken in the order of accesses alone: no sequence of operations can tell, only a race ---------------------------------


async def tmr_last(me: Actor, apic: LocalApic, vector: int, trig_mode: bool) -> int:
    """TMR after IRR, for every interrupt."""
    await kvm_lapic_set_irr(apic, vector)
    await apic.vm.calls.apic_set_tmr(apic, vector, trig_mode)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def hint_first(apic: Receiver, vector: int) -> None:
    """The hint before the IRR bit.  [lapic.c apic_test_and_set_irr, 3.8 to 3.18]"""
    await WRITE_ONCE(apic.irr_pending, True)
    await set_bit(vector & 31, apic.irr[vector >> 5])


async def recalculate_in_batch(me: Actor, kvm: ApicKvm) -> None:
    """The dirty word has two values, and is cleared when the map is made.  [lapic.c, 5.7: 4abaffce4d25]"""
    if await READ_ONCE(kvm.apic_map_dirty) == CLEAN:
        return
    async with kvm.apic_map_lock.held_by(me):
        if await READ_ONCE(kvm.apic_map_dirty) == CLEAN:
            return
        new = await make_apic_map(kvm)
        await smp_store_release(kvm.apic_map, None if new is None else tuple(new))
        await smp_wmb()
        await WRITE_ONCE(kvm.apic_map_dirty, CLEAN)  # and what has changed since the registers were read is forgotten


#: by name: what agrees with every recorded sequence, and is wrong
RACY: dict[str, Broken] = {
    "tmr_last": _broken(apic_dm_fixed=tmr_last),
    "hint_first": _broken(kvm_lapic_set_irr=hint_first),
    "recalculate_in_batch": _broken(kvm_recalculate_apic_map=recalculate_in_batch),
}
