"""The executions that are shrunk and explained by tests: one bad cell of every variant that has one, with what was found."""

from collections.abc import Iterator
from functools import cache

from racevisor.explore import Witness, explore_case
from racevisor.memory import MODELS
from racevisor.scenario import Always, Case, Never, built_in, claim, in_table, load
from racevisor.shrink import Shrunk, first_broken, shrink

#: one variant of each kind of bug: lost stores and wake-ups, torn and stale reads, stuck ends, busy loops, weak memory
SOME = {
    "apic_races": ("batch", "hint_first"),
    "hypercall_patching": ("before", "H-M10", "no_patch"),
    "init_sipi": ("before", "I-M17"),
    "memslot_deletion": ("before", "M-M20"),
    "memslot_generations": ("before",),
    "memslot_users": ("before",),
    "mmu_notifier": ("before", "hw_dirty", "lockless"),
    "pfn_cache": ("before", "always_counts"),
    "synic_message": ("before", "S-M1", "S-M5"),
    "vcpu_requests": ("before", "fix_2008"),
}


def bad_cells(*, all_of_them: bool) -> Iterator[Case]:
    """For each variant that is claimed to go wrong, the first cell in which it does; the most ordinary memory model first."""
    for name in built_in():
        scenario, source = load(name)
        for variant in scenario.variants:
            if not all_of_them and variant not in SOME.get(name, ()):
                continue
            claimed = {
                (setup, memory): claim(scenario, scenario.variants[variant], setup, memory)
                for memory in MODELS
                for setup in scenario.setups
                if in_table(scenario, variant, setup)
            }
            bad = [cell for cell, word in claimed.items() if word != Never]
            if bad:
                yield Case(scenario, source, variant, *bad[0])


@cache
def found(case: Case) -> Witness:
    """A bad execution of it, as a search meets it."""
    verdict = explore_case(case, budget=60.0)
    assert verdict.witness is not None, f"{case}: nothing bad was found"
    return verdict.witness


@cache
def shrunk_of(case: Case) -> Shrunk:
    """The same, shrunk."""
    bad = found(case)
    return shrink(case, [channel for channel, _ in bad.schedule], first_broken(bad.violations))


def always(case: Case) -> bool:
    """Is every execution claimed to be bad?  Then no order of steps helps."""
    return case.claimed == Always
