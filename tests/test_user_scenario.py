"""A stranger's own scenario, in a folder of their own: by the command line, and by pytest through the Python API."""

import json
import os
import subprocess
import sys
from pathlib import Path

from racevisor.explore import cases, explore_case

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "message_passing.py"

LOST_WAKE_UP = '''
"""A sleeper checks for work, then goes to sleep; the waker brings work in between and finds nobody asleep."""
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, smp_mb
from racevisor import Scenario, Setup, Sometimes, Thread, Variant, Violation


async def prepare_late(memory):
    if await READ_ONCE(memory.work):
        return False
    await WRITE_ONCE(memory.asleep, 1)
    return True


async def prepare_early(memory):
    await WRITE_ONCE(memory.asleep, 1)  # set_current_state() comes first
    await smp_mb()
    if not await READ_ONCE(memory.work):
        return True
    await WRITE_ONCE(memory.asleep, 0)
    return False


async def sleeper(me):
    if await me.vm.calls.prepare(me.vm.memory):
        await await_eq(me.vm.memory.asleep, 0)


async def waker(me):
    await WRITE_ONCE(me.vm.memory.work, 1)
    await smp_mb()
    if await READ_ONCE(me.vm.memory.asleep):
        await WRITE_ONCE(me.vm.memory.asleep, 0)


class LostWakeUp(Scenario):
    """Nobody sleeps while there is work."""

    functions = {"prepare": prepare_late}
    setups = {"one": Setup("one sleeper, one waker")}
    variants = {
        "late": Variant("checks, then says that it sleeps", claims={"*": Sometimes}),
        "early": Variant("says that it sleeps, then checks", {"prepare": prepare_early}),
    }

    def build(self, vm, setup):
        vm.guest_memory(work=0, asleep=0)
        Thread(vm, "sleeper", sleeper)
        Thread(vm, "waker", waker)

    def stuck(self, vm):
        lost = vm.memory.work.value and vm.memory.asleep.value and "sleeper waits, and there is work"
        return [Violation("wake-up", lost)] if lost else []
'''


def racevisor(cwd: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command as a user types it, in their own folder, which holds a `scenarios` package of its own."""
    (cwd / "scenarios").mkdir(exist_ok=True)
    (cwd / "scenarios" / "__init__.py").write_text("raise SystemExit('the wrong scenarios')\n", encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "racevisor.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_example_is_short_enough_to_be_read() -> None:
    """It stands in the README."""
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 60
    assert len(LOST_WAKE_UP.splitlines()) < 60


def test_a_strangers_scenario_is_explored_from_a_foreign_folder(tmp_path: Path) -> None:
    """By path, with worker processes, next to a `scenarios` package that is not ours."""
    (tmp_path / "wake.py").write_text(LOST_WAKE_UP, encoding="utf-8")
    done = racevisor(tmp_path, "explore", "wake.py", "--jobs", "2", "--json")
    assert done.returncode == 0, done.stderr
    claims = json.loads(done.stdout)["claims"]
    assert all(c["verdict"] == "exhausted" for c in claims if c["found"] == "Never")
    assert [(c["variant"], c["memory"], c["found"]) for c in claims] == [
        (variant, memory, found)
        for variant, found in (("late", "Sometimes"), ("early", "Never"))
        for memory in ("sc", "tso", "pso")
    ]
    shown = racevisor(tmp_path, "explore", "./wake.py", "--variant", "late", "--memory", "tso")
    assert shown.returncode == 0
    assert "wake-up: sleeper waits, and there is work" in shown.stdout
    assert "racevisor replay runs/wake/late-one-tso.trace" in shown.stdout


def test_a_strangers_scenario_is_a_test_of_theirs() -> None:
    """Without the command line: load, search, assert; before and after."""
    for case in cases(str(EXAMPLE)):
        verdict = explore_case(case)
        assert verdict.confirmed, f"{case}: claimed {verdict.claimed}, found {verdict.found} ({verdict.verdict})"


def test_replay_of_a_trace_is_identical_under_another_hash_seed(tmp_path: Path) -> None:
    """The order of a set or the value of a hash may decide no step."""
    found = racevisor(tmp_path, "explore", str(EXAMPLE), "--variant", "plain", "--memory", "pso", PYTHONHASHSEED="0")
    assert found.returncode == 0, found.stderr
    outputs = set()
    for seed in ("1", "2", "3", "4", "5"):
        path = "runs/message_passing/plain-default-pso.trace"
        done = racevisor(tmp_path, "replay", path, "--json", PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["identical"] is True
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_the_same_search_finds_the_same_trace_under_another_hash_seed(tmp_path: Path) -> None:
    """The same seed gives the same run on any machine."""
    recorded = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        arguments = ["explore", "init_sipi", "--variant", "before", "--setup", "plain", "--memory", "tso"]
        done = racevisor(tmp_path, *arguments, "--trace-dir", str(folder), PYTHONHASHSEED=seed)
        assert done.returncode in (0, 1), done.stderr
        recorded.add((folder / "before-plain-tso.trace").read_bytes())
    assert len(recorded) == 1
