"""--vcpus for the races about memory and messages: with many vCPUs the race is met, its fix holds, and a line says how it ended.

Seeded random walks of the World: live rounds of hundreds of vCPUs are played elsewhere, and each of them is held against it.
"""

from typing import Any

import pytest
from claims import cells_of

from actors.actor import Cell
from actors.memslots import BITS_PER_LONG, bitmap_word
from actors.memslots import READER as MEMSLOTS_READER
from actors.ops import apply, await_masked, describe
from actors.rwlock import QUEUE, READER, WAITING, WRITER, RwLock
from cluster.engine import Engine
from racevisor.explore import explore_case
from racevisor.guard import unguarded
from racevisor.scenario import Case, default_setup, load
from racevisor.strategies.random_walk import RandomWalk
from racevisor.together import alike, some
from racevisor.world import Execution

SCENARIOS = ("memslot_deletion", "memslot_users", "mmu_notifier", "pfn_cache", "synic_message")
#: the largest machine that is asked for, and one whose bits of a vCPU each would not fit into a word
MOST, MANY = 1024, 64


def live_case(name: str, variant: str, vcpus: int) -> Case:
    """What `racevisor run NAME --vcpus N` plays, or another variant in the same set-up."""
    scenario, source = load(name)
    setup = default_setup(scenario, next(iter(scenario.variants)), "tso")
    return Case(scenario, source, variant, setup, "tso", vcpus)


def walks(case: Case, runs: int, until_bad: bool = False) -> list[Execution]:
    """Random walks, without the guard of what monitors look at, as in live rounds."""
    world = case.world()
    world.judge = unguarded
    strategy = RandomWalk(1, runs)
    found = []
    for run in range(runs):
        found.append(world.run(strategy, run))
        if until_bad and found[-1].violations:
            break
    world.close()
    return found


def test_these_scenarios_scale_to_a_thousand_vcpus() -> None:
    for name in SCENARIOS:
        assert load(name)[0].max_vcpus == MOST, name


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_race_is_met_among_many_vcpus(name: str) -> None:
    """With each more vCPU there is one more that can lose: twenty walks must do."""
    first = next(iter(load(name)[0].variants))
    assert walks(live_case(name, first, MANY), 20, until_bad=True)[-1].violations


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_fix_holds_among_many_vcpus_in_some_hundred_steps_for_each(name: str) -> None:
    """Loops over all vCPUs are the kernel's; a loop of each over all others would be ours."""
    case = live_case(name, load(name)[0].fixed, MANY)
    for execution in walks(case, 3):
        assert (execution.status, execution.violations) == ("terminal", [])
        assert len(execution.steps) <= 140 * MANY
        assert len(str(execution.outcome)) < 250


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("vcpus", [MANY, 4 * MANY])
def test_steps_for_each_vcpu_do_not_grow_with_their_number(name: str, vcpus: int) -> None:
    """Four times the vCPUs, about four times the steps."""
    variant = load(name)[0].fixed
    few, many = (len(walks(live_case(name, variant, n), 1)[0].steps) for n in (MANY // 4, vcpus))
    assert many <= 2 * few * vcpus // (MANY // 4)


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_a_cell_holds_fits_into_a_word(name: str) -> None:
    """A bit for each vCPU in one word would not, with 256 of them: nor would the wire carry it."""
    case = live_case(name, load(name)[0].fixed, 4 * MANY)
    (execution,) = walks(case, 1)
    numbers = [v for step in execution.steps for v in (step.before, step.after) if isinstance(v, int)]
    assert all(-(1 << 63) <= number < 1 << 64 for number in numbers)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_setup_is_built_and_runs_with_many_vcpus(name: str) -> None:
    """Those that are not about vCPUs stay as they are; each ends, but for those that go on for ever by design."""
    scenario, source = load(name)
    for setup, described in scenario.setups.items():
        if setup == "elsewhere":
            continue
        for variant in ("before", scenario.fixed):
            if described.variants and variant not in described.variants:
                continue
            (execution,) = walks(Case(scenario, source, variant, setup, "tso", 12), 1)
            assert execution.status in ("terminal", "violated"), f"{variant}/{setup}"


@pytest.mark.parametrize(
    ("name", "variant", "setup", "found"),
    [
        ("mmu_notifier", "before", "munmap", "Sometimes"),
        ("mmu_notifier", "fixed", "munmap", "Never"),
        ("memslot_deletion", "before", "fault", "Sometimes"),
        ("pfn_cache", "before", "first", "Sometimes"),
        ("pfn_cache", "after", "first", "Never"),
        ("memslot_users", "before", "marks", "Sometimes"),
        ("memslot_users", "after", "marks", "Never"),
    ],
)
def test_small_machines_can_still_be_searched(name: str, variant: str, setup: str, found: str) -> None:
    """Every schedule of one vCPU more than the scenario has by itself."""
    more = load(name)[0].vcpus + 1
    verdict = explore_case(cells_of(name)(variant, setup, vcpus=more))
    assert (verdict.found, verdict.verdict == "exhausted") == (found, found == "Never")


def test_marks_of_more_pages_than_a_word_has_bits_go_to_several_words() -> None:
    """As in the kernel; only pages of one word can lose each other's mark."""
    vm = cells_of("memslot_users")("before", "marks", vcpus=130).vm()
    kvm: Any = vm.by_name["kvm"]
    assert [name for name in kvm.tables if name.startswith("bitmap")] == ["bitmap1", "bitmap1+1", "bitmap1+2"]
    assert {bitmap_word("bitmap1", nr) for nr in range(BITS_PER_LONG)} == {"bitmap1"}


class Owner:
    """Of a cell that is no machine's."""

    name = "gpc"


def play(lock: RwLock, coroutine: Any, steps: int) -> Any:
    """Let a thread that wants the lock take so many steps; whether it has it then."""
    try:
        op = coroutine.send(None)
        for _ in range(steps):
            lock.cell.value, result = apply(op, lock.cell.value)
            op = coroutine.send(result)
    except StopIteration:
        return True
    return op


def test_counted_readers_come_together_and_queue_behind_a_writer_that_waits() -> None:
    """C's: a reader that finds a waiting writer takes itself back, so that the writer's turn comes."""
    owner: Any = Owner()
    lock = RwLock(Cell(owner, "lock", 0, 0), counted=True)
    assert play(lock, lock.read_lock(0), 1) is True
    assert play(lock, lock.read_lock(0), 1) is True
    assert lock.cell.value == 2 * READER
    writer = lock.write_lock()
    waits = play(lock, writer, 3)
    assert lock.cell.value == 2 * READER | WAITING | QUEUE
    late = lock.read_lock(0)
    play(lock, late, 2)
    assert lock.cell.value == 2 * READER | WAITING | QUEUE, "the late reader counts no more"
    for _ in range(2):
        lock.cell.value, _ = apply(lock.read_unlock(0), lock.cell.value)
    lock.cell.value, seen = apply(waits, lock.cell.value)
    assert seen == WAITING | QUEUE
    assert lock.cell.value == WRITER | QUEUE
    writer.close()
    late.close()


def test_a_guarded_action_may_add_a_number() -> None:
    """What a counting lock does in the step in which its condition holds; a picture says so."""
    owner: Any = Owner()
    op = await_masked(Cell(owner, "sem", 5, 0), 1, 0, add=8)
    assert apply(op, 6) == (14, 6)
    assert describe(op) == "await_masked(gpc.sem, & 0x1 == 0x0, += 0x8)"


def test_a_summary_names_four_and_counts_the_others() -> None:
    vcpus = [f"vcpu{i}" for i in range(7)]
    assert some(vcpus[:4]) == "vcpu0, vcpu1, vcpu2, vcpu3"
    assert some(vcpus) == "vcpu0, vcpu1, vcpu2, vcpu3 and 3 more"
    assert alike([("vcpu0", " mapped"), ("vcpu1", " waits"), ("vcpu2", " mapped")]) == "vcpu0, vcpu2 mapped; vcpu1 waits"


def test_a_thousand_readers_go_on_when_the_writer_has_gone() -> None:
    """On a live host each write wakes who waits for it: that is a loop, for Python's recursion is not a thousand deep."""
    case = live_case("memslot_deletion", "before", MOST)
    engine = Engine(case, [0] * len(case.vm().actors), 0)
    kvm: Any = engine.vm.by_name["kvm"]
    kvm.slots_rwsem.init = MEMSLOTS_READER  # a reader that keeps the writer, and so all others, waiting
    engine.begin(0)
    for _ in range(4):
        engine.turn()
    before = len(engine.ready)
    engine._write(kvm.slots_rwsem, 0)
    assert kvm.slots_rwsem.value == MOST * MEMSLOTS_READER
    assert len(engine.ready) - before == MOST
    engine.close()
