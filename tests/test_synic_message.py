"""The SynIC message patch: what each version does, set-up by set-up, and which check catches which mutant."""

import pytest
from claims import audit, cells_of

from actors.synic import HVMSG_TIMER_EXPIRED, LAYOUT, SLOT_SIZE, SLOTS, VECTOR, Synic, timer_message
from actors.vm import Vm
from racevisor.explore import explore_case
from racevisor.memory import MODELS
from racevisor.strategies.random_walk import RandomWalk

one = cells_of("synic_message")


def caught(variant: str, setup: str, memory: str = "sc") -> set[str]:
    """The checks that the first bad execution fails."""
    witness = explore_case(one(variant, setup, memory)).witness
    return set() if witness is None else {violation.check for violation in witness.violations}


def test_each_later_fix_mends_what_it_is_for_and_nothing_else() -> None:
    """7deec5e0df74, 013cc6ebbf41, d6800af51c76, 7ec37d1cbe17 one by one, each with the set-ups of the others."""
    fixes = {"no_retry": "no_eom", "init": "ap_waits", "restore": "migration", "lapic": "no_lapic"}
    for fix in fixes:
        mended = [s for s in fixes.values() if explore_case(one(fix, s)).found == "Never"]
        assert mended == [fixes[fix]]
    assert all(explore_case(one("today", s)).found == "Never" for s in fixes.values())


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
        ("S-2", "crash", "S-L2"),
        ("after", "page_read", "S-I2"),
        ("after", "no_lapic", "S-L5"),
        ("after", "disabled", "S-8"),
        ("after", "memslot_moves", "S-L2"),
        ("synic1", "simp_again", "S-L2"),
        ("S-M2", "full", "S-I5"),
        ("S-M4", "full", "S-I5"),
        ("S-M5b", "eoi_first", "livelock"),
        ("S-M9", "two_sints", "S-L2"),
        ("S-M10c", "busy", "S-I2"),
        ("S-M12", "two_sints", "S-I4"),
        ("S-M13b", "auto_eoi", "S-L3"),
        ("S-M14b", "full", "S-I5"),
        ("S-7f", "dirty_log", "S-7f"),
        ("S-7f_early", "dirty_log", "S-7f"),
        ("S-GP", "bad_vector", "S-L1"),
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
    """The EOI itself makes KVM retry, after the slot is empty."""
    assert explore_case(one("S-M1", "eoi_last")).found == "Never"


def test_the_guest_needs_its_barrier_only_against_delivery_beside_it() -> None:
    """VM exit is a barrier too, so the patch does without the guest's."""
    assert {memory: explore_case(one("S-M3", "auto_eoi", memory)).found for memory in ("sc", "tso")} == {
        "sc": "Never",
        "tso": "Sometimes",
    }
    assert explore_case(one("S-M3v", "auto_eoi", "tso")).verdict == "exhausted"


@pytest.mark.parametrize(
    ("variant", "setup", "step", "reference"),
    [
        ("S-M12b", "eoi_first", "WRITE_ONCE(synic0.tail2, 0)", False),
        ("S-M13", "eoi_first", "WRITE_ONCE(synic0.flags2, 0)", True),
        ("S-M14", "full", "READ_ONCE(synic0.flags2) = 1", False),
        ("S-M15", "eoi_last", "WRITE_ONCE(synic0.flags2, 165)", False),
        ("S-M3v", "auto_eoi", "smp_mb()", True),
    ],
)
def test_a_harmless_mutant_does_run_and_does_something_else(variant: str, setup: str, step: str, reference: bool) -> None:
    """A Never of code that is not reached would be worth nothing; `reference`: it is the patch that takes this step."""
    assert (step in steps_of(variant, setup)) != reference
    if variant != "S-M3v":  # the host has barriers too
        assert (step in steps_of("after", setup)) == reference


def steps_of(variant: str, setup: str, runs: int = 40) -> set[str]:
    """Every step that some random walks take; of S-M3v only those behind the store that empties the slot."""
    seen: set[str] = set()
    world = one(variant, setup).world()
    for run in range(runs):
        labels = [step.label for step in world.run(RandomWalk(7, runs), run).steps]
        if variant == "S-M3v":
            emptied = [n for n, label in enumerate(labels) if label == "WRITE_ONCE(synic0.type2, 0)"]
            seen.update(labels[n + 1] for n in emptied)
        else:
            seen.update(labels)
    world.close()
    return seen


def test_the_interrupt_is_raised_before_the_message_by_the_mutant_that_says_so() -> None:
    """S-M10: harmless on the vCPU, because the interrupt is injected at the entry."""
    irr = f"test_and_set_bits(lapic0.irr{VECTOR >> 5}, {1 << (VECTOR & 31)}) = 0"
    for variant, first in (("S-M10", True), ("after", False)):
        world = one(variant, "busy").world()
        labels = [step.label for step in world.run(RandomWalk(1, 1), 0).steps]
        assert (labels.index(irr) < labels.index(f"WRITE_ONCE(synic0.type2, {HVMSG_TIMER_EXPIRED})")) == first
        world.close()


def test_beside_the_guest_an_interrupt_before_its_message_finds_an_empty_slot() -> None:
    """S-M10c: the handler finds nothing and goes; the message comes later, and no interrupt tells of it."""
    assert "vcpu0 took nothing; 0 EOM" in explore_case(one("S-M10c", "busy"), to_the_end=True).outcomes


def test_a_stale_pending_bit_costs_an_eom_and_no_more() -> None:
    """S-M13: the bit of the message before stays set; S-L3 allows one spurious EOM for each message."""
    assert max(explore_case(one("after", "auto_eoi"), to_the_end=True).outcomes) == "vcpu0 took A1, B1; 1 EOM"
    assert "vcpu0 took A1, B1; 2 EOM" in explore_case(one("S-M13", "auto_eoi"), to_the_end=True).outcomes


def test_only_419_marks_the_page_dirty_for_nothing() -> None:
    """Its acknowledgement clears a bit that is clear, and marks the page: userspace copies once more what it has."""
    for variant, needless in (("before", True), ("after", False)):
        outcomes = explore_case(one(variant, "dirty_log"), to_the_end=True).outcomes
        assert any(outcome.endswith("copy complete, page dirty") for outcome in outcomes) == needless
        assert not any(outcome.endswith("copy old, page clean") for outcome in outcomes)


def test_a_timer_message_is_the_first_40_bytes_of_its_slot() -> None:
    """Slot s is at s * 256; every byte of the 16 slots belongs to one field."""
    synic = Synic(Vm(), "synic0", {})
    assert len({id(synic.cell_at(offset)) for offset in range(SLOTS * SLOT_SIZE)}) == SLOTS * len(LAYOUT)
    for sint in range(SLOTS):
        cells = [cell for cell, _ in timer_message(synic, sint * SLOT_SIZE, "A1")]
        fields = [synic.slots[sint].cells[field] for field in LAYOUT if field != "tail"]
        assert [cell.label for cell in cells] == [cell.label for cell in fields]
        labels = {cell.label for cell in cells}
        written = [offset for offset in range(SLOTS * SLOT_SIZE) if synic.cell_at(offset).label in labels]
        assert written == list(range(sint * SLOT_SIZE, sint * SLOT_SIZE + 40))


def test_a_vector_below_16_is_refused_unless_the_source_is_masked() -> None:
    """The write is #GP, and the register stays what it was: the message arrives at the vector that was valid."""
    assert set(explore_case(one("after", "bad_vector"), to_the_end=True).outcomes) == {"vcpu0 took B1; 0 EOM; 1 #GP"}
    assert "vcpu0 took nothing; 0 EOM; 0 #GP" in explore_case(one("S-GP", "bad_vector"), to_the_end=True).outcomes


def test_the_number_of_states_and_the_end_states_of_the_reference_are_what_they_were() -> None:
    """A change of the machine or of the search that moves these numbers is meant, or a bug."""
    verdict = explore_case(one("after", "eoi_first"))
    assert verdict.verdict == "exhausted"
    assert verdict.states == 1981
    assert set(verdict.outcomes) == {"vcpu0 took A1, B1; 0 EOM", "vcpu0 took A1, B1; 1 EOM"}


@pytest.mark.parametrize("setup", ["page_walk", "eoi_first", "masked"])
def test_every_schedule_runs_twice_the_same(setup: str) -> None:
    for variant in ("before", "S-M1"):
        for memory in MODELS:
            audit(one(variant, setup, memory))
