"""Races of the local APIC at register level: what no sequence of operations can tell, a search finds."""

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of, checks

from racevisor.explore import explore_case
from racevisor.reenact import reenact
from racevisor.step import Step

one = cells_of("apic_races")
WRONG = {"hint_first": "hint", "tmr_last": "tmr", "batch": "map", "flag": "nmi"}


@pytest.mark.parametrize(("variant", "setup"), WRONG.items())
def test_what_is_wrong_is_caught_by_the_outcome_that_is_hunted(variant: str, setup: str) -> None:
    assert checks(explore_case(one(variant, setup))) == {"exists"}


def cell_of(step: Step) -> str:
    """Its name, if there is one."""
    return "" if step.cell is None else step.cell.label


def test_a_change_of_address_that_comes_while_the_map_is_made_is_lost_with_a_dirty_bit_of_two_values() -> None:
    """The vCPU that made the map read the other's LDR before it was written, and cleared the dirty word after."""
    case = one("batch", "map")
    verdict = explore_case(case)
    assert verdict.witness is not None
    _, execution = reenact(case, verdict.witness.schedule)
    steps = execution.steps
    (lost,) = (f"vcpu{i}" for i in (0, 1) if f"vcpu{i} sends" in execution.violations[0].text)
    other = "vcpu1" if lost == "vcpu0" else "vcpu0"
    read = next(s.n for s in steps if s.thread == other and cell_of(s) == f"lapic{lost[-1]}.ldr")
    written = next(s.n for s in steps if s.thread == lost and cell_of(s) == f"lapic{lost[-1]}.ldr" and s.writes)
    cleared = next(s.n for s in steps if s.thread == other and cell_of(s) == "kvm.apic_map_dirty" and s.after == 0)
    assert read < written < cleared


def test_the_acknowledge_needs_the_lock_prefix_of_x86() -> None:
    """Lost in pso, where clear_bit() orders nothing; never with a barrier, and never on x86."""
    found = {
        (variant, memory): explore_case(one(variant, "hint", memory)).found
        for variant in ("after", "fenced")
        for memory in ("tso", "pso")
    }
    assert found == {
        ("after", "tso"): "Never",
        ("after", "pso"): "Sometimes",
        ("fenced", "tso"): "Never",
        ("fenced", "pso"): "Never",
    }


@pytest.mark.parametrize("setup", WRONG.values())
def test_what_a_thread_remembers_is_its_own(setup: str) -> None:
    """A search restores the private state of the thread that moves; what it kept in another actor would be forgotten."""
    world = one("after", setup).world()
    threads = {thread.actor for thread in world.threads}
    assert {actor.name for actor in world.vm.actors if actor.state and actor not in threads} == set()
    world.close()


def test_two_strategies_that_share_nothing_but_the_world_agree() -> None:
    for variant in ("after", "batch"):
        assert_traces_and_states_agree(one(variant, "map"), "optimal")


def test_schedules_play_out_alike_in_fresh_machines() -> None:
    for variant, setup in WRONG.items():
        audit(one(variant, setup))
