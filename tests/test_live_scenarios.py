"""Every built-in scenario, live: the race is met with what `racevisor run NAME` does by itself, and the fix has no bad round.

A scenario that is put into scenarios/ is taken up by itself.  Every round is held against the World as it is played.
"""

from collections.abc import Iterator

import pytest

from cluster.live import LiveOptions, LiveRun, Round
from racevisor.scenario import Case, built_in, default_setup, load

#: rounds in which the race has to be met; it is met in 1 of 2 to 1 of 40
BEFORE = 400
#: rounds of the fix; each is also a test of parity
FIXED = 12
#: each simulated actor is a process while a scenario runs
ACTORS = 8


def default_case(name: str, variant: str | None = None) -> Case:
    """What `racevisor run NAME` plays."""
    scenario, source = load(name)
    variant = variant or next(iter(scenario.variants))
    return Case(scenario, source, variant, default_setup(scenario, variant, "tso"), "tso")


def until_bad(rounds: Iterator[Round]) -> list[Round]:
    """Rounds up to the first bad one."""
    played = []
    for r in rounds:
        played.append(r)
        if r.bad:
            break
    return played


@pytest.mark.usefixtures("embedded_ray")
@pytest.mark.parametrize("name", built_in())
def test_the_race_is_met_live_by_default_and_the_fix_has_no_bad_round(name: str) -> None:
    """With the set-up, the memory model and the noise of `racevisor run`: that is what a first user tries."""
    scenario, source = load(name)
    before = default_case(name)
    fixed = Case(scenario, source, scenario.fixed, before.setup, before.memory)
    with LiveRun(before, LiveOptions(rounds=BEFORE)) as run:
        assert len(run.names) <= ACTORS
        played = until_bad(run.rounds())
        assert played[-1].bad, f"{before}: no bad round among {len(played)}"
        run.switch(fixed)
        run.options.rounds = FIXED
        again = list(run.rounds())
    assert [r.number for r in again if r.bad] == []
    assert {r.status for r in again} == {"terminal"}
