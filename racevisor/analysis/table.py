"""All logs as one table, in an order in which every cause comes before its effects; as Parquet, for queries of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from racevisor.analysis.rounds import Rounds
from racevisor.analysis.schema import ABORTED, CASE, EVENT, ROUND, STEP, TABLE
from racevisor.errors import UsageError

DRIVER = "driver"


def merged(rounds: Rounds) -> pl.DataFrame:
    """The columns of `schema.TABLE`: by run, round, Lamport clock, host, and line.

    Runs come in the order of their first line.  Events with one clock on two hosts are concurrent: the lower host's come first,
    as in the schedule that the World repeats.  What the driver says of a round comes after it.
    """
    given_up = rounds.aborted.select("run", "round", "time", event=pl.lit(ABORTED), why="why", account="account")
    told = pl.concat([rounds.runs, rounds.played, given_up], how="diagonal_relaxed")
    told = told.with_columns(fields=pl.Series([_said(row) for row in told.iter_rows(named=True)], dtype=pl.String))
    words = told.select(
        pl.col(name).cast(EVENT[name]) for name in ("run", "round", "clock", "event", "seconds", "fields", "time", "file", "line")
    ).with_columns(host=pl.lit(DRIVER, EVENT["host"]), step=told["steps"].cast(EVENT["step"]))
    about = rounds.played.select(*CASE, "outcome", "bad", pl.col("run").cast(EVENT["run"]), pl.col("round").cast(EVENT["round"]))
    about = about.with_columns(pl.col(pl.String).cast(pl.Categorical()), pl.col("vcpus").cast(pl.Int32))
    whole = pl.concat([rounds.events, words], how="diagonal").join(about, on=["run", "round"], how="left", nulls_equal=True)
    order = _positions(rounds, whole)
    whole = whole.join(order, on=["run", "host"], how="left", nulls_equal=True)
    over = pl.col("event").is_in([ROUND, ABORTED])
    return whole.sort("run_at", "round", over, "clock", "host_at", "line", nulls_last=True).select(*TABLE)


def write(rounds: Rounds, path: Path) -> int:
    """Write the merged table as Parquet; how many rows it has.  UsageError if the file cannot be written."""
    table = merged(rounds)
    try:
        table.write_parquet(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}\n  choose another place:  --parquet FILE") from error
    return table.height


def schedule(rounds: Rounds, run: str, number: int) -> pl.DataFrame:
    """The steps of one round in the order in which the World repeats them, as far as they were logged."""
    steps = rounds.events.filter((pl.col("event") == STEP) & (pl.col("run") == run) & (pl.col("round") == number))
    return steps.join(_positions(rounds, steps), on=["run", "host"], how="left").sort("clock", "host_at", "line")


def _positions(rounds: Rounds, events: pl.DataFrame) -> pl.DataFrame:
    """Where each run, and in it each host, comes: hosts as the run names them, else by name."""
    there = events.group_by("run", "host").agg(first=pl.col("time").min())
    run_at = (
        there.group_by("run").agg(pl.col("first").min()).sort("first", pl.col("run").cast(pl.String)).with_row_index("run_at")
    )
    named = rounds.runs.select(pl.col("run").cast(EVENT["run"]), host="hosts").explode("host").drop_nulls("host")
    named = named.with_columns(pl.col("host").cast(EVENT["host"]), at=pl.int_range(pl.len()).over("run"))
    there = there.join(named, on=["run", "host"], how="left", nulls_equal=True)
    name = pl.col("host").cast(pl.String)
    there = there.sort(name == DRIVER, pl.col("at"), name, nulls_last=True).with_row_index("host_at")
    return there.select("run", "host", "host_at").join(run_at.select("run", "run_at"), on="run", how="left", nulls_equal=True)


def _said(row: dict[str, object]) -> str:
    names = (
        "status",
        "violations",
        "waiting",
        "messages",
        "crossed",
        "count",
        "claimed",
        "noise",
        "transport",
        "vms",
        "hosts",
        "why",
        "account",
    )
    return json.dumps({name: row[name] for name in names if row.get(name) is not None})
