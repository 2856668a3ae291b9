"""`auto` exhausts what it can within the budget and says so; where it cannot, it samples and says how much that is worth."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from actors.ops import READ_ONCE, WRITE_ONCE
from actors.thread import Thread
from actors.vm import Vm
from racevisor import Scenario, Setup, Sometimes, Variant
from racevisor.auto import HALF, PROBE, Auto
from racevisor.budget import Budget
from racevisor.estimate import Estimate
from racevisor.explore import LOOK, Verdict, explore_case
from racevisor.ledger import BOUND_REACHED, BUDGET_SPENT, EXHAUSTED
from racevisor.scenario import Case, Source
from racevisor.strategies.random_walk import RandomWalk
from racevisor.strategies.states import StatefulSearch


class Adders(Scenario):
    """Several threads add to x in two steps, and lose updates.  The set-up's name is their number, and who is to lose."""

    name = "adders"
    variants = {"plain": Variant("as it is")}
    setups = {f"{n} {bad}": Setup("") for n in (2, 5, 6) for bad in ("never", "all", "half")}

    def build(self, vm: Vm, setup: str) -> None:
        vm.guest_memory(x=0)
        self.count = int(setup.split()[0])
        for i in range(self.count):
            Thread(vm, f"P{i}", adding(2**i))

    def exists(self, vm: Vm) -> bool:
        bad = str(vm.setup).split()[1]
        last: bool = vm.memory.x.value == 2 ** (self.count - 1)  # only the last thread's update is left
        return {"never": False, "all": True, "half": last}[bad]


def adding(value: int) -> Callable[[Any], Any]:
    async def body(me: Any) -> None:
        before = await READ_ONCE(me.vm.memory.x)
        await WRITE_ONCE(me.vm.memory.x, before + value)

    return body


def adders(setup: str) -> Case:
    return Case(Adders(), Source("adders.py", ""), "plain", setup, "sc")


class Clock:
    """Every look at it is so many seconds after the one before."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks * self.seconds


def explored(setup: str, seconds_a_look: float = 0.001, **options: Any) -> Verdict:
    return explore_case(adders(setup), clock=Clock(seconds_a_look), **options)


def test_a_small_cell_is_exhausted_and_the_ledger_says_why() -> None:
    """What fitted into the budget yesterday must not be sampled today."""
    verdict = explored("5 never")
    assert (verdict.verdict, verdict.finding, verdict.strategy) == (EXHAUSTED, "Never", "states")
    assert verdict.ledger.why == "the states can be exhausted within the budget"
    assert verdict.ledger.guarantee is None and verdict.ledger.remains is None and not verdict.ledger.by_clock
    plain = explored("5 never", strategy="states")
    assert (plain.executions, plain.states) == (verdict.executions, verdict.states), "the very same search"


def test_a_cell_that_cannot_be_exhausted_in_time_is_sampled_for_the_rest_of_the_budget() -> None:
    """And the ledger has what the search had left, and what the samples are worth."""
    ledger = explored("6 never", seconds_a_look=0.1, budget=100.0).ledger
    assert (ledger.verdict, ledger.strategy, ledger.by_clock) == (BUDGET_SPENT, "states, then pct", True)
    assert ledger.remains is not None and ledger.remains.total > ledger.remains.done
    assert ledger.guarantee is not None
    assert ledger.guarantee.d == 2 and ledger.guarantee.n == 6
    assert 0 < ledger.guarantee.miss <= 1
    assert ledger.seconds == pytest.approx(100, rel=0.02)
    assert "times the budget" in ledger.why and "estimated" in ledger.why


def test_a_violation_that_the_probe_met_is_kept_when_auto_changes_its_mind() -> None:
    """PCT might never meet it again."""
    verdict = explored("6 all", seconds_a_look=0.1, budget=100.0, to_the_end=True)
    assert verdict.strategy == "states, then pct"
    assert verdict.witness is not None and verdict.witness.run == 0
    assert (verdict.verdict, verdict.found, verdict.finding) == (BUDGET_SPENT, Sometimes, "found")
    assert not verdict.confirmed, "that no good execution was met does not make it Always"


def test_a_bad_and_a_good_execution_settle_it() -> None:
    """The first of each; there is nothing to choose any more."""
    verdict = explored("6 half")
    assert (verdict.verdict, verdict.finding, verdict.ledger.why) == (BOUND_REACHED, Sometimes, "")


def test_with_a_budget_in_executions_the_decision_is_the_same_on_any_machine() -> None:
    """No clock has a say in it."""

    def ledger(seconds_a_look: float) -> Any:
        found = explored("6 never", seconds_a_look, runs=12_000).ledger
        remains = found.remains and dataclasses.replace(found.remains, seconds_left=None)
        return dataclasses.replace(found, seconds=0.0, remains=remains)

    fast, slow = ledger(0.001), ledger(10.0)
    assert fast == slow
    assert (fast.strategy, fast.verdict, fast.by_clock) == ("states, then pct", BUDGET_SPENT, False)
    assert fast.reason == "12,000 executions"
    assert fast.guarantee.runs + fast.remains.done == 12_000


def test_the_clock_is_looked_at_only_every_so_many_executions() -> None:
    """An execution takes microseconds; a system call each would be felt."""
    clock = Clock(0.001)
    verdict = explore_case(adders("5 never"), clock=clock)
    runs = verdict.executions + verdict.ledger.blocked
    assert runs > 1_000
    assert clock.looks <= runs / LOOK + 200


def decided(share: float, guess: Estimate | None, states: int = 10_000) -> bool:
    """Does auto change when so much of the budget is spent and this is the estimate?"""
    search = StatefulSearch()
    search.states = states
    auto = Auto(search, lambda runs: RandomWalk(0, runs or 1))
    budget = Budget(runs=1_000)
    budget.look(round(1_000 * share))
    auto.decide(budget, lambda: guess)
    return auto.changed_at is not None


def estimate(total: float, low: float) -> Estimate:
    return Estimate(done=100, total=total, low=low, high=2 * total, seconds_left=None)


def test_auto_goes_on_where_the_states_may_fit_and_changes_where_they_do_not() -> None:
    """The optimistic end decides at first, the estimate from the middle of the budget on."""
    hopeless, open_, fits = estimate(1e6, 1e5), estimate(10_000, 150), estimate(150, 120)
    assert not decided(PROBE / 2, hopeless), "the probe is not over"
    assert decided(PROBE, hopeless)
    assert not decided(PROBE, open_) and decided(HALF, open_)
    assert not decided(PROBE, fits) and not decided(HALF, fits)
    assert not decided(0.95, hopeless), "what is left is not worth a change"


def test_auto_probes_some_thousands_of_states_before_it_decides() -> None:
    """An estimate after a handful of them is noise; but half of a budget is enough for a probe."""
    assert not decided(PROBE, estimate(1e6, 1e5), states=100)
    assert decided(HALF, estimate(1e6, 1e5), states=100)
    assert decided(HALF, None, states=100), "still learning"


def test_pct_under_auto_takes_depth_and_seed_and_counts_its_own_runs() -> None:
    """Run 0 of PCT is not run 0 of the search."""
    one = explored("6 never", runs=6_000, depth=2, seed=7).ledger
    assert one.guarantee is not None and one.guarantee.d == 2
    assert one.guarantee.runs < one.executions + one.blocked
