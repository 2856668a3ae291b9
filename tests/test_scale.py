"""Hundreds of vCPUs: a scenario that scales has its race for each of them, not only for the first ones.

Here are those of processors, requests and instructions; those of memory are in test_scale_memory.py.
"""

from random import Random

import pytest

from actors.guest import APIC_BROADCAST, APIC_DEST_NOSHORT, X2APIC_BROADCAST
from actors.hypercall import HypercallVcpu
from actors.lapic import _destinations
from racevisor import alike, some
from racevisor.explore import cases
from racevisor.guard import unguarded
from racevisor.scenario import Case, default_setup, load
from racevisor.world import Execution

#: by scenario: how many steps a round of 64 may have, for each vCPU
STEPS = {"init_sipi": 180, "vcpu_requests": 100, "hypercall_patching": 100, "memslot_generations": 100}


def at(name: str, variant: str, vcpus: int, setup: str = "", memory: str = "tso") -> Case:
    scenario, _ = load(name)
    (case,) = cases(name, [variant], [setup or default_setup(scenario, "before", memory)], [memory], vcpus)
    return case


class Walk:
    """A random walk that goes on after a violation, as a live round does."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.world = case.world()
        self.world.judge = unguarded  # the guard costs what the machine is large, and the searches have it

    def run(self, seed: int) -> Execution:
        world, random = self.world, Random(f"scale:{seed}").random
        world.reset()
        while world.movable:
            assert len(world.steps) < world.max_steps
            world.step(world.movable[int(random() * len(world.movable))])
        found = [*world.violations, *self.case.check(world.vm)]
        outcome = self.case.scenario.outcome(world.vm)
        world.close()
        return Execution(seed, world.steps, "terminal", found, outcome)


@pytest.mark.parametrize("name", STEPS)
def test_64_vcpus_go_wrong_before_the_fix_and_not_after(name: str) -> None:
    """On a few random schedules, of the set-up that is run live; every thread comes to its end, within steps by the vCPU."""
    before, fixed = Walk(at(name, "before", 64)), Walk(at(name, load(name)[0].fixed, 64))
    assert any(before.run(seed).violations for seed in range(20))
    for seed in range(3):
        execution = fixed.run(seed)
        assert not execution.violations
        assert len(execution.steps) <= STEPS[name] * 64
        assert len(str(execution.outcome)) < 400


@pytest.mark.parametrize("name", STEPS)
def test_every_setup_can_have_64_vcpus(name: str) -> None:
    """Where the race is that of one or two vCPUs, the others are not there; nothing takes more steps than that many vCPUs may."""
    scenario, _ = load(name)
    for setup, about in scenario.setups.items():
        variant = scenario.fixed if not about.variants or scenario.fixed in about.variants else about.variants[-1]
        case = at(name, variant, 64, setup)
        execution = Walk(case).run(0)
        assert case.claimed != "Never" or not execution.violations, (setup, execution.violations)


@pytest.mark.parametrize("name", STEPS)
def test_1024_vcpus_are_built(name: str) -> None:
    """As many as KVM has; and every value fits into 64 bits, which is what a host can send."""
    world = at(name, "before", 1024).world()
    assert sum(actor.name.startswith("vcpu") for actor in world.vm.actors) == 1024
    assert all(cell.init < 1 << 64 for cell in world.vm.cells if isinstance(cell.init, int))


def test_each_of_64_targets_may_lose_its_init() -> None:
    """vCPU0 starts one after the other: each goes down when it is its turn, so the last ones race as the first one does."""
    walk = Walk(at("init_sipi", "before", 64))
    lost = {name for seed in range(6) for v in walk.run(seed).violations if v.step is not None for name in v.text.split("'")[:1]}
    assert lost & {f"vcpu{i}" for i in range(1, 9)}
    assert lost & {f"vcpu{i}" for i in range(56, 64)}


def test_an_apic_id_of_255_is_a_cpu_where_there_are_more() -> None:
    """xAPIC takes 0xFF for all, x2APIC 0xFFFFFFFF."""
    few, many = (at("init_sipi", "latch", size).vm().vcpus for size in (255, 257))
    assert _destinations(few[0], APIC_BROADCAST, APIC_DEST_NOSHORT) == few
    assert _destinations(many[0], 255, APIC_DEST_NOSHORT) == [many[255]]
    assert _destinations(many[0], X2APIC_BROADCAST, APIC_DEST_NOSHORT) == many


def test_function_calls_of_hundreds_of_cpus_fit_into_a_word() -> None:
    """Callers share bits; userspace has one of its own."""
    vcpus = [v for v in at("hypercall_patching", "after", 64, "smp").vm().actors if isinstance(v, HypercallVcpu)]
    assert len({v.csd for v in vcpus}) == 15
    assert max(v.csd for v in vcpus) < 16 << 15


def test_many_ends_are_one_line() -> None:
    """Together where they are the same; few of them one by one, as they always were."""
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c, d and 1 more"
    assert alike([("a", " x"), ("b", " x")]) == "a x; b x"
    assert alike([("a", " x"), ("b", " y"), ("c", " x")]) == "a, c x; b y"
