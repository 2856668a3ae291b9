"""The mmu notifier patch: every version of it does what the kernel's history says, set-up by set-up."""

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of, checks, refuted

from actors.actor import Cell
from actors.mmu import MmuPcpu
from actors.ops import CALL_QUEUED, IN_GUEST, IPI_PENDING, IRQS_OFF, RMW
from racevisor.explore import cases, explore_case
from racevisor.memory import MODELS
from racevisor.strategies.random_walk import RandomWalk
from racevisor.words import words

one = cells_of("mmu_notifier")

#: with an invalidation that never ends, and a fault that never gets through: the slowest to learn
QUICK = ("munmap", "reclaim", "prefetch", "huge", "twice", "aging", "ksm", "invlpg", "new_slot")


def test_every_claim_holds_when_stores_are_visible_at_once() -> None:
    assert refuted(cases("mmu_notifier", memories=["sc"])) == []


@pytest.mark.parametrize("memory", ["tso", "pso"])
def test_the_claims_of_the_versions_and_of_the_barrier_mutants_hold_with_store_buffers(memory: str) -> None:
    versions = ["before", "after", "fixed", "lockless", "lockless_no_wmb", "N-M13", "N-M13l", "N-M14l", "N-M16", "N-M24"]
    assert refuted(cases("mmu_notifier", versions, QUICK, [memory])) == []


def test_only_exhausted_searches_say_never() -> None:
    for setup in QUICK:
        verdict = explore_case(one("fixed", setup))
        assert (verdict.found, verdict.verdict) == ("Never", "exhausted"), setup


@pytest.mark.parametrize(
    ("variant", "setup", "check"),
    [
        ("before", "munmap", "N-I1"),
        ("before", "reclaim", "N-I6"),
        ("before_no_refs", "ksm", "N-I1"),
        ("after", "twice", "N-I1"),
        ("after", "aging", "EPT"),
        ("N-M2", "munmap", "N-I1"),
        ("N-M4", "munmap", "N-I3"),
        ("N-M9", "ksm", "N-I1"),
        ("N-M16", "new_slot", "N-I2"),
        ("N-M19", "reclaim", "references"),
        ("N-M20", "prefetch", "N-I1"),
        ("N-M22", "aging", "torn spte"),
        ("fixed", "elsewhere", "livelock"),
        ("N-M19", "elsewhere", "references"),
    ],
)
def test_each_mistake_is_caught_by_the_check_that_is_about_it(variant: str, setup: str, check: str) -> None:
    assert check in checks(explore_case(one(variant, setup)))


def test_a_guest_that_mapped_its_page_before_munmap_keeps_the_old_page_before_the_patch() -> None:
    verdict = explore_case(one("before", "munmap"))
    assert verdict.witness is not None
    assert verdict.witness.violations[0].text == "the guest has page 1, the process has page 2: each writes to its own"
    steps = verdict.witness.schedule
    lookup = steps.index(("vcpu0", "add(mm.page1_refs, 1) = 1"))
    assert lookup < steps.index(("munmap", "add(mm.page1_refs, -1) = 2"))


def test_the_second_to_take_a_page_away_frees_it_before_the_first_has_flushed() -> None:
    """The patch as committed flushes when mmu_lock is free again, and who comes then finds no spte: nothing to wait for."""
    verdict = explore_case(one("after", "twice"))
    assert verdict.witness is not None
    (violation,) = verdict.witness.violations
    thread, freed = verdict.witness.schedule[violation.fatal[-1]]
    before = verdict.witness.schedule[: violation.fatal[-1]]
    dropped = {channel for channel, label in before if label == "WRITE_ONCE(mmu.spte, 0)"}
    assert dropped and thread not in dropped
    assert "mm.page1_refs" in freed


def test_a_missing_flush_of_aging_is_a_use_after_free_only_where_the_accessed_bit_is_emulated() -> None:
    """With a real accessed bit the spte stays, so that the next callback knows that there is something to flush."""
    assert explore_case(one("N-M24", "aging")).found == "Never"
    witness = explore_case(one("N-M24e", "aging")).witness
    assert witness is not None
    assert [violation.check for violation in witness.violations] == ["N-I1"]


def test_the_write_barrier_of_range_end_matters_without_mmu_lock_and_not_on_x86() -> None:
    found = {memory: explore_case(one("lockless_no_wmb", "munmap", memory)).found for memory in MODELS}
    assert found == {"sc": "Never", "tso": "Never", "pso": "Sometimes"}
    under_lock = {memory: explore_case(one("after", "munmap", memory)).found for memory in MODELS}
    assert under_lock == {"sc": "Never", "tso": "Never", "pso": "Never"}


@pytest.mark.parametrize("setup", ["munmap", "reclaim", "huge", "twice", "invlpg"])
def test_two_vcpus_change_no_verdict_of_the_historical_versions(setup: str) -> None:
    assert refuted([one(variant, setup, "sc", 2) for variant in ("before", "after", "fixed")]) == []


def test_the_number_of_states_and_end_states_of_the_reference_is_what_it_was() -> None:
    """A change of the machine or of the search that moves these numbers is meant, or a bug."""
    munmap, twice = explore_case(one("fixed", "munmap")), explore_case(one("fixed", "twice"))
    assert (munmap.states, twice.states) == (264, 179)
    assert set(munmap.outcomes) == {"pte: page 2, spte: page 2", "pte: page 2, spte: none"}


def test_optimal_dpor_and_the_stateful_search_agree_where_both_can_finish() -> None:
    for variant, setup in (("fixed", "twice"), ("after", "invlpg"), ("N-M9", "invlpg"), ("N-M16", "new_slot")):
        assert_traces_and_states_agree(one(variant, setup), "optimal")


@pytest.mark.parametrize("setup", QUICK)
def test_every_schedule_runs_twice_the_same(setup: str) -> None:
    for variant in ("before", "after", "lockless"):
        for memory in MODELS:
            audit(one(variant, setup, memory))


def test_a_call_is_answered_when_its_interrupt_is_handled_and_not_before() -> None:
    """The flush waits for this: an answer before the guest was left would be no answer."""

    class Vm:
        cells: list[Cell]

        def __init__(self) -> None:
            self.cells = []

        def add_actor(self, actor: object) -> None: ...

        def add_cell(self, owner: MmuPcpu, name: str, init: int) -> Cell:
            return Cell(owner, name, init, 0)

    pcpu = MmuPcpu(Vm(), "pcpu0")
    arrive, enable = RMW[pcpu.deliver_ipi.fn], RMW[pcpu.local_irq_enable().fn]
    in_guest = IN_GUEST | IRQS_OFF | CALL_QUEUED
    assert arrive(in_guest, None, None) == in_guest | IPI_PENDING
    assert enable(IRQS_OFF | CALL_QUEUED | IPI_PENDING, None, None) == 0
    assert enable(IRQS_OFF | CALL_QUEUED, None, None) == CALL_QUEUED, "its interrupt is still on its way"
    assert arrive(CALL_QUEUED, None, None) == 0


def test_a_flush_is_told_in_words() -> None:
    """The call, the interrupt, and the answer: what a reader looks for when a TLB is stale."""
    world = one("fixed", "twice").world()
    told: set[str] = set()
    walk = RandomWalk(1, 5)
    for run in range(5):
        told |= {form for step in world.run(walk, run).steps for form in words(step)}
    world.close()
    assert told >= {"queue a call to pcpu0", "pcpu0 has answered", "local_irq_enable(): call answered"}
    assert "mmu.spte = page 1" not in told, "it is dropped here, and made nowhere"
    assert "xchg(mmu.spte, none) == page 1" in told
