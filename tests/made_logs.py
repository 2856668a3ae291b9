"""Logs made up for tests, in the form in which hosts and the driver write them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CASE = {"scenario": "init_sipi", "variant": "before", "setup": "plain", "memory": "tso", "vcpus": 2, "placement": "packed"}
INIT = {"actor": "vcpu0", "op": "store", "cell": "vcpu1.mp_state", "value": "INIT_RECEIVED"}
HALT = {"actor": "vcpu1", "op": "store", "cell": "vcpu1.mp_state", "value": "HALTED"}
LOST = {"check": "I-I2", "text": "vcpu1's INIT is lost", "step": 1}
STUCK = {"check": "I-L1", "text": "vcpu1 waits for an interrupt", "step": None}


def moment(seconds: float) -> str:
    """So many seconds after noon."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    fraction = round((seconds - whole) * 1e6)
    return f"2026-11-21T{12 + hours:02}:{rest // 60:02}:{rest % 60:02}.{fraction:06}Z"


class Made:
    """A directory of logs of one run."""

    def __init__(self, directory: Path, run: str = "r1", **case: Any) -> None:
        self.directory = directory
        self.run = run
        self.case = {**CASE, **case}
        self.lines: dict[str, list[str]] = {}

    def write(self, host: str, event: str, /, **fields: Any) -> None:
        """One line of a host's log."""
        line = {"run": self.run, **fields, "event": event, "level": "debug", "time": moment(fields.pop("at", 0.0))}
        line.pop("at", None)
        self.lines.setdefault(host, []).append(json.dumps(line))

    def begun(self, hosts: Iterable[str] = ("host0", "host1"), claimed: str = "Sometimes") -> "Made":
        """The first line of the driver's log."""
        self.write("driver", "run", round=0, actor="", step=0, clock=0, **self.case, hosts=list(hosts), claimed=claimed)
        return self

    def round(self, number: int, outcome: str = "good", violations: Iterable[Mapping[str, Any]] = (), **fields: Any) -> None:
        """A round that is over."""
        said = {
            "status": "terminal",
            "waiting": [],
            "steps": 2,
            "messages": 4,
            "crossed": 2,
            "seconds": 0.01,
            "clock": 9,
            **fields,
        }
        self.write(
            "driver", "round", round=number, count=number + 1, actor="", step=2, **self.case, outcome=outcome,
            violations=list(violations), **said,
        )  # fmt: skip

    def steps(self, number: int, *steps: Mapping[str, Any], host: str = "host0", clock: int = 1) -> None:
        """Steps of one host, one after the other."""
        for at, step in enumerate(steps):
            said = {"channel": step["actor"], "label": f"{step['cell']} <- {step.get('value')}", **step}
            self.write(host, "step", round=number, step=at, clock=clock + at, **said)

    def save(self) -> Path:
        """All of it in files."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for host, lines in self.lines.items():
            (self.directory / f"{host}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return self.directory


def race(directory: Path, bad: int, good: int, **case: Any) -> Path:
    """Rounds in which the INIT came first, which are bad, and rounds in which vcpu1 halted first."""
    made = Made(directory, **case).begun()
    for number in range(bad + good):
        lost = number < bad
        made.steps(number, *((INIT, HALT) if lost else (HALT, INIT)))
        made.round(number, "lost" if lost else "good", [LOST] if lost else [], at=float(number))
    return made.save()
