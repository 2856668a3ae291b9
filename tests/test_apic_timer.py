"""The APIC timer in virtual time, held against the SDM (vol. 3, 10.5.4) and lapic.c: the vectors hold no timer."""

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.apic_events import deliver_injected, run_once
from actors.apic_kernels import FUNCTIONS
from actors.apic_read import kvm_lapic_reg_read
from actors.apic_regs import (
    APIC_EOI,
    APIC_LVT_MASKED,
    APIC_LVT_TIMER_ONESHOT,
    APIC_LVT_TIMER_PERIODIC,
    APIC_LVT_TIMER_TSCDEADLINE,
    APIC_LVTT,
    APIC_SPIV,
    APIC_TDCR,
    APIC_TMCCT,
    APIC_TMICT,
    ApicKvm,
    ApicVcpu,
    LocalApic,
)
from actors.apic_timer import (
    MIN_TIMER_PERIOD_NS,
    ApicTimer,
    Clock,
    clock_advance,
    kvm_get_lapic_tscdeadline_msr,
    kvm_set_lapic_tscdeadline_msr,
)
from actors.apic_write import kvm_lapic_reg_write, kvm_lapic_reset
from actors.ops import Op
from actors.requests import KVM_MP_STATE_HALTED
from actors.vm import Vm
from racevisor.alone import run_alone

VECTOR = 0xEC
MS = 1_000_000
DIVIDE_BY_1 = 0xB


class Guest:
    """One vCPU with a timer: what its guest does, and virtual time."""

    def __init__(self, tsc_khz: int = 2_000_000) -> None:
        self.vm = Vm({}, FUNCTIONS)
        self.vcpu = ApicVcpu(ApicKvm(self.vm), 0, LocalApic(self.vm, "lapic0", enabled=True))
        self.vcpu.private(if_flag=True)
        self.clock = Clock(self.vm, tsc_khz=tsc_khz)
        self.timer = ApicTimer(self.vcpu.apic, self.clock)
        self.vm.reset()
        self.write(APIC_TDCR, DIVIDE_BY_1)

    def do(self, coroutine: Coroutine[Op, Any, Any]) -> Any:
        return run_alone(coroutine, self.vm.by_name)

    def write(self, offset: int, value: int) -> None:
        assert self.do(kvm_lapic_reg_write(self.vcpu, self.vcpu.apic, offset, value))

    def start(self, mode: int, count: int) -> None:
        self.write(APIC_LVTT, mode | VECTOR)
        self.write(APIC_TMICT, count)

    def deadline(self, cycles: int) -> None:
        self.do(kvm_set_lapic_tscdeadline_msr(self.vcpu, cycles))

    def after(self, ns: int) -> None:
        self.do(clock_advance(self.clock, self.clock, [self.timer], ns))

    @property
    def count(self) -> int:
        value: int = self.do(kvm_lapic_reg_read(self.vcpu.apic, APIC_TMCCT))
        return value

    @property
    def msr(self) -> int:
        value: int = self.do(kvm_get_lapic_tscdeadline_msr(self.vcpu))
        return value

    def handles(self) -> int:
        """How many timer interrupts its handler gets now, each with its EOI."""
        taken = 0
        while True:
            self.do(run_once(self.vcpu, self.vcpu))  # the run loop delivers what is pending at its end
            self.do(run_once(self.vcpu, self.vcpu))
            event = deliver_injected(self.vcpu)
            if event is None:
                return taken
            assert event == VECTOR
            taken += 1
            self.write(APIC_EOI, 0)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_one_shot_timer_fires_once_at_its_count(guest: Guest) -> None:
    """The bus clock of KVM is 1 GHz: a count is a nanosecond."""
    guest.start(APIC_LVT_TIMER_ONESHOT, MS)
    guest.after(MS - 1)
    assert (guest.count, guest.handles()) == (1, 0)
    guest.after(1)
    assert (guest.count, guest.handles()) == (0, 1)
    guest.after(10 * MS)
    assert (guest.count, guest.handles()) == (0, 0)


def test_the_current_count_goes_down_with_time_and_with_the_divider(guest: Guest) -> None:
    """Divide configuration: bits 3, 1, 0."""
    for tdcr, divider in {0b0000: 2, 0b0001: 4, 0b0010: 8, 0b0011: 16, 0b1000: 32, 0b1001: 64, 0b1010: 128, 0b1011: 1}.items():
        guest.write(APIC_TDCR, tdcr)
        guest.start(APIC_LVT_TIMER_ONESHOT, 1000)
        guest.after(300 * divider)
        assert guest.count == 700
        guest.after(700 * divider - 1)
        assert guest.handles() == 0
        guest.after(1)
        assert guest.handles() == 1


def test_a_periodic_timer_goes_on_without_drift(guest: Guest) -> None:
    """Each target is a period after the last target, whenever the vCPU came to deliver it."""
    guest.start(APIC_LVT_TIMER_PERIODIC, MS)
    for late in (0, 7, 300_000, 999_999):
        guest.after(MS)
        guest.after(late)
        assert guest.handles() == 1
        assert guest.count == (MS - late) % MS
        guest.after(MS - late)
        assert guest.handles() == 1


def test_a_callback_that_comes_late_does_not_move_the_next_target(guest: Guest) -> None:
    """The host was busy for a third of a period: the second tick is on time again."""
    guest.start(APIC_LVT_TIMER_PERIODIC, MS)
    guest.clock.now.value = MS + MS // 3
    guest.after(0)
    assert (guest.handles(), guest.count) == (1, 2 * MS // 3 + 1)
    guest.after(2 * MS // 3)
    assert guest.handles() == 0
    guest.after(1)
    assert guest.handles() == 1


def test_ticks_that_nobody_takes_collapse_into_one(guest: Guest) -> None:
    """One interrupt is pending, as in hardware; there is no queue of ticks."""
    guest.start(APIC_LVT_TIMER_PERIODIC, MS)
    guest.after(10 * MS + 1)
    assert guest.timer.pending.value == 1
    assert guest.handles() == 1
    guest.after(MS)
    assert guest.handles() == 1


def test_a_guest_cannot_keep_the_host_busy(guest: Guest) -> None:
    """A period of a microsecond is one of 200; a one-shot timer is not touched."""
    guest.start(APIC_LVT_TIMER_PERIODIC, 1000)
    guest.after(MIN_TIMER_PERIOD_NS - 1)
    assert guest.handles() == 0
    guest.after(1)
    assert guest.handles() == 1
    guest.start(APIC_LVT_TIMER_ONESHOT, 1000)
    guest.after(1000)
    assert guest.handles() == 1


def test_a_count_of_0_stops_it(guest: Guest) -> None:
    """SDM: writing 0 to the initial count stops the timer."""
    guest.start(APIC_LVT_TIMER_PERIODIC, MS)
    guest.after(MS // 2)
    guest.write(APIC_TMICT, 0)
    guest.after(10 * MS)
    assert (guest.count, guest.handles()) == (0, 0)


def test_a_new_count_starts_it_again_and_forgets_a_tick_that_was_not_delivered(guest: Guest) -> None:
    """cancel_apic_timer() owes nothing."""
    guest.start(APIC_LVT_TIMER_ONESHOT, MS)
    guest.after(MS)
    guest.write(APIC_TMICT, MS)
    assert guest.handles() == 0
    guest.after(MS)
    assert guest.handles() == 1


def test_another_divider_stretches_what_is_left(guest: Guest) -> None:
    """The count that is left stays, its length changes: update_target_expiration()."""
    guest.start(APIC_LVT_TIMER_ONESHOT, MS)
    guest.after(MS // 4)
    guest.write(APIC_TDCR, 0)  # by 2
    assert guest.count == 3 * MS // 4
    guest.after(3 * MS // 2 - 1)
    assert guest.handles() == 0
    guest.after(1)
    assert guest.handles() == 1


def test_between_one_shot_and_periodic_it_runs_on_and_to_deadline_mode_it_stops(guest: Guest) -> None:
    """SDM 10.5.4.1: a change to or from TSC deadline mode disarms; apic_update_lvtt()."""
    guest.start(APIC_LVT_TIMER_ONESHOT, MS)
    guest.write(APIC_LVTT, APIC_LVT_TIMER_PERIODIC | VECTOR)
    guest.after(2 * MS)
    assert guest.handles() == 1
    guest.write(APIC_LVTT, APIC_LVT_TIMER_TSCDEADLINE | VECTOR)
    guest.after(10 * MS)
    assert (guest.count, guest.handles(), guest.vcpu.apic.reg[APIC_TMICT].value) == (0, 0, 0)


@pytest.mark.parametrize("tsc_khz", [1_000_000, 2_000_000, 2_893_437])
def test_a_deadline_fires_when_the_tsc_reaches_it_and_reads_as_0_then(tsc_khz: int) -> None:
    """Not a cycle before; SDM 10.5.4.1: the MSR is cleared when it fires."""
    guest = Guest(tsc_khz)
    guest.write(APIC_LVTT, APIC_LVT_TIMER_TSCDEADLINE | VECTOR)
    deadline = 5 * tsc_khz + 1  # 5 ms and a cycle
    guest.deadline(deadline)
    guest.after(5 * MS)
    assert (guest.msr, guest.handles(), guest.count) == (deadline, 0, 0)
    guest.after(1)
    assert (guest.handles(), guest.msr) == (1, 0)
    assert guest.clock.cycles(guest.clock.now.value) >= deadline


def test_a_deadline_in_the_past_fires_at_once_and_0_disarms(guest: Guest) -> None:
    """Without a host timer."""
    guest.write(APIC_LVTT, APIC_LVT_TIMER_TSCDEADLINE | VECTOR)
    guest.after(MS)
    guest.deadline(1)
    assert guest.handles() == 1
    guest.deadline(10**9)
    guest.deadline(0)
    guest.after(1000 * MS)
    assert guest.handles() == 0


def test_a_new_deadline_forgets_one_that_has_passed_and_was_not_delivered(guest: Guest) -> None:
    """start_apic_timer() begins with nothing pending."""
    guest.write(APIC_LVTT, APIC_LVT_TIMER_TSCDEADLINE | VECTOR)
    guest.deadline(1000)
    guest.after(MS)
    guest.deadline(10**9)
    assert (guest.handles(), guest.msr) == (0, 10**9)


def test_each_mode_ignores_what_arms_the_other(guest: Guest) -> None:
    """The MSR in one-shot mode, the initial count in TSC deadline mode."""
    guest.write(APIC_LVTT, APIC_LVT_TIMER_ONESHOT | VECTOR)
    guest.deadline(1)
    assert (guest.msr, guest.handles()) == (0, 0)
    guest.start(APIC_LVT_TIMER_TSCDEADLINE, MS)
    guest.after(2 * MS)
    assert (guest.handles(), guest.vcpu.apic.reg[APIC_TMICT].value) == (0, 0)


def test_a_masked_timer_counts_and_interrupts_nobody(guest: Guest) -> None:
    """What expired while it was masked is not made up for by the mask's end: it stays pending in KVM, and comes then."""
    guest.start(APIC_LVT_TIMER_ONESHOT | APIC_LVT_MASKED, MS)
    guest.after(MS // 2)
    assert guest.count == MS // 2
    guest.after(MS)
    assert guest.handles() == 0
    guest.write(APIC_LVTT, APIC_LVT_TIMER_ONESHOT | VECTOR)
    assert guest.handles() == 1


def test_software_disable_masks_it_and_drops_what_is_pending(guest: Guest) -> None:
    """And enabling it again does not unmask."""
    guest.start(APIC_LVT_TIMER_ONESHOT, MS)
    guest.after(MS)
    guest.write(APIC_SPIV, 0xFF)
    guest.write(APIC_SPIV, 0x1FF)
    assert guest.handles() == 0
    assert guest.vcpu.apic.reg[APIC_LVTT].value & APIC_LVT_MASKED


def test_init_stops_it(guest: Guest) -> None:
    """And its registers are as after a reset."""
    guest.start(APIC_LVT_TIMER_PERIODIC, MS)
    guest.do(kvm_lapic_reset(guest.vcpu, guest.vcpu, True))
    guest.after(10 * MS)
    assert guest.timer.pending.value == 0
    assert [guest.vcpu.apic.reg[offset].value for offset in (APIC_TMICT, APIC_TDCR)] == [0, 0]


def test_it_wakes_a_vcpu_that_sleeps(guest: Guest) -> None:
    """Pending, then in the IRR, then RUNNABLE, then in service: each in the run loop of the vCPU."""
    guest.start(APIC_LVT_TIMER_ONESHOT, MS)
    guest.vcpu.mp_state.value = KVM_MP_STATE_HALTED
    assert guest.handles() == 0
    guest.after(MS)
    assert guest.handles() == 0  # one pass to deliver it, one to wake up
    assert guest.handles() == 1


@settings(max_examples=60)
@given(st.integers(MIN_TIMER_PERIOD_NS, 10 * MS), st.lists(st.integers(0, 3 * MS), min_size=1, max_size=12))
def test_a_periodic_timer_is_where_arithmetic_says(period: int, naps: list[int]) -> None:
    """However time is cut into pieces: the count, and whether a tick has come since one looked."""
    guest = Guest()
    guest.start(APIC_LVT_TIMER_PERIODIC, period)
    now = 0
    for nap in naps:
        ticks = (now + nap) // period - now // period
        now += nap
        guest.after(nap)
        assert guest.handles() == min(ticks, 1)
        assert guest.count == -now % period
