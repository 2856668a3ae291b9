"""A physical CPU: what an IPI finds when it arrives.

An IPI goes to a physical CPU, not to a vCPU.  In guest mode it forces a VM exit; in the host with IRQs off it stays pending
until IRQs are on or until VM entry, which then exits at once; in the host with IRQs on its handler runs and nothing else
happens: the kick is consumed.  [arch/x86/kernel/smp.c smp_reschedule_interrupt; Intel SDM vol. 3, 26.7.5]

The IRQ flag and guest mode are state of the CPU itself.  They never enter a store buffer: a model that put them there found
lost kicks that no hardware has.
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor
from actors.ops import IN_GUEST, IPI_PENDING, IRQS_OFF, Op, await_bits, cpu_rmw, local_load, local_rmw


class Pcpu(Actor):
    """One physical CPU; its cell `cpu` holds IRQS_OFF, IN_GUEST and IPI_PENDING bits."""

    def __init__(self, vm: Any, name: str) -> None:
        super().__init__(vm, name)
        self.cpu = self.cell("cpu", 0)
        self.deliver_ipi = local_rmw(self.cpu, "ipi")  # what the arrival of an IPI does: the head of an IPI channel

    def local_irq_disable(self) -> Op:
        """IPIs stay pending from here on."""
        return local_rmw(self.cpu, "or", IRQS_OFF)

    def local_irq_enable(self) -> Op:
        """Handlers of pending IPIs run now; returns the old bits."""
        return local_rmw(self.cpu, "andnot", IRQS_OFF | IPI_PENDING)

    def vm_enter(self) -> Op:
        """Enter the guest, unless an interrupt is pending: returns the old bits, of which IPI_PENDING means 'left at once'."""
        return cpu_rmw(self.cpu, "vm_enter")

    def vm_exit(self) -> Op:
        """Leave the guest; IRQs are still off in the host."""
        return cpu_rmw(self.cpu, "andnot", IN_GUEST)

    def interrupt_window(self) -> Op:
        """Between two guest instructions: is there an interrupt to leave for?"""
        return local_load(self.cpu)

    def run_until_interrupt(self) -> Op:
        """Guest code that computes for ever: only an interrupt ends it."""
        return await_bits(self.cpu, IPI_PENDING)
