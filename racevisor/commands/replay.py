"""`racevisor replay FILE`: run a trace again, compare every step, draw it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text

from racevisor import trace
from racevisor.api import replay
from racevisor.commands.output import (
    console,
    error_line,
    print_json,
    print_paste_lines,
    print_picture,
    quiet_if,
    violation_json,
)
from racevisor.commands.why import print_reason
from racevisor.errors import NotDeterministic
from racevisor.explore import witness
from racevisor.reason import Wish, reason
from racevisor.scenario import Case
from racevisor.trace import Trace
from racevisor.world import Execution

#: Plays the picks of a case on Ray; the execution, and where its actors were.
OnRay = Callable[[Case, list[tuple[str, str]]], tuple[Execution, str]]


def replay_trace(
    file: Path, scenario: str | None, full: bool, as_json: bool, on_ray: OnRay | None = None, wish: Wish | None = None
) -> int:
    """Returns the exit status: 0 identical, 3 not.  What is drawn is shrunk as `wish` says; what is compared is not."""
    wish = wish or Wish()
    with quiet_if(as_json):
        again = replay(file, scenario)
        recorded, case, world, execution, difference = again.recorded, again.case, again.world, again.execution, again.difference
        placement = ""
        if on_ray is not None and execution is not None and not difference:
            try:
                live, placement = on_ray(case, recorded.picks)
                difference = _compare_live(live, execution)
            except NotDeterministic as error:
                difference = str(error).rstrip()
    if difference or world is None or execution is None:
        return _diverged(recorded, file, f"{difference}{_machines(recorded)}", as_json, execution)
    if as_json:
        print_json({**_as_json(recorded, file, execution, None), **({"on_ray": placement} if placement else {})})
        return 0
    out = console()
    steps = len(execution.steps)
    out.print(Text(f"{case}: replayed {steps} steps, identical: yes", style="bold"), soft_wrap=True)
    if placement:
        out.print(Text(f"on Ray as well, each step in its order, to the same end; {placement}", style="bold"), soft_wrap=True)
    out.print(Text(f"recorded by {recorded.recorded_by}, strategy {recorded.strategy}, seed {recorded.seed}", style="dim"))
    out.print()
    if execution.bad and wish.shrink:
        was_live = recorded.recorded_by == trace.LIVE
        print_reason(out, reason(case, witness(execution), wish, past_violations=was_live), full=full)
    else:
        print_picture(out, case, world, execution, full=full)
    print_paste_lines(out, case, None)
    return 0


def _compare_live(live: Execution, execution: Execution) -> str:
    """What differs between the run on Ray and the one here, or nothing; its steps were compared one by one."""
    # Where a search stopped at a broken check, the hosts are judged by the same steps.
    if live.outcome is not None and execution.outcome is not None and str(live.outcome) != str(execution.outcome):
        return f"on Ray the run ended with {live.outcome!r}, here with {execution.outcome!r}"
    return ""


def _machines(recorded: Trace) -> str:
    then, now = recorded.machine_sha256, trace.machine_digest()
    if then == now:
        return "\n  the machine is the one it was recorded on: something in this scenario is not deterministic"
    command = f"racevisor {_again(recorded)}"
    return f"\n  recorded on actors@{then[:7]}, running actors@{now[:7]}\n  record it again:  {command}"


def _again(recorded: Trace) -> str:
    command = "run" if recorded.recorded_by == trace.LIVE else "explore"
    vcpus = "" if recorded.vcpus is None else f" --vcpus {recorded.vcpus}"
    return f"{command} {recorded.path} --variant {recorded.variant} --setup {recorded.setup} --memory {recorded.memory}{vcpus}"


def _diverged(recorded: Trace, file: Path, message: str, as_json: bool, execution: Execution | None) -> int:
    if as_json:
        print_json(_as_json(recorded, file, execution, message))
    else:
        console().print(Text(f"{recorded.scenario}: identical: no", style="bold red"))
    error_line(message)
    return NotDeterministic.exit_status


def _as_json(recorded: Trace, file: Path, execution: Execution | None, difference: str | None) -> dict[str, Any]:
    violations = execution.violations if execution else []
    return {
        "identical": difference is None,
        "steps": len(execution.steps) if execution else 0,
        "bad": bool(violations) if execution else recorded.bad,
        "outcome": str(execution.outcome) if execution else recorded.outcome,
        "violations": [violation_json(v) for v in violations],
        "status": execution.status if execution else recorded.status,
        "scenario": recorded.scenario,
        "variant": recorded.variant,
        "setup": recorded.setup,
        "memory": recorded.memory,
        "vcpus": recorded.vcpus,
        "recorded_by": recorded.recorded_by,
        "trace": str(file),
        **({"error": difference} if difference else {}),
    }
