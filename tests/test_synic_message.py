"""The SynIC message patch: what each version does, set-up by set-up, and which check catches which mutant."""

import pytest
from claims import audit, cells_of, refuted

from racevisor.explore import cases, explore_case
from racevisor.memory import MODELS

one = cells_of("synic_message")

IN_VCPU = ["before", "after", "today", "S-M4", "S-M9", "S-M11", "S-7c", "S-7d"]
BESIDE = ["tlfs", "S-M1", "S-M2", "S-M3"]


def caught(variant: str, setup: str, memory: str = "sc") -> set[str]:
    """The checks that the first bad execution fails."""
    witness = explore_case(one(variant, setup, memory)).witness
    return set() if witness is None else {violation.check for violation in witness.violations}


def test_every_claim_about_delivery_on_the_vcpu_holds_when_stores_are_visible_at_once() -> None:
    assert refuted(cases("synic_message", IN_VCPU, memories=["sc"])) == []


@pytest.mark.parametrize("memory", ["tso", "pso"])
def test_the_claims_about_both_versions_of_the_patch_hold_with_store_buffers(memory: str) -> None:
    setups = ["page_walk", "eoi_first", "auto_eoi", "masked"]
    assert refuted(cases("synic_message", ["before", "after"], setups, [memory])) == []


def test_delivery_beside_the_guest_is_as_good_as_its_order() -> None:
    """The order of the TLFS holds where the patch's and 4.19's own order lose a message."""
    assert refuted(cases("synic_message", BESIDE, ["eoi_first", "auto_eoi"], ["sc"])) == []


@pytest.mark.parametrize(
    ("variant", "setup", "check"),
    [
        ("before", "page_walk", "S-I3"),
        ("S-M1", "eoi_first", "S-L2"),
        ("S-M2", "auto_eoi", "S-L2"),
        ("S-M4", "eoi_first", "S-L2"),
        ("S-M5", "eoi_first", "livelock"),
        ("S-M7", "busy", "S-L1"),
        ("S-M9", "auto_eoi", "S-L2"),
        ("S-M10b", "busy", "S-I2"),
        ("S-M11", "auto_eoi", "S-I1"),
        ("S-M12", "busy", "S-I4"),
        ("after", "masked", "S-I3"),
        ("after", "simp_late", "S-L2"),
        ("after", "ap_waits", "S-L4"),
        ("after", "migration", "S-I3"),
    ],
)
def test_each_flaw_is_caught_by_the_check_that_is_meant_for_it(variant: str, setup: str, check: str) -> None:
    assert check in caught(variant, setup)


def test_a_message_is_owed_for_ever_when_the_slot_is_emptied_between_the_look_and_the_mark() -> None:
    """S-1: the timer sees a busy slot, the guest empties it and finds no pending bit, the timer sets the bit."""
    witness = explore_case(one("S-M1", "eoi_first")).witness
    assert witness is not None
    steps = [label for _, label in witness.schedule]
    busy = steps.index("READ_ONCE(synic0.type2) = 2147483664", 0)
    emptied = next(n for n, label in enumerate(steps) if label.startswith("cmpxchg(synic0.type2, 2147483664, 0)"))
    looked = next(n for n, label in enumerate(steps) if label == "READ_ONCE(synic0.flags2) = 0")
    marked = max(n for n, label in enumerate(steps) if label == "WRITE_ONCE(synic0.flags2, 1)")
    assert busy < emptied < looked < marked


def test_a_guest_that_writes_its_eoi_last_is_rescued_by_it() -> None:
    """The EOI itself makes KVM retry, after the slot is empty; x86's store buffer can hide from it that a message is owed."""
    found = {memory: explore_case(one("S-M1", "eoi_last", memory)).found for memory in MODELS}
    assert found["sc"] == "Never"


def test_the_guest_needs_its_barrier_only_against_delivery_beside_it() -> None:
    """VM exit is a barrier too, so the patch does without the guest's."""
    assert {memory: explore_case(one("S-M3", "auto_eoi", memory)).found for memory in ("sc", "tso")} == {
        "sc": "Never",
        "tso": "Sometimes",
    }
    assert explore_case(one("S-M3v", "auto_eoi", "tso")).verdict == "exhausted"


def test_the_number_of_states_and_the_end_states_of_the_reference_are_what_they_were() -> None:
    """A change of the machine or of the search that moves these numbers is meant, or a bug."""
    verdict = explore_case(one("after", "eoi_first"))
    assert verdict.verdict == "exhausted"
    assert verdict.states == 2007
    assert set(verdict.outcomes) == {"vcpu0 took A1, B1; 0 EOM", "vcpu0 took A1, B1; 1 EOM"}


@pytest.mark.parametrize("setup", ["page_walk", "eoi_first", "masked"])
def test_every_schedule_runs_twice_the_same(setup: str) -> None:
    for variant in ("before", "S-M1"):
        for memory in MODELS:
            audit(one(variant, setup, memory))
