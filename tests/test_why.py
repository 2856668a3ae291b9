"""What the command line says of a bad execution: shrunk, explained, compared; and that a trace stays what it was."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from racevisor import trace
from racevisor.cli import cli
from racevisor.commands.compare import WIDTH
from racevisor.explore import cases, explore_case, witness
from racevisor.reason import LONG, Wish, readable, reason
from racevisor.strategies.random_walk import RandomWalk


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def racevisor(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)


@pytest.fixture
def found(shell: Path) -> Path:
    """A trace as it was found: long, and full of switches."""
    case = cases("init_sipi", ["before"], ["plain"], ["tso"])[0]
    bad = explore_case(case, strategy="random", runs=50).witness
    assert bad is not None
    recorded = trace.record(
        case, bad.schedule, outcome=bad.outcome, status=bad.status, violations=bad.violations,
        seed=0, strategy="random", recorded_by=trace.EXPLORE,
    )  # fmt: skip
    trace.save(recorded, shell / "found.trace")
    return shell / "found.trace"


def test_explore_draws_and_saves_what_was_shrunk_and_says_why(shell: Path) -> None:
    """Its trace is the one that is drawn: a reader counts the same steps."""
    text = racevisor("explore", "init_sipi", "--variant", "before", "--setup", "plain", "--memory", "sc").stdout
    assert "shrunk from 48 steps and 27 switches to 40 steps and 2 switches (provably the fewest)" in text
    assert "step 38   vcpu0  apic_dm_init(): vcpu1.mp_state = INIT_RECEIVED" in text
    assert "These two race, and their order decides." in text
    assert len(trace.load(shell / "runs/init_sipi/before-plain-sc.trace").picks) == 40


def test_explore_leaves_it_as_it_was_found_if_it_is_asked_to(shell: Path) -> None:
    """Who hunts a bug of the search itself wants its execution."""
    text = racevisor("explore", "init_sipi", "--variant", "before", "--setup", "plain", "--memory", "sc", "--no-shrink").stdout
    assert "shrunk" not in text and "Why:" not in text
    assert len(trace.load(shell / "runs/init_sipi/before-plain-sc.trace").picks) == 48


def test_replay_compares_every_step_that_was_found_and_draws_few(found: Path) -> None:
    """The proof that it reproduces is about the recorded run; the picture is for people."""
    steps = len(trace.load(found).picks)
    text = racevisor("replay", str(found)).stdout
    assert f"replayed {steps} steps, identical: yes" in text
    assert f"shrunk from {steps} steps" in text
    plain = racevisor("replay", str(found), "--no-shrink").stdout
    assert "identical: yes" in plain and "Why:" not in plain
    assert trace.load(found).picks == trace.load(found).picks


def test_explain_shows_both_executions_and_what_is_ordered(found: Path) -> None:
    """All that is known, for one bad run; machines get the same."""
    text = racevisor("explain", str(found)).stdout
    for heading in ("The bad execution", "The nearest good one", "Why:", "What is ordered:", "Where they part:"):
        assert heading in text
    value = json.loads(racevisor("explain", str(found), "--json").stdout)
    assert value["shrunk"]["provably_minimal"] is True
    assert value["why"]["decisive"][0]["second"]["words"] == "mp_state = HALTED"
    assert value["why"]["decisive"][0]["good_outcome"].startswith("vcpu1 RUNNABLE")


def test_explain_refuses_a_run_in_which_nothing_is_wrong(shell: Path) -> None:
    """There is no reason for what did not happen."""
    case = cases("init_sipi", ["latch"], ["plain"], ["sc"])[0]
    world = case.world()
    good = witness(world.run(RandomWalk(0, 1)))
    world.close()
    recorded = trace.record(
        case, good.schedule, outcome=good.outcome, status=good.status, violations=[], seed=0, strategy="random",
        recorded_by=trace.EXPLORE,
    )  # fmt: skip
    trace.save(recorded, shell / "good.trace")
    with pytest.raises(Exception, match="nothing is wrong in the run"):
        racevisor("explain", str(shell / "good.trace"))


def test_a_comparison_fits_into_a_mail_and_says_what_was_counted(shell: Path) -> None:
    """72 columns, no colours; where all classes were counted it says so, and where not it claims nothing of the whole."""
    arguments = ("compare", "memslot_users", "before", "after", "--setup", "marks", "--memory", "sc")
    result = racevisor(*arguments)
    text = result.stdout
    assert result.return_value == 0
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "bad outcome           Sometimes                 Never" in text
    assert "bad classes of all    48 of 82                  0 of 26" in text
    assert "table_of(): kvm.bitmap1 == 0" in text
    assert "counted by optimal DPOR, all of them" in " ".join(text.split())
    value = json.loads(racevisor(*arguments, "--json").stdout)
    before, after = value["sides"]
    assert before["classes"] == {"bad": 48, "all": 82, "exhausted": True, "reason": before["classes"]["reason"]}
    assert (after["classes"]["bad"], after["classes"]["all"], after["classes"]["exhausted"]) == (0, 26, True)
    assert before["why"]["decisive"]


def test_a_comparison_that_was_cut_short_gives_lower_limits(shell: Path) -> None:
    """A count that was stopped is no count."""
    text = racevisor("compare", "init_sipi", "before", "latch", "--setup", "plain", "--budget", "0.2s").stdout
    assert ">= " in text
    assert "came to no end: their numbers are lower limits" in " ".join(text.split())


def test_a_long_round_of_a_large_machine_is_told_with_few_vcpus() -> None:
    """Thousands of steps are read by nobody; the same check fails in the small machine."""
    case = cases("init_sipi", ["before"], ["plain"], ["tso"], 16)[0]
    world = case.world()
    walk = RandomWalk(1, 99)
    bad = next(run for run in (world.run(walk, n) for n in range(99)) if run.bad)
    found = witness(bad)
    world.close()
    shrunk = reason(case, found, Wish(seconds=5)).shrunk
    assert shrunk is not None
    assert shrunk.after.actors <= 3 < shrunk.before.actors
    found.schedule.extend([("", "")] * LONG)
    told = readable(case, found, Wish())
    assert told.case.vcpus == 2
    assert told.shrunk is not None and told.shrunk.minimal
