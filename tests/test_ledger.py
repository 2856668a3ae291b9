"""Every result says how it was come by; a search that left something out never reads like a proof."""

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from rich.console import Console

from racevisor import Never, Sometimes, choose
from racevisor.budget import Budget, parse, words
from racevisor.choose import KINDS, Wanted
from racevisor.commands.explore import _how, print_table
from racevisor.commands.output import progress_line
from racevisor.errors import UsageError
from racevisor.estimate import Estimate
from racevisor.explore import Verdict, cases, explore, explore_case
from racevisor.ledger import BOUND_REACHED, BUDGET_SPENT, EXHAUSTED, judge, short

EXAMPLE = "examples/message_passing.py"
VERDICTS = {EXHAUSTED, BOUND_REACHED, BUDGET_SPENT}


def one(variant: str = "wmb", memory: str = "pso", **options: Any) -> Verdict:
    """wmb never shows the bad outcome, plain sometimes does under pso."""
    (case,) = cases(EXAMPLE, [variant], [], [memory])
    return explore_case(case, **options)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.chdir(pytestconfig.rootpath)


@pytest.mark.parametrize("strategy", KINDS)
def test_every_strategy_fills_in_a_ledger(strategy: str) -> None:
    """One of three verdicts, counts, bounds; and all of it is JSON."""
    verdict = one(strategy=strategy, runs=40)
    entry = json.loads(json.dumps(verdict.to_json()))
    ledger = entry["ledger"]
    assert ledger["verdict"] in VERDICTS
    assert ledger["executions"] > 0 and ledger["bad"] == 0
    assert ledger["memory"] == "pso" and ledger["bounds"]["steps"] > 0 and ledger["bounds"]["runs"] == 40
    assert {"verdict", "executions", "bad", "blocked", "states", "strategy", "bound", "seconds"} <= entry.keys()
    for key in ("verdict", "executions", "bad", "blocked", "states", "strategy", "seconds"):
        assert entry[key] == ledger[key]
    assert entry["bound"] == ledger["reason"]
    assert (entry["finding"] == Never) == (ledger["verdict"] == EXHAUSTED) == entry["confirmed"]
    assert ledger["sentence"].startswith(ledger["verdict"])


def test_the_exhaustive_strategies_agree_and_count_what_they_tell_apart() -> None:
    """Classes are counted by the searches that run one execution for each."""
    found = {name: one(strategy=name) for name in ("auto", "states", "optimal", "source", "sleep")}
    assert {verdict.verdict for verdict in found.values()} == {EXHAUSTED}
    assert {found[name].ledger.classes for name in ("optimal", "source", "sleep")} == {found["optimal"].executions}
    assert found["states"].ledger.classes is None and found["states"].states > 0


def test_a_bounded_search_names_its_bound_and_proves_nothing() -> None:
    """No delays at all is one execution."""
    verdict = one(strategy="delay", bound=0)
    assert (verdict.verdict, verdict.finding, verdict.confirmed) == (BOUND_REACHED, "not found", False)
    assert verdict.ledger.reason == "all executions with at most 0 delays"
    assert verdict.ledger.bounds.switches == 0
    assert verdict.ledger.remains is None, "nothing is left within the bound"
    (case,) = cases("init_sipi", ["latch"], ["plain"], ["tso"])
    stopped = explore_case(case, strategy="delay", bound=3, runs=100).ledger
    assert stopped.verdict == BUDGET_SPENT and stopped.remains is not None
    assert "all that the bound admits would take about" in stopped.sentence().lower()
    everything = one(strategy="delay", bound=99)
    assert (everything.verdict, everything.ledger.reason) == (EXHAUSTED, "every execution")


def test_samples_spend_a_budget_and_pct_says_what_they_are_worth() -> None:
    """A thousand good runs are no Never."""
    verdict = one(strategy="pct", runs=50, depth=2)
    assert (verdict.verdict, verdict.finding) == (BUDGET_SPENT, "not found")
    guarantee = verdict.ledger.guarantee
    assert guarantee is not None and (guarantee.d, guarantee.runs) == (2, 50)
    assert verdict.to_json()["ledger"]["guarantee"]["miss"] == guarantee.miss
    assert "depth-2" in verdict.ledger.sentence() and "proves nothing" in verdict.ledger.sentence()
    assert one(strategy="random", runs=50).ledger.guarantee is None


def test_a_search_that_the_budget_ends_says_what_remains() -> None:
    """Executions or seconds, whichever ran out."""
    (case,) = cases("init_sipi", ["latch"], ["two_rounds"], ["tso"])
    by_runs = explore_case(case, strategy="states", runs=2_000).ledger
    assert (by_runs.verdict, by_runs.reason, by_runs.by_clock) == (BUDGET_SPENT, "2,000 executions", False)
    assert by_runs.remains is not None and by_runs.remains.done == 2_000 < by_runs.remains.low
    ticks = iter(range(10_000))
    by_clock = explore_case(case, strategy="states", budget=50.0, clock=lambda: float(next(ticks))).ledger
    assert (by_clock.verdict, by_clock.by_clock) == (BUDGET_SPENT, True)
    assert "exhaustive search would take about" in by_clock.sentence()


def test_one_bad_execution_alone_does_not_confirm_sometimes() -> None:
    """It may be Always: the good one was not met."""
    verdict = one("plain", strategy="random", runs=1000)
    assert verdict.bad and verdict.good is not None and verdict.confirmed
    verdict.good = None
    assert (verdict.found, verdict.finding, verdict.confirmed) == (Sometimes, "found", False)


def ends(**changes: Any) -> tuple[str, str]:
    plain: dict[str, Any] = {
        "exhausted": False, "complete": 7, "settled": False, "stopped": "", "cut": 0, "limit": "", "steps": 100,
        "covers": "every reachable state", "runs": 7,
    }  # fmt: skip
    return judge(**{**plain, **changes})


def test_each_way_to_end_has_its_verdict() -> None:
    """Only one of them is a proof."""
    assert ends(exhausted=True) == (EXHAUSTED, "every reachable state")
    assert ends(exhausted=True, complete=0)[0] == BOUND_REACHED
    assert ends(exhausted=True, limit="at most 2 delays") == (BOUND_REACHED, "all executions with at most 2 delays")
    assert ends(settled=True)[0] == BOUND_REACHED
    assert ends(cut=3) == (BOUND_REACHED, "3 executions were cut at 100 steps")
    assert ends(stopped="60 s") == (BUDGET_SPENT, "60 s")
    assert ends(covers="") == (BUDGET_SPENT, "7 executions")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_never_says_never_for_a_search_that_left_something_out(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads only the table must not be misled, and it must fit."""
    verdicts = [one(strategy="random", runs=20), one(strategy="delay", bound=1), one()]
    print_table(Console(width=width), verdicts)
    heading, *rows = capsys.readouterr().out.splitlines()
    found = heading.index("found")
    assert [row[found : found + 9].rstrip() for row in rows] == ["not found", "not found", "Never"]
    assert max(map(len, rows)) <= width
    told = _how(verdicts)
    assert sum("proves nothing" in line for line in told) == 2
    assert told[-1] == "strategy states; exhausted: every reachable state"


def test_a_cell_of_the_same_code_says_whose_verdict_it_has() -> None:
    """It was not searched at all."""
    wanted = cases("init_sipi", ["latch", "I-M15"], ["init_only"], ["sc"])
    progress: list[tuple[int, int]] = []
    verdicts = list(explore(wanted, on_progress=lambda done, of: progress.append((done, of))))
    assert progress[-1] == (2, 2)
    latch, mutant = (verdict.ledger for verdict in verdicts)
    assert (latch.reason, latch.strategy) == ("every reachable state", "states")
    assert mutant.reason == "the same code as latch: nothing that I-M15 replaces is called here"
    assert (mutant.executions, mutant.seconds) == (latch.executions, 0.0)


def test_whoever_shows_progress_is_told_how_far_a_search_is() -> None:
    """Every so many executions; the estimate is made only if it is asked for."""
    (case,) = cases("init_sipi", ["latch"], ["plain"], ["tso"])
    looks: list[tuple[int, int, float]] = []
    guesses: list[Estimate | None] = []

    def look(executions: int, states: int, seconds: float, estimate: Callable[[], Estimate | None]) -> None:
        looks.append((executions, states, seconds))
        if len(looks) % 20 == 0:
            guesses.append(estimate())

    ticks = count()
    verdict = explore_case(case, on_look=look, clock=lambda: float(next(ticks)) / 100)
    assert looks == sorted(looks) and len(looks) > 60
    assert looks[-1][1] <= verdict.states
    assert all(guess is not None and guess.seconds_left is not None for guess in guesses[1:])


def test_progress_fits_into_a_line() -> None:
    """Executions, states, rate, total with its interval, ETA."""
    line = progress_line(123_456, 1_234_567, 100.0, Estimate(123_456, 2.5e6, 400_000, 3.1e7, 5_000.0))
    assert line == "123k executions  1.2M states  1,235/s  of ~2.5M (400k-31M)  ETA 83 min"
    assert progress_line(5, 0, 0.0, None) == "5 executions  0/s"
    assert [short(n) for n in (0, 99_999, 100_000, 1e6, 9.96e9, 3e15)] == ["0", "99,999", "100k", "1.0M", "10.0G", "3e15"]


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("60s", 60), ("2m", 120), ("1.5h", 5400), (" 3 min ", 180)])
def test_a_budget_is_a_length_of_time(text: str, seconds: float) -> None:
    assert parse(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "soon", "-5s", "5 days", "1e3"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget 60s"):
        parse(text)


def test_lengths_of_time_are_said_in_a_unit_that_fits() -> None:
    assert [words(s) for s in (0.25, 60, 200, 5_000, 7_200, 1e6, 1e12)] == [
        "0.2 s", "60 s", "3 min 20 s", "83 min", "2.0 h", "12 days", "centuries",
    ]  # fmt: skip


def test_a_budget_of_both_kinds_is_spent_when_the_first_of_them_is() -> None:
    """Time by the clock, executions by the count."""
    ticks = iter([0.0, 3.0, 6.0])
    budget = Budget(10.0, 100, clock=lambda: next(ticks))
    budget.look(20)
    assert (budget.share, budget.by_clock, budget.spent) == (0.3, True, False)
    budget.look(100)
    assert (budget.share, budget.by_clock, budget.spent_words()) == (1.0, False, "100 executions")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "luck"}, "strategies: auto, states, optimal"),
        ({"strategy": "dpor"}, "--strategy optimal, or --strategy source"),
        ({"strategy": "states", "depth": 2}, "--depth means nothing to strategy states\n  it goes with --strategy auto or pct"),
        ({"bound": 0}, "--bound means nothing to strategy auto\n  it goes with --strategy delay or preemption"),
        ({"strategy": "pct", "symmetry": True}, "it goes with --strategy auto or states"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_what_does(options: dict[str, Any], message: str) -> None:
    """An option that is silently ignored is a search that was not made."""
    with pytest.raises(UsageError) as caught:
        choose.kind(Wanted(**options))
    assert message in str(caught.value)
