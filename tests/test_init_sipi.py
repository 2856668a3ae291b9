"""The INIT/SIPI patch: every version of it does what the kernel's history says, set-up by set-up."""

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of

from actors.lapic import kvm_get_apic_interrupt
from actors.ops import READ_ONCE, WRITE_ONCE
from actors.requests import KVM_MP_STATE_INIT_RECEIVED
from actors.vcpu import RESET_CS_BASE, Vcpu
from racevisor import Variant
from racevisor.commands.output import reenact
from racevisor.explore import explore_case
from racevisor.memory import MODELS

one = cells_of("init_sipi")

#: `irq`, `two_rounds` and `migration` take seconds a cell; `racevisor verify` has all of them, in every memory model
QUICK = ("plain", "init_only", "stale_sipi", "bsp_init", "edge_irqs", "level_irq")


def test_an_unrelated_interrupt_makes_the_seed_eat_a_sipi() -> None:
    """I-8: the reason why 3.10 shipped another kvm_apic_accept_events() than the patch had.  The latch claims Never there."""
    seed = explore_case(one("seed", "irq"))
    assert seed.found == "Sometimes"
    assert seed.witness is not None
    assert [violation.check for violation in seed.witness.violations] == ["I-I3"]
    assert one("latch", "irq").claimed == "Never"


@pytest.mark.parametrize("memory", MODELS)
def test_a_busy_loop_that_posts_a_store_each_time_round_is_found_and_replays(memory: str) -> None:
    """I-M19: the SIPI that nobody takes keeps the vCPU awake.  Under pso it is never alone without a store on its way."""
    case = one("I-M19", "bsp_init", memory)
    verdict = explore_case(case)
    assert (verdict.found, verdict.verdict) == ("Always", "exhausted")
    assert verdict.witness is not None
    _, execution = reenact(case, verdict.witness.schedule)
    assert [violation.check for violation in execution.violations] == ["livelock"]


def test_a_halting_vcpu_overwrites_its_init_before_the_patch() -> None:
    """I-1, and its fatal pair: the sender's store and the target's."""
    verdict = explore_case(one("before", "plain"))
    assert verdict.witness is not None
    (violation,) = verdict.witness.violations
    assert violation.check == "I-I2"
    init, halt = (verdict.witness.schedule[n] for n in violation.fatal)
    assert init == ("vcpu0", "WRITE_ONCE(vcpu1.mp_state, 2)")
    assert halt == ("vcpu1", "WRITE_ONCE(vcpu1.mp_state, 3)")


def test_an_unhalting_vcpu_overwrites_its_init_before_the_patch() -> None:
    """I-2: an interrupt wakes the vCPU; it reads HALTED, the INIT arrives, it stores RUNNABLE."""
    verdict = explore_case(one("before", "irq"), strategy="random", runs=3000)
    assert verdict.witness is not None
    assert any(
        label == "WRITE_ONCE(vcpu1.mp_state, 0)" and ("vcpu0", "WRITE_ONCE(vcpu1.mp_state, 2)") in verdict.witness.schedule[:n]
        for n, (channel, label) in enumerate(verdict.witness.schedule)
        if channel == "vcpu1"
    )


@pytest.mark.parametrize("check", ["enters the guest", "accepts interrupt"])
def test_a_vcpu_that_goes_on_while_it_waits_for_sipi_is_caught(check: str) -> None:
    """I-I6 holds in every claimed variant, so here is one that breaks it: INIT is accepted, and the entry goes on.

    The reset asks for no KVM_REQ_EVENT here: the one that the kernel's asks for would stop the entry at its last check.
    """
    case = one("latch", "init_only" if check == "enters the guest" else "irq")

    async def goes_on(vcpu: Vcpu) -> bool:
        await vcpu.vm.calls.kvm_apic_accept_events(vcpu, vcpu)
        if check == "accepts interrupt" and await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
            await kvm_get_apic_interrupt(vcpu.apic, 0xEC)
        return True

    async def quiet_reset(vcpu: Vcpu) -> None:
        generation, _ = await READ_ONCE(vcpu.regs)
        await WRITE_ONCE(vcpu.regs, (generation + 1, RESET_CS_BASE))

    replaced = {"vcpu_enter_guest_event": goes_on, "kvm_vcpu_reset": quiet_reset}
    case.variant = Variant("no look at mp_state after accept_events", replaced)
    verdict = explore_case(case)
    assert verdict.witness is not None
    assert [v.check for v in verdict.witness.violations] == ["I-I6"]
    assert check in verdict.witness.violations[0].text


def test_x86_hides_the_missing_write_barrier_of_the_sipi() -> None:
    found = {memory: explore_case(one("I-M15", "plain", memory)).found for memory in MODELS}
    assert found == {"sc": "Never", "tso": "Never", "pso": "Sometimes"}


def test_the_number_of_states_and_end_states_of_the_reference_is_what_it_was() -> None:
    """A change of the machine or of the search that moves these numbers is meant, or a bug."""
    verdict = explore_case(one("latch", "plain"))
    assert verdict.verdict == "exhausted"
    assert verdict.states == 2421
    assert set(verdict.outcomes) == {"vcpu1 RUNNABLE at CS base 0x9000"}


def test_source_dpor_and_the_stateful_search_agree_where_both_can_finish() -> None:
    for variant in ("before", "latch", "I-M10", "I-M13"):
        assert_traces_and_states_agree(one(variant, "init_only"), "source")


@pytest.mark.parametrize("setup", [*QUICK, "irq"])
def test_every_schedule_runs_twice_the_same(setup: str) -> None:
    for variant in ("before", "seed", "latch", "today"):
        for memory in MODELS:
            audit(one(variant, setup, memory))
