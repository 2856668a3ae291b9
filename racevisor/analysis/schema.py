"""The columns: what a log may hold, and what the merged table has.  docs/logs.md is held against this in the tests."""

from __future__ import annotations

import polars as pl

_WORD = pl.Categorical()

#: What a line may hold, and as what it is read.  A value of another type makes the line a damaged one.
LINE: dict[str, pl.DataType] = {
    "run": pl.String(),
    "round": pl.Int64(),
    "event": pl.String(),
    "time": pl.String(),
    "actor": pl.String(),
    "step": pl.Int64(),
    "clock": pl.Int64(),
    # a step, or a message
    "channel": pl.String(),
    "label": pl.String(),
    "op": pl.String(),
    "cell": pl.String(),
    "value": pl.String(),
    "message": pl.String(),
    "n": pl.Int64(),
    "seconds": pl.Float64(),
    # a round, or a run
    "count": pl.Int64(),
    "scenario": pl.String(),
    "variant": pl.String(),
    "setup": pl.String(),
    "memory": pl.String(),
    "vcpus": pl.Int64(),
    "placement": pl.String(),
    "claimed": pl.String(),
    "outcome": pl.String(),
    "status": pl.String(),
    "waiting": pl.List(pl.String()),
    "violations": pl.List(pl.Struct({"check": pl.String(), "text": pl.String(), "step": pl.Int64()})),
    "steps": pl.Int64(),
    "messages": pl.String(),  # a number for a round, an account for rounds that were given up
    "crossed": pl.Int64(),
    "noise": pl.Float64(),
    "transport": pl.String(),
    "vms": pl.Int64(),
    "hosts": pl.List(pl.String()),
    # rounds that were given up
    "rounds": pl.List(pl.Int64()),
    "why": pl.String(),
    "account": pl.String(),
}

#: Events of which every field is a column; what else another one says is JSON in the column `fields`.
STEP, SENT, RECEIVED, ROUND, RUN, ABORTED = "step", "sent", "received", "round", "run", "aborted"
KNOWN = (STEP, SENT, RECEIVED, ROUND, RUN, ABORTED)
#: Events that are about a whole round, or more.
DRIVER_S = (ROUND, RUN, ABORTED)

#: What distinguishes one case from another: rounds that agree in all of these are counted together.
CASE = ("scenario", "variant", "setup", "memory", "vcpus", "placement")

#: One event of a host: a step, a message, a tracepoint.
EVENT: dict[str, pl.DataType] = {
    "run": _WORD,
    "round": pl.Int32(),
    "clock": pl.Int32(),
    "host": _WORD,
    "event": _WORD,
    "actor": _WORD,
    "step": pl.Int32(),
    "channel": _WORD,
    "label": _WORD,
    "op": _WORD,
    "cell": _WORD,
    "value": _WORD,
    "message": _WORD,
    "n": pl.Int32(),
    "seconds": pl.Float32(),
    "fields": _WORD,
    "time": pl.Datetime("us", "UTC"),
    "file": _WORD,
    "line": pl.Int32(),
}

#: One round, run, or loss, as the driver tells it.
DRIVER: dict[str, pl.DataType] = {
    **{name: LINE[name] for name in ("run", "round", "event", "clock", "count")},
    **{name: LINE[name] for name in CASE},
    **{name: LINE[name] for name in ("claimed", "outcome", "status", "waiting", "violations", "steps", "crossed", "seconds")},
    "messages": pl.Int64(),
    **{name: LINE[name] for name in ("noise", "transport", "vms", "hosts", "rounds", "why", "account")},
    "time": pl.Datetime("us", "UTC"),
    "file": pl.String(),
    "line": pl.Int64(),
}

#: The merged table, as Parquet: its columns in order, and what they say.
TABLE: dict[str, str] = {
    "scenario": "the case of the round, null where the driver's log of the round is missing",
    "variant": "the version of the code",
    "setup": "who runs",
    "memory": "sc, tso or pso",
    "vcpus": "how many vCPUs",
    "placement": "dedicated, packed, or as given",
    "outcome": "how the round ended, in the scenario's words; null: unknown, or aborted",
    "bad": "did the round show the outcome that is hunted, or break a check?",
    "run": "the run's id",
    "round": "the round's number in its run",
    "clock": "Lamport clock; it begins anew in each round",
    "host": "the host that logged it, named like its file; `driver` for what is said of a whole round",
    "event": "step, sent, received, run, round, aborted, or a tracepoint",
    "actor": "whose step or message it is",
    "step": "of a step its number on its host in this round; else the latest one there (-1: none); of a `round`, how many",
    "channel": "of a step: which head moved; of a message: `0>1`, the numbers of the hosts",
    "label": "of a step: its words",
    "op": "load, store, post, rmw, await, fence, send, ipi, choose; of a message, what it asks for or answers",
    "cell": "which cell",
    "value": "what a load saw, and what another op left behind, by its kernel name",
    "message": "of `sent` and `received`: ACCESS, ANSWER, FLUSH, FLUSHED, IPI",
    "n": "of a message: its number on its channel in this round, from 1",
    "seconds": "of an answer: since the question was sent; of a round: from its begin until it was over",
    "fields": "of a tracepoint: what else it says, as JSON",
    "time": "when it was logged, UTC, by the clock of its machine",
    "file": "the file",
    "line": "the line in it, from 1",
}
