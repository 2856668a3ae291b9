"""`racevisor analyze`: text, JSON, CSV, Parquet, errors; and the logs of a real run."""

import csv
import json
import re
from pathlib import Path

import polars as pl
import pytest
from made_logs import HALT, INIT, LOST, STUCK, Made, race

from cluster.live import LiveOptions, LiveRun
from racevisor.analysis import report, schema, table
from racevisor.analysis.read import read
from racevisor.analysis.rounds import rounds
from racevisor.cli import main
from racevisor.cli_analyze import analyze as command
from racevisor.scenario import Case, load

ROOT = Path(__file__).resolve().parent.parent


class Shell:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["analyze", *map(str, arguments)])
        out, err = self.capsys.readouterr()
        status = ended.value.code
        assert isinstance(status, int)
        return status, out, err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("COLUMNS", "80")
    return Shell(capsys)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Two runs: 8 of 20 rounds bad before, none of 20 after; and a stuck one."""
    race(tmp_path / "logs" / "before", 8, 12, run="r1")
    race(tmp_path / "logs" / "after", 0, 20, run="r2", variant="latch")
    made = Made(tmp_path / "logs" / "stuck", "r3", variant="seed").begun(claimed="Never")
    made.round(0, "stuck", [STUCK], waiting=["vcpu1: await_eq(vcpu1.task_state, 0)"], at=30.0)
    made.save()
    return tmp_path / "logs"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_text_answers_each_question(shell: Shell, logs: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look says what is bad, how sure that is, and what goes with it; no line of a table is cut or wrapped at 80 columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, err = shell(logs)
    assert (status, err) == (0, "")
    for line in (
        "41 rounds of 3 runs, 9 bad",
        "init_sipi before/plain/tso, 2 vCPUs, packed",
        "20 rounds; 8 bad: 40.0%, 95 % interval 21.9 to 61.3%; claimed Sometimes",
        "     8  40.0%  21.9 to 61.3%  lost     bad",
        "1 round; 1 bad: 100.0%, 95 % interval 20.7 to 100.0%; 1 stuck; claimed Never: refuted",
        r"before    8 of 20   40.0%",
        r"latch     0 of 20    0.0%       -40.0  -61.3 to -15.8  fewer",
        "I-I2: vcpu1's INIT is lost",
        "at step 1, vcpu1: vcpu1.mp_state <- HALTED",
        "8 of 8      +100.0  +59.5 to +100.0  vcpu0: vcpu1.mp_state = INIT_RECEIVED",
        "then vcpu1: vcpu1.mp_state = HALTED",
        "0 of 12                               the other way round",
        "1 of 1  stuck  vcpu1  waits at await_eq(vcpu1.task_state, 0)",
    ):
        assert re.sub(" +", " ", line).strip() in re.sub(" +", " ", out), line
    assert "\x1b" not in out and "█" not in out


def test_what_is_not_asked_for_is_not_told(shell: Shell, logs: Path) -> None:
    """--table, --variant and --limit do what they say."""
    _, out, _ = shell(logs, "--table", "outcomes", "--variant", "before", "--limit", 1)
    assert "good" in out and "lost" not in out and "... and 1 more outcome (--limit)" in out
    assert "latch" not in out and "Over time" not in out
    _, out, _ = shell(logs, "--table", "messages")
    assert out.endswith("messages: nothing in these logs\n")


def test_json_is_one_object_with_every_row(shell: Shell, logs: Path, tmp_path: Path) -> None:
    """For programs: numbers, not words."""
    status, out, err = shell(logs, "--json", "--parquet", tmp_path / "all.parquet")
    found = json.loads(out)
    assert (status, err, found["rounds"], found["bad"], found["runs"]) == (0, "", 41, 9, 3)
    assert found["damaged"] == {"lines": 0, "where": []}
    (compared,) = [row for row in found["compare"] if row["other"] == "latch"]
    assert (compared["bad"], compared["rounds"], compared["differs"]) == (8, 20, True)
    assert found["orders"][0]["first"] == "vcpu0: vcpu1.mp_state = INIT_RECEIVED"
    assert found["orders_rest_on"]["rounds"] == 40
    assert found["first"][0]["time"] == "2026-11-21T12:00:00+00:00"
    assert found["parquet"] == {"file": str(tmp_path / "all.parquet"), "rows": pl.read_parquet(tmp_path / "all.parquet").height}


def test_csv_is_one_table(shell: Shell, logs: Path) -> None:
    """For a spreadsheet; which table must be said."""
    _, out, _ = shell(logs, "--csv", "--table", "outcomes")
    rows = list(csv.DictReader(out.splitlines()))
    assert [(row["variant"], row["outcome"], row["count"]) for row in rows[:2]] == [
        ("before", "good", "12"),
        ("before", "lost", "8"),
    ]
    assert shell(logs, "--csv")[0] == 2
    assert "say which:  --table outcomes --csv" in shell(logs, "--csv", "--table", "rate", "--table", "first")[2]
    assert "ask for one of them" in shell(logs, "--csv", "--json")[2]


def test_damaged_lines_are_named_below_the_results(shell: Shell, logs: Path) -> None:
    """They are no reason to say nothing, and none to say nothing of them."""
    with (logs / "before" / "host0.jsonl").open("a") as log:
        log.write('{"event": "st\n{"event": "ste')
    status, out, _ = shell(logs, "--table", "cases")
    assert status == 0 and "1 damaged line left out, all others used:" in out
    assert f"{logs}/before/host0.jsonl:41: not JSON" in out
    assert f"still being written, its last line is left for later: {logs}/before/host0.jsonl" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there is no nothing\n  racevisor run NAME"),
        (["logs", "--variant", "nope"], "the logs have no variant nope\n  there is:  before, latch, seed"),
        (["logs", "--against", "nope"], "there is no variant nope to compare with\n  there is:  before, latch, seed"),
        (["logs", "--parquet", "no/such/place"], "cannot write no/such/place"),
        (["logs", "--table", "all"], "'all' is not one of"),
        ([], "Missing argument 'DIR...'"),
    ],
)
def test_an_error_says_what_to_type_next(
    shell: Shell, logs: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is no traceback."""
    monkeypatch.chdir(logs.parent)
    status, out, err = shell(*arguments)
    assert (status, out) == (2, "") and said in err


def test_without_steps_it_is_said_how_to_get_them(shell: Shell, tmp_path: Path) -> None:
    """The driver's log alone has no orders."""
    made = Made(tmp_path / "logs").begun()
    made.round(0, "lost", [LOST])
    _, out, _ = shell(made.save())
    assert "no steps were logged; with them:  racevisor run NAME --log-steps" in out


def test_rounds_that_are_all_bad_have_nothing_to_be_held_against(shell: Shell, tmp_path: Path) -> None:
    """That is said instead of a ranking."""
    _, out, _ = shell(race(tmp_path / "logs", 3, 0))
    assert "all 3 rounds with steps were bad: there is nothing to hold them against" in out


def test_the_command_line_offers_the_tables_that_there_are(logs: Path) -> None:
    """It names them itself, because `racevisor --help` does not import what makes them."""
    (offered,) = [option.type.choices for option in command.params if option.name == "tables"]  # type: ignore[attr-defined]
    made = read([logs])
    assert list(offered) == list(report.report(made, rounds(made), offered).tables)


# ---- a real run -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("embedded_ray")
def test_the_logs_of_a_real_run_say_what_the_run_said(tmp_path: Path, shell: Shell) -> None:
    """Rounds, steps, messages; and the merged steps are, round for round, the schedule that the World repeated."""
    scenario, source = load("init_sipi")
    options = LiveOptions(rounds=12, log_dir=tmp_path / "logs", debug_steps=True, placement="packed", hosts=2, vms=2, noise=0.2)
    with LiveRun(Case(scenario, source, "before", "plain", "tso"), options) as run:
        played = {one.number: (one.outcome, one.bad, one.crossed, one.schedule) for one in run.rounds()}
    asked = rounds(read([tmp_path / "logs"]))
    told = {row["round"]: row for row in asked.played.iter_rows(named=True)}
    assert {number: (row["outcome"], row["bad"], row["crossed"]) for number, row in told.items()} == {
        number: one[:3] for number, one in played.items()
    }
    assert set(asked.played.select("vcpus", "placement").rows()) == {(2, "packed")}
    for number, (_, _, crossed, schedule) in played.items():
        steps = table.schedule(asked, run.run, number)
        assert steps["channel"].to_list() == [channel for channel, _ in schedule]
        here = asked.events.filter(pl.col("round") == number)
        assert [here.filter(pl.col("event") == event).height for event in ("sent", "received")] == [crossed, crossed]
    merged = table.merged(asked)
    assert merged["event"][0] == "run" and merged.height == asked.events.height + 12 + 1
    ways = report.report(read([tmp_path / "logs"]), asked, ["messages"]).tables["messages"]
    asked_for = ways.filter((pl.col("what") == "round trip") & (pl.col("message") == "ANSWER"))["count"].sum()
    assert asked_for == asked.events.filter((pl.col("event") == "received") & (pl.col("message") == "ANSWER")).height
    assert_described(list((tmp_path / "logs").glob("*.jsonl")))
    status, out, _ = shell(tmp_path / "logs")
    assert status == 0 and "12 rounds of 1 run" in out and "damaged" not in out


def assert_described(files: list[Path]) -> None:
    """Every field of every line is in docs/logs.md, and what that has of these events is there."""
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:driver|host) \| [^|]+ \| (.+) \|$", page, re.MULTILINE))
    described = {event: set(re.findall(r"`(\w+)`", text)) for event, text in rows.items()}
    for event in ("run", "round"):
        described[event] |= set(schema.CASE)
    met: dict[str, set[str]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            said = json.loads(line)
            own = set(said) - {"event", "level", "time", "run", "round", "actor", "step", "clock"}
            assert set(said) - own == {"event", "level", "time", "run", "round", "actor", "step", "clock"}
            met.setdefault(said["event"], set()).update(own)
    assert set(described) == {*schema.KNOWN, "kvm_entry", "kvm_exit", "kvm_apic_accept_irq", "kvm_vcpu_wakeup"}
    for event, fields in described.items():
        sure = event in schema.KNOWN and event != "aborted"  # no host is lost here, and who wakes whom is for the hardware to say
        assert met.get(event, set() if sure else fields) == fields, event
    known = {*schema.LINE, "parts", "host", "digest", "seed", "machines", "racevisor", "vcpu", "reason", "apicid"}
    assert set().union(*described.values()) <= known | {"mode", "vector", "accepted"}


# ---- the page about logs ----------------------------------------------------------------------------------------------------


def test_the_page_about_logs_names_every_column() -> None:
    """A column that is not described is one that nobody uses."""
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    described = dict(re.findall(r"^\| `(\w+)` \| (?:[a-z0-9 ]+ \| )?(.+) \|$", page, re.MULTILINE))
    assert {name: described.get(name) for name in schema.TABLE} == schema.TABLE


def test_the_queries_of_the_page_about_logs_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are run as they are printed, on a small file."""
    made = Made(tmp_path / "logs").begun()
    for number in range(4):
        made.steps(number, *((INIT, HALT) if number else (HALT, INIT)))
        made.write("host0", "sent", round=number, actor="vcpu0", step=1, clock=5, message="ACCESS", channel="0>1", n=1, op="load")
        answer = {"message": "ANSWER", "channel": "1>0", "n": 1, "op": "load", "seconds": 0.5}
        made.write("host0", "received", round=number, actor="vcpu0", step=1, clock=6, **answer)
        made.round(number, "lost" if number else "good", [LOST] if number else [])
    table.write(rounds(read([made.save()])), tmp_path / "events.parquet")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    queries = re.findall(r"^```sql.*?\n(.+?)```$", page, re.MULTILINE | re.DOTALL)
    assert len(queries) == 3
    found = [sql(query) for query in queries]
    assert all(frame.height for frame in found)


def sql(query: str) -> pl.DataFrame:
    """As the page says: polars, on the file."""
    events = pl.scan_parquet("events.parquet")
    return pl.SQLContext(events=events).execute(query, eager=True)
