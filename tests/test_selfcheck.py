"""`racevisor selfcheck`: the known numbers, and that a wrong one is noticed."""

import json
from dataclasses import replace

import pytest

from racevisor.commands.selfcheck import check
from racevisor.oracles.measure import measure
from racevisor.oracles.rows import GROUPS, Row, exactly, table

#: rows with larger numbers take longer
QUICK = 130


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_what_is_measured_is_what_is_known(group: object) -> None:
    """Numbers of other tools and of the literature, on this machine."""
    rows = [row for row in group() if (row.low or 0) <= QUICK]  # type: ignore[operator]
    assert rows
    assert {f"{row.program} by {row.strategy}: {row.known}": measure(row).got for row in rows if not measure(row).agrees} == {}


def test_no_row_is_there_twice() -> None:
    """A number is told from others by program, what is counted, and strategy."""
    names = [(row.program, row.counted, row.strategy) for row in table()]
    assert len(names) == len(set(names)) > 100


def test_every_strategy_with_a_promise_is_checked() -> None:
    """The searches, the sampler, the bounded one."""
    assert {row.strategy for row in table()} == {"optimal", "source", "sleep", "states", "states, unreduced", "delay", "pct"}


def rows(*more: Row) -> list[Row]:
    return [next(row for row in table() if row.program == "abba"), *more]


def broken() -> int:
    raise ValueError("lost")


def test_known_numbers_that_agree_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    """Program, what is counted, known, got, seconds."""
    assert check(None, False, rows()) == 0
    out = capsys.readouterr().out
    assert out.split()[:6] == ["program", "counted", "strategy", "known", "got", "seconds"]
    assert "all 1 numbers agree" in out


def test_a_number_that_differs_or_a_search_that_fails_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """And the other rows are shown all the same."""
    wrong = replace(rows()[0], low=4, high=4)
    fails = exactly("abba", "executions", "broken", 3, broken)
    assert check(None, False, rows(wrong, fails)) == 1
    out = capsys.readouterr().out
    assert "2 of 3 numbers differ" in out and "ValueError: lost" in out
    assert check(None, True, rows(wrong, fails)) == 1
    found = json.loads(capsys.readouterr().out)
    assert [row["agrees"] for row in found["rows"]] == [True, False, False]
    assert found["wrong"] == 2


def test_a_bound_on_one_side_is_said_as_such() -> None:
    """PCT promises a rate from below, and a first hit in time."""
    least = Row("p", "hits", "pct", broken, 29, None)
    assert (least.known, least.agrees(29), least.agrees(28)) == ("at least 29", True, False)
    most = Row("p", "first hit", "pct", broken, 1, 300)
    assert (most.known, most.agrees(300), most.agrees(301)) == ("at most 300", True, False)
