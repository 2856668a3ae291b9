"""The mmu notifier patch: every version of it does what the kernel's history says, set-up by set-up."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of, checks, refuted

from actors import mmu_notifier as kvm
from actors.actor import Cell
from actors.mmu import MmuPcpu
from actors.ops import CALL_QUEUED, IN_GUEST, IPI_PENDING, IRQS_OFF, RMW, WRITE_ONCE
from racevisor.explore import explore_case
from racevisor.memory import MODELS
from racevisor.scenario import Case, Scenario, Variant, in_table, load
from racevisor.strategies.random_walk import RandomWalk
from racevisor.words import words

one = cells_of("mmu_notifier")

#: with an invalidation that never ends, and a fault that never gets through: the slowest to learn
QUICK = ("munmap", "reclaim", "prefetch", "huge", "twice", "aging", "ksm", "invlpg", "new_slot")
#: with variants of their own
SPECIAL = ("ranges", "sync", "remap", "two_pages", "dirty", "room", "create", "exit")


def test_only_exhausted_searches_say_never() -> None:
    for setup in (*QUICK, *SPECIAL):
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
        ("before", "dirty", "N-I6"),
        ("after", "remap", "N-I1"),
        ("after", "two_pages", "N-I1"),
        ("after", "create", "N-L2"),
        ("after", "exit", "inode"),
        ("after_no_refs", "exit", "N-I1"),
        ("N-M1", "ranges", "N-I3"),
        ("N-M25", "remap", "N-I1"),
        ("N-M26", "sync", "N-I1"),
        ("N-M9", "dirty", "N-I5"),
        ("N-M27", "dirty", "N-I5"),
        ("N-M28", "dirty", "N-I5"),
        ("N-M30", "ranges", "N-I3"),
        ("N-L2", "reclaim", "N-L2"),
        ("room_read", "room", "double free"),
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


@pytest.mark.parametrize("setup", ["munmap", "reclaim", "huge", "twice", "invlpg", "remap", "two_pages", "create", "exit"])
def test_two_vcpus_change_no_verdict_of_the_historical_versions(setup: str) -> None:
    there = [variant for variant in ("before", "after", "fixed") if in_table(load("mmu_notifier")[0], variant, setup)]
    assert refuted([one(variant, setup, "sc", 2) for variant in there]) == []


def test_the_number_of_states_and_end_states_of_the_reference_is_what_it_was() -> None:
    """A change of the machine or of the search that moves these numbers is meant, or a bug."""
    munmap, twice = explore_case(one("fixed", "munmap")), explore_case(one("fixed", "twice"))
    assert (munmap.states, twice.states) == (289, 247)
    assert set(munmap.outcomes) == {"pte: page 2, spte: page 2", "pte: page 2, spte: none"}


def test_optimal_dpor_and_the_stateful_search_agree_where_both_can_finish() -> None:
    for variant, setup in (("fixed", "twice"), ("after", "invlpg"), ("N-M9", "invlpg"), ("N-M16", "new_slot")):
        assert_traces_and_states_agree(one(variant, setup), "optimal")


@pytest.mark.parametrize("setup", [*QUICK, *SPECIAL])
def test_every_schedule_runs_twice_the_same(setup: str) -> None:
    for variant in ("before", "after", "lockless"):
        for memory in MODELS:
            audit(one(variant, setup, memory))


def checks_with(setup: str, *, but: str = "", **broken: Callable[..., Any]) -> set[str]:
    """What fails in that set-up if the machine has these functions, `but` for a check that would fail first."""
    scenario, source = load("mmu_notifier")

    class Broken(type(scenario)):  # type: ignore[misc]
        variants: ClassVar = {"broken": Variant("a function that no variant has", broken, exempt={but: "it fails first"})}

    assert isinstance(scenario, Scenario)
    return checks(explore_case(Case(Broken(), source, "broken", setup, "sc")))


def test_an_spte_that_is_in_no_reverse_map_is_seen() -> None:
    """No variant loses one, so the check is shown to work by a function that clears the reverse map and leaves the spte."""

    async def forget(me: Any, rmapp: Cell) -> None:
        await WRITE_ONCE(rmapp, "")

    assert "N-I4" in checks_with("aging", but="N-I1", drop_spte=forget)


def test_a_change_of_the_count_that_is_lost_or_goes_below_zero_is_seen() -> None:
    async def end_twice(me: Any) -> None:
        await kvm.kvm_mmu_notifier_invalidate_range_end(me)
        await kvm.kvm_mmu_notifier_invalidate_range_end(me)

    async def start_without_lock(me: Any) -> None:
        await kvm.count_add(me, 1)

    assert "N-I2" in checks_with("munmap", kvm_mmu_notifier_invalidate_range_end=end_twice)
    assert "N-I2" in checks_with("ranges", kvm_mmu_notifier_invalidate_range_start=start_without_lock)


def test_a_flush_that_nobody_answers_is_seen() -> None:
    async def no_interrupt(me: Any, pcpus: list[MmuPcpu]) -> None:
        for pcpu in pcpus:
            await pcpu.call_function()
            await pcpu.called()

    assert {"N-L1", "N-L2"} <= checks_with("twice", smp_call_function_many=no_interrupt)


def test_the_mutants_that_are_claimed_harmless_do_run_their_own_code() -> None:
    """A harmless mutant whose function is never called would prove nothing."""
    for variant, setup, wanted in (
        ("N-M13", "munmap", "m13_count_first"),
        ("N-M14", "munmap", "m14_seq_first"),
        ("N-M21", "munmap", "range_start_5_12"),
        ("N-M23", "twice", "rmap_remove"),
        ("N-M24", "aging", "m24_young_no_flush"),
        ("N-M29", "dirty", "drop_spte_reference_first"),
        ("hw_dirty", "dirty", "set_dirty_bit"),
        ("active_count", "new_slot", "install_memslot_5_14"),
        ("early", "munmap", "fault_6_16"),
        ("requests_lock", "two_pages", "flush_requests_lock"),
        ("release", "exit", "kvm_mmu_zap_all"),
    ):
        world = Case(*load("mmu_notifier"), variant, setup, "sc").world(functions=True)
        walk = RandomWalk(1, 10)
        seen = {step.function for run in range(10) for step in world.run(walk, run).steps}
        world.close()
        assert wanted in seen, (variant, sorted(seen))


def test_an_mmu_lock_that_is_initialised_while_it_is_held_is_never_free_again() -> None:
    """The first callback comes before spin_lock_init(): its unlock then serves a ticket that nobody has drawn."""
    witness = explore_case(one("after", "create")).witness
    assert witness is not None
    labels = [label for _channel, label in witness.schedule]
    init = labels.index("WRITE_ONCE(mmu.mmu_lock, 0)")
    assert any(label.startswith("add(mmu.mmu_lock, 256)") for label in labels[:init])
    assert any(label.startswith("add(mmu.mmu_lock, 1)") for label in labels[init:])


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
