"""Which kernel: the functions of the APIC that may be replaced, and what older kernels had instead.

An era is a table of replaced functions, as a variant is: a scenario that needs 3.10 says so with `{**KERNELS["3.10"], ...}`.  The
recorded kernel replaces nothing.  An era differs in what is listed here, and is 6.18 in everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from actors import apic_events, apic_irq, apic_map, apic_write, lapic
from actors.actor import Actor
from actors.apic_events import kvm_vcpu_has_events
from actors.apic_map import LapicIrq, make_apic_map
from actors.apic_regs import ApicKvm, ApicVcpu, LocalApic
from actors.lapic import KVM_APIC_INIT, KVM_APIC_SIPI
from actors.ops import READ_ONCE, WRITE_ONCE, smp_store_release, xchg
from actors.requests import (
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_REQ_EVENT,
    kvm_make_request,
    kvm_vcpu_kick,
)

KernelFunction = Callable[..., Any]

#: The recorded kernel, 6.18.
FUNCTIONS: dict[str, KernelFunction] = {
    f.__name__: f
    for f in (
        apic_events.accept_init,
        apic_events.accept_sipi,
        apic_events.clear_pv_unhalted,
        apic_events.kvm_apic_accept_events,
        apic_events.kvm_arch_vcpu_runnable,
        apic_events.kvm_check_and_inject_events,
        apic_events.kvm_get_nr_pending_nmis,
        apic_events.kvm_vcpu_has_events,
        apic_events.kvm_vcpu_reset,
        apic_events.nmi_wakes,
        apic_events.process_nmi,
        apic_events.set_mpstate,
        apic_events.vcpu_run_prologue,
        apic_events.vcpu_unhalt,
        apic_irq.above_ppr,
        apic_irq.apic_accept_irq,
        apic_irq.apic_clear_irr,
        apic_irq.apic_dm_fixed,
        apic_irq.apic_dm_remrd,
        apic_irq.apic_set_tmr,
        apic_irq.deasserted,
        apic_irq.eoi_vector,
        apic_irq.kvm_ioapic_send_eoi,
        apic_irq.kvm_lapic_set_irr,
        apic_irq.processor_priority,
        apic_map.apic_map_lowest_prio,
        apic_map.kvm_apic_match_dest,
        apic_map.kvm_irq_delivery_to_apic,
        apic_map.kvm_recalculate_apic_map,
        apic_map.lowest_prio,
        apic_map.nobody_by_map,
        apic_write.mark_apic_map_dirty,
        apic_write.write_spiv,
        lapic.apic_dm_init,
        lapic.apic_dm_startup,
        lapic.apic_test_and_set_irr,  # of older kernels
        lapic.kvm_inject_nmi,
    )
}


# ---- 5.0 [4.19 source] ------------------------------------------------------------------------------------------------------


async def accept_events_latched(me: Actor, vcpu: ApicVcpu) -> None:
    """INIT and SIPI from a private copy of the event word.  [lapic.c, 3.11 to 5.19: 299018f44ac5]"""
    if not await READ_ONCE(vcpu.apic.pending_events):
        return
    pe = await xchg(vcpu.apic.pending_events, 0)
    if pe & 1 << KVM_APIC_INIT:
        await vcpu.vm.calls.accept_init(me, vcpu)
    if pe & 1 << KVM_APIC_SIPI:
        await vcpu.vm.calls.accept_sipi(me, vcpu)


async def recalculate_each_time(me: Actor, kvm: ApicKvm) -> None:
    """The map is made anew, whatever was written.  [lapic.c recalculate_apic_map, 3.7 to 5.6; only where it matters, there]"""
    async with kvm.apic_map_lock.held_by(me):
        new = await make_apic_map(kvm)
        await smp_store_release(kvm.apic_map, None if new is None else tuple(new))


async def kick_stays(vcpu: ApicVcpu) -> None:
    """RUNNABLE by another way than waking up leaves a paravirtual kick standing.  [before e9cb61055fee, 6.15]"""


async def unhalt_ends_kick(vcpu: ApicVcpu) -> None:
    """Waking up is what ends it.  [x86.c vcpu_block, before 6.15]"""
    await WRITE_ONCE(vcpu.pv_unhalted, False)
    await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE)


def nobody_is_an_error() -> int:
    """The map knows that nobody is there: -1, as if nobody had been looked for.  [kvm_irq_delivery_to_apic_fast, 4.19]"""
    return -1


def any_nmi_pending(vcpu: ApicVcpu) -> int:
    """KVM_GET_VCPU_EVENTS shows whether, not how many.  [x86.c, before ab2ee212a57b, 6.4]"""
    return int(vcpu.nmi_pending > 0)


# ---- 3.10 [3.11 source] -----------------------------------------------------------------------------------------------------


async def fewest_bits(kvm: ApicKvm, irq: LapicIrq, cluster: dict[int, int], bits: list[int]) -> list[int]:
    """Lowest priority goes round: who has taken the fewest, among those that are there.  [kvm_apic_compare_prio]"""
    present = [kvm.vcpus[cluster[bit]] for bit in bits if bit in cluster]
    if not present:
        return []
    chosen = await fewest(irq, present)
    return [bit for bit in bits if cluster.get(bit) == chosen.index]


async def fewest(irq: LapicIrq, candidates: list[ApicVcpu]) -> ApicVcpu:
    """The same without the map; the first of several.  [irq_comm.c]"""
    taken = [(await READ_ONCE(vcpu.apic.apic_arb_prio), n) for n, vcpu in enumerate(candidates)]
    return candidates[min(taken)[1]]


async def no_kick(me: Actor, apic: LocalApic) -> int:
    """case APIC_DM_REMRD: ignored.  [before 6aef266c6e17]"""
    return 0


def never_deasserted(level: bool, trig_mode: bool) -> bool:
    """The assert bit is not looked at.  [__apic_accept_irq, 3.11]"""
    return False


async def dm_fixed_by_routes(me: Actor, apic: LocalApic, vector: int, trig_mode: bool) -> int:
    """TMR comes from the routes of the I/O APIC, not from the message; what is pending already is not taken.  [3.10 to 3.18]"""
    if await apic.vm.calls.apic_test_and_set_irr(apic, vector):
        return 0
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def queued_nmi_wakes(vcpu: ApicVcpu) -> bool:
    """One that is queued; not one that was counted while NMIs were masked.  [x86.c kvm_arch_vcpu_runnable, 3.10]"""
    return bool(await READ_ONCE(vcpu.nmi_queued))


# ---- 3.8 --------------------------------------------------------------------------------------------------------------------


async def no_events(me: Actor, vcpu: ApicVcpu) -> None:
    """Nothing is latched: the sender has written mp_state.  [before 66450a21f996]"""


async def run_prologue_before(me: Actor, vcpu: ApicVcpu) -> None:
    """KVM_RUN begins: only a SIPI resets.  [x86.c __vcpu_run, 3.8]"""
    if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_SIPI_RECEIVED:
        await vcpu.vm.calls.kvm_vcpu_reset(me, vcpu, True)
        vcpu.cs, vcpu.ip = await READ_ONCE(vcpu.apic.sipi_vector) << 8, 0
        await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE)


async def runnable_before(vcpu: ApicVcpu) -> bool:
    """INIT_RECEIVED is no reason to wake up.  [x86.c kvm_arch_vcpu_runnable, 3.8]"""
    if await READ_ONCE(vcpu.mp_state) in (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED):
        return True
    return await kvm_vcpu_has_events(vcpu)


async def set_mpstate_before(vcpu: ApicVcpu, state: int) -> None:
    """A plain store.  [x86.c, 3.8]"""
    await WRITE_ONCE(vcpu.mp_state, state)


_5_0: dict[str, KernelFunction] = {
    "kvm_recalculate_apic_map": recalculate_each_time,
    "kvm_apic_accept_events": accept_events_latched,
    "clear_pv_unhalted": kick_stays,
    "vcpu_unhalt": unhalt_ends_kick,
    "nobody_by_map": nobody_is_an_error,
    "kvm_get_nr_pending_nmis": any_nmi_pending,
}
_3_10: dict[str, KernelFunction] = {
    **_5_0,
    "apic_test_and_set_irr": lapic.m24_hint_first,
    "apic_map_lowest_prio": fewest_bits,
    "lowest_prio": fewest,
    "apic_dm_remrd": no_kick,
    "deasserted": never_deasserted,
    "apic_dm_fixed": dm_fixed_by_routes,
    "nmi_wakes": queued_nmi_wakes,
}
_3_8: dict[str, KernelFunction] = {
    **_3_10,
    "apic_dm_fixed": lapic.apic_dm_fixed,
    "apic_dm_init": lapic.dm_init_before,
    "apic_dm_startup": lapic.dm_startup_before,
    "kvm_apic_accept_events": no_events,
    "kvm_arch_vcpu_runnable": runnable_before,
    "set_mpstate": set_mpstate_before,
    "vcpu_run_prologue": run_prologue_before,
}
#: by version: the recorded kernel; the first after 3a0e7731724f (SynIC); after and before 66450a21f996 (INIT and SIPI)
KERNELS: dict[str, Mapping[str, KernelFunction]] = {"6.18": {}, "5.0": _5_0, "3.10": _3_10, "3.8": _3_8}
