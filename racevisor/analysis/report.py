"""The answers, each a table; what is asked for is computed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from racevisor.analysis import latencies, outcomes, stuck, table
from racevisor.analysis.orders import Orders, orders
from racevisor.analysis.read import Logs
from racevisor.analysis.rounds import Rounds
from racevisor.errors import UsageError

#: Slots of time for the rate, unless it is said.
SLOTS = 12


@dataclass
class Report:
    """What was asked, answered: `tables` by name, as `racevisor analyze --table` knows them."""

    logs: Logs
    rounds: Rounds
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    #: the tables that were asked for by name; none: all that is told by itself
    asked: Collection[str] = ()
    #: what the ranking of orders rests on, if it was asked for
    orders: Orders | None = None


def report(logs: Logs, rounds: Rounds, asked: Collection[str] = (), against: str | None = None, slots: int = SLOTS) -> Report:
    """Answer what is asked, or all but the mere counts of events.

    `against` is the variant that the others are compared with.  `slots` is how many slots of time there may be for each case.
    UsageError for a table or a variant that there is not.
    """
    if against is not None and against not in (names := rounds.played["variant"].unique().drop_nulls().sort().to_list()):
        raise UsageError(f"there is no variant {against} to compare with\n  there is:  {', '.join(names) or 'none at all'}")
    done = Report(logs, rounds, asked=asked)
    makers: dict[str, Callable[[], pl.DataFrame]] = {
        "cases": lambda: outcomes.cases(rounds),
        "outcomes": lambda: outcomes.outcomes(rounds),
        "compare": lambda: outcomes.compared(rounds, against),
        "rate": lambda: outcomes.over_time(rounds, slots),
        "first": lambda: _first(rounds),
        "orders": lambda: _orders(done),
        "messages": lambda: latencies.latencies(rounds),
        "events": lambda: latencies.kinds(rounds),
        "stuck": lambda: stuck.stuck(rounds),
    }
    for name in asked:
        if name not in makers:
            raise UsageError(f"there is no table {name}\n  tables:  {', '.join(makers)}")
    done.tables = {name: make() for name, make in makers.items() if name in asked or (not asked and name != "events")}
    return done


def _orders(done: Report) -> pl.DataFrame:
    done.orders = orders(done.rounds)
    return done.orders.table


def _first(rounds: Rounds) -> pl.DataFrame:
    """The first bad rounds, and the step at which the check was broken, if steps were logged."""
    first = outcomes.first_bad(rounds)
    steps: list[dict[str, Any]] = []
    for row in first.iter_rows(named=True):
        said: dict[str, Any] = {"step": None, "actor": None, "step_file": None, "step_line": None}
        schedule = table.schedule(rounds, row["run"], row["round"]) if row["at"] is not None and row["run"] is not None else None
        if schedule is not None and 0 <= row["at"] < schedule.height:
            at = schedule.row(row["at"], named=True)
            value = f" ({at['value']})" if at["value"] and at["value"] not in (at["label"] or "") else ""
            said = {"step": f"{at['label']}{value}", "actor": at["actor"], "step_file": at["file"], "step_line": at["line"]}
        steps.append(said)
    kinds = {"step": pl.String(), "actor": pl.String(), "step_file": pl.String(), "step_line": pl.Int64()}
    return pl.concat([first, pl.DataFrame(steps, schema=kinds)], how="horizontal")
