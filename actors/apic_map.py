"""Whom an interrupt is for: destinations, the optimised map of them, lowest priority.  [lapic.c, irq_comm.c, 6.16]

The map is one immutable value behind one pointer: it is replaced, never changed, and RCU keeps an old one for who still reads it.
So a sender may use a map that is out of date; what must not happen is that it stays so.
"""

from __future__ import annotations

from typing import NamedTuple

from actors.actor import Actor
from actors.apic_regs import (
    APIC_DFR,
    APIC_DFR_CLUSTER,
    APIC_DFR_FLAT,
    APIC_DM_LOWEST,
    APIC_ID,
    APIC_LDR,
    ApicKvm,
    ApicVcpu,
    LocalApic,
    apic_x2apic_mode,
    kvm_apic_hw_enabled,
    kvm_apic_sw_enabled,
    kvm_lapic_get_reg,
)
from actors.guest import (
    APIC_BROADCAST,
    APIC_DEST_ALLBUT,
    APIC_DEST_NOSHORT,
    APIC_DEST_SELF,
    APIC_DM_FIXED,
    X2APIC_BROADCAST,
)
from actors.ops import READ_ONCE, cmpxchg, smp_store_release

CLEAN, UPDATE_IN_PROGRESS, DIRTY = 0, 1, 2

#: enum kvm_apic_logical_mode
SW_DISABLED, XAPIC_CLUSTER, XAPIC_FLAT, X2APIC, MAP_DISABLED = 0, 1, 2, 3, 4


class LapicIrq(NamedTuple):
    """struct kvm_lapic_irq: one interrupt message.  `level` is the assert bit, `trig_mode` True for level triggered."""

    vector: int
    delivery_mode: int
    dest_id: int
    logical: bool = False
    level: bool = True
    trig_mode: bool = False
    shorthand: int = APIC_DEST_NOSHORT
    redir_hint: bool = False

    @property
    def lowest_prio(self) -> bool:
        """kvm_lowest_prio_delivery()."""
        return self.delivery_mode == APIC_DM_LOWEST or self.redir_hint


class ApicMap(NamedTuple):
    """struct kvm_apic_map.  vCPUs are given by index: `phys` as (id, vCPU) pairs, `logical` as (cluster, bit, vCPU).

    The flat model is one cluster, 0, of 8 bits; x2APIC's logical ids are looked up in `phys`.
    """

    max_apic_id: int
    logical_mode: int
    phys: tuple[tuple[int, int], ...]
    logical: tuple[tuple[int, int, int], ...]


# ---- the map ----------------------------------------------------------------------------------------------------------------


async def kvm_recalculate_apic_map(me: Actor, kvm: ApicKvm) -> None:
    """Make the map anew if something that it is made of has changed.

    The dirty word says so, and it has three values: what changes while the map is made must not be taken for included in it.
    [lapic.c kvm_recalculate_apic_map since 44d527170731, 5.8]
    """
    if await READ_ONCE(kvm.apic_map_dirty) == CLEAN:
        return
    async with kvm.apic_map_lock.held_by(me):
        if await cmpxchg(kvm.apic_map_dirty, DIRTY, UPDATE_IN_PROGRESS) == CLEAN:
            return  # somebody else has made it
        new = await make_apic_map(kvm)
        await smp_store_release(kvm.apic_map, None if new is None else tuple(new))  # rcu_assign_pointer()
        await cmpxchg(kvm.apic_map_dirty, UPDATE_IN_PROGRESS, CLEAN)


async def make_apic_map(kvm: ApicKvm) -> ApicMap | None:
    """A map of the registers as they are, or None if ids are not unique.  [the middle of kvm_recalculate_apic_map]"""
    max_id = 255
    for vcpu in kvm.vcpus:
        if await kvm_apic_hw_enabled(vcpu.apic):
            max_id = max(max_id, vcpu.id)
    phys: dict[int, int] = {}
    logical: dict[tuple[int, int], int] = {}
    mode = SW_DISABLED
    for vcpu in kvm.vcpus:
        if not await kvm_apic_hw_enabled(vcpu.apic):
            continue
        if not await kvm_recalculate_phys_map(kvm, vcpu, phys):
            return None
        mode = await kvm_recalculate_logical_map(vcpu, mode, logical)
    return ApicMap(max_id, mode, tuple(phys.items()), tuple((*place, index) for place, index in logical.items()))


async def kvm_recalculate_phys_map(kvm: ApicKvm, vcpu: ApicVcpu, phys: dict[int, int]) -> bool:
    """Enter a vCPU by its physical id; False if the id is taken.  [lapic.c; the "hotplug hack" with 32-bit ids]"""
    xapic_id = (await kvm_lapic_get_reg(vcpu.apic, APIC_ID)) >> 24
    x2apic = await apic_x2apic_mode(vcpu.apic)
    if kvm.x2apic_format:
        if x2apic or vcpu.id > 0xFF:
            phys[vcpu.id] = vcpu.index
        if not x2apic:
            phys.setdefault(xapic_id, vcpu.index)
        return True
    physical_id = vcpu.id if x2apic else xapic_id
    if physical_id in phys:
        return False
    phys[physical_id] = vcpu.index
    return True


async def kvm_recalculate_logical_map(vcpu: ApicVcpu, mode: int, logical: dict[tuple[int, int], int]) -> int:
    """Enter a vCPU by its logical id; returns the logical mode of all so far.  [lapic.c]"""
    apic = vcpu.apic
    if mode == MAP_DISABLED or not await kvm_apic_sw_enabled(apic):
        return mode
    ldr = await kvm_lapic_get_reg(apic, APIC_LDR)
    if not ldr:
        return mode
    if await apic_x2apic_mode(apic):
        own = X2APIC
    else:
        own = XAPIC_FLAT if await kvm_lapic_get_reg(apic, APIC_DFR) == APIC_DFR_FLAT else XAPIC_CLUSTER
    if mode not in (SW_DISABLED, own):
        return MAP_DISABLED
    if own == X2APIC:
        return own
    cluster, mask = (0, ldr >> 24) if own == XAPIC_FLAT else (ldr >> 28, ldr >> 24 & 0xF)
    if not mask:
        return own
    place = cluster, (mask & -mask).bit_length() - 1
    if mask & (mask - 1) or place in logical:
        return MAP_DISABLED
    logical[place] = vcpu.index
    return own


# ---- destinations -----------------------------------------------------------------------------------------------------------


async def kvm_apic_match_dest(vcpu: ApicVcpu, source: ApicVcpu | None, irq: LapicIrq) -> bool:
    """Is `irq` for this vCPU?  [lapic.c kvm_apic_match_dest; kvm_apic_mda() for the broadcast of an MSI]"""
    if irq.shorthand == APIC_DEST_SELF:
        return vcpu is source
    if irq.shorthand:
        return irq.shorthand != APIC_DEST_ALLBUT or vcpu is not source
    x2apic = await apic_x2apic_mode(vcpu.apic)
    mda = irq.dest_id
    if source is None and mda == APIC_BROADCAST and x2apic and not vcpu.kvm.x2apic_broadcast_quirk_disabled:
        mda = X2APIC_BROADCAST
    if mda == (X2APIC_BROADCAST if x2apic else APIC_BROADCAST):
        return True
    if irq.logical:
        return await kvm_apic_match_logical_addr(vcpu.apic, x2apic, mda)
    if x2apic or mda > 0xFF:
        return mda == vcpu.id
    return mda == (await kvm_lapic_get_reg(vcpu.apic, APIC_ID)) >> 24


async def kvm_apic_match_logical_addr(apic: LocalApic, x2apic: bool, mda: int) -> bool:
    """Flat, cluster, or x2APIC's clusters.  [lapic.c]"""
    ldr = await kvm_lapic_get_reg(apic, APIC_LDR)
    if x2apic:
        return ldr >> 16 == mda >> 16 and bool(ldr & mda & 0xFFFF)
    logical_id = ldr >> 24
    dfr = await kvm_lapic_get_reg(apic, APIC_DFR)
    if dfr == APIC_DFR_FLAT:
        return bool(logical_id & mda)
    if dfr == APIC_DFR_CLUSTER:
        return logical_id >> 4 == mda >> 4 and bool(logical_id & mda & 0xF)
    return False


async def kvm_apic_is_broadcast_dest(kvm: ApicKvm, source: ApicVcpu | None, irq: LapicIrq, apic_map: ApicMap) -> bool:
    """Everybody, in the eyes of at least one model?  Then the map is not used.  [lapic.c]"""
    if kvm.x2apic_broadcast_quirk_disabled:
        if irq.dest_id == APIC_BROADCAST and apic_map.logical_mode != X2APIC:
            return True
        return irq.dest_id == X2APIC_BROADCAST
    x2apic_ipi = source is not None and await apic_x2apic_mode(source.apic)
    return irq.dest_id == (X2APIC_BROADCAST if x2apic_ipi else APIC_BROADCAST)


def kvm_apic_map_get_logical_dest(apic_map: ApicMap, dest_id: int) -> tuple[dict[int, int], int]:
    """(vCPUs of the addressed cluster by bit, bits addressed).  [lapic.c]"""
    if apic_map.logical_mode == X2APIC:
        offset = (dest_id >> 16) * 16
        if offset > apic_map.max_apic_id:
            return {}, 0
        size = min(apic_map.max_apic_id - offset + 1, 16)
        return {i - offset: index for i, index in apic_map.phys if 0 <= i - offset < 16}, dest_id & 0xFFFF >> (16 - size)
    if apic_map.logical_mode == XAPIC_FLAT:
        return {bit: index for _, bit, index in apic_map.logical}, dest_id & 0xFF
    if apic_map.logical_mode == XAPIC_CLUSTER:
        wanted = dest_id >> 4 & 0xF
        return {bit: index for cluster, bit, index in apic_map.logical if cluster == wanted}, dest_id & 0xF
    return {}, 0  # no APIC is software enabled


async def kvm_apic_map_get_dest_lapic(
    kvm: ApicKvm, source: ApicVcpu | None, irq: LapicIrq, apic_map: ApicMap | None
) -> list[ApicVcpu] | None:
    """The destinations by the map, or None if the map cannot tell.  [lapic.c]"""
    if irq.shorthand or apic_map is None or await kvm_apic_is_broadcast_dest(kvm, source, irq, apic_map):
        return None
    if not irq.logical:
        found = dict(apic_map.phys).get(irq.dest_id) if irq.dest_id <= apic_map.max_apic_id else None
        return [] if found is None else [kvm.vcpus[found]]
    if apic_map.logical_mode == MAP_DISABLED:
        return None
    cluster, mask = kvm_apic_map_get_logical_dest(apic_map, irq.dest_id)
    bits = [bit for bit in range(16) if mask >> bit & 1]
    if irq.lowest_prio:
        bits = await kvm.vm.calls.apic_map_lowest_prio(kvm, irq, cluster, bits)
    return [kvm.vcpus[cluster[bit]] for bit in bits if bit in cluster]


async def apic_map_lowest_prio(kvm: ApicKvm, irq: LapicIrq, cluster: dict[int, int], bits: list[int]) -> list[int]:
    """Vector hashing: it counts the bits addressed, whether or not an APIC is there.  [kvm_vector_to_index, since 4.6]"""
    return bits and [bits[irq.vector % len(bits)]]


async def lowest_prio(irq: LapicIrq, candidates: list[ApicVcpu]) -> ApicVcpu:
    """Vector hashing among those that match and are software enabled.  [irq_comm.c kvm_irq_delivery_to_apic, since 4.6]"""
    return candidates[irq.vector % len(candidates)]


# ---- delivery ---------------------------------------------------------------------------------------------------------------


async def kvm_irq_delivery_to_apic(me: Actor, kvm: ApicKvm, source: ApicVcpu | None, irq: LapicIrq) -> int:
    """Deliver to all that `irq` is for: how many took it; -1 if nobody was found without the map.  [irq_comm.c, irq.c]"""
    calls = kvm.vm.calls
    if irq.shorthand == APIC_DEST_SELF and source is not None:
        return await kvm_apic_set_irq(me, source, irq)
    pointer = await READ_ONCE(kvm.apic_map)  # rcu_dereference()
    found = await kvm_apic_map_get_dest_lapic(kvm, source, irq, None if pointer is None else ApicMap(*pointer))
    if found is not None:
        taken = 0
        for vcpu in found:
            taken += await kvm_apic_set_irq(me, vcpu, irq)
        return taken if found else int(calls.nobody_by_map())
    if not irq.logical and irq.dest_id == APIC_BROADCAST and irq.lowest_prio:
        irq = irq._replace(delivery_mode=APIC_DM_FIXED)  # the redirection hint stays, if there is one
    result = -1
    candidates: list[ApicVcpu] = []
    for vcpu in kvm.vcpus:
        if not await kvm_apic_hw_enabled(vcpu.apic) or not await calls.kvm_apic_match_dest(vcpu, source, irq):
            continue
        if not irq.lowest_prio:
            result = max(result, 0) + await kvm_apic_set_irq(me, vcpu, irq)
        elif await kvm_apic_sw_enabled(vcpu.apic):
            candidates.append(vcpu)
    if candidates:
        result = await kvm_apic_set_irq(me, await calls.lowest_prio(irq, candidates), irq)
    return result


def nobody_by_map() -> int:
    """The result when the map knows that nobody is there: nobody took it.  [kvm_irq_delivery_to_apic_fast]"""
    return 0


async def kvm_apic_set_irq(me: Actor, vcpu: ApicVcpu, irq: LapicIrq) -> int:
    """One interrupt to one APIC: 1 if it was taken.  [lapic.c]"""
    taken: int = await vcpu.vm.calls.apic_accept_irq(me, vcpu.apic, irq.delivery_mode, irq.vector, irq.level, irq.trig_mode)
    return taken


async def kvm_send_userspace_msi(me: Actor, kvm: ApicKvm, address: int, data: int) -> int:
    """KVM_SIGNAL_MSI.  [irq_comm.c kvm_set_msi_irq, kvm_set_msi; x86_msi_msg_get_destid()]

    Returns how many APICs took it; -1 if nobody was found without the map, or if the address is not one of an MSI.
    """
    dest_id = address >> 12 & 0xFF
    if kvm.x2apic_format:
        if address >> 32 & 0xFF:
            return -1
        dest_id |= address >> 32 & 0xFFFFFF00
    irq = LapicIrq(
        vector=data & 0xFF,
        delivery_mode=data >> 8 & 7,
        dest_id=dest_id,
        logical=bool(address & 4),
        trig_mode=bool(data & 0x8000),
        redir_hint=bool(address & 8),
    )
    taken: int = await kvm.vm.calls.kvm_irq_delivery_to_apic(me, kvm, None, irq)
    return taken
