"""What logs say: intervals against published ones, made-up logs with known answers, and an order that no cause contradicts."""

import random
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_logs import HALT, INIT, LOST, STUCK, Made, moment, race

from racevisor.analysis import orders as ordering
from racevisor.analysis import outcomes, schema, table
from racevisor.analysis.intervals import newcombe, wilson
from racevisor.analysis.latencies import kinds, latencies
from racevisor.analysis.orders import Orders, orders
from racevisor.analysis.read import read
from racevisor.analysis.rounds import Rounds, rounds, some_but_not_all
from racevisor.analysis.stuck import stuck
from racevisor.errors import UsageError


def asked(*places: Path) -> Rounds:
    return rounds(read(places))


def numbers(limits: tuple[pl.Expr, pl.Expr]) -> tuple[float, float]:
    low, high = pl.select(low=limits[0], high=limits[1]).row(0)
    return low, high


# ---- intervals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share_is_the_published_one(k: int, n: int, low: float, high: float) -> None:
    """Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17, 1998, table I, method 3."""
    assert numbers(wilson(pl.lit(k), pl.lit(n))) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_the_interval_of_a_difference_is_the_published_one(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe, Interval estimation for the difference between independent proportions, the same volume, table II, method 10."""
    found = numbers(newcombe(*(pl.lit(number) for number in (*one, *other))))
    assert found == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2_000_000_000), st.data())
@settings(max_examples=60)
def test_an_interval_holds_the_share_and_stays_between_0_and_1(n: int, data: st.DataObject) -> None:
    """Also for counts whose products no 32 bits hold."""
    k = data.draw(st.integers(0, n))
    low, high = numbers(wilson(pl.lit(k, pl.UInt32()), pl.lit(n, pl.UInt32())))
    assert 0 <= low <= k / n <= high <= 1 and high - low > 0
    assert (low == 0) == (k == 0) and (high == 1) == (k == n)


@given(st.lists(st.integers(1, 500), min_size=2, max_size=2), st.data())
@settings(max_examples=60)
def test_the_interval_of_a_difference_holds_it_and_turns_round_with_it(n: list[int], data: st.DataObject) -> None:
    """Before against after is after against before, with the other sign."""
    k = [data.draw(st.integers(0, most)) for most in n]
    one, other = (pl.lit(k[0]), pl.lit(n[0])), (pl.lit(k[1]), pl.lit(n[1]))
    low, high = numbers(newcombe(*one, *other))
    assert -1 <= low <= k[0] / n[0] - k[1] / n[1] <= high <= 1
    assert numbers(newcombe(*other, *one)) == pytest.approx((-high, -low))


# ---- outcomes ---------------------------------------------------------------------------------------------------------------


def test_outcomes_are_counted_for_each_case_by_itself(tmp_path: Path) -> None:
    """Two vCPUs and four are two experiments."""
    race(tmp_path / "one", 2, 6, run="r1")
    race(tmp_path / "two", 1, 1, run="r2", vcpus=4)
    found = outcomes.outcomes(asked(tmp_path))
    assert found.select("vcpus", "outcome", "count", "bad", "rounds", "share").rows() == [
        (2, "good", 6, 0, 8, 0.75),
        (2, "lost", 2, 2, 8, 0.25),
        (4, "good", 1, 0, 2, 0.5),
        (4, "lost", 1, 1, 2, 0.5),
    ]
    counted = outcomes.cases(asked(tmp_path))
    assert counted.select("vcpus", "runs", "rounds", "bad", "stuck", "aborted", "claimed").rows() == [
        (2, 1, 8, 2, 0, 0, "Sometimes"),
        (4, 1, 2, 1, 0, 0, "Sometimes"),
    ]


def test_aborted_rounds_are_no_outcomes(tmp_path: Path) -> None:
    """A host was lost; how the round would have ended nobody knows."""
    made = Made(tmp_path).begun()
    made.round(0)
    account = {"account": "7 of 9 messages arrived", "parts": {"sent": 9}, "messages": {"sent": 9, "lost": 2}}
    made.write("driver", "aborted", rounds=[1, 2], host="host1", why="killed", **account)
    counted = outcomes.cases(asked(made.save()))
    assert read([tmp_path]).damage == 0
    last = table.merged(asked(tmp_path)).row(-1, named=True)
    assert (last["round"], last["event"]) == (2, "aborted") and "7 of 9 messages arrived" in last["fields"]
    assert counted.select("variant", "rounds", "aborted").rows() == [("before", 1, 2)]


def test_a_run_of_which_all_rounds_were_aborted_has_a_row(tmp_path: Path) -> None:
    """Nothing happened there, which is a result."""
    made = Made(tmp_path).begun()
    made.write("driver", "aborted", rounds=[0], host="host1", why="killed")
    counted = outcomes.cases(asked(made.save()))
    assert counted.select("variant", "rounds", "aborted", "share", "low").rows() == [("before", 0, 1, None, None)]


def test_variants_are_compared_where_all_else_is_alike(tmp_path: Path) -> None:
    """A difference between 2 vCPUs before and 4 after is no effect of the patch."""
    race(tmp_path / "one", 9, 1, run="r1")
    race(tmp_path / "two", 3, 7, run="r2", variant="latch")
    race(tmp_path / "three", 0, 50, run="r3", variant="latch", vcpus=4)
    found = outcomes.compared(asked(tmp_path))
    assert found.select("variant", "other", "vcpus", "bad", "rounds", "bad_other", "rounds_other", "differs").rows() == [
        ("before", "latch", 2, 9, 10, 3, 10, True)
    ]
    (limits,) = found.select("difference", "low", "high").rows()
    assert limits == pytest.approx((0.6, 0.1705, 0.8090), abs=5e-5)
    turned = outcomes.compared(asked(tmp_path), "latch")
    assert turned["difference"].to_list() == pytest.approx([-0.6])


def test_the_rate_is_told_in_slots_that_are_not_too_many(tmp_path: Path) -> None:
    """A night of rounds in a dozen lines, and hours without a run in none."""
    made = Made(tmp_path).begun()
    for number in range(100):
        late = number >= 50
        made.round(number, "lost" if late else "good", [LOST] if late else [], at=number * 0.1 + late * 7_200)
    found = outcomes.over_time(asked(made.save()), 6)
    assert found["width"].unique().to_list() == [2.0]
    assert found.select("rounds", "bad").rows() == [(20, 0), (20, 0), (10, 0), (10, 10), (20, 20), (20, 20)]
    assert found["per_second"].to_list() == pytest.approx([10.0] * 6)


def test_the_first_bad_round_is_the_first_in_time(tmp_path: Path) -> None:
    """Of several machines that play at a time a later round may be over earlier."""
    made = Made(tmp_path).begun()
    made.round(0, at=1.0)
    made.round(3, "stuck", [STUCK], at=2.0)
    made.round(1, "lost", [LOST], at=3.0)
    (row,) = outcomes.first_bad(asked(made.save())).to_dicts()
    assert (row["round"], row["check"], row["at"], row["after"], row["line"]) == (3, "I-L1", None, 1.0, 3)
    assert row["file"] == str(tmp_path / "driver.jsonl")


def test_what_counts_as_bad_may_be_said(tmp_path: Path) -> None:
    """On a machine with 64 vCPUs every round has something wrong; why vcpu4's INIT was lost can be asked all the same."""
    made = Made(tmp_path).begun()
    other = {**LOST, "text": "vcpu2's INIT is lost", "step": 0}
    for number in range(10):
        made.steps(number, *((INIT, HALT) if number < 4 else (HALT, INIT)))
        made.round(number, "lost", [other, LOST] if number < 4 else [other])
    logs = read([made.save()])
    everything, some = rounds(logs), rounds(logs, "vcpu1's INIT")
    assert (everything.played["bad"].sum(), some.played["bad"].sum(), rounds(logs, "lost").played["bad"].sum()) == (10, 4, 10)
    assert some_but_not_all(everything.played) == "vcpu1's INIT is lost"
    assert orders(some).table["difference"].to_list() == [1.0]
    (row,) = outcomes.first_bad(some).to_dicts()
    assert (row["text"], row["at"]) == ("vcpu1's INIT is lost", 1)
    with pytest.raises(
        UsageError, match=r"(?s)no round has a violation .* with 'nothing'.*among others:  \"vcpu2's INIT is lost"
    ):
        rounds(logs, "nothing")


# ---- orders -----------------------------------------------------------------------------------------------------------------


def ranked(place: Path) -> tuple[Orders, list[tuple[str, str, int, int, int, int]]]:
    found = orders(asked(place))
    columns = ("first", "then", "bad", "rounds", "bad_other", "rounds_other")
    return found, found.table.select(columns).rows()


def test_the_order_that_makes_it_go_wrong_is_ranked_first(tmp_path: Path) -> None:
    """The INIT before the halt; loads by the same threads, in any order, are noise."""
    throw = random.Random(0)
    made = Made(tmp_path).begun()
    for number in range(60):
        lost = number % 3 == 0
        read_ = {"actor": "vcpu0", "op": "load", "cell": "vcpu1.mode", "value": "0"}
        write = {"actor": "vcpu1", "op": "store", "cell": "vcpu1.mode", "value": "IN_GUEST"}
        noise = [read_, write] if throw.random() < 0.5 else [write, read_]
        made.steps(number, noise[0], *((INIT, HALT) if lost else (HALT, INIT)), noise[1])
        made.round(number, "lost" if lost else "good", [LOST] if lost else [])
    found, rows = ranked(made.save())
    assert rows[0] == ("vcpu0: vcpu1.mp_state = INIT_RECEIVED", "vcpu1: vcpu1.mp_state = HALTED", 20, 20, 0, 40)
    assert (found.rounds, found.bad, found.both) == (60, 20, 3)
    top, noise_row = found.table.to_dicts()  # two pairs of noise that always agreed
    assert top["difference"] == 1.0 and top["least"] == top["low"] > 0.8 and top["gap"] == 1.0
    assert top["bits"] == pytest.approx(0.9183, abs=1e-4)  # all of the entropy of 1 in 3
    assert (noise_row["least"], noise_row["alike"]) == (0.0, 1)


def test_an_order_that_never_varied_says_nothing(tmp_path: Path) -> None:
    """What comes first in good rounds too is no reason."""
    made = Made(tmp_path).begun()
    for number in range(10):
        made.steps(number, INIT, HALT)
        made.round(number, "lost", [LOST] if number < 5 else [])
    found, rows = ranked(made.save())
    assert (rows, found.both, found.pairs) == ([], 0, 1)


def test_two_loads_and_two_steps_of_one_thread_are_no_pair(tmp_path: Path) -> None:
    """The ones commute, the others have no other order; a store into one's own buffer is seen by nobody yet."""
    made = Made(tmp_path).begun()
    for number in range(4):
        loads = [{"actor": f"vcpu{i}", "op": "load", "cell": "vcpu1.mp_state", "value": "0"} for i in (0, 1)]
        posts = [{"actor": "vcpu0", "op": "post", "cell": "vcpu1.mode", "value": "1"}, {**HALT, "cell": "vcpu1.mode"}]
        turn = 1 if number % 2 else -1
        made.steps(number, *loads[::turn], *posts[::turn], INIT)
        made.round(number, "lost", [LOST] if number % 2 else [])
    pairs = {row[:2] for row in ranked(made.save())[1]}
    assert not [pair for pair in pairs if "reads" in pair[0] and "reads" in pair[1]]
    assert not [pair for pair in pairs if pair[0].split(":")[0].split(" ")[0] == pair[1].split(":")[0].split(" ")[0]]


def test_changes_of_two_cells_of_one_actor_are_a_pair(tmp_path: Path) -> None:
    """Messages to one actor: the SIPI's vector and the event bit."""
    vector = {"actor": "vcpu0", "op": "store", "cell": "lapic1.sipi_vector", "value": "9"}
    taken = {"actor": "vcpu1", "op": "rmw", "cell": "lapic1.pending_events", "value": "0"}
    other = [{**vector, "actor": "vcpu1"}, {**taken, "actor": "vcpu0"}]  # so that both cells are shared
    made = Made(tmp_path).begun()
    for number in range(20):
        made.steps(number, *other, *((vector, taken) if number % 2 else (taken, vector)))
        made.round(number, "lost", [] if number % 2 else [LOST])
    _, rows = ranked(made.save())
    assert ("vcpu1 changes lapic1.pending_events", "vcpu0: lapic1.sipi_vector = 9", 10, 10, 0, 10) in rows


def test_pairs_whose_orders_always_agreed_share_a_row(tmp_path: Path) -> None:
    """Ten rows of one fact hide the second fact; the pair that came closest is shown."""
    woken = {"actor": "vcpu1", "op": "rmw", "cell": "vcpu1.mp_state", "value": "0"}
    made = Made(tmp_path).begun()
    for number in range(20):
        made.steps(number, *((INIT, HALT, woken) if number % 2 else (HALT, woken, INIT)))
        made.round(number, "lost", [LOST] if number % 2 else [])
    found, rows = ranked(made.save())
    assert len(rows) == 1 and found.both == 2 and found.table["alike"].to_list() == [1]


def test_many_rounds_are_counted_like_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs are counted some rounds at a time; the sums are the same."""
    race(tmp_path, 30, 70)
    whole = orders(asked(tmp_path)).table
    monkeypatch.setattr(ordering, "BATCH", 7)
    assert orders(asked(tmp_path)).table.equals(whole)


def test_the_second_time_is_told_apart_from_the_first(tmp_path: Path) -> None:
    """Of an access that a thread repeats; after the third time they are left out, and that is said."""
    made = Made(tmp_path).begun()
    for number in range(8):
        made.steps(number, *((HALT, INIT, HALT) if number % 2 else (HALT, HALT, INIT)), HALT, HALT)
        made.round(number, "lost", [LOST] if number % 2 else [])
    found, rows = ranked(made.save())
    assert [row[:2] for row in rows] == [("vcpu0: vcpu1.mp_state = INIT_RECEIVED", "vcpu1: vcpu1.mp_state = HALTED #2")]
    assert found.left_out == 8 and "left out: 8 accesses" in found.notes[0]


# ---- messages, and what hangs -------------------------------------------------------------------------------------------------


def message(made: Made, event: str, kind: str, channel: str, n: int, at: float, **fields: object) -> None:
    host = f"host{channel[0] if event == 'sent' else channel[-1]}"
    made.write(host, event, round=0, actor="vcpu0", step=0, clock=n, message=kind, channel=channel, n=n, at=at, **fields)


def test_latencies_are_those_of_each_kind_of_message(tmp_path: Path) -> None:
    """Round trips by one clock, one way by two."""
    made = Made(tmp_path).begun()
    for n in range(1, 102):
        message(made, "sent", "ACCESS", "0>1", n, 1.0 * n, op="load", cell="vcpu1.mode")
        message(made, "received", "ACCESS", "0>1", n, 1.0 * n + 0.001, op="load", cell="vcpu1.mode")
        message(made, "sent", "ANSWER", "1>0", n, 1.0 * n + 0.001)
        message(made, "received", "ANSWER", "1>0", n, 1.0 * n + 0.003, op="load", seconds=n / 1_000)
    made.round(0)
    found = latencies(asked(made.save()))
    assert found.select("what", "message", "op", "count").rows() == [
        ("round trip", "ANSWER", "load", 101),
        ("one way", "ACCESS", "load", 101),
        ("one way", "ANSWER", "load", 101),
    ]
    assert found.row(0)[4:] == pytest.approx((0.051, 0.091, 0.100, 0.101), abs=1e-6)
    assert [row[4] for row in found.rows()[1:]] == pytest.approx([0.001, 0.002], abs=1e-6)
    counted = kinds(asked(tmp_path))
    assert counted.filter(pl.col("event") == "sent").rows() == [("sent", "ACCESS", 101, 1), ("sent", "ANSWER", 101, 1)]


def test_what_was_in_flight_at_the_end_of_a_stuck_round_is_told(tmp_path: Path) -> None:
    """Who waits for what; which question has no answer; what was sent and never came."""
    made = Made(tmp_path).begun()
    message(made, "sent", "ACCESS", "0>1", 1, 0.0, op="load", cell="a.x")
    message(made, "received", "ACCESS", "0>1", 1, 0.0, op="load", cell="a.x")
    message(made, "sent", "ANSWER", "1>0", 1, 0.0)
    message(made, "received", "ANSWER", "1>0", 1, 0.0, op="load", seconds=0.1)
    message(made, "sent", "ACCESS", "0>1", 2, 0.0, op="await", cell="a.lock")
    message(made, "received", "ACCESS", "0>1", 2, 0.0, op="await", cell="a.lock")
    message(made, "sent", "FLUSH", "0>1", 3, 0.0, op="store", cell="a.y")
    made.round(0, "stuck", [STUCK], waiting=["vcpu1: await_eq(vcpu1.task_state, 0)"])
    made.round(1)
    found = stuck(asked(made.save()))
    assert set(found.select("ended", "actor", "what", "state", "rounds", "of").rows()) == {
        ("stuck", "vcpu1", "await_eq(vcpu1.task_state, 0)", "waits", 1, 1),
        ("stuck", "vcpu0", "ACCESS await a.lock", "asked, not answered", 1, 1),
        ("stuck", "vcpu0", "FLUSH store a.y", "sent, not received", 1, 1),
    }


def test_rounds_that_ended_well_have_nothing_in_flight(tmp_path: Path) -> None:
    """A vCPU that is halted at the end waits too, as it should."""
    race(tmp_path, 1, 3)
    assert stuck(asked(tmp_path)).height == 0


# ---- the merged table -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 60))
@settings(max_examples=40)
def test_in_the_merged_table_every_cause_comes_before_its_effects(seed: int, hosts: int, events: int) -> None:
    """Program order on each host, and sending before receiving, whatever the wall clocks of the hosts say."""
    throw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        made = Made(Path(name)).begun([f"host{i}" for i in range(hosts)])
        for number in range(3):
            clocks, n = [0] * hosts, 0
            flying: list[tuple[int, int, int, int]] = []
            for _ in range(events):
                host, kind = throw.randrange(hosts), throw.choice(["step", "sent", "received"])
                said = {"round": number, "actor": f"vcpu{host}", "at": throw.random() * 100}
                if kind == "received":
                    if not flying:
                        continue
                    sender, host, n_, clock = flying.pop(throw.randrange(len(flying)))
                    clocks[host] = max(clocks[host], clock) + 1
                    made.write(f"host{host}", kind, clock=clocks[host], channel=f"{sender}>{host}", n=n_, message="IPI", **said)
                    continue
                clocks[host] += 1
                if kind == "step":
                    made.write(f"host{host}", kind, clock=clocks[host], channel=f"vcpu{host}", label="x", **said)
                else:
                    n += 1
                    receiver = throw.randrange(hosts)
                    flying.append((host, receiver, n, clocks[host]))
                    made.write(f"host{host}", kind, clock=clocks[host], channel=f"{host}>{receiver}", n=n, message="IPI", **said)
            made.round(number, at=throw.random() * 100)
        merged = table.merged(asked(made.save()))
    assert merged.columns == list(schema.TABLE)
    for number in range(3):
        here = merged.filter(pl.col("round") == number).rows(named=True)
        assert here[-1]["event"] == "round"
        for host in {row["host"] for row in here} - {"driver"}:
            lines = [row["line"] for row in here if row["host"] == host]
            assert lines == sorted(lines)
        sent = {(row["channel"], row["n"]): at for at, row in enumerate(here) if row["event"] == "sent"}
        received = {(row["channel"], row["n"]): at for at, row in enumerate(here) if row["event"] == "received"}
        assert all(sent[key] < at for key, at in received.items())


def test_concurrent_steps_come_in_the_order_of_the_hosts_as_the_run_names_them(tmp_path: Path) -> None:
    """host10 is after host2: it is the World's order, in which the number of a step in a violation counts."""
    hosts = [f"host{i}" for i in range(11)]
    made = Made(tmp_path).begun(hosts)
    for host in reversed(hosts):
        made.steps(0, HALT, host=host)
    made.round(0)
    found = asked(made.save())
    assert table.schedule(found, "r1", 0)["host"].to_list() == hosts
    assert table.merged(found).filter(pl.col("event") == "step")["host"].to_list() == hosts


def test_the_parquet_file_has_what_the_table_has(tmp_path: Path) -> None:
    """Runs in the order in which they were begun, each event with its round's case and outcome."""
    late, early = Made(tmp_path / "a", "r2").begun(), Made(tmp_path / "b", "r1").begun()
    late.steps(0, INIT, HALT)
    late.round(0, "lost", [LOST], at=5_000.0)
    late.lines = {host: [line.replace(moment(0), moment(4_000)) for line in lines] for host, lines in late.lines.items()}
    early.steps(0, HALT)
    early.round(0, at=1.0)
    late.save()
    early.save()
    file = tmp_path / "all.parquet"
    assert table.write(asked(tmp_path), file) == 7
    back = pl.read_parquet(file)
    assert back.columns == list(schema.TABLE)
    assert back.select("run", "event", "outcome", "bad").rows() == [
        ("r1", "run", "good", False),
        ("r1", "step", "good", False),
        ("r1", "round", "good", False),
        ("r2", "run", "lost", True),
        ("r2", "step", "lost", True),
        ("r2", "step", "lost", True),
        ("r2", "round", "lost", True),
    ]
