"""A trace walked by hand: forward, back, and off the recorded way."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racevisor import api
from racevisor.errors import NotDeterministic
from racevisor.walk import Walk

EXAMPLE = str(Path(__file__).resolve().parent.parent / "examples" / "message_passing.py")


def walk() -> Walk:
    """The race of the README, with a posted store that reaches memory too late."""
    found = api.explore(EXAMPLE, "plain", memory="pso")
    assert found.reason is not None
    return Walk(found.case, found.reason.witness.schedule)


def test_the_end_is_where_it_breaks_and_the_start_is_where_nothing_has_happened() -> None:
    """At the end the outcome is judged; at the start every cell is as it began."""
    race = walk()
    assert race.at == len(race.picks) == len(race.told)
    assert race.broken == ["exists: P1 saw ready, and data was still 0"]
    race.go(0)
    assert race.broken == [] and race.values() == [] and race.posted() == []
    assert [head.thread for head in race.heads()] == ["P0", "P1"]
    assert [head.recorded for head in race.heads()] == [True, False]
    race.close()


@settings(max_examples=30)
@given(st.lists(st.integers(-2, 12), max_size=6))
def test_a_state_does_not_depend_on_the_way_to_it(ways: list[int]) -> None:
    """Going back is going there from the start; nothing of what came later may be left."""
    race, other = walk(), walk()
    for where in ways:
        race.go(where)
        other.go(0)
        other.go(where)
        assert (race.at, race.values(every=True), race.posted(), race.heads(), race.broken, race.waiting()) == (
            other.at, other.values(every=True), other.posted(), other.heads(), other.broken, other.waiting()
        )  # fmt: skip
    race.close()
    other.close()


def test_a_posted_store_is_shown_until_it_reaches_memory() -> None:
    """That the flag is seen before the data is what the race is about."""
    race = walk()
    race.go(1)
    assert race.posted() == ["P0: memory.data = 42"]
    assert "P0" in [head.thread for head in race.heads() if head.words == "memory.data = 42 reaches memory"]
    race.go(len(race.picks))
    assert race.posted() == []
    race.close()


def test_another_head_leads_to_another_execution_that_can_be_saved_and_replayed(tmp_path: Path) -> None:
    """The data reaches memory at once: the outcome is good, and the trace of it replays."""
    race = walk()
    race.go(1)
    landing = next(head for head in race.heads() if "reaches memory" in head.words)
    race.take(landing.channel)
    assert race.parted == 1 and len(race.picks) == race.at == len(race.told) == 2
    race.finish()
    assert race.broken == [] and race.heads() == []
    race.save(tmp_path / "mine.trace")
    again = api.replay(tmp_path / "mine.trace")
    assert again.identical and again.execution is not None and not again.execution.bad
    assert again.recorded.strategy == "by hand"
    race.close()


def test_taking_what_was_recorded_stays_on_the_recorded_way() -> None:
    """Whoever walks along by choosing the marked head has changed nothing."""
    race = walk()
    before = list(race.picks)
    race.go(0)
    while race.at < len(before):
        race.take(next(head.channel for head in race.heads() if head.recorded))
    assert race.picks == before and race.parted is None
    race.close()


def test_a_way_that_was_left_half_way_is_a_sound_trace(tmp_path: Path) -> None:
    """It is saved as one that was cut."""
    race = walk()
    race.go(2)
    other = next(head for head in race.heads() if not head.recorded)
    race.take(other.channel)
    race.save(tmp_path / "half.trace")
    assert api.replay(tmp_path / "half.trace").identical
    race.close()


def test_picks_that_do_not_fit_say_which_step_and_what_could_move() -> None:
    """A trace of another machine is not walked."""
    race = walk()
    picks = [*race.picks[:2], ("nobody", "?")]
    with pytest.raises(NotDeterministic, match="step 2 was of nobody"):
        Walk(race.case, picks)
    with pytest.raises(NotDeterministic, match="step 1 of"):
        Walk(race.case, [race.picks[0], (race.picks[1][0], "something else")])
    race.close()


def test_who_waits_is_told_with_what_he_waits_for() -> None:
    """A machine that is stuck has nothing else to show."""
    found = api.explore("init_sipi", "before", memory="sc")
    assert found.reason is not None
    race = Walk(found.case, found.reason.witness.schedule)
    race.go(race.at - 1)
    assert all(": " in line for line in race.waiting())
    race.close()
