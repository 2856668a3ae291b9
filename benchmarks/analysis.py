"""`racevisor analyze` on a million events: CPU seconds and peak memory of the whole command, its start and imports included."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import against, say

#: How many events, and what the command may take for them: CPU seconds, and GiB.
EVENTS, SECONDS, GIB = 1_000_000, 60.0, 1.0
#: Two machines of two hosts each.
HOSTS = 2
CELLS = ("mp_state", "requests", "mode", "wait_task", "task_state", "pending_events")
OPS = ("load", "load", "load", "load", "rmw", "post", "store", "fence")
#: Events of a host in a round, and messages among them.
STEPS, MESSAGES = 100, 20


def main() -> None:
    """Make the logs, then analyze them: all questions, and then the Parquet file as well."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        events = make(directory / "logs", EVENTS)
        size = sum(file.stat().st_size for file in directory.rglob("*.jsonl"))
        say(f"{events:,} events in {size / 2**20:,.0f} MiB of JSON lines, 1 of 20,000 damaged")
        for what, options in (("all questions", []), ("and the Parquet file", ["--parquet", str(directory / "events.parquet")])):
            seconds, peak = measured(["analyze", str(directory / "logs"), *options])
            say(f"{what:>20}:  {seconds:5.1f} CPU s {against(SECONDS, seconds)},  peak {peak:4.2f} GiB {against(GIB, peak)}")


def measured(arguments: list[str]) -> tuple[float, float]:
    """CPU seconds, user and system, and peak resident memory in GiB, of a command in a process of its own."""
    with subprocess.Popen([sys.executable, "-m", "racevisor.cli", *arguments], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"racevisor {' '.join(arguments)} ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 2**30


def make(directory: Path, events: int) -> int:
    """Logs of a run before the patch and one after; returns how many events there are."""
    throw = random.Random(0)
    count = 0
    for variant in ("before", "latch"):
        folder = directory / variant
        folder.mkdir(parents=True)
        names = [f"host{host}" for host in range(HOSTS)]
        files = {name: (folder / f"{name}.jsonl").open("w", encoding="utf-8") for name in (*names, "driver")}
        case = {"scenario": "init_sipi", "variant": variant, "setup": "plain", "memory": "tso", "vcpus": 2, "placement": "packed"}
        said: list[dict[str, object]] = [{"event": "run", "round": 0, "clock": 0, **case, "hosts": names, "claimed": "Sometimes"}]
        number = 0
        while count < events // 2 * (1 + (variant == "latch")):
            bad = variant == "before" and throw.random() < 0.3
            for host, name in enumerate(names):
                for line in _host(throw, host, number, bad):
                    count += 1
                    text = json.dumps({"run": variant, **line, "level": "debug", "time": _time(number, line["clock"])})
                    files[name].write(text[:60] + "\n" if count % 20_000 == 0 else text + "\n")
            lost = [{"check": "I-I2", "text": "vcpu1's INIT is lost", "step": 40}] if bad else []
            over: dict[str, object] = {
                "event": "round",
                "round": number,
                "count": number + 1,
                "clock": 300,
                **case,
                "status": "terminal",
            }
            outcome = f"vcpu1 {'HALTED' if bad else 'RUNNABLE'} at CS base 0x9000"
            said.append(
                {**over, "outcome": outcome, "violations": lost, "waiting": [], "steps": 200, "messages": 80, "crossed": 40}
            )
            count += 1
            number += 1
        for line in said:
            time = _time(int(str(line["round"])), 300)
            files["driver"].write(json.dumps({"run": variant, **line, "level": "info", "time": time}) + "\n")
        for file in files.values():
            file.close()
    return count


def _host(throw: random.Random, host: int, number: int, bad: bool) -> Iterator[dict[str, object]]:
    """One round of one host: its steps, its messages, a tracepoint; the store that is raced for is early or late."""
    raced = 50 if (host == 0) == bad else 40
    for at in range(STEPS):
        owner = throw.randrange(2)
        cell = f"vcpu{owner}.{throw.choice(CELLS)}"
        actor = f"vcpu{host if throw.random() < 0.8 else 1 - host}"
        common = {"round": number, "actor": actor, "step": at, "clock": 2 * at + host}
        if at == raced and host == 1:
            value = "INIT_RECEIVED" if bad else "HALTED"
            common["actor"] = "vcpu0" if bad else "vcpu1"
            yield {
                "event": "step",
                **common,
                "channel": "x",
                "label": "x",
                "op": "store",
                "cell": "vcpu1.mp_state",
                "value": value,
            }
        op = throw.choice(OPS)
        value = str(throw.randrange(6))
        label = f"READ_ONCE({cell}) = {value}" if op == "load" else f"{cell} <- {value}"
        yield {"event": "step", **common, "channel": actor, "label": label, "op": op, "cell": cell, "value": value}
        if at < MESSAGES:
            here, there = f"{host}>{1 - host}", f"{1 - host}>{host}"
            yield {"event": "sent", **common, "message": "ACCESS", "channel": here, "n": at + 1, "op": "load", "cell": cell}
            yield {"event": "received", **common, "message": "ACCESS", "channel": there, "n": at + 1, "op": "load", "cell": cell}
        if at % 20 == 0:
            yield {"event": "kvm_exit", **common, "vcpu": host, "reason": "hlt"}


def _time(number: int, clock: object) -> str:
    millisecond = number * 10 + int(str(clock)) // 30
    seconds, rest = divmod(millisecond, 1_000)
    return f"2026-11-21T{12 + seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}000Z"


if __name__ == "__main__":
    main()
