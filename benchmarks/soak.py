"""Rounds of a big machine for minutes, with the memory of every process looked at: does anything grow, does any message get lost?

    python -m benchmarks soak --minutes 10 --vcpus 256

Memory is what a process has for itself (USS) and what it has in all (RSS).  The first quarter is the warm-up; after it the
median of the last quarter may be at most 2 % or 2 MB above that of the second.  A message is accounted for if, when its round
ends, its receiver has counted what its sender has, by pairs of hosts; and the World repeats every round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import say
from cluster.conductor import Conductor
from cluster.live import LiveOptions, LiveRun
from racevisor.rounds import Tally
from racevisor.scenario import Case, load

MB = 2**20
SHARE, LEAST = 0.02, 2 * MB
#: Pairs that the slope is taken from, at most so many samples.
SAMPLES = 200


def slope(samples: list[tuple[float, float]]) -> float:
    """Theil and Sen: the median of the slopes of all pairs; outliers do not move it."""
    thin = samples[:: len(samples) // SAMPLES + 1]
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(thin) for b in thin[i + 1 :] if b[0] > a[0]]
    return statistics.median(pairs) if pairs else 0.0


class Accounts:
    """Parts that hosts have sent to and got from each other in finished rounds, as they counted them."""

    def __init__(self, conductor: Conductor) -> None:
        self.sent = self.received = 0
        self.unequal: list[int] = []
        collect = conductor.collect

        def look(vm: int, number: int) -> None:
            counts = conductor.plays[vm].counts
            hosts = range(conductor.hosts)
            sent = [counts.sent[i][j] for i in hosts for j in hosts if i != j]
            received = [counts.received[j][i] for i in hosts for j in hosts if i != j]
            self.sent += sum(sent)
            self.received += sum(received)
            if sent != received:
                self.unequal.append(number)
            collect(vm, number)

        conductor.collect = look  # type: ignore[method-assign]


def watch(seen: dict[str, list[tuple[float, float, float]]], pids: dict[str, int], begun: float) -> None:
    """One sample of every process: (seconds, USS, RSS)."""
    import psutil  # type: ignore[import-untyped, import-not-found, unused-ignore]  # Ray's own

    for name, pid in {"driver": psutil.Process().pid, **pids}.items():
        memory = psutil.Process(pid).memory_full_info()
        seen.setdefault(name, []).append((time.perf_counter() - begun, memory.uss, memory.rss))


def verdict(name: str, samples: list[tuple[float, float, float]]) -> bool:
    """Print how the memory of a process went; is it flat?"""
    n = len(samples)
    flat = True
    for kind, at in (("USS", 1), ("RSS", 2)):
        values = [sample[at] for sample in samples]
        early, late = statistics.median(values[n // 4 : n // 2]), statistics.median(values[3 * n // 4 :])
        grown = late - early
        rate = slope([(sample[0], sample[at]) for sample in samples[n // 4 :]]) * 60
        well = grown <= max(LEAST, SHARE * early)
        flat = flat and well
        say(
            f"  {name:8} {kind} {values[0] / MB:7.1f} MB at first, {early / MB:7.1f} in the second quarter,"
            f" {late / MB:7.1f} in the last: {grown / MB:+.2f} MB, slope {rate / MB:+.3f} MB/min{'' if well else '  GROWS'}"
        )
    return flat


def main(arguments: list[str]) -> int:
    """Returns the exit status: 1 if something grew or got lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--vcpus", type=int, default=256)
    parser.add_argument("--hosts", type=int)
    parser.add_argument("--vms", type=int, default=1)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks")
    asked = parser.parse_args(arguments)
    scenario, source = load("init_sipi")
    case = Case(scenario, source, "latch", "plain", "tso", min(asked.vcpus, scenario.max_vcpus))
    seen: dict[str, list[tuple[float, float, float]]] = {}
    paces: list[tuple[float, float]] = []  # rounds a second, over time
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        where = Path(directory)
        options = LiveOptions(
            rounds=2**53, duration=asked.minutes * 60, placement="packed", hosts=asked.hosts, vms=asked.vms, log_dir=where,
            bounded_log=True,
        )  # fmt: skip
        tally = Tally(case, 0, where, where)
        with LiveRun(case, options) as run:
            assert run.hosts is not None and run.hosts.conductor is not None
            accounts = Accounts(run.hosts.conductor)
            say(f"{case}, {run.plan}")
            begun = looked = time.perf_counter()
            before = 0
            for played in run.rounds():
                tally.add(played)
                now = time.perf_counter()
                if now - looked >= asked.every:
                    paces.append((now - begun, (tally.rounds - before) / (now - looked)))
                    looked, before = now, tally.rounds
                    watch(seen, run.pids, begun)
            seconds = time.perf_counter() - begun
    say(
        f"{tally.rounds} rounds in {seconds:.0f} s, {tally.rounds / seconds:.2f} rounds/s, {tally.messages:,} messages, "
        f"{tally.crossed:,} of them between processes, {tally.bad} bad, {len(run.aborted)} aborted"
    )
    whole = not accounts.unequal and accounts.sent == accounts.received
    say(f"  parts sent {accounts.sent:,}, received {accounts.received:,}{'' if whole else f'  LOST in {accounts.unequal[:9]}'}")
    if len(paces) < 8:
        say("  too short to say whether anything grows")
        return 1
    flat = [verdict(name, samples) for name, samples in seen.items()]
    say(f"  pace     slope {slope(paces[len(paces) // 4 :]) * 60:+.3f} rounds/s per minute")
    return 0 if whole and all(flat) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
