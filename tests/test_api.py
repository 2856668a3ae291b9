"""What the command line does, from Python: values, and exceptions."""

import json
import re
from pathlib import Path

import pytest
from made_logs import race

from racevisor import api, trace
from racevisor.cli import cli
from racevisor.errors import NotDeterministic, TraceError, UsageError

DOCS = Path(__file__).resolve().parent.parent / "docs"
EXAMPLE = str(Path(__file__).resolve().parent.parent / "examples" / "message_passing.py")


def test_a_race_is_found_explained_saved_and_replayed(tmp_path: Path) -> None:
    """The way that the command line goes, in five lines."""
    found = api.explore("init_sipi", "before", memory="sc")
    assert found.verdict.finding == "Sometimes" and found.verdict.confirmed
    assert found.reason is not None and found.reason.shrunk is not None and found.reason.shrunk.minimal
    assert any("The other way round it ends well" in line for line in found.reason.explanation.why())  # type: ignore[union-attr]
    found.save(tmp_path / "lost.trace")
    again = api.replay(tmp_path / "lost.trace")
    assert again.identical and again.execution is not None and again.execution.bad
    assert api.explain(tmp_path / "lost.trace").explanation.to_json() == found.reason.explanation.to_json()  # type: ignore[union-attr]


def test_the_claims_of_a_file_are_checked_in_the_order_of_its_table() -> None:
    """Progress is told by cells."""
    told: list[tuple[int, int]] = []
    verdicts = api.check(EXAMPLE, on_progress=lambda done, of: told.append((done, of)))
    assert [(v.variant, v.memory) for v in verdicts] == [(v, m) for v in ("plain", "wmb") for m in ("sc", "tso", "pso")]
    assert all(verdict.confirmed for verdict in verdicts)
    assert told[-1] == (6, 6)
    assert [v.memory for v in api.check(EXAMPLE, variants=["wmb"], memories=["pso"], strategy="optimal")] == ["pso"]


def test_two_versions_are_compared_in_one_setup() -> None:
    """The first one's set-up is the one in which it goes wrong."""
    before, after = api.compare(EXAMPLE, "plain", "wmb", memory="pso", budget=20)
    assert before.counted.bad > 0 and before.reason is not None
    assert after.counted.bad == 0 and after.reason is None and after.verdict.verdict == "exhausted"
    assert before.case.setup == after.case.setup


def test_what_cannot_be_done_is_an_exception_that_says_what_to_do(tmp_path: Path) -> None:
    """No exit status, no print."""
    with pytest.raises(UsageError, match="there is no scenario 'nobody'"):
        api.check("nobody")
    with pytest.raises(UsageError, match="has no variant"):
        api.explore(EXAMPLE, "fixed")
    with pytest.raises(UsageError, match="nothing bad was found"):
        api.explore(EXAMPLE, "wmb").save(tmp_path / "none.trace")
    (tmp_path / "text.trace").write_text("not a trace", encoding="utf-8")
    with pytest.raises(TraceError):
        api.replay(tmp_path / "text.trace")


def test_a_trace_that_does_not_replay_says_where(tmp_path: Path) -> None:
    """`replay` gives the difference, `explain` refuses to explain something else."""
    path = tmp_path / "race.trace"
    found = api.explore(EXAMPLE, "plain", memory="pso")
    assert found.reason is not None
    shown = found.reason.witness
    shown.schedule[-1] = (shown.schedule[-1][0], "something else")
    found.save(path)
    again = api.replay(path)
    assert not again.identical and again.execution is None and "something else" in again.difference
    with pytest.raises(NotDeterministic, match="something else"):
        api.explain(path)


def test_a_good_run_has_nothing_to_explain(tmp_path: Path) -> None:
    """It is a mistake of the caller's, and said so."""
    found = api.explore(EXAMPLE, "plain", memory="pso")
    assert found.verdict.good is not None
    trace.save(
        trace.of(found.case, found.verdict.good, seed=0, strategy="states", recorded_by=trace.EXPLORE), tmp_path / "good.trace"
    )
    with pytest.raises(UsageError, match="nothing is wrong"):
        api.explain(tmp_path / "good.trace")


def test_rounds_are_played_live_and_counted(embedded_ray: None, tmp_path: Path) -> None:
    """Each round is given out once it is judged; the bad ones are saved as traces that replay."""
    played = []
    tally = api.run("init_sipi", "before", rounds=6, trace_dir=tmp_path, placement="packed", on_round=played.append)
    assert tally.problem is None
    assert tally.rounds == len(played) == sum(tally.outcomes.values()) == 6
    assert tally.bad == sum(round_.bad for round_ in played)
    assert all(api.replay(path).identical for path in tally.traces)


def test_a_stress_is_begun_and_gone_on_with(embedded_ray: None, tmp_path: Path) -> None:
    """Its directory keeps the counts; a second call goes on where the first one ended."""
    played = []
    one = api.stress(
        "init_sipi", "before", vcpus=2, rounds=4, directory=tmp_path / "s", placement="packed", on_round=played.append
    )
    assert one.done and one.tally.problem is None and one.tally.rounds == len(played) == 4
    state = json.loads((one.directory / "stress.json").read_text(encoding="utf-8"))
    assert state["counts"]["rounds"] == 4 and state["done"]
    more = api.stress(resume=str(tmp_path / "s"), rounds=6)
    assert more.tally.rounds == sum(more.tally.outcomes.values()) == 6 and more.seconds > one.seconds
    with pytest.raises(UsageError, match="holds a stress already"):
        api.stress("init_sipi", directory=tmp_path / "s")
    with pytest.raises(UsageError, match="say one of the two"):
        api.stress()


def test_a_report_is_a_text_and_a_file_if_that_is_asked_for(tmp_path: Path) -> None:
    """Of a scenario, of a trace, of a directory; each format as on the command line."""
    page = api.report(EXAMPLE, "plain", memory="pso", against="wmb")
    assert (page.format, page.output) == ("html", None) and page.text.startswith("<!doctype html>")
    assert page.report.beside is not None and page.report.beside.variant == "wmb" and not page.report.beside.bad
    assert page.report.beside.finding == "Never"
    api.explore(EXAMPLE, "plain", memory="pso").save(tmp_path / "race.trace")
    done = api.report(tmp_path / "race.trace", output=tmp_path / "race.mmd")
    assert (done.format, done.output) == ("mermaid", tmp_path / "race.mmd")
    assert (tmp_path / "race.mmd").read_text(encoding="utf-8") == done.text
    assert api.report(tmp_path, format="shiviz").report.drawn_trace == "race.trace"
    with pytest.raises(UsageError, match="says nothing to racevisor"):
        api.report(tmp_path / "race.trace", format="pdf")


def test_logs_are_analysed_into_tables(tmp_path: Path) -> None:
    """The same tables as those of the command line, as data frames; and all events in one file."""
    race(tmp_path / "logs", 8, 12)
    said = api.analyze(tmp_path / "logs", tables=["outcomes"], parquet=tmp_path / "events.parquet")
    assert set(said.tables) == {"outcomes"}
    assert dict(said.tables["outcomes"].select("outcome", "count").iter_rows()) == {"lost": 8, "good": 12}
    assert (tmp_path / "events.parquet").exists() and said.logs.damaged == []
    with pytest.raises(UsageError, match="nobody"):
        api.analyze(tmp_path / "logs", variant=["nobody"])
    with pytest.raises(UsageError, match=r"there is no table order\n  tables:  cases, .*orders"):
        api.analyze(tmp_path / "logs", tables=["order"])
    with pytest.raises(UsageError, match="nothing to analyze"):
        api.analyze()


def test_recorded_apics_are_compared(tmp_path: Path) -> None:
    """Counts by feature, and each difference with its operation and both values."""
    found = api.conform(first=5)
    assert (found.sequences, found.agree, found.differences) == (5, 5, [])
    assert found.features["all"] == (5, 5)
    older = api.conform(first=40, kernel="3.8")
    assert older.agree < 40 and older.differences[0].recorded != older.differences[0].simulated
    with pytest.raises(UsageError, match="there is no kernel"):
        api.conform(kernel="2.4")


def test_claims_of_several_scenarios_are_verified_in_one_go() -> None:
    """Each verdict is there as soon as it is found."""
    verdicts = api.verify(["memslot_deletion", "mmu_notifier"], variants=["before"], setups=["fault", "munmap"], memories=["sc"])
    assert [(v.scenario, v.confirmed) for v in verdicts] == [("memslot_deletion", True), ("mmu_notifier", True)]


def test_the_known_numbers_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of them: the others are tests of their own."""
    from racevisor.oracles import measure

    rows = measure.table()[:1]
    monkeypatch.setattr(measure, "table", lambda: rows)
    assert [result.agrees for result in api.selfcheck()] == [True]


def test_every_command_has_its_equal_or_a_reason() -> None:
    """Whoever knows the command line finds the function, and the other way round."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == sorted(cli.commands)
    for name, told in rows:
        functions = re.findall(r"`api\.(\w+)\(", told)
        assert all(callable(getattr(api, function)) for function in functions), told
        assert functions or "no function" in told, f"{name}: say why"
