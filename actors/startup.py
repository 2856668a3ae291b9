"""Who starts processors by INIT and SIPI, and what those run: guest programs, and a VMM that moves a vCPU meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from actors.actor import Cell
from actors.guest import GuestCpu, GuestProgram, idle
from actors.ops import WRITE_ONCE
from actors.userspace import Userspace, kvm_arch_vcpu_ioctl_get_mpstate, kvm_arch_vcpu_ioctl_set_mpstate


def send(targets: Iterable[int], *ipis: tuple[int, int], turn: Mapping[int, Cell] = MappingProxyType({})) -> GuestProgram:
    """A guest program that writes the ICR for each of (mode, vector), back to back, to one target after the other; and halts.

    `turn`: by target, the word of guest memory that says it is the next one.
    """

    async def sender(cpu: GuestCpu) -> None:
        for dest in targets:
            if dest in turn:
                await cpu.store(turn[dest], True)
            for mode, vector in ipis:
                await cpu.write_icr(dest, mode, vector)

    return sender


def idle_after(turn: Cell) -> GuestProgram:
    """CPU hotplug: it runs until it is told to go down, then goes idle.  [smpboot.c native_play_dead]"""

    async def program(cpu: GuestCpu) -> None:
        await cpu.wait_until(turn, True)
        await idle(cpu)

    return program


async def run_on(cpu: GuestCpu) -> None:
    """What the AP starts with: it runs and never halts."""
    await cpu.compute()


async def no_eoi(cpu: GuestCpu) -> None:
    """A handler that has not come to its EOI yet."""


def migrate(mode: int, vector: int) -> Callable[[Userspace], Coroutine[Any, Any, None]]:
    """The IPI is sent; then the vCPU moves to a destination whose APIC has latched nothing; then the next one."""

    async def thread(me: Userspace) -> None:
        for ap in me.vm.vcpus[1:]:
            await me.vm.calls.apic_accept_irq(me, ap.apic, mode, vector, True, False)
            await me.pause(ap)
            state = await kvm_arch_vcpu_ioctl_get_mpstate(me, ap)
            await WRITE_ONCE(ap.apic.pending_events, 0)
            await kvm_arch_vcpu_ioctl_set_mpstate(me, ap, state)
            await me.resume(ap)

    return thread
