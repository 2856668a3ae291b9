"""A scenario file under pytest: one test for each claim, and a failure that says what to do next."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "message_passing.py"
TRUE = '{"*": {"pso": Sometimes}}'


@pytest.fixture
def race(pytester: pytest.Pytester) -> Path:
    """The README's scenario, in a folder of its own."""
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    return pytester.makepyfile(race=EXAMPLE.read_text(encoding="utf-8"))


def claiming(race: Path, claims: str) -> None:
    text = race.read_text(encoding="utf-8")
    assert TRUE in text
    race.write_text(text.replace(TRUE, claims), encoding="utf-8")


def test_each_claim_is_a_test_that_passes_if_the_claim_is_true(pytester: pytest.Pytester, race: Path) -> None:
    """Named so that -k picks variants, set-ups and memory models."""
    result = pytester.runpytest_inprocess(race, "-v")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["race.py::plain-default-pso PASSED*", "race.py::wmb-default-sc PASSED*"])
    pytester.runpytest_inprocess(race, "-k", "wmb and not sc").assert_outcomes(passed=2, deselected=4)
    pytester.runpytest_inprocess("race.py::plain-default-tso").assert_outcomes(passed=1)


def test_a_refuted_claim_shows_the_interleaving_its_reason_and_how_to_replay_it(pytester: pytest.Pytester, race: Path) -> None:
    """What a failed test prints is all that one has in a CI's log."""
    claiming(race, "{}")
    result = pytester.runpytest_inprocess(race)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(
        [
            "race plain/default/pso claims Never, and the search found: Sometimes",
            "* step | P0*| P1*",
            "*7 steps and 2 switches*(provably the fewest)",
            "Why:",
            "  The other way round it ends well: P1 saw data = 42.",
            "  replay it:    racevisor replay runs/race/plain-default-pso.trace",
        ]
    )
    assert (pytester.path / "runs" / "race" / "plain-default-pso.trace").is_file()
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_claim_that_promises_too_much_fails_without_an_interleaving(pytester: pytest.Pytester, race: Path) -> None:
    """Sometimes is refuted by a complete search that meets nothing bad."""
    claiming(race, '{"*": Sometimes}')
    result = pytester.runpytest_inprocess(race)
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(["race plain/default/sc claims Sometimes, and the search found: Never", "exhausted: every*"])


def test_options_choose_how_claims_are_searched(pytester: pytest.Pytester, race: Path) -> None:
    """As those of `racevisor explore` do; a sampler cannot confirm Never, so what it does not refute is skipped."""
    sampled = pytester.runpytest_inprocess(race, "--racevisor-strategy", "pct", "--racevisor-runs", "300", "-rs")
    sampled.assert_outcomes(passed=1, skipped=5)
    sampled.stdout.fnmatch_lines(["*Never is neither confirmed nor refuted: strategy pct proves nothing"])
    pytester.runpytest_inprocess(race, "--racevisor-memory", "tso", "--racevisor-memory", "sc").assert_outcomes(passed=4)
    pytester.runpytest_inprocess(race, "--racevisor-strategy", "optimal", "--racevisor-budget", "20s").assert_outcomes(passed=6)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--racevisor-strategy", "clever", "*there is no strategy 'clever'*"),
        ("--racevisor-budget", "soon", "*soon*"),
        ("--racevisor-memory", "weak", "*no memory model 'weak'*"),
        ("--racevisor-vcpus", "3", "*3 were asked for*"),
    ],
)  # fmt: skip
def test_an_impossible_option_is_an_error_and_no_traceback(
    pytester: pytest.Pytester, race: Path, option: str, value: str, said: str
) -> None:
    """It says what there is instead."""
    result = pytester.runpytest_inprocess(race, option, value)
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    assert any(line for line in [*result.stdout.lines, *result.stderr.lines] if said.strip("*") in line)
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_scenario_file_that_is_broken_says_where(pytester: pytest.Pytester, race: Path) -> None:
    """By the name of the file and its line."""
    race.write_text(race.read_text(encoding="utf-8") + "\nclass Another(Scenario): ...\n", encoding="utf-8")
    result = pytester.runpytest_inprocess(race)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*defines 2 scenarios, it must define exactly one*"])


def test_files_that_are_not_named_are_left_alone_unless_the_ini_file_lists_them(pytester: pytest.Pytester, race: Path) -> None:
    """A search may take minutes; nobody starts one by accident."""
    folder = pytester.mkdir("races")
    race.rename(folder / "mine.py")
    pytester.makepyfile(test_other="def test_passes(): pass")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nracevisor_files = races/*.py\n")
    pytester.runpytest_inprocess().assert_outcomes(passed=7)


def test_a_file_of_tests_that_defines_scenarios_is_a_file_of_tests(pytester: pytest.Pytester) -> None:
    """Like those of racevisor itself."""
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    tests = pytester.makepyfile(test_mine="from racevisor import Scenario\nclass Mine(Scenario): pass\ndef test_passes(): pass\n")
    pytester.runpytest_inprocess(tests).assert_outcomes(passed=1)


def test_the_claims_are_shared_out_among_processes_of_xdist(pytester: pytest.Pytester, race: Path) -> None:
    """Every process collects the same tests in the same order."""
    pytester.runpytest_subprocess(race, "--numprocesses", "2").assert_outcomes(passed=6)
