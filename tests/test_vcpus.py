"""--vcpus: a scenario that scales is built, searched, recorded, replayed and judged with as many vCPUs as were asked for."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from racevisor import trace
from racevisor.cli import main
from racevisor.commands.output import reenact
from racevisor.errors import TraceError, UsageError
from racevisor.explore import cases, explore_case
from racevisor.scenario import Case

EXAMPLE = str(Path(__file__).resolve().parent.parent / "examples" / "message_passing.py")


def one(variant: str, setup: str, memory: str = "sc", vcpus: int | None = None) -> Case:
    (case,) = cases("init_sipi", [variant], [setup], [memory], vcpus)
    return case


def test_a_scenario_makes_as_many_vcpus_as_it_is_asked_for() -> None:
    """And as many monitors for each, and more steps before an execution counts as endless."""
    two, five = one("latch", "irq"), one("latch", "irq", vcpus=5)
    assert (two.vcpus, five.vcpus) == (2, 5)
    small, big = two.world(), five.world()
    assert [thread.actor.name for thread in small.threads] == ["vcpu0", "vcpu1", "timer0"]
    assert [vcpu.name for vcpu in big.vm.vcpus] == ["vcpu0", "vcpu1", "vcpu2", "vcpu3", "vcpu4"]
    assert [device.name for device in big.vm.devices] == ["timer0", "timer1", "timer2", "timer3"]
    assert len(big.monitors) == 4 * len(small.monitors)
    assert (small.max_steps, big.max_steps) == (5_000, 12_500)


def test_every_target_is_judged() -> None:
    """Each of the three is lost on some schedule, not only the first."""
    lost = set()
    for seed in range(3):
        verdict = explore_case(one("before", "plain", vcpus=4), strategy="random", runs=150, seed=seed)
        groups = [group.partition(" HALTED") for outcome in verdict.outcomes for group in outcome.split("; ")]
        lost |= {name for names, halted, _ in groups if halted for name in names.split(", ")}
    assert {"vcpu1", "vcpu2", "vcpu3"} <= lost


@pytest.mark.parametrize("setup", ["plain", "irq", "init_only", "two_rounds", "stale_sipi", "bsp_init", "migration"])
def test_every_setup_runs_with_three_vcpus(setup: str) -> None:
    """The claimed word is the same; a few walks must not contradict it."""
    case = one("latch", setup, "tso", vcpus=3)
    verdict = explore_case(case, strategy="random", runs=30)
    assert verdict.found == case.claimed == "Never"
    assert sum(verdict.outcomes.values()) == 30, "every walk ends"


def test_a_number_that_a_scenario_cannot_have_is_one_sentence() -> None:
    """And it says what to type."""
    with pytest.raises(UsageError, match=r"does not scale; 3 were asked for\n.*max_vcpus"):
        cases(EXAMPLE, vcpus=3)
    assert cases(EXAMPLE, vcpus=2)
    for wrong in (1, 1025):
        with pytest.raises(UsageError, match=f"2 to 1024 vCPUs; {wrong} were asked for"):
            cases("init_sipi", vcpus=wrong)


def test_the_command_line_explores_records_and_replays_more_vcpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The number is in the verdict, in the file's name, in the trace, and in the line to paste."""
    cell = ["mmu_notifier", "--variant", "before", "--setup", "munmap", "--memory", "sc"]
    with pytest.raises(SystemExit) as ended:
        main(["explore", *cell, "--vcpus", "3", "--trace-dir", str(tmp_path), "--json"])
    assert ended.value.code == 0
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    assert claim["vcpus"] == 3
    assert claim["trace"] == str(tmp_path / "before-munmap-sc-3vcpus.trace")
    with pytest.raises(SystemExit) as ended:
        main(["replay", claim["trace"]])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "mmu_notifier before/munmap/sc with 3 vCPUs: replayed" in shown
    assert f"racevisor run {' '.join(cell)} --vcpus 3" in shown


def test_a_trace_of_the_version_without_the_number_is_still_read(tmp_path: Path) -> None:
    """It was recorded with the scenario's own number; one that says otherwise in either version is refused."""
    case = one("before", "plain")
    witness = explore_case(case).witness
    assert witness is not None
    recorded = trace.record(
        case,
        witness.schedule,
        outcome=witness.outcome,
        status=witness.status,
        violations=witness.violations,
        seed=0,
        strategy="states",
        recorded_by=trace.EXPLORE,
    )
    assert recorded.vcpus == 2
    fields: dict[str, Any] = trace._to_map(recorded)
    with pytest.raises(TraceError, match="damaged"):
        trace.loads(_sealed(fields, version=1), tmp_path)
    with pytest.raises(TraceError, match="number of vCPUs"):
        trace.loads(_sealed({**fields, "vcpus": 0}, version=2), tmp_path)
    del fields["vcpus"]
    with pytest.raises(TraceError, match="damaged"):
        trace.loads(_sealed(fields, version=2), tmp_path)
    old = trace.loads(_sealed(fields, version=1), tmp_path)
    assert old.vcpus is None
    again = trace.case_of(old, tmp_path)
    assert again.vcpus == 2
    _, execution = reenact(again, old.picks)
    assert [v.check for v in execution.violations] == ["I-I2"]


def _sealed(fields: dict[str, Any], version: int) -> bytes:
    body = msgpack.packb(fields)
    header = {"format": trace.FORMAT, "version": version, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    return bytes(msgpack.packb(header)) + bytes(body)
