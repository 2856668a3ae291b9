"""Registers of the local APIC that no recorded sequence holds: reads, RESET, what a guest may write, LVT CMCI, the self-IPI."""

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.apic_events import deliver_injected, run_once
from actors.apic_irq import kvm_apic_local_deliver
from actors.apic_kernels import FUNCTIONS
from actors.apic_map import LapicIrq, kvm_irq_delivery_to_apic, kvm_send_userspace_msi
from actors.apic_read import apic_mmio_read, kvm_lapic_reg_read, kvm_x2apic_msr_read
from actors.apic_regs import (
    APIC_DEFAULT_PHYS_BASE,
    APIC_DFR,
    APIC_EOI,
    APIC_ICR,
    APIC_ICR2,
    APIC_ICR_HIGH,
    APIC_ID,
    APIC_IRR,
    APIC_ISR,
    APIC_LDR,
    APIC_LVR,
    APIC_LVT0,
    APIC_LVT_MASKED,
    APIC_LVTCMCI,
    APIC_LVTPC,
    APIC_PROCPRI,
    APIC_SELF_IPI,
    APIC_TASKPRI,
    APIC_TMR,
    MSR_IA32_APICBASE_BSP,
    MSR_IA32_APICBASE_ENABLE,
    X2APIC_ENABLE,
    ApicKvm,
    ApicVcpu,
    LocalApic,
)
from actors.apic_write import (
    apic_mmio_write,
    kvm_apic_set_base,
    kvm_lapic_reg_write,
    kvm_lapic_reset,
    kvm_x2apic_msr_write,
)
from actors.devices import Device
from actors.ops import Op
from actors.vm import Vm
from racevisor.alone import run_alone

XAPIC = APIC_DEFAULT_PHYS_BASE | MSR_IA32_APICBASE_ENABLE | MSR_IA32_APICBASE_BSP
X2APIC = XAPIC | X2APIC_ENABLE
OFF = APIC_DEFAULT_PHYS_BASE | MSR_IA32_APICBASE_BSP


class Machine:
    """vCPUs with enabled APICs, and what is done to them."""

    def __init__(self, count: int = 1, mode: int = XAPIC, lvt_entries: int = 6) -> None:
        self.vm = Vm({}, FUNCTIONS)
        self.kvm = ApicKvm(self.vm)
        for i in range(count):
            apic = LocalApic(self.vm, f"lapic{i}", lvt_entries=lvt_entries, apic_id=i, enabled=True)
            ApicVcpu(self.kvm, i, apic).private(if_flag=True)
        self.vm.reset()
        self.vcpu = self.kvm.vcpus[0]
        self.apic = self.vcpu.apic
        for vcpu in self.kvm.vcpus:
            if mode != XAPIC:
                assert self.base(mode, vcpu, host=True)

    def do(self, coroutine: Coroutine[Op, Any, Any]) -> Any:
        return run_alone(coroutine, self.vm.by_name)

    def base(self, value: int, vcpu: ApicVcpu | None = None, host: bool = False) -> Any:
        return self.do(kvm_apic_set_base(self.kvm, vcpu or self.vcpu, value, host_initiated=host))

    def write(self, offset: int, value: int) -> Any:
        return self.do(kvm_lapic_reg_write(self.vcpu, self.apic, offset, value))

    def read(self, offset: int) -> Any:
        return self.do(kvm_lapic_reg_read(self.apic, offset))

    def send(self, vector: int, trig_mode: bool = False) -> Any:
        return self.do(kvm_irq_delivery_to_apic(self.kvm, self.kvm, None, LapicIrq(vector, 0, 0, trig_mode=trig_mode)))

    def take(self) -> Any:
        self.do(run_once(self.vcpu, self.vcpu))
        return deliver_injected(self.vcpu)


def test_the_words_of_irr_isr_and_tmr_are_read_at_their_offsets() -> None:
    """Vector v: bit v & 31 of the word at base + (v >> 5) * 16."""
    machine = Machine()
    machine.send(0x41, trig_mode=True)
    assert machine.read(APIC_IRR + 0x20) == machine.read(APIC_TMR + 0x20) == 2
    assert machine.take() == 0x41
    assert (machine.read(APIC_IRR + 0x20), machine.read(APIC_ISR + 0x20), machine.read(APIC_PROCPRI)) == (0, 2, 0x40)
    assert machine.read(APIC_ISR) == 0


def test_ppr_is_brought_up_to_date_when_it_is_read() -> None:
    """The register itself may be stale, as after KVM_SET_LAPIC."""
    machine = Machine()
    machine.apic.reg[APIC_TASKPRI].value = 0x35
    assert machine.apic.reg[APIC_PROCPRI].value == 0
    assert machine.read(APIC_PROCPRI) == 0x35


def test_what_is_no_register_reads_as_nothing_and_cannot_be_written() -> None:
    """EOI and the self-IPI are write-only; the others are not there."""
    machine = Machine(mode=X2APIC)
    for offset in (0x00, 0x10, 0x40, APIC_EOI, APIC_ICR_HIGH, APIC_SELF_IPI, APIC_LVTCMCI, APIC_ICR2, APIC_DFR, 0x90, 0x400):
        assert machine.read(offset) is None, hex(offset)
    for offset in (APIC_ID, APIC_LVR, APIC_PROCPRI, APIC_LDR, APIC_DFR, APIC_ICR2, APIC_LVTCMCI, 0x290, APIC_IRR, 0x390):
        assert not machine.write(offset, 0), hex(offset)


def test_lvt_cmci_is_there_if_the_machine_has_it_and_the_version_says_so() -> None:
    """Seven entries: bits 23:16 of the version register are one less."""
    machine = Machine(lvt_entries=7)
    assert machine.write(APIC_LVTCMCI, 0x1F2FF)
    assert machine.read(APIC_LVTCMCI) == 0x112FF & ~0x1000 | 0x1000 & 0x1F2FF | 0x200
    assert machine.read(APIC_LVR) >> 16 & 0xFF == 6
    assert Machine().read(APIC_LVR) >> 16 & 0xFF == 5


def test_in_x2apic_mode_the_icr_is_one_msr_of_64_bits_and_mmio_finds_no_apic() -> None:
    """Ones, by a quirk; the stores go nowhere."""
    machine = Machine(mode=X2APIC)
    value = 7 << 32 | 0x0004_0031  # self, vector 0x31
    assert machine.do(kvm_x2apic_msr_write(machine.vcpu, machine.apic, APIC_ICR, value))
    assert machine.do(kvm_x2apic_msr_read(machine.apic, APIC_ICR)) == value
    assert machine.do(kvm_x2apic_msr_read(machine.apic, APIC_ICR2)) is None
    assert machine.do(apic_mmio_read(machine.apic, APIC_TASKPRI)) == 0xFFFFFFFF
    assert not machine.do(apic_mmio_write(machine.vcpu, machine.apic, APIC_TASKPRI, 0x20))
    assert not machine.do(kvm_x2apic_msr_write(machine.vcpu, machine.apic, APIC_TASKPRI, 1 << 32))
    assert machine.take() == 0x31


def test_in_xapic_mode_msrs_find_no_apic_and_mmio_reads_registers() -> None:
    """The other way round; switched off, neither does."""
    machine = Machine()
    assert machine.do(kvm_x2apic_msr_read(machine.apic, APIC_TASKPRI)) is None
    assert not machine.do(kvm_x2apic_msr_write(machine.vcpu, machine.apic, APIC_TASKPRI, 0))
    assert machine.do(apic_mmio_write(machine.vcpu, machine.apic, APIC_TASKPRI, 0x20))
    assert machine.do(apic_mmio_read(machine.apic, APIC_TASKPRI)) == 0x20
    assert machine.base(OFF)
    assert machine.do(apic_mmio_read(machine.apic, APIC_TASKPRI)) == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("old", "new", "guest"),
    [
        (XAPIC, X2APIC, True),
        (X2APIC, XAPIC, False),
        (XAPIC, OFF, True),
        (X2APIC, OFF, True),
        (OFF, XAPIC, True),
        (OFF, X2APIC, False),
    ],
)
def test_a_guest_changes_mode_only_as_the_sdm_allows(old: int, new: int, guest: bool) -> None:
    """10.12.5: from x2APIC only to off, from off only to xAPIC; userspace may do as it likes."""
    assert Machine(mode=old).base(new) is guest
    assert Machine(mode=old).base(new, host=True) is True


@pytest.mark.parametrize("value", [OFF | X2APIC_ENABLE, XAPIC | 1, XAPIC | 1 << 46, XAPIC | 0x200])
def test_a_base_that_no_apic_can_have_is_refused(value: int) -> None:
    """x2APIC without being enabled; reserved bits."""
    assert Machine().base(value, host=True) is False


def test_x2apic_ids_come_from_the_vcpu_and_give_the_logical_id() -> None:
    """LDR: cluster in 31:16, one bit of 16."""
    machine = Machine(19, mode=X2APIC)
    registers = machine.kvm.vcpus[18].apic.reg
    assert (registers[APIC_ID].value, registers[APIC_LDR].value) == (18, 1 << 16 | 1 << 2)


def test_reset_goes_back_to_xapic_mode_and_init_does_not() -> None:
    """RESET writes IA32_APIC_BASE, and the id with it."""
    machine = Machine(2, mode=X2APIC)
    other = machine.kvm.vcpus[1]
    machine.do(kvm_lapic_reset(other, other, True))
    assert other.apic_base.value & X2APIC_ENABLE
    assert (other.apic.reg[APIC_ID].value, other.apic.reg[APIC_LVT0].value) == (1, APIC_LVT_MASKED)
    machine.do(kvm_lapic_reset(other, other, False))
    assert other.apic_base.value == APIC_DEFAULT_PHYS_BASE | MSR_IA32_APICBASE_ENABLE
    assert other.apic.reg[APIC_ID].value == 1 << 24
    assert not other.apic.sw_enabled.value


def test_a_performance_interrupt_masks_its_register() -> None:
    """Intel: until the handler unmasks it; as an NMI, if that is its mode."""
    machine = Machine()
    machine.write(APIC_LVTPC, 0x400)
    assert machine.do(kvm_apic_local_deliver(machine.vcpu, machine.apic, APIC_LVTPC)) == 1
    assert machine.read(APIC_LVTPC) == 0x400 | APIC_LVT_MASKED
    assert machine.do(kvm_apic_local_deliver(machine.vcpu, machine.apic, APIC_LVTPC)) == 0
    assert machine.take() == "nmi"


def test_the_eoi_of_a_level_interrupt_reaches_the_io_apic_and_that_of_an_edge_does_not() -> None:
    """By TMR."""
    for level in (True, False):
        machine = Machine()
        device = Device(machine.vm, "disk", 0, 0x41, level=True)
        device.remote_irr.value = True
        machine.send(0x41, trig_mode=level)
        assert machine.take() == 0x41
        machine.write(APIC_EOI, 0)
        assert device.remote_irr.value is not level


def test_an_msi_with_a_32_bit_destination_needs_the_capability() -> None:
    """Without, the high half of the address is nothing; with it, its low byte is reserved."""
    address = 0xFEE00000 | 1 << 40 | 2 << 12
    machine = Machine(3, mode=X2APIC)
    assert machine.do(kvm_send_userspace_msi(machine.kvm, machine.kvm, address, 0x41)) == 1  # to vCPU 2
    machine.kvm.x2apic_format = True
    assert machine.do(kvm_send_userspace_msi(machine.kvm, machine.kvm, address, 0x41)) == 0  # to 0x102, who is not there
    assert machine.do(kvm_send_userspace_msi(machine.kvm, machine.kvm, address | 1 << 32, 0x41)) == -1


def test_a_vector_that_the_machine_was_made_without_is_named() -> None:
    """A search needs to know what may be sent, and would be wrong without it."""
    vm = Vm({}, FUNCTIONS)
    vcpu = ApicVcpu(ApicKvm(vm), 0, LocalApic(vm, "lapic0", vectors=(0x31,), enabled=True))
    with pytest.raises(ValueError, match=r"vector 0x51 is sent to lapic0.*\n.*vectors=\(0x51,\)"):
        run_alone(kvm_irq_delivery_to_apic(vcpu, vcpu.kvm, None, LapicIrq(0x51, 0, 0)))


ACTIONS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from([0x10, 0x31, 0x32, 0x45, 0x51, 0x91, 0xFF])),
    st.tuples(st.just("take"), st.just(0)),
    st.tuples(st.just("eoi"), st.just(0)),
    st.tuples(st.just("tpr"), st.sampled_from([0, 0, 0x2F, 0x31, 0x40, 0xF0])),
)


@settings(max_examples=100)
@given(st.lists(ACTIONS, min_size=15, max_size=40))
def test_fixed_interrupts_are_two_sets_and_a_priority(actions: list[tuple[str, int]]) -> None:
    """A model of ten lines, for any arrivals, handlers, EOIs and TPR writes; the hint and the ISR's count follow it."""
    machine = Machine()
    pending: set[int] = set()
    serving: set[int] = set()
    tpr = 0
    for action, value in actions:
        if action == "send":
            machine.send(value)
            pending.add(value)
        elif action == "tpr":
            machine.write(APIC_TASKPRI, value)
            tpr = value
        elif action == "eoi":
            machine.write(APIC_EOI, 0)
            serving.discard(max(serving, default=0))
        else:
            highest = max(pending, default=0)
            wanted = highest if highest >> 4 > max(tpr >> 4, max(serving, default=0) >> 4) else None
            assert machine.take() == wanted
            if wanted is not None:
                pending.discard(wanted)
                serving.add(wanted)
        for first, vectors in ((APIC_IRR, pending), (APIC_ISR, serving)):
            words = [machine.read(first + 0x10 * r) for r in range(8)]
            assert {32 * r + i for r in range(8) for i in range(32) if words[r] >> i & 1} == vectors
        highest_class = max(serving, default=0) & 0xF0
        assert machine.read(APIC_PROCPRI) == (tpr if tpr & 0xF0 >= highest_class else highest_class)
        assert machine.apic.irr_pending.value or not pending
        assert machine.vcpu.isr_count == len(serving)
