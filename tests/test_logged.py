"""What hosts log of their messages, without Ray: engines joined by queues, as in tests/networks.py."""

import errno
from pathlib import Path
from typing import Any

import networks
import polars as pl
import pytest

from cluster.engine import Engine
from cluster.logged import LoggedEngine
from racevisor.analysis import table
from racevisor.analysis.latencies import latencies
from racevisor.analysis.read import read
from racevisor.analysis.rounds import Rounds, rounds
from racevisor.errors import UsageError
from racevisor.events import EventLog
from racevisor.scenario import Case, load

ROUNDS = 6


def played(directory: Path, memory: str, patch: pytest.MonkeyPatch) -> tuple[list[list[str]], Rounds]:
    """The channels of each round's schedule as the World took them, and what was logged."""
    logs: list[EventLog] = []

    def engine(case: Case, place: list[int], me: int, **options: Any) -> Engine:
        logs.append(EventLog(directory, f"host{me}", debug=True, run="r"))
        return LoggedEngine(case, place, me, events=logs[-1], **options)

    patch.setattr(networks, "Engine", engine)
    scenario, source = load("init_sipi")
    try:
        with networks.network(Case(scenario, source, "before", "plain", memory), seed=3, noise=0.3, hosts=3) as net:
            schedules = [[step.channel for step in net.play(number).steps] for number in range(ROUNDS)]
    finally:
        for log in logs:
            log.close()
    return schedules, rounds(read([directory]))


@pytest.mark.parametrize("memory", ["sc", "tso", "pso"])
def test_a_log_of_messages_changes_no_round_and_sorts_causally(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock ticks for messages too: the World repeats the steps all the same, and no message arrives before it was sent."""
    schedules, asked = played(tmp_path, memory, monkeypatch)  # play() holds each round against the World
    merged = table.merged(asked)
    for number, schedule in enumerate(schedules):
        here = merged.filter(pl.col("round") == number)
        assert here.filter(pl.col("event") == "step")["channel"].to_list() == schedule
        told: dict[str, list[tuple[str, int]]] = {"sent": [], "received": []}
        for row in here.filter(pl.col("event").is_in(["sent", "received"])).iter_rows(named=True):
            message = row["channel"], row["n"]
            assert row["event"] == "sent" or message in told["sent"], "received before it was sent"
            told[row["event"]].append(message)
        assert sorted(told["sent"]) == sorted(told["received"]) != []
        for channel in {channel for channel, _ in told["sent"]}:
            numbers = [n for name, n in told["sent"] if name == channel]
            assert numbers == list(range(1, len(numbers) + 1))


def test_every_answer_knows_how_long_after_its_question_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was asked."""
    _, asked = played(tmp_path, "tso", monkeypatch)
    received = asked.events.filter(pl.col("event") == "received")
    answers = received.filter(pl.col("message").is_in(["ANSWER", "FLUSHED"]))
    assert answers.height > 0 and answers["seconds"].null_count() == answers["op"].null_count() == 0
    assert received.filter(~pl.col("message").is_in(["ANSWER", "FLUSHED"]))["seconds"].drop_nulls().len() == 0
    counted = latencies(asked).filter(pl.col("what") == "round trip")
    assert counted["count"].sum() == answers.height and counted["median"].min() > 0  # type: ignore[operator]


def test_a_step_says_its_op_its_cell_and_the_value_by_its_kernel_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody has to take labels apart."""
    _, asked = played(tmp_path, "tso", monkeypatch)
    steps = asked.events.filter(pl.col("event") == "step")
    said = set(steps.select("actor", "op", "cell", "value").rows())
    assert ("vcpu1", "post", "vcpu1.mp_state", "HALTED") in said and ("vcpu1", "store", "vcpu1.mp_state", "HALTED") in said
    assert ("vcpu0", "store", "vcpu1.mp_state", "INIT_RECEIVED") in said
    assert set(steps["op"].unique()) <= {"load", "store", "post", "rmw", "await", "fence", "send", "ipi"}
    assert steps.filter(pl.col("op") != "fence")["cell"].null_count() == 0


@pytest.mark.parametrize("event", ["step", "sent", "received"])
def test_a_disk_that_is_full_is_told_whatever_was_to_be_written(
    tmp_path: Path, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the host itself: an error raised in what runs the host is taken for its death, and the round is repeated."""

    class Full(EventLog):
        def debug(self, said: str, **fields: Any) -> None:
            if said == event and self.path.stem == "host1":
                raise self._unwritable(OSError(errno.ENOSPC, "No space left on device"))
            super().debug(said, **fields)

    monkeypatch.setattr("test_logged.EventLog", Full)
    with pytest.raises(
        UsageError, match=r"^live round \d: cannot write the log .*host1.jsonl: No space left on device\n  choose another"
    ):
        played(tmp_path, "tso", monkeypatch)
