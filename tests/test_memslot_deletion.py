"""Memory slots under SRCU: each version, each mutant and each repair does what the kernel's history says of it."""

from dataclasses import replace
from typing import Any

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of, checks

from actors.memslots import (
    EEXIST,
    EINVAL,
    KVM_MEMSLOT_INVALID,
    Memslots,
    Region,
    Slot,
    Task,
    Updater,
    kvm_set_memory_region,
    region,
    table_of,
)
from actors.ops import WRITE_ONCE
from actors.slot_readers import ShadowMmu, page_header_update_slot
from actors.slot_versions import FUNCTIONS, check_region_today, moves_or_deletes, set_memslot_today
from actors.vm import Vm
from racevisor.commands.output import reenact
from racevisor.explore import cases, explore_case
from racevisor.memory import MODELS
from racevisor.strategies.random_walk import RandomWalk
from racevisor.world import World

one = cells_of("memslot_deletion")

SETUPS = [*cases("memslot_deletion")[0].scenario.setups]


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
        ("M-M9", "reclaim_log", "M-I1"),
        ("M-M11", "root", "M-I4"),
        ("M-M12", "reclaim", "M-I4"),
        ("M-M13", "reclaim", "M-I5"),
        ("protect_early", "log", "M-I9"),
        ("M-M17", "sleeper", "M-L2"),
        ("M-M18", "sleeper", "M-L1"),
        ("M-M21", "two_updaters", "lost"),
        ("checks_early", "overlap", "M-I6"),
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
    ("mem", "then", "now"),
    [
        (Region(1, 0, 0x3000, 0x1001, 0x5000), -EINVAL, -EINVAL),
        (Region(1, 0, 0x3800, 0x1000, 0x5000), -EINVAL, -EINVAL),
        (Region(1, 0, 0x3000, 0x1000, 0x5008), -EINVAL, -EINVAL),
        (Region(36, 0, 0x3000, 0x1000, 0x5000), -EINVAL, -EINVAL),
        (Region(36, 0, 0x3000, 0, 0x5000), -EINVAL, -EINVAL),
        (Region(0, 0, 0x10, 0, 0), -EINVAL, -EINVAL),
        (Region(1, 0, (1 << 64) - 0x1000, 0x2000, 0x5000), -EINVAL, -EINVAL),
        (region(0, 0, 3), -EINVAL, -EINVAL),
        (region(1, 1, 1), -EEXIST, -EEXIST),
        (region(1, 1, 0), -EEXIST, -EINVAL),
        (region(1, 2, 1, 5), 0, 0),
        (region(0, 3, 2), 0, 0),
        (region(0, 0, 2), 0, 0),
        (region(0, 0, 2, 7), 0, -EINVAL),
        (region(0, 0, 2, 0, KVM_MEMSLOT_INVALID), 0, -EINVAL),
        (region(0, 0, 0), 0, 0),
    ],
)
@pytest.mark.parametrize("version", ["then", "now"])
def test_requests_are_refused_as_the_kernel_refuses_them(mem: Region, then: int, now: int, version: str) -> None:
    """Slot 0 is frames 0 and 1; slot 1 is not there.  Deleting at frame 1 overlaps slot 0, says 2.6.34."""
    r = then if version == "then" else now
    today: dict[str, Any] = {
        "check_region": check_region_today,
        "kvm_set_memslot": set_memslot_today,
        "wants_invalid_step": moves_or_deletes,
    }
    vm = Vm(today if version == "now" else {}, own=FUNCTIONS)
    kvm = Memslots(vm, "kvm", [Slot(0, 2, 0, 0, "rmap1"), Slot()], 3, [])
    for rmap in ("rmap1", "rmap2"):
        kvm.table(rmap, "")
    ShadowMmu(vm, "mmu", {0: ""}, [0])

    async def asks(me: Updater) -> str:
        me.r = await kvm_set_memory_region(me, mem)
        return "done"

    userspace = Updater(vm, "userspace", asks, kvm, ("slots2", "slots3"), "rmap2")
    world = World(vm)
    assert world.run(RandomWalk(1, 1), 0).status == "terminal"
    assert userspace.r == r
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


@pytest.mark.parametrize(
    ("variant", "setup", "others", "check"),
    [
        ("M-M1", "fault", ("oops", "M-L2", "M-I4", "M-I2"), "M-I3"),
        ("M-M11", "root", ("oops", "M-L2", "M-I3"), "M-I2"),
        ("M-M11", "root", ("oops", "M-L2", "M-I2"), "M-I3"),
    ],
)
def test_a_check_that_another_comes_before_can_fail_too(variant: str, setup: str, others: tuple[str, ...], check: str) -> None:
    """What is wrong in several ways is stopped by the first check that sees it; without that one, the next one does."""
    case = one(variant, setup)
    case.variant = replace(case.variant, exempt=dict.fromkeys(others, "to see what the others see"))
    assert checks(explore_case(case)) == {check}


def test_a_mark_in_a_bitmap_that_is_freed_is_seen() -> None:
    """The test before __set_bit() hides it where the page is dirty already, so here there is none; M-M7 has no read section."""

    async def marks_always(kvm: Memslots, bitmap: str, nr: int) -> None:
        await table_of(kvm, bitmap)
        await WRITE_ONCE(kvm.tables[bitmap], 1 << nr)

    case = one("M-M7", "get_log")
    replaces = {**case.variant.replaces, "mark_in_bitmap": marks_always}
    case.variant = replace(case.variant, replaces=replaces, exempt=dict.fromkeys(("oops", "M-I9", "M-L2"), "as above"))
    verdict = explore_case(case)
    assert checks(verdict) == {"M-I1"}
    assert verdict.witness is not None
    assert "writes to kvm.bitmap1, which is freed" in verdict.witness.violations[0].text


def test_a_frame_that_no_slot_has_is_noted_under_the_last_slot() -> None:
    """memslot_id() has no word for "none": dirty logging would look for such a mapping in the wrong slot's shadow pages."""
    vm = Vm(own=FUNCTIONS)
    kvm = Memslots(vm, "kvm", [Slot(0, 1, 0, 0, "rmap1"), Slot(5, 1, 0, 5, "rmap2")], 1, [])
    mmu = ShadowMmu(vm, "mmu", {0: ""}, [0])

    async def notes(me: Task) -> str:
        await page_header_update_slot(mmu, kvm, 3)
        return "noted"

    Task(vm, "vcpu0", notes)
    world = World(vm)
    assert world.run(RandomWalk(1, 1), 0).status == "terminal"
    assert mmu.slot_bitmap.value == 1 << 1
    world.close()


def test_deleting_one_slot_takes_the_mappings_of_all() -> None:
    """kvm_arch_flush_shadow() zaps every shadow page of the VM; nothing is wrong with that but the faults that follow."""
    vm = Vm(own=FUNCTIONS)
    kvm = Memslots(vm, "kvm", [Slot(0, 1, 0, 0, "rmap1"), Slot(1, 1, 0, 1, "rmap2")], 3, [])
    kvm.table("rmap1", "spte[0]")
    kvm.table("rmap2", "spte[1]")
    mmu = ShadowMmu(vm, "mmu", {0: "0w", 1: "1w"}, [0, 1])
    Updater(vm, "userspace", lambda me: kvm_set_memory_region(me, region(0, 0, 0)), kvm, ("slots2", "slots3"), "")
    world = World(vm)
    assert world.run(RandomWalk(1, 1), 0).status == "terminal"
    assert [slot.npages for slot in kvm.now()] == [0, 1]
    assert [spte.value for spte in mmu.sptes.values()] == ["", ""]
    world.close()


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
    assert verdict.states == 789
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
