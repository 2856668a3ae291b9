"""The command line: what it prints, what it exits with, and that bad input is never a traceback."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from racevisor import trace
from racevisor.cli import main
from racevisor.commands.run import run_live
from racevisor.errors import ClusterError
from racevisor.explore import cases, explore_case
from racevisor.monitor import Violation
from racevisor.rounds import TRACES
from racevisor.scenario import load

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = str(ROOT / "examples" / "message_passing.py")


class Shell:
    """Calls the command line in this process, in a folder of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = self.capsys.readouterr()
        status = ended.value.code
        assert isinstance(status, int)
        return status, out, err


@pytest.fixture
def racevisor(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Shell(capsys)


def test_wide_draws_for_more_columns_than_the_terminal_has(racevisor: Shell) -> None:
    """Long lines are for those who scroll."""
    arguments = ("explore", "synic_message", "--variant", "before", "--setup", "page_poll", "--memory", "sc")
    _, narrow, _ = racevisor(*arguments)
    _, wide, _ = racevisor(*arguments, "--wide")
    assert max(len(line) for line in narrow.splitlines() if " | " in line) <= 80
    assert max(len(line) for line in wide.splitlines() if " | " in line) > 80


# ---- list, show -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["--help"], ["run", "--help"], ["analyze", "--help"], ["--version"]]
)
def test_list_and_help_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """They answer at once, and on machines where Ray cannot run."""
    heavy = (
        "ray",
        "cluster",
        "msgpack",
        "structlog",
        "polars",
        "concurrent.futures.process",
        "rich" if "--json" not in arguments else "ray",
    )
    code = (
        "import sys\nfrom racevisor.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code, e\n"
        f"found = [m for m in {heavy!r} if m in sys.modules]\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_list_names_each_scenario_with_its_story(racevisor: Shell) -> None:
    """What it is about, and how many variants and set-ups it has."""
    status, out, err = racevisor("list")
    assert (status, err) == (0, "")
    assert "init_sipi A vCPU's INIT" in " ".join(out.split()) and "variants" in out and "set-ups" in out
    assert max(map(len, out.splitlines())) <= 80
    listed = json.loads(racevisor("list", "--json")[1])["scenarios"]
    assert [entry["name"] for entry in listed] == sorted(file.stem for file in (ROOT / "scenarios").glob("[a-z]*.py"))


def test_show_tells_story_variants_setups_and_claims(racevisor: Shell) -> None:
    """All that one needs before one runs it."""
    status, out, _ = racevisor("show", "init_sipi")
    assert status == 0
    for word in ("66450a21f996", "two_rounds", "latch", "apic_dm_startup", "Claims", "I-I1"):
        assert word in out, word
    about = json.loads(racevisor("show", "init_sipi", "--json")[1])
    assert about["variants"]["seed"]["replaces"] == {"kvm_apic_accept_events": "accept_events_seed"}
    cells = [(c.variant_name, c.setup, c.memory) for c in cases("init_sipi")]
    assert [(c["variant"], c["setup"], c["memory"]) for c in about["claims"]] == cells


@pytest.mark.parametrize("width", [80, 140])
def test_show_source_prints_what_a_variant_replaces_beside_the_machines_own(
    racevisor: Shell, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Before and after on one screen."""
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, _ = racevisor("show", "init_sipi", "--variant", "seed", "--source")
    assert status == 0
    lines = out.splitlines()
    own = next(i for i, line in enumerate(lines) if "async def kvm_apic_accept_events(me" in line)
    replaced = next(i for i, line in enumerate(lines) if "async def accept_events_seed(me" in line)
    assert (own == replaced) == (width >= 120)


GENERIC = {
    ("init_sipi", "I-M13"): [  # a lambda that calls a generic function
        r"m13_request_first = named\(",
        r"1\. request +kvm_make_request\(KVM_REQ_EVENT, apic.vcpu\)",
        r"2\. wmb +smp_wmb\(\)",
        r"3\. latch INIT +WRITE_ONCE\(apic.pending_events, 1 << KVM_APIC_INIT\)",
        r"4\. kick +kvm_vcpu_kick\(me, apic.vcpu\)",
        r"async def in_order\(",
    ],
    ("vcpu_requests", "V-M4"): [  # a function that another one made
        r"made with accesses = 'irq_off, check, mode, mb, sync':",
        r"1\. irq_off +local_irq_disable\(vcpu\)",
        r"2\. check +vcpu.vm.calls.kvm_vcpu_exit_request\(vcpu\)",
        r"3\. mode +WRITE_ONCE\(vcpu.mode, IN_GUEST_MODE\)",
        r"async def enter_in_order\(",
    ],
    ("mmu_notifier", "N-M1"): [r"made with order = \('gup', 'lock'\)", r"async def tdp_page_fault\("],  # no table of steps
}


@pytest.mark.parametrize(("name", "variant"), GENERIC)
def test_show_source_says_what_a_generic_function_was_made_with(racevisor: Shell, name: str, variant: str) -> None:
    """The code of `in_order()` is that of eight mutants; what one of them changes is the order that it is given."""
    status, out, _ = racevisor("show", name, "--variant", variant, "--source")
    assert status == 0
    at = 0
    for expected in GENERIC[name, variant]:
        found = re.search(expected, out[at:])
        assert found, expected
        at += found.end()


def test_show_tells_apart_what_one_generic_function_made(racevisor: Shell, tmp_path: Path) -> None:
    """By the values it was made with; a partial has no name of its own."""
    text = Path(EXAMPLE).read_text(encoding="utf-8")
    text = text.replace(
        "NOTHING = -1", "from functools import partial\n\nNOTHING = -1\n\nasync def put(value, memory):\n    pass\n"
    )
    text = text.replace('{"publish": publish_wmb}', '{"publish": partial(put, 42)}')
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    about = json.loads(racevisor("show", "mine.py", "--json")[1])
    assert about["variants"]["wmb"]["replaces"] == {"publish": "put(argument 1=42)"}
    status, out, _ = racevisor("show", "mine.py", "--variant", "wmb", "--source")
    assert status == 0
    assert re.search(r"made with argument 1 = 42\s+async def put\(value, memory\):\s+pass", out)


# ---- explore, replay ------------------------------------------------------------------------------------------------------


def test_explore_holds_every_cell_against_its_claim(racevisor: Shell, tmp_path: Path) -> None:
    """A table, a line on how far the search went, and where the traces are."""
    status, out, err = racevisor("explore", EXAMPLE, "--jobs", "2")
    assert (status, err) == (0, "")
    assert out.count("exhausted ") >= 5, "where nothing bad is found, the search must have been complete"
    assert "6 of 6 claims confirmed" in out and "every reachable state" in out
    assert "racevisor replay runs/message_passing/plain-default-pso.trace" in out
    assert [file.name for file in (tmp_path / "runs" / "message_passing").iterdir()] == ["plain-default-pso.trace"]


def test_explore_draws_a_single_race_and_says_how_to_go_on(racevisor: Shell) -> None:
    """The interleaving, then two lines to paste."""
    status, out, _ = racevisor("explore", EXAMPLE, "--variant", "plain", "--memory", "pso")
    assert status == 0
    assert "memory.data == 0" in out and "~ memory.data = 42" in out
    pasted = [line.split("racevisor ", 1)[1] for line in out.splitlines() if line.startswith("  r")]
    assert [line.split()[0] for line in pasted] == ["replay", "run"]
    assert pasted[1] == f"run {EXAMPLE} --variant plain --setup default --memory pso --rounds 200"
    assert racevisor(*pasted[0].split())[0] == 0
    assert out.isascii(), "a pipe gets ASCII"


def test_one_variant_shows_its_first_bad_execution_before_the_other_cells_are_searched(racevisor: Shell) -> None:
    """Who asks what is wrong with a version wants to see it, and not to wait for the cells where nothing is."""
    status, out, _ = racevisor("explore", EXAMPLE, "--variant", "plain")
    assert status == 0
    assert out.index("P1 saw ready, and data was still 0") < out.index("claimed")
    assert out.count("replay it:") == 1
    assert "run 0" not in racevisor("explore", EXAMPLE)[1], "a table of several variants shows no execution"


def test_explore_exits_with_1_if_a_claim_is_refuted(racevisor: Shell, tmp_path: Path) -> None:
    """The exit status is what a script and a bisection look at."""
    wrong = Path(EXAMPLE).read_text(encoding="utf-8").replace('claims={"*": {"pso": Sometimes}}', "claims={}")
    (tmp_path / "wrong.py").write_text(wrong, encoding="utf-8")
    status, out, _ = racevisor("explore", "wrong.py", "--memory", "pso", "--picture")
    assert status == 1
    assert "1 refuted" in out and "P1 saw ready, and data was still 0" in out


def test_a_search_that_was_cut_short_confirms_no_absence(racevisor: Shell) -> None:
    """A bounded search never prints a proof."""
    status, out, _ = racevisor("explore", EXAMPLE, "--variant", "wmb", "--memory", "pso", "--strategy", "random", "--runs", "50")
    assert status == 1
    assert "budget spent" in out and "not decided" in out and "0 of 1 claims confirmed" in out
    status, out, _ = racevisor("explore", EXAMPLE, "--variant", "wmb", "--memory", "pso", "--max-steps", "3")
    assert status == 1
    assert "bound reached" in out


def test_explore_json_is_one_object_with_every_claim(racevisor: Shell) -> None:
    """For machines: nothing else on standard output."""
    status, out, _ = racevisor("explore", EXAMPLE, "--memory", "pso", "--json")
    found = json.loads(out)
    assert status == 0
    for entry in found["claims"]:
        assert {"scenario", "variant", "setup", "memory", "claimed", "found", "verdict", "executions"} <= entry.keys()
    assert [(entry["variant"], entry["found"]) for entry in found["claims"]] == [("plain", "Sometimes"), ("wmb", "Never")]
    assert found["claims"][1]["verdict"] == "exhausted"
    assert Path(found["claims"][0]["trace"]).is_file() and found["claims"][1]["trace"] is None


def test_replay_json_says_identical_steps_and_bad(racevisor: Shell) -> None:
    """And so it is run in CI."""
    racevisor("explore", EXAMPLE, "--variant", "plain", "--memory", "pso", "--trace-dir", "kept")
    status, out, _ = racevisor("replay", "kept/plain-default-pso.trace", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["identical"], found["bad"]) == (True, True)
    assert found["steps"] == len(trace.load(Path("kept/plain-default-pso.trace")).picks)
    assert found["violations"][0]["text"] == "P1 saw ready, and data was still 0"


def test_replay_of_another_run_exits_with_3(racevisor: Shell) -> None:
    """A label that differs, a thread that cannot move, a run that ends early, another outcome: each is a divergence."""
    racevisor("explore", EXAMPLE, "--variant", "plain", "--memory", "pso", "--trace-dir", "kept")
    sound = trace.load(Path("kept/plain-default-pso.trace"))
    picks = sound.picks
    for changes in (
        {"picks": [(picks[0][0], picks[0][1].replace("42", "43")), *picks[1:]]},
        {"picks": [("P7", "READ_ONCE(memory.x) = 1"), *picks]},
        {"picks": [*picks, ("P1", "READ_ONCE(memory.data) = 0")]},
        {"outcome": "P1 saw data = 17"},
        {"violations": []},
    ):
        trace.save(trace.Trace(**{**vars(sound), **changes}), Path("other.trace"))
        status, out, err = racevisor("replay", "other.trace", "--json")
        assert status == 3, (changes, err)
        assert json.loads(out)["identical"] is False
        assert err.startswith("racevisor: ")


# ---- run ------------------------------------------------------------------------------------------------------------------


class FakeLive:
    """A cluster that plays what it is told: the command line needs no Ray to be tested."""

    run = "0123456789ab"
    plan = "dedicated: 2 actors"
    alive = 2

    def __init__(self, played: list[Any]) -> None:
        self.played = played
        self.aborted: list[Any] = []
        self.closed = False

    def __enter__(self) -> "FakeLive":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def rounds(self) -> Iterator[Any]:
        for one in self.played:
            if isinstance(one, BaseException):
                raise one
            yield one


def live(
    capsys: pytest.CaptureFixture[str], played: list[Any], variant: str = "plain", aborted: Sequence[Any] = (), **options: Any
) -> tuple[int, str, str]:
    fake = FakeLive(played)
    fake.aborted += aborted
    common = {"setup": None, "memory": "pso", "rounds": 200, "seed": 0, "noise": 0.1, "address": None, "log_dir": None}
    common |= {"placement": "auto", "hosts": None, "vms": 1, "transport": "sockets"}
    rest = {"log_steps": False, "trace_dir": None, "full": False, "as_json": False}
    status = run_live(
        SimpleNamespace, lambda _case, _options: fake, **{"name": EXAMPLE, "variant": variant, **common, **rest, **options}
    )
    assert fake.closed
    return status, *capsys.readouterr()


def rounds(good: int, bad: int) -> list[Any]:
    """Rounds as a live machine reports them, with schedules that the World found."""
    verdict = explore_case(cases(EXAMPLE, ["plain"], [], ["pso"])[0])
    assert verdict.witness is not None and verdict.good is not None
    kinds = [verdict.witness] * bad + [verdict.good] * good
    return [
        SimpleNamespace(
            number=n,
            outcome=one.outcome,
            violations=one.violations,
            status=one.status,
            schedule=one.schedule,
            seconds=0.01,
            messages=10,
            crossed=4,
            waiting=(),
        )
        for n, one in enumerate(kinds)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_host_is_said_to_be_replaced_if_another_one_took_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the cluster itself went, none did; what became of the messages is said as far as it is known."""
    lost = SimpleNamespace(
        numbers=(5, 6), host="vcpu1", why="killed", account="in flight 12 parts, lost with the host 7", replaced=True
    )
    _, out, _ = live(capsys, [], aborted=[lost])
    assert "\nlost and replaced: vcpu1; aborted: round 5, 6; in flight 12 parts, lost with the host 7 (killed)\n" in out
    lost.account, lost.replaced = None, False
    _, out, _ = live(capsys, [], aborted=[lost])
    assert "\nlost: vcpu1; aborted: round 5, 6 (killed)\n" in out


def test_a_live_run_counts_outcomes_and_saves_the_bad_rounds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each bad round is a trace that replays without Ray; not more of them than anybody looks at."""
    status, out, err = live(capsys, rounds(good=60, bad=40))
    assert (status, err) == (0, "")
    assert "100 rounds" in out and "40 of 100 rounds bad, as claimed (Sometimes)" in out
    assert "P1 saw ready, and data was still 0" in out and "racevisor replay runs/message_passing/" in out
    saved = sorted((folder / "runs" / "message_passing").iterdir())
    (shrunk,) = [path for path in saved if path.stem.endswith("-shrunk")]
    saved.remove(shrunk)
    assert len(saved) == TRACES
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(saved[0]), "--json"])
    assert ended.value.code == 0


def test_live_json_has_rounds_bad_stuck_outcomes_traces(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stuck are the rounds whose end state was wrong."""
    played = rounds(good=3, bad=2)
    played[0].violations = [Violation("I-I2", "lost", (0,))]
    played[0].violations[0].step = 0
    status, out, _ = live(capsys, played, as_json=True)
    found = json.loads(out)
    assert status == 0
    assert (found["rounds"], found["bad"], found["stuck"], len(found["traces"])) == (5, 2, 1, 2)
    assert sum(found["outcomes"].values()) == 5
    assert found["run"] == FakeLive.run and found["rate"] > 0


def test_a_live_run_refutes_never_but_not_sometimes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not meeting a race proves nothing, and the text must not pretend it does."""
    status, out, _ = live(capsys, rounds(good=5, bad=0), variant="wmb")
    assert status == 0 and "Rounds prove nothing" in out
    status, out, _ = live(capsys, rounds(good=5, bad=0))
    assert status == 0 and "does not refute" in out
    honest = Path(EXAMPLE).read_text(encoding="utf-8")
    (folder / "never.py").write_text(honest.replace('claims={"*": {"pso": Sometimes}}', "claims={}"), encoding="utf-8")
    status, out, _ = live(capsys, rounds(good=5, bad=1), name="never.py")
    assert status == 1 and "claimed Never: refuted" in out


def test_ctrl_c_keeps_the_results_so_far(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An hour of rounds is not lost because somebody wants the terminal back."""
    status, out, _ = live(capsys, [*rounds(good=2, bad=1), KeyboardInterrupt()])
    assert status == 130
    assert "(interrupted after 3 rounds)" in out and "1 of 3 rounds bad" in out
    status, out, _ = live(capsys, [*rounds(good=2, bad=1), KeyboardInterrupt()], as_json=True)
    assert status == 130 and json.loads(out)["interrupted"] is True


def test_a_cluster_that_fails_keeps_the_results_so_far(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 4, the message, and the rounds that were played."""
    status, out, err = live(capsys, [*rounds(good=2, bad=1), ClusterError("host of vcpu1 died")])
    assert status == 4
    assert "1 of 3 rounds bad" in out and err == "racevisor: host of vcpu1 died\n"
    status, out, _ = live(capsys, [ClusterError("no answer")], as_json=True)
    assert status == 4 and json.loads(out)["error"] == "no answer" and json.loads(out)["rounds"] == 0


def test_traces_that_cannot_be_saved_lose_no_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk is no reason to forget what was seen."""
    (folder / "runs").write_text("in the way", encoding="utf-8")
    status, out, err = live(capsys, rounds(good=2, bad=3))
    assert status == 2
    assert "3 of 5 rounds bad" in out and "--trace-dir" in err


# ---- bad input ------------------------------------------------------------------------------------------------------------


BAD_INPUT = {
    "unknown scenario": (["explore", "nonsense"], "racevisor list|built in"),
    "unknown variant": (["explore", "init_sipi", "--variant", "never_heard"], "variants: before"),
    "unknown set-up": (["explore", "init_sipi", "--setup", "never_heard"], "set-ups: plain"),
    "unknown memory model": (["explore", "init_sipi", "--memory", "alpha"], "sc, tso, pso"),
    "unknown strategy": (["explore", "init_sipi", "--strategy", "luck"], "strategies: auto, states"),
    "the strategy of before": (["explore", "init_sipi", "--strategy", "dpor"], "--strategy optimal, or --strategy source"),
    "an option of another strategy": (["explore", "init_sipi", "--strategy", "states", "--depth", "2"], "--strategy auto or pct"),
    "no length of time": (["explore", "init_sipi", "--budget", "soon"], "--budget 60s"),
    "show an unknown variant": (["show", "init_sipi", "--variant", "x"], "variants: before"),
    "no such file": (["explore", "./mine.py"], "no scenario file"),
    "does not import": (["explore", "broken.py"], "line 2.*ModuleNotFoundError"),
    "no scenario in it": (["explore", "empty.py"], "defines 0 scenarios"),
    "it raises": (["explore", "raises.py"], r"scenario file raises\.py, line 9, in body: ZeroDivisionError"),
    "it raises in a worker": (["explore", "raises.py", "--jobs", "2"], r"raises\.py, line 9, in body: ZeroDivisionError"),
    "no such trace": (["replay", "none.trace"], "No such file"),
    "not a trace": (["replay", "broken.py"], "not a trace"),
    "unknown option": (["explore", "init_sipi", "--bla"], "racevisor explore --help"),
    "unknown command": (["frobnicate"], "racevisor --help"),
    "no argument": (["replay"], "FILE"),
    "not a number": (["explore", "init_sipi", "--runs", "many"], "many"),
}


@pytest.mark.parametrize("what", BAD_INPUT)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_bad_input_is_one_message_and_exit_status_2(racevisor: Shell, tmp_path: Path, what: str, as_json: bool) -> None:
    """What, where, and what to type next; with --json standard output is one object all the same."""
    import re

    (tmp_path / "broken.py").write_text("import os\nimport nothing_of_that_name\n", encoding="utf-8")
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    (tmp_path / "raises.py").write_text(
        "from racevisor import Scenario, Thread, Variant\nclass R(Scenario):\n"
        "    variants = {'v': Variant('v')}\n    def build(self, vm, setup):\n        vm.guest_memory(x=0)\n"
        "        Thread(vm, 'P0', body)\n\nasync def body(me):\n    1 / 0\n    await None\n",
        encoding="utf-8",
    )
    arguments, expected = BAD_INPUT[what]
    status, out, err = racevisor(*arguments, *(["--json"] if as_json else []))
    assert status == 2
    assert re.search(expected, err, re.DOTALL), err
    assert err.startswith("racevisor: ") and "Traceback" not in err
    if as_json:
        assert json.loads(out)["exit_status"] == 2
    else:
        assert out == ""


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """`racevisor show init_sipi | head -1` prints one line and nothing on standard error."""
    command = f"{sys.executable} -m racevisor.cli show init_sipi --json | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_a_dumb_terminal_gets_no_escape_and_no_box(tmp_path: Path) -> None:
    """Serial consoles and CI logs are where kernel people read."""
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "80", "FORCE_COLOR": "", "NO_COLOR": "1"}
    arguments = ["explore", EXAMPLE, "--variant", "plain", "--memory", "pso"]
    done = subprocess.run(
        [sys.executable, "-m", "racevisor.cli", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and done.stdout.isascii()


def test_the_story_is_the_docstring_of_the_file() -> None:
    """The author wrote it once."""
    from racevisor.commands.catalogue import story

    scenario, source = load(EXAMPLE)
    assert story(scenario, source).startswith("Message passing:")
