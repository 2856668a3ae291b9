"""The page of a local APIC, as KVM_GET_LAPIC shows it, and the words that the format has for it.

Source: Intel SDM volume 3, table "Local APIC Register Address Map"; kvm_apic_state_fixup() in lapic.c, Linux 6.18.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from racevisor.conform.ioctls import kvm_vcpu_events

# Offsets of the registers in the page, in bytes (apicdef.h).
APIC_TASKPRI = 0x80
APIC_ISR = 0x100
APIC_TMR = 0x180
APIC_IRR = 0x200
APIC_ICR = 0x300
APIC_ICR2 = 0x310
APIC_SELF_IPI = 0x3F0
REGISTERS = {"tpr": APIC_TASKPRI, "ppr": 0xA0, "svr": 0xF0, "ldr": 0xD0, "dfr": 0xE0, "esr": 0x280, "id": 0x20}
VECTORS = {"irr": APIC_IRR, "isr": APIC_ISR, "tmr": APIC_TMR}
LVT = (0x320, 0x330, 0x340, 0x350, 0x360, 0x370)  # timer, thermal, perf, LINT0, LINT1, error


def to_registers(start: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(offset, value) of every APIC register of a start state."""
    found = [(offset, start[name]) for name, offset in REGISTERS.items() if name != "id"]  # the id is KVM's own
    found += [(APIC_ICR, start["icr"] & 0xFFFFFFFF), (APIC_ICR2, start["icr"] >> 32)]
    found += list(zip(LVT, start["lvt"], strict=True))
    for name, offset in VECTORS.items():
        bits = sum(1 << vector for vector in start[name])
        found += [(offset + 0x10 * word, bits >> 32 * word & 0xFFFFFFFF) for word in range(8)]
    return found


def to_state(page: bytes, events: kvm_vcpu_events, base: int) -> dict[str, Any]:
    """What is visible of a vCPU, from what KVM says of it."""
    registers = struct.unpack("<256I", page)[::4]  # one every 16 bytes

    def vectors(offset: int) -> list[int]:
        words = registers[offset >> 4 : (offset >> 4) + 8]
        return [32 * at + bit for at, word in enumerate(words) if word for bit in range(32) if word >> bit & 1]

    return {
        **{name: vectors(offset) for name, offset in VECTORS.items()},
        **{name: registers[offset >> 4] for name, offset in REGISTERS.items()},
        "icr": registers[APIC_ICR >> 4] | registers[APIC_ICR2 >> 4] << 32,
        "lvt": [registers[offset >> 4] for offset in LVT],
        "nmi": [events.nmi.injected, events.nmi.pending, events.nmi.masked],
        "inj": events.interrupt.nr if events.interrupt.injected else -1,
        "linit": events.smi.latched_init,
        "base": base,
    }
