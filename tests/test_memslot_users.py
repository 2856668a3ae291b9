"""Who else relies on memory slots: what each got wrong is found, and what repaired it holds."""

import pytest
from claims import assert_traces_and_states_agree, audit, cells_of, checks

from racevisor.explore import explore_case
from racevisor.memory import MODELS

one = cells_of("memslot_users")


@pytest.mark.parametrize(
    ("variant", "setup", "check"),
    [
        ("before", "marks", "M-I9"),
        ("before", "real_mode", "torn"),
        ("before", "birth", "M-L2"),
        ("before", "death", "M-I1"),
        ("before", "rmaps", "arch"),
        ("before", "range_create", "N-M16"),
        ("before", "range_delete", "N-M16"),
        ("no_srcu", "real_mode", "M-I1"),
        ("lock_late", "rmaps", "arch"),
        ("lock_long", "rmaps", "M-L2"),
        ("look_only", "range_create", "N-M16"),
        ("sleep_late", "range_delete", "wake-up"),
    ],
)
def test_what_is_wrong_is_caught_by_the_check_that_is_about_it(variant: str, setup: str, check: str) -> None:
    """A mutant that another check happens to catch would leave its own check untested."""
    assert checks(explore_case(one(variant, setup))) == {check}


def test_an_invalidation_is_counted_for_ever_or_ends_without_having_begun() -> None:
    """The two imbalances: a slot that goes between start and end, and one that comes."""
    texts = {}
    for setup in ("range_delete", "range_create"):
        verdict = explore_case(one("before", setup))
        assert verdict.witness is not None
        texts[setup] = verdict.witness.violations[0].text
    assert "counted for ever" in texts["range_delete"]
    assert "did not begin" in texts["range_create"]


def test_the_arch_lock_deadlocks_with_a_reader_if_it_is_kept_over_the_grace_period() -> None:
    verdict = explore_case(one("lock_long", "rmaps"))
    assert verdict.witness is not None
    assert "vcpu0, userspace wait" in verdict.witness.violations[0].text


def test_optimal_dpor_and_the_stateful_search_agree_where_both_can_finish() -> None:
    for variant, setup in (("after", "marks"), ("after", "birth"), ("before", "death"), ("after", "rmaps")):
        assert_traces_and_states_agree(one(variant, setup), "optimal")


@pytest.mark.parametrize("variant", ["before", "after"])
def test_every_schedule_runs_twice_the_same(variant: str) -> None:
    for setup in ("marks", "real_mode", "birth", "death", "rmaps", "range_create", "range_delete"):
        for memory in MODELS:
            audit(one(variant, setup, memory), runs=2)
