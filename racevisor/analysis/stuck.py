"""What was in flight when a round ended that should not have ended so: stuck, cut off at its step bound, or aborted."""

from __future__ import annotations

import polars as pl

from racevisor.analysis.rounds import Rounds
from racevisor.analysis.schema import CASE, RECEIVED, SENT

#: What the answer to each question is called.
ANSWERED = {"ACCESS": "ANSWER", "FLUSH": "FLUSHED"}
WAITS, UNANSWERED, IN_FLIGHT = "waits", "asked, not answered", "sent, not received"


def stuck(rounds: Rounds) -> pl.DataFrame:
    """A row for each actor and what it waits for, or what it sent to no effect: in how many of these rounds, and the first.

    `ended` is stuck, bounded or aborted; `of` the number of rounds of the case that ended so.
    """
    ended = pl.when(pl.col("stuck")).then(pl.lit("stuck")).when(pl.col("status") == "bounded").then(pl.lit("bounded"))
    played = rounds.played.with_columns(ended=ended).filter(pl.col("ended").is_not_null())
    aborted = rounds.aborted.select(*CASE, "run", "round", ended=pl.lit("aborted"), waiting=pl.lit(None, pl.List(pl.String)))
    these = pl.concat([played.select(*CASE, "run", "round", "ended", "waiting"), aborted])
    total = these.group_by(*CASE, "ended").agg(of=pl.len())
    parts = pl.col("waiting").str.splitn(": ", 2).struct
    waits = these.explode("waiting").drop_nulls("waiting").with_columns(actor=parts.field("field_0"), what=parts.field("field_1"))
    waits = waits.select(*CASE, "run", "round", "ended", "actor", "what", state=pl.lit(WAITS)).unique(maintain_order=True)
    rows = pl.concat([waits, _left_over(rounds, these)])
    counted = rows.group_by([*CASE, "ended", "actor", "what", "state"], maintain_order=True).agg(
        rounds=pl.struct("run", "round").n_unique(), run=pl.col("run").first(), round=pl.col("round").first()
    )
    counted = counted.join(total, on=[*CASE, "ended"], nulls_equal=True)
    order = [*CASE, "ended", "rounds", "state", "actor", "what"]
    return counted.sort(order, descending=[name in ("ended", "rounds", "state") for name in order], nulls_last=True)


def _left_over(rounds: Rounds, these: pl.DataFrame) -> pl.DataFrame:
    """Messages that did not arrive, and questions that did and have no answer."""
    key = ["run", "round"]
    wanted = these.select(*CASE, "run", "round", "ended")
    messages = rounds.events.filter(pl.col("event").is_in([SENT, RECEIVED]))
    messages = messages.select(pl.col("run").cast(pl.String), pl.col("round").cast(pl.Int64), *_PLAIN, "clock", "n", "line")
    messages = messages.join(wanted, on=key, nulls_equal=True)
    sent = messages.filter(pl.col("event") == SENT)
    received = messages.filter(pl.col("event") == RECEIVED)
    on = [*key, "channel", "n"]
    lost = sent.join(received, on=on, how="anti", nulls_equal=True).with_columns(state=pl.lit(IN_FLIGHT))
    there = sent.join(received, on=on, how="semi", nulls_equal=True)
    # A thread asks one thing at a time, and a buffer has one store of a cell on its way: so the counts pair them.
    asked = there.with_columns(answer=pl.col("message").replace_strict(ANSWERED, default=None, return_dtype=pl.String))
    asked = asked.drop_nulls("answer").with_columns(cell_=pl.when(pl.col("message") == "FLUSH").then("cell"))
    answered = received.select(*key, "actor", answer="message", cell_=pl.when(pl.col("message") == "FLUSHED").then("cell"))
    pair = [*key, "actor", "answer", "cell_"]
    answers = answered.group_by(pair).agg(answers=pl.len())
    asked = asked.sort("clock", "line").with_columns(at=pl.int_range(1, pl.len() + 1).over(pair))
    asked = asked.join(answers, on=pair, how="left", nulls_equal=True, maintain_order="left")
    unanswered = asked.filter(pl.col("at") > pl.col("answers").fill_null(0)).with_columns(state=pl.lit(UNANSWERED))
    what = pl.concat_str(pl.col("message"), pl.col("op"), pl.col("cell"), separator=" ", ignore_nulls=True)
    columns = (*CASE, "run", "round", "ended", "actor")
    return pl.concat([frame.select(*columns, what, "state") for frame in (unanswered, lost)]).rename({"message": "what"})


_PLAIN = tuple(pl.col(name).cast(pl.String) for name in ("event", "channel", "message", "actor", "op", "cell"))
