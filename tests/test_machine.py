"""The machine itself: guest programs, interrupts, and what a scenario writer meets on the first day."""

from typing import Any

import pytest

from actors.devices import Device
from actors.guest import (
    APIC_BROADCAST,
    APIC_DEST_ALLBUT,
    APIC_DEST_SELF,
    APIC_DM_FIXED,
    APIC_DM_INIT,
    APIC_DM_STARTUP,
    GuestCpu,
    GuestProgram,
)
from actors.lapic import apic_accept_irq
from actors.ops import WRITE_ONCE, choose
from actors.requests import KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED
from actors.thread import Thread
from actors.vm import Vm
from racevisor.strategies.random_walk import RandomWalk
from racevisor.strategies.states import StatefulSearch
from racevisor.world import World

IRQ = 0xEC


def ends(of: World, look: Any) -> set[Any]:
    """`look(vm)` in every end state."""
    strategy, run, found = StatefulSearch(), 0, set()
    again = True
    while again:
        execution = of.run(strategy, run)
        assert not execution.violations
        if execution.status == "terminal":
            found.add(look(of.vm))
        again = strategy.end(execution)
        run += 1
    of.close()
    assert strategy.exhausted
    return found


def machine(*programs: GuestProgram, vectors: tuple[int, ...] = (), **memory: Any) -> Vm:
    """vCPU i runs programs[i]; all start RUNNABLE."""
    vm = Vm()
    vm.guest_memory(**memory)
    vm.add_vcpus(len(programs), vectors)
    for vcpu, program in zip(vm.vcpus, programs, strict=True):
        vcpu.programs[0] = program
        vcpu.mp_state.init = 0
    return vm


async def nothing(cpu: GuestCpu) -> None:
    """Ends at once, which is a HLT with interrupts off."""


def test_programs_from_one_factory_are_told_apart_by_where_they_start() -> None:
    """Two closures have one name; a search that tells programs apart by name would take vector 9's for vector 8's."""
    vm = machine(nothing, nothing, x=0)
    ap = vm.vcpus[1]
    ap.mp_state.init = KVM_MP_STATE_INIT_RECEIVED
    m: Any = vm.memory

    def store(n: int) -> GuestProgram:
        async def program(cpu: GuestCpu) -> None:
            await cpu.store(m.x, n)

        return program

    ap.programs |= {8 << 12: store(8), 9 << 12: store(9)}

    async def send(me: Any) -> None:
        await apic_accept_irq(me, ap.apic, APIC_DM_STARTUP, 8 + await choose(2), True, False)

    Thread(vm, "sender", send)
    assert ends(World(vm, "sc", automata=True), lambda vm: vm.memory.x.value) == {8, 9}


def test_a_program_whose_last_instruction_gives_a_value_ends_like_any_other() -> None:
    vm = machine(nothing, x=5)
    m: Any = vm.memory

    async def last_is_a_load(cpu: GuestCpu) -> None:
        await cpu.load(m.x)

    vm.vcpus[0].programs[0] = last_is_a_load
    assert ends(World(vm, "sc", automata=True), lambda vm: vm.vcpus[0].waits_for()) == {
        "HALTED at CS base 0x0, waits for an interrupt"
    }


@pytest.mark.parametrize(
    ("dest", "shorthand", "reached"),
    [
        (1, 0, (0, 1, 0)),
        (APIC_BROADCAST, 0, (1, 1, 1)),
        (0, APIC_DEST_SELF, (1, 0, 0)),
        (0, 2, (1, 1, 1)),
        (0, APIC_DEST_ALLBUT, (0, 1, 1)),
    ],
)
def test_an_init_reaches_the_destinations_that_the_icr_names(dest: int, shorthand: int, reached: tuple[int, ...]) -> None:
    async def sender(cpu: GuestCpu) -> None:
        await cpu.write_icr(dest, APIC_DM_INIT, shorthand=shorthand)
        await cpu.compute()

    vm = machine(sender, nothing, nothing)
    world = World(vm)
    execution = world.run(RandomWalk(0, 1))
    hit = tuple(
        int(any(s.cell is v.apic.pending_events and s.writes and s.after == 1 for s in execution.steps)) for v in vm.vcpus
    )
    world.close()
    assert hit == reached


def test_an_uninitialized_ap_drops_a_sipi_and_waits_on() -> None:
    async def sender(cpu: GuestCpu) -> None:
        await cpu.write_icr(1, APIC_DM_STARTUP, 9)

    vm = machine(sender, nothing)
    vm.vcpus[1].mp_state.init = KVM_MP_STATE_UNINITIALIZED
    assert ends(World(vm, "sc", automata=True), lambda vm: vm.vcpus[1].waits_for()) == {"UNINITIALIZED, waits for INIT"}


def test_an_nmi_wakes_a_vcpu_that_halts_with_interrupts_off() -> None:
    vm = machine(nothing, x=0)
    m: Any = vm.memory

    async def once_more(cpu: GuestCpu) -> None:
        await cpu.store(m.x, 1)

    vm.vcpus[0].programs[0] = once_more
    vm.vcpus[0].mp_state.init = KVM_MP_STATE_HALTED
    Device(vm, "watchdog", 0, 2, nmi=True)
    assert ends(World(vm, "sc", automata=True), lambda vm: vm.memory.x.value) == {1}


def test_an_interrupt_waits_until_the_guest_allows_it() -> None:
    vm = machine(nothing, vectors=(IRQ,), x=0)
    m: Any = vm.memory

    async def later(cpu: GuestCpu) -> None:
        await cpu.store(m.x, 1)
        await cpu.sti()
        await cpu.hlt()

    vm.vcpus[0].programs[0] = later
    Device(vm, "timer0", 0, IRQ)
    assert ends(
        World(vm, "sc", automata=True), lambda vm: (vm.vcpus[0].apic.irr[IRQ >> 5].value, vm.vcpus[0].apic.isr.value)
    ) == {(0, ())}


def test_a_vector_that_the_machine_was_made_without_is_named() -> None:
    async def sender(cpu: GuestCpu) -> None:
        await cpu.write_icr(0, APIC_DM_FIXED, 0x41)

    world = World(machine(sender))
    with pytest.raises(ValueError, match=r"vcpu0 sends vector 0x41 .*\n.*vectors=\(0x41,\)"):
        world.run(RandomWalk(0, 1))
    world.close()


@pytest.mark.parametrize(("fenced", "both_zero"), [(False, True), (True, False)])
def test_guest_stores_wait_in_the_store_buffer_until_mfence(fenced: bool, both_zero: bool) -> None:
    """SB on two vCPUs: what hardware does to a guest that forgets the fence."""
    vm = machine(nothing, nothing, x=0, y=0, r0=-1, r1=-1)
    m: Any = vm.memory

    def program(mine: Any, other: Any, register: Any) -> GuestProgram:
        async def run(cpu: GuestCpu) -> None:
            await cpu.store(mine, 1)
            if fenced:
                await cpu.mfence()
            await cpu.store(register, await cpu.load(other))

        return run

    vm.vcpus[0].programs[0] = program(m.x, m.y, m.r0)
    vm.vcpus[1].programs[0] = program(m.y, m.x, m.r1)
    found = ends(World(vm, "tso", automata=True), lambda vm: (vm.memory.r0.value, vm.memory.r1.value))
    assert ((0, 0) in found) is both_zero
    assert {(0, 1), (1, 0), (1, 1)} <= found


def test_a_bounded_spin_gives_up_and_says_so() -> None:
    vm = machine(nothing, x=0, seen=-1)
    m: Any = vm.memory

    async def spin(cpu: GuestCpu) -> None:
        await cpu.store(m.seen, int(await cpu.spin_until(m.x, 1, times=2)))

    async def late(_me: Any) -> None:
        await WRITE_ONCE(m.x, 1)

    vm.vcpus[0].programs[0] = spin
    Thread(vm, "other", late)
    assert ends(World(vm, "sc", automata=True), lambda vm: vm.memory.seen.value) == {0, 1}
