"""Which order of two accesses goes with bad rounds, and which with good ones.

An access is one thread's load, store, or change of a cell, where it takes effect: at the cell's owner, to whom it came as a
message if it came from elsewhere.  Compared are pairs of accesses by different threads to one cell, one of which at least changes
it, and of changes to two cells of one actor.  For each pair that was seen in both orders, the rounds with the one order are held
against those with the other: P(bad | a before b) - P(bad | b before a), with Newcombe's interval.  The rank is the limit that is
nearer to 0: what the difference is at least.  It is no proof of a cause, and among many pairs some differ by chance.

A round in which one of the two did not happen says nothing about the pair.  Pairs whose orders agreed in every round cannot be
told apart: they share a row, which shows the pair whose accesses came closest to each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from racevisor.analysis.intervals import newcombe
from racevisor.analysis.rounds import Rounds
from racevisor.analysis.schema import CASE, EVENT, STEP

#: Of an access that a thread repeats in a round, so many are told apart; later ones are left out.
OCCURRENCES = 3
#: So many accesses of one round to one cell or actor are paired, changes first.
ACCESSES = 300
#: So many pairs are looked at at a time, and so many different ones are kept, those of the most rounds.
BATCH, PAIRS = 2_000_000, 1_000_000

_WORDS = {"load": "reads", "rmw": "changes", "await": "waited for", "ipi": "interrupts"}
_CHANGES = ("store", "rmw", "await", "ipi")
_KEY = ("case", "item", "item_b")


@dataclass
class Orders:
    """`table` has the ranked pairs; the rest says what they rest on."""

    table: pl.DataFrame
    #: rounds with steps, and how many of them were bad
    rounds: int = 0
    bad: int = 0
    #: pairs seen in both orders, and in all
    both: int = 0
    pairs: int = 0
    #: accesses that were left out for being too many
    left_out: int = 0
    notes: list[str] = field(default_factory=list)


def orders(rounds: Rounds) -> Orders:
    """Ranked, the most telling first."""
    accesses, said = _accesses(rounds)
    counted: pl.DataFrame | None = None
    for batch in _batches(accesses):
        more = _count(batch)
        counted = more if counted is None else _added(pl.concat([counted, more]))
        if counted.height > PAIRS:
            said.notes.append(f"only the {PAIRS:,} most frequent pairs were kept")
            counted = counted.top_k(PAIRS, by=pl.col("ab") + pl.col("ba"))
    if counted is None:
        counted = _count(accesses)
    said.pairs = counted.height
    both = counted.filter((pl.col("ab") > 0) & (pl.col("ba") > 0))
    said.both = both.height
    said.table = _ranked(both, accesses, rounds)
    if said.left_out:
        said.notes.append(
            f"left out: {said.left_out:,} accesses after their {OCCURRENCES}rd time in a round, or to very busy cells"
        )
    return said


def _accesses(rounds: Rounds) -> tuple[pl.DataFrame, Orders]:
    """A row for each access that another thread may have met, in the order of the round; `item` says what it is."""
    case = rounds.played.select(*CASE).unique(maintain_order=True).with_row_index("case")
    known = rounds.played.with_row_index("rid").join(case, on=CASE, nulls_equal=True)
    known = known.select("rid", "case", "bad", pl.col("run").cast(EVENT["run"]), pl.col("round").cast(EVENT["round"]))
    steps = rounds.events.filter(
        (pl.col("event") == STEP) & pl.col("op").is_in([*_CHANGES, "load"]) & pl.col("cell").is_not_null()
    )
    steps = steps.select("run", "round", "clock", "host", "line", "actor", "op", "cell", "value")
    steps = steps.join(known, on=["run", "round"], nulls_equal=True).drop("run", "round")
    seen = steps.unique("rid")
    said = Orders(pl.DataFrame(), rounds=seen.height, bad=int(seen["bad"].sum()))
    met = steps.group_by("case", "cell").agg(
        met=(pl.col("actor").n_unique() > 1) & pl.col("op").is_in(_CHANGES).any(), owner=_owner().first()
    )
    owned = met.group_by("case", "owner").agg(shared=pl.col("cell").n_unique() > 1)
    steps = steps.join(met, on=["case", "cell"]).join(owned, on=["case", "owner"]).filter(pl.col("met"))
    steps = steps.sort("rid", "clock", "host", "line").with_row_index("at")
    value = pl.when(pl.col("op") == "store").then(pl.col("value").cast(pl.String).fill_null("?")).otherwise(pl.lit(""))
    steps = steps.with_columns(
        changes=pl.col("op").is_in(_CHANGES),
        same=pl.concat_str(pl.col("actor", "op", "cell").cast(pl.String), value, separator="\x1f").cast(pl.Categorical()),
    )
    steps = steps.with_columns(k=pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("rid", "same"))
    before = steps.height
    steps = steps.filter(pl.col("k") <= OCCURRENCES)
    rank = pl.col("changes").rank("ordinal", descending=True).over("rid", "owner")
    steps = steps.with_columns(rank=rank).filter(pl.col("rank") <= ACCESSES)
    said.left_out = before - steps.height
    item = pl.struct("same", "k").rank("dense").cast(pl.UInt32)
    return steps.select("rid", "case", "bad", "at", "clock", "actor", "cell", "owner", "changes", "same", "k", item=item), said


def _owner() -> pl.Expr:
    """The actor whose cell it is: labels are `actor.cell`."""
    return pl.col("cell").cast(pl.String).str.split(".").list.first().cast(pl.Categorical())


def _batches(accesses: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Whole rounds, so many that their pairs fit."""
    sizes = (
        accesses.group_by("rid", "owner").len().group_by("rid").agg(pairs=(pl.col("len").cast(pl.Int64) ** 2).sum()).sort("rid")
    )
    sizes = sizes.with_columns(batch=pl.col("pairs").cum_sum() // BATCH)
    for part in sizes.partition_by("batch", maintain_order=True):
        yield accesses.filter(pl.col("rid").is_between(part["rid"][0], part["rid"][-1]))


def _count(accesses: pl.DataFrame) -> pl.DataFrame:
    """For each pair: in how many rounds it had which order, how many of these were bad, and which, as a sum of hashes."""
    ordered = (pl.col("actor") != pl.col("actor_b")) & (pl.col("item") < pl.col("item_b"))
    one_cell = accesses.join(accesses, on=["rid", "cell"], suffix="_b").filter(
        ordered & (pl.col("changes") | pl.col("changes_b"))
    )
    changes = accesses.filter("changes")
    one_actor = changes.join(changes, on=["rid", "owner"], suffix="_b").filter(ordered & (pl.col("cell") != pl.col("cell_b")))
    columns = ("case", "rid", "bad", "item", "item_b", "at", "at_b", "clock", "clock_b")
    pairs = pl.concat([one_cell.select(columns), one_actor.select(columns)])
    first, hashed = pl.col("at") < pl.col("at_b"), pl.col("rid").hash()
    return pairs.group_by(_KEY).agg(
        ab=first.sum(),
        ba=(~first).sum(),
        bad_ab=(first & pl.col("bad")).sum(),
        bad_ba=(~first & pl.col("bad")).sum(),
        gap=(pl.col("clock") - pl.col("clock_b")).abs().cast(pl.Int64).sum(),
        which_ab=pl.when(first).then(hashed).otherwise(0).sum(),
        which_ba=pl.when(first).then(0).otherwise(hashed).sum(),
    )


def _added(counted: pl.DataFrame) -> pl.DataFrame:
    return counted.group_by(_KEY).agg(pl.all().sum())


def _ranked(both: pl.DataFrame, accesses: pl.DataFrame, rounds: Rounds) -> pl.DataFrame:
    """The bad order first in each row; the pairs with the most certain difference first."""
    low, high = newcombe(pl.col("bad_ab"), pl.col("ab"), pl.col("bad_ba"), pl.col("ba"))
    both = both.with_columns(low=low, high=high)
    swap = (pl.col("low") + pl.col("high")) < 0

    def either(one: str, other: str) -> pl.Expr:
        return pl.when(swap).then(other).otherwise(pl.col(one))

    both = both.select(
        "case",
        "gap",
        first=either("item", "item_b"),
        then=either("item_b", "item"),
        rounds=either("ab", "ba"),
        bad=either("bad_ab", "bad_ba"),
        rounds_other=either("ba", "ab"),
        bad_other=either("bad_ba", "bad_ab"),
        which=either("which_ab", "which_ba"),
        which_other=either("which_ba", "which_ab"),
        low=pl.when(swap).then(-pl.col("high")).otherwise("low"),
        high=pl.when(swap).then(-pl.col("low")).otherwise("high"),
    ).with_columns(gap=pl.col("gap") / (pl.col("rounds") + pl.col("rounds_other")))
    alike = ["case", "which", "which_other"]
    both = both.sort("gap", "first", "then").group_by(alike, maintain_order=True).agg(pl.all().first(), alike=pl.len() - 1)
    share, other = pl.col("bad") / pl.col("rounds"), pl.col("bad_other") / pl.col("rounds_other")
    ranked = both.with_columns(
        share=share, share_other=other, difference=share - other, least=pl.col("low").clip(0.0), bits=_information()
    ).sort(["least", "bits", "gap", "first", "then"], descending=[True, True, False, False, False])
    item = accesses.unique("item").select("item", text=_text())
    case = rounds.played.select(*CASE).unique(maintain_order=True).with_row_index("case")
    for column in ("first", "then"):
        ranked = ranked.join(item, left_on=column, right_on="item", how="left", maintain_order="left").drop(column)
        ranked = ranked.rename({"text": column})
    ranked = ranked.join(case, on="case", how="left", maintain_order="left")
    counts = ("rounds", "bad", "share", "rounds_other", "bad_other", "share_other")
    return ranked.select(*CASE, "first", "then", *counts, "difference", "low", "high", "least", "bits", "gap", "alike")


def _text() -> pl.Expr:
    """`vcpu0: vcpu1.mp_state = HALTED`, `vcpu1 reads vcpu1.mp_state`, with the how-manieth time if not the first."""
    part = pl.col("same").cast(pl.String).str.split("\x1f").list
    actor, op, cell, value = (part.get(i) for i in range(4))
    verb = op.replace_strict(_WORDS, default="", return_dtype=pl.String)
    said = pl.when(op == "store").then(actor + ": " + cell + " = " + value).otherwise(actor + " " + verb + " " + cell)
    return said + pl.when(pl.col("k") > 1).then(" #" + pl.col("k").cast(pl.String)).otherwise(pl.lit(""))


def _information() -> pl.Expr:
    """Mutual information of the order and of how the round ended, in bits."""
    n = (pl.col("rounds") + pl.col("rounds_other")).cast(pl.Float64)
    total = pl.lit(0.0)
    for rounds, bad in (("rounds", "bad"), ("rounds_other", "bad_other")):
        for is_bad in (True, False):
            both = (pl.col(bad) if is_bad else pl.col(rounds) - pl.col(bad)).cast(pl.Float64)
            all_bad = (pl.col("bad") + pl.col("bad_other")).cast(pl.Float64)
            ended = all_bad if is_bad else n - all_bad
            total = total + pl.when(both > 0).then(both / n * (both * n / (ended * pl.col(rounds))).log(2.0)).otherwise(0.0)
    return total.clip(0.0)
