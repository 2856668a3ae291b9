"""How many messages of which kind there were between hosts, and how long they took.

An ANSWER and a FLUSHED know how long after its question they came, by the clock of the one host that asked and was answered.
Of any message, one way is the time from `sent` to `received`: by two clocks, if its hosts are on two machines.
"""

from __future__ import annotations

import polars as pl

from racevisor.analysis.rounds import Rounds
from racevisor.analysis.schema import RECEIVED, SENT

#: What identifies a message: the n-th of its channel in its round.
IDENTITY = ("run", "round", "channel", "n")


def latencies(rounds: Rounds) -> pl.DataFrame:
    """A row for each kind and op, `what` being `round trip` or `one way`: how many, and the seconds they took."""
    events = rounds.events
    sent = events.filter(pl.col("event") == SENT).select(*IDENTITY, "message", "op", "time")
    received = events.filter(pl.col("event") == RECEIVED).select(*IDENTITY, "message", "op", "seconds", "time")
    answers = received.filter(pl.col("seconds").is_not_null()).select("message", "op", pl.col("seconds").cast(pl.Float64))
    ways = sent.select(*IDENTITY, "time").join(received, on=IDENTITY, suffix="_received", nulls_equal=True)
    took = (pl.col("time_received") - pl.col("time")).dt.total_microseconds() / 1e6
    ways = ways.select("message", "op", seconds=took)
    parts = [_summed(answers, "round trip"), _summed(ways, "one way")]
    return pl.concat(parts).sort(["what", "count", "message", "op"], descending=[True, True, False, False])


def _summed(frame: pl.DataFrame, what: str) -> pl.DataFrame:
    seconds = pl.col("seconds")
    return frame.group_by(pl.col("message", "op").cast(pl.String)).agg(
        what=pl.lit(what),
        count=pl.len(),
        median=seconds.median(),
        p90=seconds.quantile(0.9, "nearest"),
        p99=seconds.quantile(0.99, "nearest"),
        longest=seconds.max(),
    )


def kinds(rounds: Rounds) -> pl.DataFrame:
    """A row for each event, and kind of message or op: how many, in how many rounds."""
    kind = pl.coalesce(pl.col("message"), pl.when(pl.col("event") == "step").then("op"))
    return (
        rounds.events.with_columns(kind=kind)
        .group_by(pl.col("event", "kind").cast(pl.String))
        .agg(count=pl.len(), rounds=pl.struct("run", "round").n_unique())
        .sort(["event", "count", "kind"], descending=[False, True, False])
    )
