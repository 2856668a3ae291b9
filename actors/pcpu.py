"""A physical CPU: what an IPI finds when it arrives.

An IPI goes to a physical CPU, not to a vCPU.  In guest mode it forces a VM exit; in the host with IRQs off it stays pending
until IRQs are on or until VM entry, which then exits at once; in the host with IRQs on its handler runs and nothing else
happens: the kick is consumed.  A function call (smp_call_function_many) is a bit in the same cell: it has run, and the caller's
wait is over, when the handler of an IPI has run after the bit was set.  [arch/x86/kernel/smp.c smp_reschedule_interrupt,
kernel/smp.c generic_smp_call_function_interrupt; Intel SDM vol. 3, 26.7.5]

The IRQ flag and guest mode are state of the CPU itself.  They never enter a store buffer: a model that put them there found
lost kicks that no hardware has.
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor
from actors.ops import (
    CALL_QUEUED,
    HOST_TIMER,
    IN_GUEST,
    IPI_PENDING,
    IRQS_OFF,
    Code,
    Op,
    Order,
    await_bits,
    await_masked,
    cpu_rmw,
    local_load,
    local_rmw,
)

#: The bits of the callers of smp_call_function_many(): 16.  Who shares one may wait for the other's call as well, never for less:
#: the handler runs all that is queued.
CALLS = 0xFFFF * CALL_QUEUED


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

    def enter_with_notification(self) -> Op:
        """Enter the guest; a pending posted-interrupt notification is no reason to leave again.  [Intel SDM 30.6]"""
        return cpu_rmw(self.cpu, "or", IN_GUEST)

    def acknowledge(self) -> Op:
        """Guest mode: the CPU takes the posted-interrupt notification itself, without a VM exit."""
        return local_rmw(self.cpu, "andnot", IPI_PENDING)

    def host_timer(self) -> Op:
        """A timer of the host fires here: guest mode is left, and its handler runs as soon as IRQs are on."""
        return Op(Code.RMW, self.cpu, "or", HOST_TIMER | IPI_PENDING, order=Order.FULL)

    def acknowledge_timer(self) -> Op:
        """The handler of the host's timer begins, if it has fired."""
        return local_rmw(self.cpu, "andnot", HOST_TIMER | IPI_PENDING)

    def queue_call(self, csd: int) -> Op:
        """Another CPU: queue a function call here; an IPI has to follow.  [kernel/smp.c smp_call_function_many_cond]"""
        return Op(Code.RMW, self.cpu, "or", csd, order=Order.FULL)

    def run_queued_calls(self) -> Op:
        """The handler of a pending call-function IPI: it runs what is queued, which is the acknowledgement."""
        return local_rmw(self.cpu, "andnot", CALLS)

    def wait_for_call(self, csd: int) -> Op:
        """Another CPU: block until its call has run.  [kernel/smp.c csd_lock_wait]"""
        return await_masked(self.cpu, csd, 0)

    def interrupt_window(self) -> Op:
        """Between two guest instructions: is there an interrupt to leave for?"""
        return local_load(self.cpu)

    def run_until_interrupt(self) -> Op:
        """Guest code that computes for ever: only an interrupt ends it."""
        return await_bits(self.cpu, IPI_PENDING)
