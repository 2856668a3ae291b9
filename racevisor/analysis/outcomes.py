"""How rounds ended: by case, one variant against another, over time, and the first bad one."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from racevisor.analysis.intervals import newcombe, wilson
from racevisor.analysis.rounds import Rounds
from racevisor.analysis.schema import CASE

#: Widths of a slot of time, in seconds: the least that gives no more slots than are wanted.
WIDTHS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 21_600, 43_200, 86_400, 604_800, 31_536_000)


def share(frame: pl.DataFrame, k: str, n: str) -> pl.DataFrame:
    """With `share`, and its limits `low` and `high`."""
    low, high = wilson(pl.col(k), pl.col(n))
    return frame.with_columns(share=pl.when(pl.col(n) > 0).then(pl.col(k) / pl.col(n)), low=low, high=high)


def cases(rounds: Rounds) -> pl.DataFrame:
    """A row for each case: rounds, how many were bad, with the interval of that share, stuck, aborted; the claim, if logged."""
    counted = rounds.played.group_by(CASE, maintain_order=True).agg(
        runs=pl.col("run").n_unique(), rounds=pl.len(), bad=pl.col("bad").sum(), stuck=pl.col("stuck").sum()
    )
    aborted = rounds.aborted.group_by(CASE).agg(aborted=pl.len())
    claims = rounds.runs.group_by(CASE).agg(claimed=pl.col("claimed").last())
    counted = counted.join(aborted, on=CASE, how="full", coalesce=True, nulls_equal=True)
    counted = counted.join(claims, on=CASE, how="left", nulls_equal=True)
    counted = counted.with_columns(pl.col("runs", "rounds", "bad", "stuck", "aborted").fill_null(0))
    return share(counted, "bad", "rounds").sort(CASE, nulls_last=True)


def outcomes(rounds: Rounds) -> pl.DataFrame:
    """A row for each outcome of each case: how many rounds, the share of them all with its interval, and how many were bad."""
    total = rounds.played.group_by(CASE).agg(rounds=pl.len())
    counted = rounds.played.group_by([*CASE, "outcome"]).agg(count=pl.len(), bad=pl.col("bad").sum())
    counted = counted.join(total, on=CASE, nulls_equal=True)
    return share(counted, "count", "rounds").sort([*CASE, "count", "outcome"], descending=[False] * len(CASE) + [True, False])


def reference(rounds: Rounds) -> str | None:
    """What the other variants are held against: `before`, or the one with the largest share of bad rounds."""
    variants = rounds.played.group_by("variant").agg(bad=pl.col("bad").mean()).sort(["bad", "variant"], descending=[True, False])
    names: list[str] = variants["variant"].drop_nulls().to_list()
    return "before" if "before" in names else names[0] if names else None


def compared(rounds: Rounds, against: str | None = None) -> pl.DataFrame:
    """A row for each variant and what it is held against, all else alike: the shares of bad rounds, and their difference."""
    alike = [column for column in CASE if column != "variant"]
    against = against or reference(rounds)
    counted = cases(rounds).filter(pl.col("rounds") > 0).select(*CASE, "rounds", "bad", "share")
    base = counted.filter(pl.col("variant") == against)
    other = counted.filter(pl.col("variant") != against)
    pairs = base.join(other, on=alike, suffix="_other", nulls_equal=True).rename({"variant_other": "other"})
    low, high = newcombe(pl.col("bad"), pl.col("rounds"), pl.col("bad_other"), pl.col("rounds_other"))
    pairs = pairs.with_columns(difference=pl.col("share") - pl.col("share_other"), low=low, high=high)
    differs = (pl.col("low") > 0) | (pl.col("high") < 0)
    columns = ("rounds", "bad", "share", "rounds_other", "bad_other", "share_other", "difference", "low", "high")
    return pairs.select(*alike, "variant", "other", *columns, differs=differs).sort([*alike, "other"])


def over_time(rounds: Rounds, slots: int) -> pl.DataFrame:
    """A row for each slot of time in which a case was played: bad rounds and their share, and rounds a second within the slot."""
    timed = rounds.played.filter(pl.col("time").is_not_null())
    parts: list[pl.DataFrame] = []
    for _, case in sorted(timed.group_by(CASE), key=lambda one: [str(value) for value in one[0]]):
        few = (width for width in WIDTHS if case["time"].dt.truncate(timedelta(seconds=width)).n_unique() <= slots)
        width = next(few, WIDTHS[-1])
        slot = case.with_columns(begin=pl.col("time").dt.truncate(timedelta(seconds=width)))
        parts.append(
            slot.group_by([*CASE, "begin"])
            .agg(
                rounds=pl.len(),
                bad=pl.col("bad").sum(),
                width=pl.lit(float(width)),
                span=(pl.col("time").max() - pl.col("time").min()).dt.total_microseconds() / 1e6,
            )
            .sort("begin")
        )
    if not parts:
        empty: pl.DataFrame = timed.select(
            *CASE, begin="time", rounds=pl.lit(0), bad=pl.lit(0), width=pl.lit(0.0), span=pl.lit(0.0)
        )
        parts = [empty]
    # n rounds have n - 1 gaps between their ends
    rate = pl.when(pl.col("span") > 0).then((pl.col("rounds") - 1) / pl.col("span"))
    return share(pl.concat(parts).with_columns(per_second=rate), "bad", "rounds").drop("span")


def first_bad(rounds: Rounds) -> pl.DataFrame:
    """A row for each case with a bad round: the first in time, what is wrong with it, and where its line is."""
    bad = rounds.played.filter("bad").sort(["time", "run", "round"], nulls_last=True, maintain_order=True)
    first = bad.unique(CASE, keep="first", maintain_order=True)
    wrong = pl.col("violations").list.first().struct
    before = rounds.played.group_by("run").agg(begun=pl.col("time").min())
    first = first.join(before, on="run", how="left", nulls_equal=True, maintain_order="left")
    return first.select(
        *CASE,
        "run",
        "round",
        "count",
        "time",
        after=(pl.col("time") - pl.col("begun")).dt.total_microseconds() / 1e6,
        outcome="outcome",
        check=wrong.field("check"),
        text=wrong.field("text"),
        at=wrong.field("step"),
        file="file",
        line="line",
    ).sort(CASE, nulls_last=True)
