"""Memory slots under SRCU: each version, each mutant and each repair does what the kernel's history says of it."""

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of, checks, refuted

from actors.memslots import EEXIST, EINVAL, Memslots, Region, Slot, Updater, kvm_set_memory_region, region
from actors.slot_readers import ShadowMmu
from actors.slot_versions import FUNCTIONS
from actors.vm import Vm
from racevisor.commands.output import reenact
from racevisor.explore import cases, explore_case
from racevisor.memory import MODELS
from racevisor.strategies.random_walk import RandomWalk
from racevisor.world import World

one = cells_of("memslot_deletion")

SETUPS = [*cases("memslot_deletion")[0].scenario.setups]


def test_every_claim_holds_when_stores_are_visible_at_once() -> None:
    assert refuted(cases("memslot_deletion", memories=["sc"]), jobs=2) == []


@pytest.mark.parametrize("memory", ["tso", "pso"])
def test_the_claims_of_the_historical_versions_and_of_the_barrier_mutant_hold_with_store_buffers(memory: str) -> None:
    versions = ["before", "after", "swap_first", "today", "M-M19"]
    assert refuted(cases("memslot_deletion", versions, memories=[memory]), jobs=2) == []


@pytest.mark.parametrize(
    ("variant", "setup", "check"),
    [
        ("before", "fault", "stall"),
        ("patch_alone", "fault", "stall"),
        ("M-M2", "fault", "M-I1"),
        ("M-M3", "fault", "M-I4"),
        ("M-M4", "fault", "M-I1"),
        ("M-M5", "reclaim", "M-I4"),
        ("M-M6", "fault", "M-I4"),
        ("M-M7", "fault", "M-I1"),
        ("M-M8", "reclaim", "M-I5"),
        ("M-M9", "reclaim", "M-I1"),
        ("M-M11", "root", "M-I4"),
        ("M-M12", "reclaim", "M-I4"),
        ("M-M13", "reclaim", "M-I5"),
        ("M-M14", "log", "M-I9"),
        ("M-M17", "sleeper", "M-L2"),
        ("M-M18", "sleeper", "M-L1"),
        ("M-M21", "two_updaters", "M-I6"),
        ("M-M22", "move", "M-I4"),
        ("flush_moved", "move", "M-I4"),
        ("tlb_late", "reclaim", "M-I5"),
        ("flip_only", "fault", "M-I1"),
        ("after", "get_log", "M-I9"),
        ("after", "no_memory", "M-I8"),
        ("after", "odd", "abi"),
    ],
)
def test_what_is_wrong_is_caught_by_the_check_that_is_about_it(variant: str, setup: str, check: str) -> None:
    """A mutant that another check happens to catch would leave its own check untested."""
    verdict = explore_case(one(variant, setup))
    assert verdict.found in ("Sometimes", "Always")
    assert check in checks(verdict)


@pytest.mark.parametrize(
    ("mem", "r"),
    [
        (Region(1, 0, 0x3000, 0x1001, 0x5000), -EINVAL),
        (Region(1, 0, 0x3800, 0x1000, 0x5000), -EINVAL),
        (Region(1, 0, 0x3000, 0x1000, 0x5008), -EINVAL),
        (Region(36, 0, 0x3000, 0x1000, 0x5000), -EINVAL),
        (Region(1, 0, (1 << 64) - 0x1000, 0x2000, 0x5000), -EINVAL),
        (region(0, 0, 3), -EINVAL),
        (region(1, 1, 1), -EEXIST),
        (region(1, 1, 0), -EEXIST),
        (region(1, 2, 1, 5), 0),
        (region(0, 3, 2), 0),
        (region(0, 0, 0), 0),
    ],
)
def test_requests_are_refused_as_the_kernel_refuses_them(mem: Region, r: int) -> None:
    """Slot 0 is frames 0 and 1; slot 1 is not there.  Deleting at frame 1 overlaps slot 0, says 2.6.34."""
    vm = Vm(own=FUNCTIONS)
    kvm = Memslots(vm, "kvm", [Slot(0, 2, 0, 0, "rmap1"), Slot()], 3, [])
    for rmap in ("rmap1", "rmap2"):
        kvm.table(rmap, "")
    ShadowMmu(vm, "mmu", {0: ""}, [0])
    userspace = Updater(vm, "userspace", lambda me: kvm_set_memory_region(me, mem), kvm, ("slots2", "slots3"), "rmap2")
    world = World(vm)
    assert world.run(RandomWalk(1, 1), 0).status == "terminal"
    assert userspace.end == r
    assert kvm.now()[mem.slot].npages == mem.npages if r == 0 else kvm.memslots.value == "slots1"
    world.close()


def test_without_a_first_grace_period_a_page_is_mapped_and_an_array_is_freed_under_a_vcpu() -> None:
    """M-M1 has two bad outcomes; which comes first depends on the search, so both are looked for."""
    found = set()
    world = one("M-M1", "fault").world()
    walk = RandomWalk(1, 400)
    for run in range(400):
        found |= {violation.check for violation in world.run(walk, run).violations}
    world.close()
    assert {"M-I1", "M-I4"} <= found


def test_x86_hides_that_the_pointer_is_published_by_a_plain_store() -> None:
    found = {memory: explore_case(one("M-M19", "fault", memory)) for memory in MODELS}
    assert {memory: verdict.found for memory, verdict in found.items()} == {"sc": "Never", "tso": "Never", "pso": "Sometimes"}
    assert checks(found["pso"]) == {"M-I7"}


def test_flushing_before_the_slot_is_invalid_lets_a_fault_map_it_again() -> None:
    """The interleaving why the patch has two steps: flush, map through the old array, gone."""
    case = one("M-M3", "fault")
    verdict = explore_case(case)
    assert verdict.witness is not None
    (violation,) = verdict.witness.violations
    mapped, gone = (verdict.witness.schedule[n] for n in violation.fatal)
    assert mapped == ("vcpu0", "WRITE_ONCE(mmu.spte[0], 0w)")
    assert gone == ("userspace", "smp_store_release(kvm.memslots, slots3)")
    _, execution = reenact(case, verdict.witness.schedule)
    assert [again.check for again in execution.violations] == ["M-I4"]


def test_a_write_between_the_write_protection_and_the_new_bitmap_is_lost() -> None:
    """What edde99ce0529 repaired: the fatal steps are the new mapping, the swap, and the end of the ioctl."""
    verdict = explore_case(one("after", "get_log"))
    assert verdict.witness is not None
    (violation,) = verdict.witness.violations
    assert [verdict.witness.schedule[n][1] for n in violation.fatal] == [
        "WRITE_ONCE(mmu.spte[0], 0w)",
        "smp_store_release(kvm.memslots, slots2)",
        "smp_store_release(kvm.slots_lock, )",
    ]


def test_the_number_of_states_and_end_states_of_the_reference_is_what_it_was() -> None:
    """A change of the machine or of the search that moves these numbers is meant, or a bug."""
    verdict = explore_case(one("after", "fault"))
    assert verdict.verdict == "exhausted"
    assert verdict.states == 606
    assert set(verdict.outcomes) == {"vcpu0 mapped; userspace r = 0", "vcpu0 no page; userspace r = 0"}


@pytest.mark.parametrize("setup", ["fault", "reclaim"])
def test_the_patch_holds_with_two_vcpus(setup: str) -> None:
    """In `reclaim` the second one faults on the page that the host takes and userspace deletes."""
    verdict = explore_case(one("after", setup, vcpus=2))
    assert (verdict.found, verdict.verdict) == ("Never", "exhausted")


def test_optimal_dpor_and_the_stateful_search_agree_where_both_can_finish() -> None:
    for variant, setup in (("after", "create"), ("swap_first", "get_log"), ("M-M9", "two_updaters"), ("after", "no_memory")):
        assert_traces_and_states_agree(one(variant, setup), "optimal")


@pytest.mark.parametrize("setup", SETUPS)
def test_every_schedule_runs_twice_the_same(setup: str) -> None:
    for variant in ("before", "after", "today", "M-M7"):
        for memory in MODELS:
            audit(one(variant, setup, memory), runs=2)
