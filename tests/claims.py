"""What the tests of all scenarios ask: which claims do not hold, which checks fail, do two searches and two runs agree."""

from collections.abc import Callable, Iterable

from racevisor.explore import Verdict, cases, explore, explore_case
from racevisor.scenario import Case
from racevisor.strategies.audit import Audit
from racevisor.strategies.random_walk import RandomWalk


def cells_of(scenario: str) -> Callable[..., Case]:
    """`one(variant, setup, memory, vcpus)`: one cell of that scenario."""

    def one(variant: str, setup: str, memory: str = "sc", vcpus: int | None = None) -> Case:
        (case,) = cases(scenario, [variant], [setup], [memory], vcpus)
        return case

    return one


def refuted(wanted: Iterable[Case]) -> list[str]:
    """The claims that a search does not bear out, in words."""
    return [
        f"{v.variant}/{v.setup}/{v.memory}: claimed {v.claimed}, found {v.found} ({v.verdict})"
        for v in explore(list(wanted))
        if not v.confirmed
    ]


def checks(verdict: Verdict) -> set[str]:
    """The checks that the bad execution fails."""
    assert verdict.witness is not None, f"{verdict.variant}/{verdict.setup}: nothing bad was found"
    return {violation.check for violation in verdict.witness.violations}


def assert_traces_and_states_agree(case: Case, strategy: str) -> None:
    """A DPOR and the stateful search share only the World: both finish, with one verdict and one set of outcomes."""
    by_traces = explore_case(case, strategy=strategy, to_the_end=True)
    by_states = explore_case(case, to_the_end=True)
    assert by_traces.verdict == by_states.verdict == "exhausted"
    assert by_traces.found == by_states.found
    assert set(by_traces.outcomes) == set(by_states.outcomes)


def audit(case: Case, runs: int = 3) -> None:
    """Run random schedules twice more in fresh Worlds; raises NotDeterministic where they differ."""
    world = case.world()
    strategy = Audit(RandomWalk(1, runs), case.world)
    run = 0
    while strategy.end(world.run(strategy, run)):
        run += 1
    world.close()
