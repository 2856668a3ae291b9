"""`racevisor verify`: all claims of all scenarios, one table that can be read, one exit status; and the page of all claims."""

import json
import re
from pathlib import Path

import pytest

from racevisor import explore as search
from racevisor import table
from racevisor.cli import main
from racevisor.commands.verify import page
from racevisor.errors import UsageError
from racevisor.explore import Verdict, cases, claimed_cells, explore, explore_case
from racevisor.memory import MODELS
from racevisor.scenario import Case, Never, Source, built_in, claim, default_setup, from_source, in_table, load

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = str(ROOT / "examples" / "message_passing.py")

COUNTER = '''
"""Two threads add to a counter."""

from actors.ops import READ_ONCE, WRITE_ONCE, atomic_fetch_add
from racevisor import Always, Scenario, Setup, Sometimes, Thread, Variant

async def add_in_two(me):
    await WRITE_ONCE(me.vm.memory.x, await READ_ONCE(me.vm.memory.x) + 1)

async def add_at_once(me):
    await atomic_fetch_add(1, me.vm.memory.x)

async def add_nothing(me):
    """Wrong with one thread and with two."""

async def body(me):
    await me.vm.calls.add(me)

async def unused(me):
    """What nobody calls."""

class Counter(Scenario):
    functions = {"add": add_at_once, "never_called": unused}
    setups = {
        "two": Setup("two threads"),
        "one": Setup("one thread"),
        "none": Setup("nobody adds"),
        "three": Setup("three threads", ("before", "after")),
    }
    variants = {
        "before": Variant("load and store", {"add": add_in_two}, {"two": Sometimes, "three": Sometimes}),
        "after": Variant("one atomic instruction"),
        "same": Variant("replaces what nobody calls", {"never_called": add_nothing}),
        "lazy": Variant("adds nothing", {"add": add_nothing}, {"two": Always, "one": Always, "three": Always}),
    }

    def build(self, vm, setup):
        vm.guest_memory(x=0)
        self.threads = {"two": 2, "one": 1, "none": 0, "three": 3}[setup]
        for i in range(self.threads):
            Thread(vm, f"P{i}", body)

    def exists(self, vm):
        return vm.memory.x.value != self.threads
'''


class Shell:
    """Calls the command line in this process, in a folder of its own, in a narrow terminal."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = self.capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err


@pytest.fixture
def racevisor(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "counter.py").write_text(COUNTER, encoding="utf-8")
    wrong = COUNTER.replace('"two": Sometimes, "three"', '"three"').replace('"none": Setup', '"nobody": Setup')
    (tmp_path / "wrong.py").write_text(wrong.replace('"none": 0', '"nobody": 0'), encoding="utf-8")
    return Shell(capsys)


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


# ---- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_is_never_wrong_shares_a_row_and_the_memory_models_stand_side_by_side(racevisor: Shell, jobs: str) -> None:
    """Thousands of cells: what is bad must not be lost among what is not."""
    status, out, err = racevisor("verify", "counter.py", EXAMPLE, "--workers", jobs)
    assert (status, err) == (0, "")
    found = [row[:-2] for row in rows(out) if row and re.fullmatch(r"[0-9.]+s", row[-1])]
    assert found[:7] == [
        ["before", "two", "Sometimes", "Sometimes", "Sometimes"],
        ["three", "Sometimes", "Sometimes", "Sometimes"],
        ["2", "others", "Never", "Never", "Never"],
        ["after", "all", "4", "Never", "Never", "Never"],
        ["same", "all", "3", "Never", "Never", "Never"],
        ["lazy", "two", "Always", "Always", "Always"],
        ["one", "Always", "Always", "Always"],
    ]
    assert ["counter", "42", "42", "36", "6"] in found and ["message_passing", "6", "6", "5", "1"] in found
    assert "48 of 48 claims confirmed" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_claim_that_is_refuted_is_marked_named_at_the_end_and_exits_with_1(racevisor: Shell) -> None:
    """With the command that shows why."""
    status, out, _ = racevisor("verify", "wrong.py", "--memory", "sc", "--memory", "pso")
    assert status == 1
    assert ["before", "two", "Sometimes!", "Sometimes!"] in [row[:4] for row in rows(out)]
    end = out[out.index("wrong before/two/sc") :]
    assert "claimed Never, Sometimes (bound reached): refuted" in end
    assert "racevisor explore wrong.py --variant before --setup two --memory sc" in end
    assert "26 of 28 claims confirmed" in end and "2 refuted" in end
    assert "tso" not in rows(out)[1]


def test_a_search_that_ends_too_early_confirms_nothing(racevisor: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is too slow must fail the regression, not pass it."""

    def hurried(case: Case, **options: object) -> Verdict:
        return explore_case(case, strategy="random", runs=1)

    monkeypatch.setattr(table, "explore_case", hurried)
    status, out, _ = racevisor("verify", "counter.py", "--variant", "after", "--setup", "two", "--workers", "1")
    assert status == 1
    assert out.count("not found?") == 3
    assert "0 of 3 claims confirmed" in out and "3 not decided" in out and "refuted;" not in out


def test_full_has_a_row_for_every_cell(racevisor: Shell) -> None:
    """Claimed, found, verdict, executions, states, time: as explore prints it."""
    status, out, _ = racevisor("verify", "counter.py", "--full", "--setup", "two", "--jobs", "1")
    assert status == 0
    models = [row for row in rows(out) if {"sc", "tso", "pso"} & set(row) and ("exhausted" in row or "reached" in row)]
    assert len(models) == 12
    assert sum("Sometimes" in row for row in models) == 3


def test_json_is_what_explore_has_scenario_by_scenario_and_totals(racevisor: Shell) -> None:
    """Nothing else on standard output."""
    status, out, _ = racevisor("verify", "counter.py", EXAMPLE, "--json", "--jobs", "1")
    everything = json.loads(out)
    assert status == 0
    assert [entry["scenario"] for entry in everything["scenarios"]] == ["counter", "message_passing"]
    assert (everything["cells"], everything["confirmed"], everything["refuted"], everything["open"]) == (48, 48, 0, 0)
    assert everything["exhausted"] + everything["settled"] == 48
    alone = json.loads(racevisor("explore", EXAMPLE, "--json", "--jobs", "1")[1])
    second = everything["scenarios"][1]
    assert {key: alone[key] for key in ("source", "confirmed", "cells")} == {
        key: second[key] for key in ("source", "confirmed", "cells")
    }
    keep = ("variant", "setup", "memory", "claimed", "found", "verdict", "executions", "states", "confirmed")
    assert [[c[k] for k in keep] for c in alone["claims"]] == [[c[k] for k in keep] for c in second["claims"]]


def test_filters_take_what_some_scenario_has_and_name_what_none_has(racevisor: Shell) -> None:
    """`--variant before` over all scenarios must not fail because one of them calls it otherwise."""
    status, out, _ = racevisor("verify", "counter.py", EXAMPLE, "--variant", "before", "--variant", "wmb", "--json")
    assert status == 0
    claims = [c for entry in json.loads(out)["scenarios"] for c in entry["claims"]]
    assert {(c["scenario"], c["variant"]) for c in claims} == {("counter", "before"), ("message_passing", "wmb")}
    for wrong in (("--variant", "behind"), ("--setup", "four"), ("--memory", "weak"), ("--variant", "wmb", "--setup", "two")):
        status, out, err = racevisor("verify", "counter.py", EXAMPLE, *wrong)
        assert (status, out) == (2, ""), wrong
        assert "racevisor show" in err


@pytest.mark.parametrize("command", [("verify", "counter.py", EXAMPLE, "--jobs", "1"), ("explore", EXAMPLE, "--jobs", "1")])
def test_ctrl_c_keeps_what_was_found(command: tuple[str, ...], racevisor: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a table is worth something, and it does not pass."""
    left = [5]

    def interrupted(case: Case, **options: object) -> Verdict:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return explore_case(case)

    monkeypatch.setattr(table, "explore_case", interrupted)
    status, out, _ = racevisor(*command)
    assert status == 130
    assert re.search(r"5 of \d+ claims confirmed", out) and "interrupted after 5 cells" in out  # also before their turn came
    shown = [row[:4] for row in rows(out)]
    assert any(row in shown for row in (["before", "two", "Sometimes", "Sometimes"], ["plain", "default", "sc", "Never"]))


RAISES = COUNTER.replace("async def add_nothing(me):", "async def add_nothing(me):\n    1 / me.vm.memory.x.value")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_scenario_that_raises_keeps_what_was_found_before_it(racevisor: Shell, tmp_path: Path, jobs: str) -> None:
    """An hour of searches is not lost because the last file has a mistake; which cell it was is said, and how to see it alone."""
    (tmp_path / "raises.py").write_text(RAISES, encoding="utf-8")
    arguments = ("verify", EXAMPLE, "raises.py", "counter.py", "--memory", "pso", "--workers", jobs)
    status, out, err = racevisor(*arguments)
    assert status == 2
    assert ["before", "two", "Sometimes"] in [row[:3] for row in rows(out)]
    assert "(stopped by an error after" in out and "claims confirmed" in out
    assert re.match(r"racevisor: scenario file raises\.py, line \d+, in add_nothing: ZeroDivisionError", err), err
    assert "in the search of raises lazy/two/pso" in err
    assert "racevisor explore raises.py --variant lazy --setup two --memory pso" in err
    assert "Traceback" not in err
    told = int(re.search(r"after (\d+) of \d+ cells", err)[1])  # type: ignore[index]
    status, out, _ = racevisor(*arguments, "--json")
    found = json.loads(out)
    assert status == found["exit_status"] == 2
    assert "ZeroDivisionError" in found["error"]
    assert found["confirmed"] == sum(len(entry["claims"]) for entry in found["scenarios"]) == told
    assert [entry["scenario"] for entry in found["scenarios"]] == ["message_passing", "raises", "counter"]


def test_a_scenario_that_raises_at_once_is_an_error_and_nothing_else(racevisor: Shell, tmp_path: Path) -> None:
    """No table of nothing."""
    (tmp_path / "raises.py").write_text(RAISES, encoding="utf-8")
    status, out, err = racevisor("verify", "raises.py", "--variant", "lazy", "--jobs", "1")
    assert (status, out) == (2, "")
    assert "ZeroDivisionError" in err and "racevisor explore raises.py --variant lazy --setup two --memory sc" in err


def test_a_mistake_of_our_own_keeps_the_results_and_its_traceback(racevisor: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is worth printing, and the traceback is what we need to see."""
    left = [5]

    def broken(case: Case, **options: object) -> Verdict:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("ours")
        return explore_case(case)

    monkeypatch.setattr(table, "explore_case", broken)
    with pytest.raises(RuntimeError, match="ours"):
        main(["verify", "counter.py", "--jobs", "1", "--json"])
    found = json.loads(racevisor.capsys.readouterr().out)
    assert found["confirmed"] == 2 and found["error"] == "RuntimeError('ours')"


# ---- the table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_code_that_is_the_same_is_searched_once_and_never_taken_from_another_scenario(racevisor: Shell, jobs: int) -> None:
    """`same` is `after` here; both files have variants and set-ups of the same names."""
    wanted = [*cases("counter.py", ["same", "after"]), *cases("wrong.py", ["same", "after"])]
    found = list(explore(wanted, jobs=jobs))
    assert [(v.scenario, v.variant, v.setup, v.memory) for v in found] == [
        (c.scenario.name, c.variant_name, c.setup, c.memory) for c in wanted
    ]
    shared = [v for v in found if v.variant == "same"]
    assert len(shared) == 18
    assert all(v.ledger.reason.startswith("the same code as after") and v.confirmed for v in shared)


def test_a_setup_that_is_there_for_some_variants_is_a_cell_of_those_only(racevisor: Shell) -> None:
    """Who asks for another variant in it by name gets it, with the claim that the scenario makes."""
    scenario, _ = load("counter.py")
    assert [v for v in scenario.variants if in_table(scenario, v, "three")] == ["before", "after"]
    assert {c.variant_name for c in cases("counter.py", setups=["three"])} == {"before", "after"}
    assert {c.setup for c in cases("counter.py", ["lazy"])} == {"two", "one", "none"}
    (asked,) = cases("counter.py", ["lazy"], ["three"], ["sc"])
    assert explore_case(asked).confirmed and asked.claimed == "Always"
    told = json.loads(racevisor("show", "counter.py", "--json")[1])["claims"]
    assert len(told) == 14 * 3
    assert "three threads; for before, after" in racevisor("show", "counter.py")[1]


def test_a_setup_that_is_there_for_a_variant_that_does_not_exist_is_refused() -> None:
    """A typo would take cells out of the table in silence."""
    text = COUNTER.replace('("before", "after")),', '("before", "afterwards")),')
    with pytest.raises(UsageError, match="counter has no variant 'afterwards'"):
        from_source(Source("counter.py", text))


def test_a_live_run_sets_out_where_the_variant_goes_wrong(racevisor: Shell) -> None:
    """`racevisor run NAME` shows the race, and the fix is run in the set-up that shows it."""
    scenario, _ = load("init_sipi")
    where = {variant: default_setup(scenario, variant, "tso") for variant in ("before", "seed", "latch", "I-M20", "I-M24")}
    assert where == {"before": "plain", "seed": "irq", "latch": "plain", "I-M20": "migration", "I-M24": "edge_irqs"}
    text = COUNTER.replace("    setups = {", '    live = "three"\n    setups = {')
    often = from_source(Source("counter.py", text))
    where = {variant: default_setup(often, variant, "tso") for variant in often.variants}
    assert where == {"before": "three", "after": "three", "same": "two", "lazy": "two"}
    with pytest.raises(UsageError, match="counter has no set-up 'four'"):
        from_source(Source("counter.py", text.replace('live = "three"', 'live = "four"')))


# ---- the built-in scenarios -----------------------------------------------------------------------------------------------


def test_the_page_of_claims_is_what_the_scenarios_claim() -> None:
    """If this fails: make docs."""
    assert (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8") == page(built_in())


def test_the_page_names_memory_models_and_leaves_out_what_is_not_claimed(racevisor: Shell) -> None:
    """And it searches nothing."""
    status, out, _ = racevisor("verify", "counter.py", EXAMPLE, "--markdown")
    assert status == 0
    assert "| `after` (the fix) | one atomic instruction | Never | Never | Never | Never |" in out
    assert "| `lazy` | adds nothing | **Always** | **Always** | Never |  |" in out
    assert "| `plain` | two plain stores | **Sometimes** (pso) |" in out


def test_the_command_verifies_every_built_in_scenario_unless_some_are_named() -> None:
    """A scenario that is added is verified from then on."""
    scenarios = {case.scenario.name for case in claimed_cells(built_in(), (), (), ())}
    assert scenarios == set(built_in()) == {file.stem for file in (ROOT / "scenarios").glob("[a-z]*.py")}


@pytest.mark.parametrize("name", built_in())
def test_every_claim_is_about_a_setup_that_exists_and_is_shown_by_a_cell(name: str) -> None:
    """What a set-up leaves out because it costs too much must be in the table somewhere else, under the same memory model."""
    scenario, _ = load(name)
    assert set(scenario.claims) <= set(scenario.setups)
    for key, variant in scenario.variants.items():
        assert set(variant.claims) <= {*scenario.setups, "*"}, key
        for memory in MODELS:
            wrong = [s for s in scenario.setups if claim(scenario, variant, s, memory) != Never]
            assert not wrong or any(in_table(scenario, key, setup) for setup in wrong), (key, memory)


@pytest.mark.parametrize("name", built_in())
def test_the_first_variant_goes_wrong_where_the_fix_does_not(name: str) -> None:
    """Both sides of every patch, on the hardware that KVM runs on, in the set-up that a live run takes by itself."""
    scenario, _ = load(name)
    first, fixed = next(iter(scenario.variants)), scenario.fixed
    assert fixed in scenario.variants
    setup = default_setup(scenario, first, "tso")
    assert claim(scenario, scenario.variants[first], setup, "tso") != Never
    assert claim(scenario, scenario.variants[fixed], setup, "tso") == Never
    assert default_setup(scenario, fixed, "tso") == setup or in_table(scenario, fixed, setup)


def test_a_verdict_is_confirmed_by_the_search_and_not_by_the_claim() -> None:
    """The table compares two things that are made by different code."""
    case = cases(EXAMPLE, ["plain"], memories=["pso"])[0]
    verdict = search.explore_case(case)
    assert verdict.confirmed
    verdict.claimed = Never
    assert not verdict.confirmed
