"""What the command line does, from Python: values, and exceptions."""

from pathlib import Path

import pytest

from racevisor import api, trace
from racevisor.errors import NotDeterministic, TraceError, UsageError

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
