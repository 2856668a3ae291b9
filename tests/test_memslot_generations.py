"""MMIO generations: a vCPU believes what it remembers only as long as the slots are those of that time."""

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of, checks

from racevisor.commands.output import reenact
from racevisor.explore import explore_case
from racevisor.memory import MODELS
from racevisor.step import Step

one = cells_of("memslot_generations")


@pytest.mark.parametrize(
    ("variant", "setup", "check"),
    [
        ("before", "plug", "exists"),
        ("tagged", "known", "exists"),
        ("early", "plug", "exists"),
        ("after", "wrap", "exists"),
        ("no_retry", "unplug", "replaced"),
    ],
)
def test_what_is_wrong_is_caught_by_the_check_that_is_about_it(variant: str, setup: str, check: str) -> None:
    assert checks(explore_case(one(variant, setup))) == {check}


def test_each_of_the_two_repairs_of_2014_leaves_what_the_other_repairs() -> None:
    """And both together leave the vCPU that believes an odd spte and notes an even generation, which 6.16 does not."""
    found = {variant: explore_case(one(variant, "plug")).found for variant in ("odd", "tagged", "both", "after")}
    assert found == {"odd": "Sometimes", "tagged": "Sometimes", "both": "Sometimes", "after": "Never"}


def cell_of(step: Step) -> str:
    """Its name, if there is one."""
    return "" if step.cell is None else step.cell.name


def test_a_vcpu_with_an_old_spte_in_hand_takes_it_for_new_when_the_generation_wraps() -> None:
    """6.16's order of accesses: the spte, then the zap and the generation by the updater, then the look at the generation."""
    case = one("after", "wrap")
    verdict = explore_case(case)
    assert verdict.witness is not None
    _, execution = reenact(case, verdict.witness.schedule)
    steps = execution.steps
    looked = max(s.n for s in steps if s.thread == "vcpu0" and cell_of(s) == "spte" and s.result == ("mmio", 0))
    zapped = next(s.n for s in steps if s.thread == "userspace" and cell_of(s) == "spte" and s.writes)
    compared = next(s.n for s in steps if s.thread == "vcpu0" and cell_of(s) == "slots1.generation" and s.n > looked)
    assert looked < zapped < compared


def test_what_is_left_out_of_the_harmless_variant_would_have_run() -> None:
    """A variant is harmless only if the code that it changes is met: here vCPUs do make notes in flux."""
    noted = explore_case(one("noted_in_flux", "plug"))
    assert noted.verdict == "exhausted"
    assert noted.states != explore_case(one("after", "plug")).states


def test_optimal_dpor_and_the_stateful_search_agree_where_both_can_finish() -> None:
    for variant, setup in (("before", "known"), ("early", "known")):
        assert_traces_and_states_agree(one(variant, setup), "optimal")


@pytest.mark.parametrize("variant", ["before", "both", "after", "gen_first"])
def test_every_schedule_runs_twice_the_same(variant: str) -> None:
    for memory in MODELS:
        audit(one(variant, "plug", memory), runs=2)
