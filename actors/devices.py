"""Interrupt sources that are not vCPUs: a device line through the IOAPIC, or a timer."""

from __future__ import annotations

from typing import Any

from actors.actor import Actor, Cell
from actors.guest import APIC_DM_FIXED, APIC_DM_NMI
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq


class Device(Actor):
    """A thread that raises `vector` on vCPU `target` `times` times, edge or level triggered (or as an NMI)."""

    def __init__(
        self, vm: Any, name: str, target: int, vector: int, *, level: bool = False, nmi: bool = False, times: int = 1
    ) -> None:
        super().__init__(vm, name)
        self.target = target
        self.vector = vector
        self.level = level
        self.nmi = nmi
        self.times = times
        self.armed: Cell | None = None  # nothing happens until it is True; None: armed from the start
        #: IOAPIC remote IRR: a level interrupt was sent and its EOI has not come back
        self.remote_irr = self.cell("remote_irr", False)

    async def run(self) -> None:
        """Raise the line; a level line whose EOI is outstanding stays asserted and sends nothing.  [ioapic.c ioapic_service]"""
        apic = self.vm.vcpus[self.target].apic
        if self.armed is not None:
            await await_eq(self.armed, True)
        for _ in range(self.times):
            if self.level:
                if await READ_ONCE(self.remote_irr):
                    return
                await WRITE_ONCE(self.remote_irr, True)
            mode = APIC_DM_NMI if self.nmi else APIC_DM_FIXED
            await self.vm.calls.apic_accept_irq(self, apic, mode, self.vector, True, self.level)
