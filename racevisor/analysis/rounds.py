"""The rounds that the logs tell of, and which of them are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from racevisor.analysis.read import Logs
from racevisor.analysis.schema import ABORTED, CASE, ROUND, RUN
from racevisor.errors import UsageError


@dataclass
class Rounds:
    """`played`: a row for each round that came to an end, with `bad` and `stuck`; `aborted`: one for each that was given up.

    `runs` is what the first line of each run says; `events` are those of the hosts, of the rounds that are asked about.
    """

    played: pl.DataFrame
    aborted: pl.DataFrame
    runs: pl.DataFrame
    events: pl.DataFrame
    #: how many lines told of a round that another line had told of already, as copies of a log do
    copies: int = 0


def rounds(logs: Logs, bad: str | None = None, **wanted: Sequence[str]) -> Rounds:
    """Those of `wanted`: {column of the case: values}, where none means all.

    A round is bad if it broke a check; or, with `bad`, if a violation or the outcome has this text.  Raises UsageError, saying
    what there is, if a value or the text is not in the logs.
    """
    driver = logs.driver
    runs = driver.filter(pl.col("event") == RUN).unique("run", keep="last", maintain_order=True)
    every = driver.filter(pl.col("event") == ROUND)
    known = every.filter(pl.col("run").is_not_null()).unique(["run", "round"], keep="last", maintain_order=True)
    played = pl.concat([known, every.filter(pl.col("run").is_null())]).with_columns(
        bad=pl.col("violations").list.len().fill_null(0) > 0 if bad is None else _says(bad),
        stuck=pl.col("violations").list.eval(pl.element().struct.field("step").is_null()).list.any().fill_null(False),
    )
    of_run = pl.concat([runs.select("run", *CASE), played.select("run", *CASE)]).unique("run", keep="first")
    aborted = (
        driver.filter(pl.col("event") == ABORTED).select("run", "why", "account", "time", round=pl.col("rounds")).explode("round")
    )
    aborted = aborted.drop_nulls("round").unique(["run", "round"], keep="last", maintain_order=True)
    aborted = aborted.join(of_run, on="run", how="left", nulls_equal=True)
    if bad is not None and not played["bad"].any():
        said = ", ".join(repr(text) for text in texts(played)[:3]) or "no violation at all"
        raise UsageError(f"no round has a violation or an outcome with {bad!r}\n  there is, among others:  {said}")
    if bad is not None:  # of several things that are wrong, those that are asked about
        about = pl.col("violations").list.eval(pl.element().filter(_of_violation().str.contains(bad, literal=True)))
        played = played.with_columns(violations=pl.when(about.list.len() > 0).then(about).otherwise("violations"))
    copies = every.height - played.height
    chosen = {column: list(values) for column, values in wanted.items() if values}
    if not chosen:
        return Rounds(played, aborted, runs, logs.events, copies)
    for column, values in chosen.items():
        there = pl.concat([played[column], aborted[column]]).drop_nulls().unique().sort().to_list()
        for value in values:
            if value not in there:
                raise UsageError(
                    f"the logs have no {column} {value}\n  there is:  {', '.join(map(str, there)) or 'no round at all'}"
                )
    mask = pl.all_horizontal(pl.col(column).is_in(values) for column, values in chosen.items())
    played, aborted = played.filter(mask), aborted.filter(mask)
    keys = pl.concat([played.select("run", "round"), aborted.select("run", "round")])
    keys = keys.cast({"run": pl.Categorical(), "round": pl.Int32()})
    events = logs.events.join(keys, on=["run", "round"], how="semi", nulls_equal=True)
    return Rounds(played, aborted, runs.filter(pl.col("run").is_in(played["run"].unique().implode())), events, copies)


def _says(text: str) -> pl.Expr:
    """Has a violation, or the outcome, this text in it?"""
    said = pl.col("violations").list.eval(_of_violation()).list.join("\n")
    return (pl.col("outcome").str.contains(text, literal=True) | said.str.contains(text, literal=True)).fill_null(False)


def _of_violation() -> pl.Expr:
    return pl.element().struct.field("check") + ": " + pl.element().struct.field("text")


def texts(played: pl.DataFrame) -> list[str]:
    """What violations say, the text of the most rounds first."""
    said = played.select(pl.col("violations").list.eval(pl.element().struct.field("text")).list.unique()).explode("violations")
    found: list[str] = (
        said.drop_nulls()
        .group_by("violations")
        .len()
        .sort(["len", "violations"], descending=[True, False])["violations"]
        .to_list()
    )
    return found


def some_but_not_all(played: pl.DataFrame) -> str | None:
    """The text of a violation that tells rounds apart which are all bad: the one nearest to half of them."""
    counts = {text: played.select(_says(text).sum()).item() for text in texts(played)[:100]}
    telling = {text: count for text, count in counts.items() if 0 < count < played.height}
    return min(telling, key=lambda text: abs(telling[text] - played.height / 2), default=None)
